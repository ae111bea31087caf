"""Live calls to a capability: who is asked next when an agent is lost, and who else when it is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from stand_in import Ground, StandIn, StandInLeader, ground

from comity.errors import BadInput, NoAgent, PeerLost, TaskFailed, UnknownAgent, UnknownCapability
from comity.model import wire
from comity.model.capability import Capability
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId, ProcessId

Answer = Callable[[Envelope], tuple[Performative, Any] | None]
SILENT: Answer = lambda _: None  # noqa: E731


def says(word: str) -> Answer:
    return lambda _: (Performative.INFORM, word)


async def agents(g: Ground, **answers: Answer) -> tuple[StandInLeader, dict[str, StandIn]]:
    """Nodes n1, n2 ... with an agent each that answers so; the leader picks the first that is not to be avoided."""
    leader, nodes = await g.leader(), {}
    for number, (name, answer) in enumerate(answers.items(), 1):
        node = nodes[name] = await g.node(f"n{number}")
        await g.offer(f"n{number}", name, Capability(name="review"))
        node.answers[wire.Message] = lambda item, sender, node=node, answer=answer: _reply(node, sender, item, answer)
    ids = [AgentId(f"n{number}/{name}") for number, name in enumerate(answers, 1)]

    def route(item: wire.Route, sender: str) -> None:
        chosen = next((one for one in ids if one not in item.asked), AgentId(""))
        leader.say(sender, wire.Routed(item.ref, chosen, "" if chosen else "no-agent", "" if chosen else "nobody"))

    leader.answers[wire.Route] = route
    return leader, nodes


def _reply(node: StandIn, sender: str, item: wire.Message, answer: Answer) -> None:
    asked = item.envelope
    said = answer(asked) if asked.performative is Performative.REQUEST else None
    if said is not None:
        body = msgspec.json.encode(said[1])
        reply = Envelope(id="r", performative=said[0], sender=asked.receiver, receiver=sender, in_reply_to=asked.id, body=body)
        node.say(sender, wire.Message(reply))


async def test_a_repeatable_call_goes_on_when_its_agent_dies() -> None:
    async with ground() as g:
        leader, nodes = await agents(g, a=SILENT, b=says("from b"))
        client = await g.client()
        call = asyncio.ensure_future(client.request("review", 1, repeatable=True))
        await nodes["a"].first(wire.Message)
        await g.registry.delete("nodes/n1")
        assert await call == "from b"
        ends = [await leader.first(wire.CallEnded, number) for number in (1, 2)]
        assert [end.ok for end in ends] == [False, True]


async def test_a_call_that_three_nodes_died_of_takes_down_no_fourth() -> None:
    async with ground() as g:
        _, nodes = await agents(g, a=SILENT, b=SILENT, c=SILENT, d=says("from d"))
        client = await g.client()
        call = asyncio.ensure_future(client.request("review", 1, repeatable=True))
        for number, name in enumerate("abc", 1):
            await nodes[name].first(wire.Message)
            await g.registry.delete(f"nodes/n{number}")
        with pytest.raises(PeerLost, match="n3/c"):
            await call
        assert nodes["d"].got == []


async def test_any_other_call_ends_when_its_agent_dies() -> None:
    async with ground() as g:
        _, nodes = await agents(g, a=SILENT, b=says("from b"))
        client = await g.client()
        call = asyncio.ensure_future(client.request("review", 1))
        await nodes["a"].first(wire.Message)
        await g.registry.delete("nodes/n1")
        with pytest.raises(PeerLost, match="n1/a"):
            await call
        assert nodes["b"].got == []


async def test_if_nobody_else_is_there_the_loss_is_told() -> None:
    async with ground() as g:
        _, nodes = await agents(g, a=SILENT)
        client = await g.client()
        call = asyncio.ensure_future(client.request("review", 1, repeatable=True, hedge_s=0.01))
        await nodes["a"].first(wire.Message)
        await g.registry.delete("nodes/n1")
        with pytest.raises(PeerLost, match="n1/a"):
            await call


async def test_a_hedged_call_takes_the_first_answer_and_calls_the_other_off() -> None:
    async with ground() as g:
        leader, nodes = await agents(g, a=SILENT, b=says("from b"))
        client = await g.client()
        assert await client.request("review", 1, repeatable=True, hedge_s=0.02) == "from b"
        canceled = (await nodes["a"].first(wire.Message, 2)).envelope
        asked = nodes["a"].all(wire.Message)[0].envelope
        assert (canceled.performative, canceled.in_reply_to) == (Performative.CANCEL, asked.id)
        ends = [await leader.first(wire.CallEnded, number) for number in (1, 2)]
        assert sorted([end.ok for end in ends], key=str) == [None, True]


async def test_a_quick_answer_asks_no_second_agent() -> None:
    async with ground() as g:
        leader, nodes = await agents(g, a=says("from a"), b=says("from b"))
        client = await g.client()
        assert await client.request("review", 1, repeatable=True, hedge_s=5) == "from a"
        assert nodes["b"].got == []
        assert len(leader.all(wire.Route)) == 1


async def test_an_error_is_an_answer() -> None:
    async with ground() as g:
        _, nodes = await agents(g, a=lambda _: (Performative.FAILURE, {"code": "ValueError", "message": "seven"}), b=says("b"))
        client = await g.client()
        with pytest.raises(TaskFailed, match="seven"):
            await client.request("review", 1, repeatable=True, hedge_s=5)
        assert nodes["b"].got == []


async def test_the_slow_first_still_answers_when_there_is_no_second() -> None:
    async with ground() as g:
        _, nodes = await agents(g, a=SILENT)
        client = await g.client()
        call = asyncio.ensure_future(client.request("review", 1, repeatable=True, hedge_s=0.01))
        first = await nodes["a"].first(wire.Message)
        _reply(nodes["a"], "c1", first, says("late"))
        assert await call == "late"


async def test_what_cannot_be_meant_is_refused() -> None:
    async with ground() as g:
        await agents(g, a=says("from a"))
        client = await g.client()
        with pytest.raises(BadInput, match="repeatable=True"):
            await client.request("review", 1, hedge_s=1)
        with pytest.raises(BadInput, match="capability"):
            await client.request("n1/a", 1, repeatable=True)
        with pytest.raises(BadInput):
            await client.request("review", 1, repeatable=True, hedge_s=-1)
        with pytest.raises(BadInput, match="power_of_two"):
            await client.request("review", 1, strategy="luck")


async def test_a_key_and_a_strategy_travel_with_the_call_and_with_what_is_only_told() -> None:
    async with ground() as g:
        leader, nodes = await agents(g, a=says("from a"))
        client = await g.client()
        await client.request("review", 1, sticky="user-7")
        await client.send("review>=1", {"x": 1}, strategy="power_of_two")
        sent = (await nodes["a"].first(wire.Message, 2)).envelope
        assert (sent.receiver, sent.topic, sent.performative) == ("n1/a", "review", Performative.INFORM)
        call, told = leader.all(wire.Route)
        assert call.requirements is not None
        assert call.requirements.sticky == "user-7"
        assert (told.strategy, told.requirements and told.requirements.version) == ("power_of_two", ">=1")
        assert (await leader.first(wire.CallEnded, 2)).ok is None
        with pytest.raises(UnknownAgent, match="none offers"):
            await client.send("nobody", 1)
        leader.answers[wire.Route] = lambda item, sender: leader.say(
            sender, wire.Routed(item.ref, AgentId(""), "unknown-capability", "nobody offers it")
        )
        with pytest.raises(UnknownCapability):
            await client.send("review", 1)


async def test_a_leader_that_names_who_was_asked_is_not_followed_round_and_round() -> None:
    async with ground() as g:
        leader, _ = await agents(g, a=lambda _: (Performative.REFUSE, {"message": "not me"}))
        leader.answers[wire.Route] = lambda item, sender: leader.say(sender, wire.Routed(item.ref, AgentId("n1/a")))
        client = await g.client()
        with pytest.raises(NoAgent, match="not me"):
            await client.request("review", 1, repeatable=True)


async def test_an_agent_that_found_nobody_itself_has_answered() -> None:
    async with ground() as g:
        failed = (Performative.FAILURE, {"code": "no-agent", "message": "nobody to help me"})
        _, nodes = await agents(g, a=lambda _: failed, b=says("from b"))
        client = await g.client()
        with pytest.raises(NoAgent, match="help me"):
            await client.request("review", 1)
        assert nodes["b"].got == [], "it may have been done"


async def test_a_hedge_that_cannot_be_routed_leaves_the_first_call_alone() -> None:
    async with ground() as g:
        leader, nodes = await agents(g, a=SILENT)
        client = await g.client()
        route = leader.answers[wire.Route]

        def once(item: wire.Route, sender: str) -> None:
            if item.asked:
                leader.say(sender, wire.Routed(item.ref, AgentId(""), "unreachable", "no log"))
            else:
                route(item, ProcessId(sender))

        leader.answers[wire.Route] = once
        call = asyncio.ensure_future(client.request("review", 1, repeatable=True, hedge_s=0.01))
        first = await nodes["a"].first(wire.Message)
        await leader.first(wire.CallEnded)
        _reply(nodes["a"], "c1", first, says("late"))
        assert await call == "late"
