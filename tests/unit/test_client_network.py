"""What a client asks of the network, the events it follows, and its timers."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from stand_in import StandInLeader, ground, record, until

from comity.client.streams import Streams
from comity.client.timers import Timers
from comity.errors import BadInput, NotFound, NotSerializable, PeerLost, UnknownAgent
from comity.model import wire
from comity.model.capability import AgentRecord
from comity.model.ids import ProcessId
from comity.model.task import TaskState


def notice(
    leader: StandInLeader, follow: wire.FollowEvents, index: int, kind: str, number: int = 0, **about: Any
) -> None:
    body = msgspec.json.encode({"type": kind, "at": 1, **about})
    leader.say("c1", wire.EventNotice(follow.ref, index, body, number))


async def following(leader: StandInLeader, number: int = 1) -> wire.FollowEvents:
    """The ``number``-th time that somebody began to follow events."""
    def begun() -> list[wire.FollowEvents]:
        return [item for item in leader.all(wire.FollowEvents) if item.for_ms]

    await until(lambda: len(begun()) >= number)
    return begun()[number - 1]


async def test_questions() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        leader.questions |= {
            "stats": {"tasks": {}},
            "tasks": {"tasks": [{"id": "t"}]},
            "nodes": {"nodes": [{"id": "n1"}]},
            "agents": {"agents": [{"id": "n1/a"}]},
            "strategy": {},
            "shutdown": {"draining": 2},
        }
        assert await client.stats() == {"tasks": {}}
        assert await client.tasks(state="failed", limit=3) == [{"id": "t"}]
        assert await client.nodes() == [{"id": "n1"}]
        assert await client.agents() == [{"id": "n1/a"}]
        await client.set_strategy("review", "round_robin")
        assert await client.shutdown() == {"draining": 2}
        asked = {item.what: msgspec.json.decode(item.args) for item in leader.all(wire.Ask)}
        assert asked["tasks"] == {"state": "failed", "limit": 3}
        assert asked["strategy"] == {"capability": "review", "strategy": "round_robin"}
        with pytest.raises(BadInput):
            await client.set_strategy("review", "luck")


async def test_a_question_survives_a_change_of_leader_and_one_who_does_not_lead() -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        question = asyncio.ensure_future(client.stats())
        await until(lambda: any(item.what == "stats" for item in old.all(wire.Ask)))
        asked = next(item for item in old.all(wire.Ask) if item.what == "stats")
        await old.bus.close()
        new = await g.leader("k2", term=2)
        new.questions["stats"] = {"term": 2}
        assert await question == {"term": 2}
        assert [item.ref for item in new.all(wire.Ask) if item.what == "stats"] == [asked.ref]


async def test_a_lost_question_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.calls.SILENCE_S", 0.05)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        question = asyncio.ensure_future(client.stats())
        await until(lambda: any(item.what == "stats" for item in leader.all(wire.Ask)))
        leader.questions["stats"] = {"found": True}
        assert await question == {"found": True}


async def test_one_who_does_not_lead_any_more_is_no_answer() -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        await client.ready()

        def stats(item: wire.Ask, sender: ProcessId) -> None:
            old.say(sender, wire.Answer(item.ref, "not-leader", b'{"message":"not I"}'))

        def submit(item: wire.SubmitTask, sender: ProcessId) -> None:
            old.say(sender, wire.Refused(item.spec.id, "not-leader", "not I"))

        old.answers = {wire.Ask: stats, wire.SubmitTask: submit}
        question, task = asyncio.ensure_future(client.stats()), asyncio.ensure_future(client.submit("x"))
        await until(lambda: not client._exchange.contact.is_up)
        assert not question.done()
        assert not task.done()
        await old.bus.close()
        new = await g.leader("k2", term=2)
        new.questions["stats"] = {"term": 2}
        assert await question == {"term": 2}
        assert new.all(wire.SubmitTask)[0].spec.id == (await task).id


async def test_errors_in_answers_are_typed() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        hello = leader.answers[wire.Ask]

        def answer(item: wire.Ask, sender: Any) -> None:
            if item.what == "hello":
                hello(item, sender)
            else:
                leader.say(sender, wire.Answer(item.ref, "not-found", b'{"message":"no such","details":{"x":1}}'))

        leader.answers[wire.Ask] = answer
        with pytest.raises(NotFound, match="no such") as caught:
            await client.stats()
        assert caught.value.details == {"x": 1}


async def test_nodes_are_told_what_to_do() -> None:
    async with ground() as g:
        node, client = await g.node(), await g.client()
        await g.register("n1", record("n1", "a"))
        node.answers[wire.Control] = lambda item, sender: node.say(sender, wire.Answer(item.ref, "", b"{}"))
        await client.pause("a")
        await client.resume("n1/a")
        await client.remove("a")
        told = node.all(wire.Control)
        assert [item.what for item in told] == ["pause", "resume", "remove"]
        assert msgspec.json.decode(told[0].args) == {"agent": "n1/a"}
        with pytest.raises(UnknownAgent):
            await client.pause("b")
        with pytest.raises(PeerLost):
            await client.pause("n9/b")


async def test_a_tasks_events_end_with_it() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        events = task.events()
        first = asyncio.ensure_future(anext(events))
        follow = await leader.first(wire.FollowEvents)
        assert (follow.task, follow.after) == (task.id, -1)
        notice(leader, follow, 0, "task.progress", value=0.5)
        notice(leader, follow, 0, "events.gap")
        notice(leader, follow, 7, "task.completed")
        leader.complete("c1", task.id)
        assert (await first)["value"] == 0.5
        assert [event["type"] async for event in events] == ["task.completed"]
        assert (await leader.first(wire.FollowEvents, 2)).for_ms == 0


async def test_a_tasks_events_end_even_if_the_last_one_is_lost() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        events = task.events()
        last = asyncio.ensure_future(anext(events))
        await leader.first(wire.FollowEvents)
        leader.end("c1", task.id, TaskState.FAILED, "ValueError", "seven")
        event = await last
        assert (event["type"], event["code"], event["reason"]) == ("task.failed", "ValueError", "seven")
        assert [e async for e in events] == []
        assert [e["type"] async for e in task.events()] == ["task.failed"]
        assert client._exchange.streams._open == {}
        assert client._exchange.outcomes._awaited == {}


async def test_a_tasks_past_is_told_though_its_end_is_known_first() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        events = task.events(after=0)
        first = asyncio.ensure_future(anext(events))
        follow = await leader.first(wire.FollowEvents)
        leader.complete("c1", task.id)
        await until(lambda: task.has_ended)
        notice(leader, follow, 3, "task.submitted")
        notice(leader, follow, 4, "task.completed")
        assert (await first)["type"] == "task.submitted"
        assert [event["type"] async for event in events] == ["task.completed"]


async def test_a_tasks_events_are_all_told_though_its_end_is_known_before_they_are_resumed() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        events = task.events()
        first = asyncio.ensure_future(anext(events))
        notice(leader, await following(leader), 3, "task.assigned")
        assert (await first)["type"] == "task.assigned"
        rest = asyncio.ensure_future(_rest(events))
        g.network.disconnect(client.process)
        g.network.reconnect(client.process)
        again = await following(leader, 2)
        leader.complete("c1", task.id)
        await until(lambda: task.has_ended)
        for index, kind in [(3, "task.assigned"), (4, "task.retrying"), (5, "task.completed")]:
            notice(leader, again, index, kind)
        assert await rest == ["task.retrying", "task.completed"]


async def test_a_slow_reader_of_a_tasks_events_gets_what_did_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.streams.QUEUED", 2)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        events = task.events()
        first = asyncio.ensure_future(anext(events))
        follow = await following(leader)
        kinds = ["task.assigned", "task.started", "task.retrying", "task.completed"]
        for index, kind in enumerate(kinds):
            notice(leader, follow, index + 1, kind)
        leader.complete("c1", task.id)
        await until(lambda: task.has_ended)
        monkeypatch.setattr("comity.client.streams.QUEUED", 9)
        rest = asyncio.ensure_future(_rest(events, await first))
        again = await following(leader, 2)
        for index, kind in enumerate(kinds[1:]):
            notice(leader, again, index + 2, kind)
        assert await rest == kinds


async def _rest(events: Any, *before: dict[str, Any]) -> list[str]:
    return [event["type"] for event in [*before, *[event async for event in events]]]


async def test_events_resume_where_they_broke_off() -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        await client.ready()
        events = client.events(after=4)
        first = asyncio.ensure_future(anext(events))
        follow = await old.first(wire.FollowEvents)
        assert (follow.after, follow.task) == (4, None)
        notice(old, follow, 5, "task.submitted", task="t1")
        assert (await first)["index"] == 5
        second = asyncio.ensure_future(anext(events))
        await old.bus.close()
        new = await g.leader("k2", term=2)
        follow = await following(new)
        assert follow.after == 4
        notice(new, follow, 5, "task.submitted", task="t1")  # seen
        notice(new, follow, 5, "task.submitted", task="t2")  # the rest of that entry
        assert (await second)["task"] == "t2"
        await events.aclose()  # type: ignore[attr-defined]


async def test_a_slow_reader_is_resumed_from_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.streams.QUEUED", 2)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        events = client.events()
        first = asyncio.ensure_future(anext(events))
        follow = await leader.first(wire.FollowEvents)
        for index in range(1, 6):
            notice(leader, follow, index, "node.joined", node=f"n{index}")
        await leader.outbox.drain()
        await until(lambda: first.done())
        assert [(await first)["index"], (await anext(events))["index"]] == [1, 2]
        third = asyncio.ensure_future(anext(events))
        again = await following(leader, 2)
        assert again.after == 1
        for index in range(2, 4):
            notice(leader, again, index, "node.joined", node=f"n{index}")
        assert (await third)["index"] == 3
        await events.aclose()  # type: ignore[attr-defined]


async def test_a_slow_reader_takes_nothing_from_behind_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.streams.QUEUED", 2)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        events = client.events()
        first = asyncio.ensure_future(anext(events))
        follow = await following(leader)
        for index in range(1, 4):  # the third does not fit
            notice(leader, follow, index, "node.joined")
        assert (await first)["index"] == 1
        notice(leader, follow, 4, "node.joined")  # there is room, but the third is missing
        await leader.outbox.drain()
        await until(lambda: client._exchange.streams._open[follow.ref].received == 4)
        assert (await anext(events))["index"] == 2
        third = asyncio.ensure_future(anext(events))
        again = await following(leader, 2)
        for index in range(2, 4):
            notice(leader, again, index, "node.joined")
        assert (await third)["index"] == 3
        await events.aclose()  # type: ignore[attr-defined]


async def test_what_was_lost_on_the_way_is_asked_for_again() -> None:
    """A connection that broke and came back, before anybody noticed; or the leader's own."""
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        events = client.events(after=0)
        first = asyncio.ensure_future(anext(events))
        follow = await following(leader)
        notice(leader, follow, 1, "node.joined", number=1)
        assert (await first)["index"] == 1
        second = asyncio.ensure_future(anext(events))
        notice(leader, follow, 3, "node.joined", number=3)
        notice(leader, follow, 4, "node.joined", number=4)
        again = await following(leader, 2)
        assert (again.after, again.ref != follow.ref) == (0, True)
        notice(leader, follow, 5, "node.joined", number=5)  # on its way still, under the old number
        for index in range(1, 6):
            notice(leader, again, index, "node.joined", number=index)
        assert (await second)["index"] == 2
        assert [(await anext(events))["index"] for _ in range(3)] == [3, 4, 5]
        leader.say("c1", wire.EventNotice(again.ref, 0, wire.CURRENT, 7))  # the last one was lost
        assert (await following(leader, 3)).after == 4
        await events.aclose()  # type: ignore[attr-defined]


