"""Whoever keeps to no protocol, comes too late or speaks for another is told so, and the network tells of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from bargain import bidder, by_hand, events, open_at, refusals
from node_stage import Caller, Stage, staged_on, until
from test_node_network import Net

from comity.agent import Agent
from comity.errors import (
    BadInput,
    Conflict,
    OutOfProtocol,
    TimedOut,
)
from comity.message import Message
from comity.model.envelope import Performative
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)


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
    await asyncio.sleep(30)
    await until(lambda: not open_at(net))
    await net.down()


@staged
async def test_nor_with_what_they_say(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.node.conversing.HELD_MAX", 1000)
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    caller = await Caller.join(stage, "raw")
    how = by_hand("cfp", protocol="fipa-iterated-contract-net")
    assert (await caller.ask("n1/ann", {"depth": 1, "x": "x" * 2000}, **how))[0] is Performative.REFUSE
    assert (await caller.ask("n1/ann", {"depth": 1}, **how))[0] is Performative.PROPOSE
    assert (await caller.ask("n1/ann", {"depth": 1, "x": "x" * 2000}, **how))[0] is Performative.REFUSE
    assert (await caller.ask("n1/ann", {"depth": 1}, **{**how, "conversation": "c" * 2000}))[0] is Performative.NOT_UNDERSTOOD
    assert not open_at(net)
    await net.down()


@staged
async def test_a_flood_of_nonsense_is_told_in_part(stage: Stage) -> None:
    net = await Net(stage).up(n1=[bidder("ann", 3)])
    caller = await Caller.join(stage, "raw")
    async with events(net) as seen:
        for number in range(100):
            await caller.send("n1/ann", None, **by_hand("inform", conversation=f"c{number}", topic="t" * 1000))
        await until(lambda: len(caller.got) == 100)
        await asyncio.sleep(2)
        assert len(refusals(seen)) == 20
        assert all(len(event.get("topic", "")) <= 200 for event in seen)
    assert stage.nodes[0].messages._complaints.untold == 80
    await net.down()
