"""Agents that negotiate, on a whole network in one process and virtual time: calls for proposals, and what goes wrong in them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bargain import bidder, events, open_at, price, refusals
from node_stage import Stage, staged_on, until
from test_node_network import Net

from comity.agent import Agent
from comity.errors import (
    BadInput,
    Conflict,
    NoAgent,
    PeerLost,
    TaskFailed,
    TimedOut,
    UnknownCapability,
)
from comity.handles import Attempt
from comity.message import Message
from comity.sim.loop import VirtualLoop
from comity.talking import Award, Proposal

staged = staged_on(VirtualLoop)


@staged
async def test_the_cheapest_of_three_gets_the_work(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3), bidder("bob", 1)], n2=[bidder("cid", 2)])
    award = await net.client.call_for_proposals("dig", {"depth": 5}, rank=price)
    assert award[:3] == ("n1/bob", {"price": 1}, "bob dug 5")
    assert [(p.agent, p.body["price"]) for p in award.proposals] == [("n1/bob", 1), ("n2/cid", 2), ("n1/ann", 3)]
    await until(lambda: not open_at(net))
    await net.down()


@staged
async def test_without_a_rank_the_first_to_come_wins(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 1, slow_s=0.2), bidder("bob", 9)])
    assert (await net.client.call_for_proposals(["ann", "bob"], {"depth": 5}, topic="dig")).agent == "n1/bob"
    await net.down()


@staged
async def test_the_call_ends_once_all_have_answered_or_at_its_deadline(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3), bidder("slow", 1, slow_s=5)])
    loop = asyncio.get_running_loop()
    before = loop.time()
    await net.client.call_for_proposals(["ann"], {"depth": 5}, topic="dig", deadline_s=30)
    assert loop.time() - before < 1
    award = await net.client.call_for_proposals("dig", {"depth": 5}, rank=price, deadline_s=2)
    assert 2 <= loop.time() - before < 3
    assert (award.agent, "did not reply" in award.refused["n1/slow"]) == ("n1/ann", True)
    await until(lambda: not stage.nodes[0].messages.calls)
    assert not open_at(net)
    await net.down()


@staged
async def test_who_refuses_does_not_bid_or_cannot_is_out(stage: Stage) -> None:
    silent = Agent("silent")

    @silent.capability
    async def dig(depth: int) -> str:
        return "never asked"

    net = await Net(stage).up(n1=[bidder("ann", 3), silent, bidder("odd", 0, says={"prize": 1})])
    award = await net.client.call_for_proposals("dig", {"depth": 5}, rank=price)
    assert award.agent == "n1/ann"
    assert "no function" in award.refused["n1/silent"]
    assert "KeyError" in award.refused["n1/odd"]
    with pytest.raises(NoAgent, match="not upwards") as caught:
        await net.client.call_for_proposals(["ann"], {"depth": -5}, topic="dig")
    assert caught.value.details["refusals"]["n1/ann"] == "not upwards"
    with pytest.raises(NoAgent, match="no acceptable"):
        await net.client.call_for_proposals("dig", {"depth": 5}, rank=lambda _: None)
    with pytest.raises(UnknownCapability):
        await net.client.call_for_proposals("fly")
    with pytest.raises(BadInput, match="topic"):
        await net.client.call_for_proposals(["ann"])
    await until(lambda: not open_at(net))
    await net.down()


@staged
async def test_bad_input_to_a_bid_is_not_understood(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    with pytest.raises(NoAgent, match="depth"):
        await net.client.call_for_proposals("dig", {"depth": "deep"})
    assert not open_at(net)
    await net.down()


@staged
async def test_a_bidder_that_dies_in_mid_auction_is_out_and_the_others_go_on(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3, slow_s=2)], n2=[bidder("bob", 1, slow_s=4)])
    began = asyncio.get_running_loop().time()
    auction = asyncio.ensure_future(net.client.call_for_proposals("dig", {"depth": 5}, rank=price, deadline_s=30))
    await until(lambda: open_at(net) == 2)
    stage.network.disconnect(stage.nodes[1].node)
    award = await auction
    assert (award.agent, award.result) == ("n1/ann", "ann dug 5")
    assert "n2/bob" in award.refused
    assert asyncio.get_running_loop().time() - began < 10
    await net.down()


@staged
async def test_a_winner_that_dies_is_a_typed_error(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3)], n2=[bidder("bob", 1, work_s=60)])
    began = asyncio.get_running_loop().time()
    auction = asyncio.ensure_future(net.client.call_for_proposals("dig", {"depth": 5}, rank=price))
    await until(lambda: "REQUEST" in [call.envelope.performative.name for call in stage.nodes[1].messages.calls.values()])
    stage.network.disconnect(stage.nodes[1].node)
    with pytest.raises(PeerLost):
        await auction
    assert asyncio.get_running_loop().time() - began < 10
    await net.down()


@staged
async def test_if_it_may_be_repeated_the_next_best_does_it(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3), bidder("cid", 2)], n2=[bidder("bob", 1, work_s=60)])
    auction = asyncio.ensure_future(net.client.call_for_proposals("dig", {"depth": 5}, rank=price, repeatable=True))
    await until(lambda: "REQUEST" in [call.envelope.performative.name for call in stage.nodes[1].messages.calls.values()])
    stage.network.disconnect(stage.nodes[1].node)
    award = await auction
    assert (award.agent, award.result) == ("n1/cid", "cid dug 5")
    assert award.refused["n2/bob"]
    await until(lambda: not len(stage.nodes[0].messages.conversing))
    await net.down()


@staged
async def test_work_that_three_nodes_died_of_takes_down_no_fourth(stage: Stage) -> None:
    diggers = {f"n{number}": [bidder(f"ann{number}", number, work_s=60)] for number in range(1, 5)}
    net = await Net(stage).up(**diggers)
    auction = asyncio.ensure_future(net.client.call_for_proposals("dig", {"depth": 5}, rank=price, repeatable=True))
    for node in stage.nodes[:3]:
        await until(lambda node=node: bool([c for c in node.messages.calls.values() if c.envelope.performative == "request"]))
        stage.network.disconnect(node.node)
    with pytest.raises(PeerLost, match="ann3"):
        await auction
    assert not stage.nodes[3].messages.calls
    await net.down()


@staged
async def test_work_that_fails_or_is_late_says_so(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3), bidder("bob", 1, work_s=30)])
    with pytest.raises(TaskFailed, match="too deep"):
        await net.client.call_for_proposals(["ann"], {"depth": 500}, topic="dig")
    with pytest.raises(TimedOut):
        await net.client.call_for_proposals(["bob"], {"depth": 5}, topic="dig", timeout=1)
    await until(lambda: not stage.nodes[0].messages.calls)
    award = await net.client.call_for_proposals("dig", {"depth": 5}, rank=price, timeout=1, repeatable=True)
    assert award.agent == "n1/ann"
    assert not open_at(net)
    await net.down()


@staged
async def test_whoever_gives_up_an_auction_calls_it_off(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3), bidder("bob", 1, slow_s=30)])
    async with events(net) as seen:
        auction = asyncio.ensure_future(net.client.call_for_proposals("dig", {"depth": 5}, deadline_s=60))
        await until(lambda: open_at(net) == 2)
        auction.cancel()
        await until(lambda: not open_at(net) and not stage.nodes[0].messages.calls)
        await asyncio.sleep(1)
        assert not refusals(seen)
    await net.down()


@staged
async def test_an_iterated_call_bargains(stage: Stage) -> None:
    agent = Agent("ann")

    @agent.capability
    async def dig(depth: int, at_most: float = 99) -> str:
        return f"dug for {at_most}"

    @agent.bid("dig")
    async def offer(message: Message, depth: int, at_most: float = 99) -> dict[str, float]:
        return {"price": min(10, at_most)}

    def again(proposals: list[Proposal]) -> Any:
        best = proposals[0].body["price"]
        return {"depth": 5, "at_most": best - 3} if best > 5 else None

    net = await Net(stage).up(n1=[agent, bidder("bob", 50)])
    award = await net.client.call_for_proposals("dig", {"depth": 5}, rank=price, again=again)
    assert (award.agent, award.proposal, award.result) == ("n1/ann", {"price": 4}, "dug for 4.0")
    assert not open_at(net)
    await net.down()


@staged
async def test_an_agent_can_call_while_it_works(stage: Stage) -> None:
    boss = Agent("boss")

    @boss.capability
    async def build(attempt: Attempt) -> str:
        award: Award = await attempt.call_for_proposals("dig", {"depth": 1}, rank=price)
        return str(award.result)

    net = await Net(stage).up(n1=[boss, bidder("ann", 3)], n2=[bidder("bob", 1)])
    assert await (await net.client.submit("build")).result() == "bob dug 1"
    assert await net.client.request("build") == "bob dug 1"
    assert not open_at(net)
    await net.down()


@staged
async def test_bids_may_be_made_by_hand(stage: Stage) -> None:
    agent = Agent("ann")
    heard: list[str] = []

    @agent.on("cfp")
    async def bid(message: Message) -> dict[str, int]:
        return {"price": 1}

    @agent.on("request")
    async def work(message: Message) -> str:
        heard.append("accepted")
        return "done"

    @agent.on("reject-proposal")
    async def lost(message: Message) -> None:
        heard.append("rejected")

    net = await Net(stage).up(n1=[agent, bidder("bob", 5)])
    both = ["ann", "bob"]
    assert (await net.client.call_for_proposals(both, {"depth": 1}, topic="dig", rank=price)).result == "done"
    assert (await net.client.call_for_proposals(both, {"depth": 1}, topic="dig", rank=lambda p: -price(p))).agent == "n1/bob"
    await until(lambda: heard == ["accepted", "rejected"])
    await net.down()


@staged
async def test_a_paused_bidder_refuses_what_it_has_proposed(stage: Stage) -> None:
    ann = bidder("ann", 1)
    net = await Net(stage).up(n1=[ann, bidder("bob", 2)])

    def rank(proposal: Proposal) -> float:
        ann.update(status="paused")
        return price(proposal)

    with pytest.raises(NoAgent, match="paused"):
        await net.client.call_for_proposals(["ann", "bob"], {"depth": 1}, topic="dig", rank=rank)
    award = await net.client.call_for_proposals(["ann", "bob"], {"depth": 1}, topic="dig", rank=rank, repeatable=True)
    assert award.agent == "n1/bob"
    assert (await net.client.call_for_proposals("dig", {"depth": 1})).agent == "n1/bob"
    with pytest.raises(NoAgent, match="active"):
        stage.nodes[0].find("bob").update(status="paused")
        await until(lambda: all(a.status == "paused" for a in net.client.directory.discover("dig")))
        await net.client.call_for_proposals("dig", {"depth": 1})
    await net.down()


@staged
async def test_a_proposal_binds_for_a_minute(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 1), bidder("bob", 2, work_s=70)])
    with pytest.raises(TimedOut):  # ann's proposal is not held for so long
        await net.client.call_for_proposals(
            ["bob", "ann"], {"depth": 1}, topic="dig", rank=lambda p: -price(p), repeatable=True, timeout=65
        )
    assert not open_at(net)
    await net.down()


def test_a_twin_bids_lends_and_brokers_too() -> None:
    ann = bidder("ann", 3)
    ann.lend("gpu", 2)
    ann.broker(lambda capability, agents: agents[0])
    twin = ann.twin("eve")
    assert (twin.bids, twin.lends, twin.brokers) == (ann.bids, ann.lends, ann.brokers)
    with pytest.raises(Conflict, match="bids"):
        twin.bid("dig")(lambda depth: depth)
    with pytest.raises(BadInput):
        twin.lend("gpu", -1)