async def test_what_is_no_entry_and_told_again_is_yielded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.streams.LIVE_KNOWN", 2)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        events = client.events(after=0)
        first = asyncio.ensure_future(anext(events))
        follow = await following(leader)
        notice(leader, follow, 0, "node.suspected", number=1)
        notice(leader, follow, wire.AGAIN, "node.suspected", number=2)
        notice(leader, follow, wire.AGAIN, "node.alive", number=3)
        notice(leader, follow, 0, "node.alive", number=4)  # told anew, and the same by chance
        notice(leader, follow, 0, "node.dead", number=5)
        found = [await first, *[await anext(events) for _ in range(3)]]
        assert [event["type"] for event in found] == ["node.suspected", "node.alive", "node.alive", "node.dead"]
        assert {event["index"] for event in found} == {0}
        (stream,) = client._exchange.streams._open.values()
        assert len(stream.live) == 2
        await events.aclose()  # type: ignore[attr-defined]


async def test_following_is_renewed_before_it_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.streams.RENEW_S", 0.02)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        stream = client._exchange.streams.open(3)
        renewed = await leader.first(wire.FollowEvents, 3)
        assert (renewed.after, renewed.ref) == (-1, stream.number)
        client._exchange.streams.close(stream)
        assert isinstance(client._exchange.streams, Streams)


