"""Agents that negotiate, on a whole network in one process and virtual time: calls for proposals, and what goes wrong in them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from node_stage import Caller, Stage, staged_on, until
from test_node_network import Net

from comity.agent import Agent
from comity.errors import (
    BadInput,
    Conflict,
    NoAgent,
    OutOfProtocol,
    PeerLost,
    Refuse,
    TaskFailed,
    TimedOut,
    UnknownCapability,
)
from comity.handles import Attempt, Message
from comity.model.envelope import Performative
from comity.sim.loop import VirtualLoop
from comity.talking import Award, Proposal

staged = staged_on(VirtualLoop)


def bidder(name: str, price: float, *, slow_s: float = 0.0, work_s: float = 0.0, says: Any = None) -> Agent:
    """It offers to dig, and asks ``price`` for that, or says something else. Its work is its name."""
    agent = Agent(name)

    @agent.capability
    async def dig(depth: int) -> str:
        await asyncio.sleep(work_s)
        if depth > 100:
            raise ValueError("too deep")
        return f"{name} dug {depth}"

    @agent.bid("dig")
    async def offer(depth: int) -> Any:
        await asyncio.sleep(slow_s)
        if depth < 0:
            raise Refuse("not upwards")
        return says or {"price": price}

    return agent


def price(proposal: Proposal) -> float:
    return float(proposal.body["price"])


def open_at(net: Net) -> int:
    return sum(len(node.messages.conversing) for node in net.stage.nodes)


@asynccontextmanager
async def events(net: Net) -> AsyncGenerator[list[dict[str, Any]], None]:
    """What the network tells while the block lasts."""
    seen: list[dict[str, Any]] = []

    async def follow() -> None:
        async for event in net.client.events():
            seen.append(event)

    following = asyncio.ensure_future(follow())
    await net.client.stats()
    await asyncio.sleep(0.1)
    try:
        yield seen
    finally:
        following.cancel()


def refusals(seen: list[dict[str, Any]]) -> list[str]:
    return [event["reason"] for event in seen if event["type"] == "message.refused"]


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


CFP: dict[str, Any] = {"performative": "cfp", "topic": "dig", "protocol": "fipa-contract-net", "conversation": "c"}


def by_hand(says: str, **fields: Any) -> dict[str, Any]:
    given = {**CFP, **fields, "performative": Performative(says)}
    return {name: value for name, value in given.items() if value is not None}


@staged
@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ([by_hand("accept-proposal")], "no conversation"),
        ([by_hand("inform")], "no conversation"),
        ([by_hand("cfp", protocol="fipa-tango")], "no protocol"),
        ([by_hand("cfp"), by_hand("cfp")], "out of protocol"),
        ([by_hand("cfp"), by_hand("inform")], "out of protocol"),
        ([by_hand("cfp"), by_hand("reject-proposal"), by_hand("accept-proposal")], "over"),
        ([by_hand("cfp"), by_hand("cfp", protocol="fipa-subscribe")], "not a fipa-subscribe"),
        ([by_hand("cfp", remaining_ms=1000), None, by_hand("accept-proposal")], "expired"),
    ],
)
async def test_what_is_out_of_protocol_is_not_understood_and_told(stage: Stage, said: list[Any], reason: str) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    caller = await Caller.join(stage, "raw")
    async with events(net) as seen:
        for fields in said:
            if fields is None:
                await asyncio.sleep(100)
            else:
                await caller.send("n1/ann", {"depth": 1}, **fields)
                await asyncio.sleep(0.1)
        await until(lambda: any(e.performative is Performative.NOT_UNDERSTOOD for e in caller.got))
        answer = next(e for e in caller.got if e.performative is Performative.NOT_UNDERSTOOD)
        assert reason in answer.body.decode()
        assert (answer.sender, answer.conversation) == ("n1/ann", "c")
        await until(lambda: any(reason in told for told in refusals(seen)))
    assert stage.nodes[0].messages.conversing._open == {} or reason.startswith("not a")
    await net.down()


@staged
async def test_who_speaks_for_another_is_told_of(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    caller = await Caller.join(stage, "raw")
    async with events(net) as seen:
        await caller.send("n1/ann", {"depth": 1}, **by_hand("cfp", sender="c1"))
        await until(lambda: any("cannot speak for" in told for told in refusals(seen)))
    assert stage.nodes[0].messages.forged == 1
    assert not open_at(net)
    await net.down()


def liar(says: Callable[[Message], None]) -> Agent:
    agent = Agent("liar")

    @agent.on("cfp")
    async def bid(message: Message) -> None:
        says(message)

    return agent


@staged
async def test_an_author_cannot_break_the_protocol(stage: Stage) -> None:
    caught: list[Exception] = []

    def says(message: Message) -> None:
        for says in ("inform", "accept-proposal"):
            try:
                message.reply(1, says)
            except Conflict as error:
                caught.append(error)
        message.reply({"price": 1}, "propose")

    net = await Net(stage).up(n1=[liar(says)])
    with pytest.raises(BadInput, match="no function"):
        await net.client.call_for_proposals(["liar"], topic="dig")
    assert len(caught) == 2
    assert "propose" in str(caught[0])
    await net.down()


@staged
async def test_a_foreign_bidder_out_of_protocol_is_out_of_the_auction(stage: Stage) -> None:
    """One that is no agent of ours: it informs where it should propose, and it proposes when it is too late."""
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    raw = await Caller.join(stage, "n9")
    calls = lambda: [e for e in raw.got if e.performative is Performative.CFP]  # noqa: E731
    async with events(net) as seen:
        auction = asyncio.ensure_future(
            net.client.call_for_proposals(["n9/raw", "ann"], {"depth": 1}, topic="dig", deadline_s=5)
        )
        await until(lambda: len(calls()) == 1)
        asked = calls()[0]
        same = {"sender": "n9/raw", "conversation": asked.conversation, "in_reply_to": asked.id, "topic": "dig"}
        await raw.send("c1", 1, **by_hand("inform", **same))
        award = await auction
        assert "out of protocol" in award.refused["n9/raw"]
        await until(lambda: len(refusals(seen)) == 1)
        await raw.send("c1", {"price": 0}, **by_hand("propose", **same))
        await until(lambda: raw.got[-1].performative is Performative.REJECT_PROPOSAL)
        await raw.send("c1", 1, **by_hand("agree", **{**same, "conversation": "never"}))
        await until(lambda: raw.got[-1].performative is Performative.NOT_UNDERSTOOD)
        await until(lambda: len(refusals(seen)) == 3)
    await net.down()


@staged
async def test_a_proposal_after_the_deadline_is_rejected_as_late(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    raw = await Caller.join(stage, "n9")
    auction = asyncio.ensure_future(
        net.client.call_for_proposals(["n9/raw", "ann"], {"depth": 1}, topic="dig", deadline_s=0.3)
    )
    assert (await auction).agent == "n1/ann"
    asked = raw.got[0]
    same = {"sender": "n9/raw", "conversation": asked.conversation, "in_reply_to": asked.id, "topic": "dig"}
    await raw.send("c1", {"price": 0}, **by_hand("propose", **same))
    await until(lambda: raw.got[-1].performative is Performative.REJECT_PROPOSAL)
    assert "reply_by" in raw.got[-1].body.decode()
    await net.down()


@staged
async def test_a_reply_after_the_deadline_is_an_error_and_an_event(stage: Stage) -> None:
    net = await Net(stage).up(n1=[])
    raw = await Caller.join(stage, "n9")
    async with events(net) as seen:
        with pytest.raises(TimedOut):
            await net.client.request("n9/raw", 1, timeout=0.5)
        await raw.send("c1", 1, sender="n9/raw", performative=Performative.INFORM, in_reply_to=raw.got[0].id)
        await until(lambda: any("reply_by" in told for told in refusals(seen)))
    await net.down()


@staged
@pytest.mark.parametrize(("says", "protocol"), [("request", "fipa-request"), ("query", "fipa-query")])
async def test_a_stranger_may_name_the_protocol_of_a_plain_question(stage: Stage, says: str, protocol: str) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3, work_s=1)])
    raw = await Caller.join(stage, "raw")
    how = {**by_hand(says, protocol=protocol), "conversation": "a"}
    assert await raw.ask("n1/ann", {"depth": 1}, **how) == (Performative.INFORM, "ann dug 1")
    assert (raw.got[-1].protocol, raw.got[-1].conversation) == (protocol, "a")
    how["conversation"] = "b"
    await raw.send("n1/ann", {"depth": 1}, **how)
    await until(lambda: bool(stage.nodes[0].messages.calls))
    assert (await raw.ask("n1/ann", None, **{**how, "performative": Performative.CANCEL}))[0] is Performative.INFORM
    await until(lambda: not stage.nodes[0].messages.calls and not open_at(net))
    await net.down()


@staged
async def test_an_odd_answer_to_a_plain_request_is_an_error(stage: Stage) -> None:
    net = await Net(stage).up(n1=[])
    raw = await Caller.join(stage, "n9")
    asking = asyncio.ensure_future(net.client.request("n9/raw", 1))
    await until(lambda: bool(raw.got))
    await raw.send("c1", 1, sender="n9/raw", performative=Performative.CFP, in_reply_to=raw.got[0].id)
    with pytest.raises(OutOfProtocol, match="no answer to a request"):
        await asking
    await until(lambda: raw.got[-1].performative is Performative.NOT_UNDERSTOOD)
    await net.down()


@staged
async def test_nobody_can_fill_a_node_with_conversations(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    caller = await Caller.join(stage, "raw")
    for number in range(1001):
        await caller.send("n1/ann", {"depth": 1}, **by_hand("cfp", conversation=f"c{number}"))
    await until(lambda: len(caller.got) == 1001)
    assert sum(e.performative is Performative.REFUSE for e in caller.got) == 1
    assert open_at(net) == 1000
    stage.network.disconnect(caller.bus.process)
    await until(lambda: not open_at(net))
    await net.down()