async def test_watching_who_is_here() -> None:
    async with ground() as g:
        client = await g.client()
        await g.register("n1", record("n1", "a"))
        assert [a.id for a in await client.discover(name="a")] == ["n1/a"]
        changes = client.watch()
        change = asyncio.ensure_future(anext(changes))
        await until(lambda: bool(client.directory._watchers) and len(client.directory._watchers) > 1)
        await g.register("n1", record("n1", "a"), record("n1", "b"))
        seen = await change
        assert seen.what == "joined"
        assert isinstance(seen.record, AgentRecord)
        assert seen.record.id == "n1/b"
        await changes.aclose()  # type: ignore[attr-defined]


async def test_timers_ring_in_order_by_one_timer_of_the_loop() -> None:
    loop = asyncio.get_running_loop()
    timers, rung = Timers(loop), list[str]()
    done = asyncio.Event()
    now = loop.time()
    timers.at(now + 0.03, done.set)
    timers.at(now + 0.02, lambda: rung.append("second"))
    timers.at(now + 0.01, lambda: rung.append("first"))
    canceled = timers.at(now + 0.015, lambda: rung.append("never"))
    canceled.cancel()
    canceled.cancel()
    await asyncio.wait_for(done.wait(), 20)
    assert rung == ["first", "second"]
    alarms = [timers.after(100, done.clear) for _ in range(2000)]
    for alarm in alarms[:-1]:
        alarm.cancel()
    assert len(timers._heap) < 600
    timers.close()
    assert timers._handle is None


async def test_the_past_alone_ends_when_it_is_told() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        events = client.events(follow=False)
        first = asyncio.ensure_future(anext(events))
        follow = await leader.first(wire.FollowEvents)
        assert follow.after == 0
        notice(leader, follow, 5, "task.submitted", task="t1")
        leader.say("c1", wire.EventNotice(follow.ref, 0, wire.CURRENT))
        assert (await first)["index"] == 5
        assert [event async for event in events] == []


async def test_a_client_that_listens_is_told_who_joins_and_leaves() -> None:
    async with ground() as g:
        await g.register("n1", record("n1", "a"))
        client = await g.client()
        heard: list[str] = []

        @client.on("agent.joined")
        def joined(body: dict[str, Any]) -> None:
            heard.append(f"joined {body['agent']}")

        @client.on("agent.left")
        async def left(body: dict[str, Any]) -> None:
            heard.append(f"left {body['agent']} of {body['node']}")

        await client.directory.ready(20)
        await g.register("n2", record("n2", "b"))
        await until(lambda: heard == ["joined n2/b"])  # who was here before has not joined
        await g.register("n1")
        await until(lambda: heard[1:] == ["left n1/a of n1"])


async def test_nobody_follows_the_registry_for_those_who_do_not_listen() -> None:
    async with ground() as g:
        client = await g.client()
        client.on("system.shutdown")(lambda: None)
        assert not client.directory.is_followed
        client.on("agent.left")(lambda: None)
        assert client.directory.is_followed


async def test_what_can_never_be_sent_is_told_at_once() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        with pytest.raises(NotSerializable):
            await client._exchange.cancel(task.id, "caf\udce9", None)
        leader.questions["stats"] = {"tasks": {}}
        assert await client.stats() == {"tasks": {}}
        assert client._exchange.calls._open == {}
