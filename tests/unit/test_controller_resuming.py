"""The leader's side of resuming: records confirmed once they count, carried to the next attempt, kept and dropped; answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from peers import LIMIT_S, Peer, World, until, virtually
from test_keeping import BIG, stored

from comity.controller import adopting, keeping
from comity.errors import Conflict, TooLarge
from comity.model import records, wire
from comity.model.ids import TaskId
from comity.model.payload import LOG_LIMIT, Logged, Stored
from comity.model.records import Place
from comity.model.task import TaskFailure, TaskState
from comity.store.memory import MemoryStore


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


async def working(world: World, name: str = "n1", **more: Any) -> tuple[Peer, Peer, wire.Run]:
    """A client, a node, and what the node was given to do for it."""
    client, node = await world.peer("c1"), await world.peer(name)
    await node.join("a")
    await client.submit(**more)
    return client, node, await node.hear(wire.Run)


def step(run: wire.Run, name: str, result: Any = b"1") -> wire.StepDone:
    return wire.StepDone(run.task, run.epoch, name, result)


async def answer(peer: Peer, task: TaskId, value: bytes | Stored, name: str = "", ref: int = 7) -> str:
    """The task's state after an answer, or the error's code."""
    await peer.say(wire.AnswerTask(ref, task, name, value))
    said = await peer.hear(wire.Answer, lambda a: a.ref == ref)
    return said.code or str(msgspec.json.decode(said.body)["state"])


async def test_the_next_attempt_is_given_what_was_recorded(world: World) -> None:
    await world.controller()
    _, node, run = await working(world)
    other = await world.peer("n2")
    assert run.known == ()
    await node.say(step(run, "a", b'"small"'), step(run, "b", BIG), wire.Checkpointed(run.task, run.epoch, 3, b"[7]"))
    assert (await node.hear(wire.Recorded, lambda r: r.name == "a")).code == ""
    assert (await node.hear(wire.Recorded, lambda r: r.name == "b")).kind == "step"
    assert (await node.hear(wire.Recorded, lambda r: r.name == "3")).kind == "checkpoint"
    await node.say(step(run, "a", b'"again"'))
    await node.hear(wire.Recorded, lambda r: r.name == "a")
    await other.join("a")
    await node.kill()
    again = await other.hear(wire.Run)
    assert [(k.kind, k.name, k.size, k.payload) for k in again.known] == [
        ("step", "a", 7, b'"small"'), ("step", "b", len(BIG), None), ("checkpoint", "", 3, b"[7]"),
    ]  # fmt: skip
    await other.say(wire.Recall(again.task, again.epoch, "step", "b"), wire.Recall(again.task, again.epoch, "step", "c"))
    assert (await other.hear(wire.Recalled, lambda r: r.name == "b")).payload == BIG
    assert (await other.hear(wire.Recalled, lambda r: r.name == "c")).code == "not-found"


async def test_an_attempt_that_is_over_is_settled_whatever_it_wants_to_record(world: World) -> None:
    await world.controller()
    client, node, run = await working(world)
    stranger = await world.peer("n3")
    await stranger.say(step(run, "x"))
    await stranger.hear(wire.Settled, lambda s: (run.task, run.epoch) in s.reports)
    await client.say(wire.CancelTask(1, run.task))
    await node.hear(wire.Stop)
    await node.say(wire.Failed(run.task, run.epoch, TaskFailure("x"), canceled=True))
    await client.hear(wire.Ended)
    for late in (step(run, "a"), wire.Checkpointed(run.task, run.epoch, 1, b"1"), wire.Recall(run.task, run.epoch, "step", "a")):
        node.items.clear()
        await node.say(late)
        await node.hear(wire.Settled, lambda s: (run.task, run.epoch) in s.reports)
    assert (await client.ask("task", id=run.task))["steps"] == []


async def test_what_must_not_be_recorded_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "RECORDS_BYTES", 2000)
    await world.controller()
    _, node, run = await working(world)
    wrong: list[Any] = [
        step(run, "n" * 101), step(run, ""), step(run, "l", Logged(1, 0, 9)), step(run, "s", Stored("n2/x", 9, b"d" * 16)),
        step(run, "b", b"x" * (LOG_LIMIT + 1)), step(run, "much", b"x" * 2001),
    ]  # fmt: skip
    await node.say(*wrong[:4])
    for item in wrong[4:]:
        await node.say(item)
    codes = [(await node.hear(wire.Recorded, lambda r, name=item.name: r.name == name)).code for item in wrong]  # type: ignore[misc]
    assert codes == ["too-large", "bad-input", "bad-input", "access-denied", "too-large", "too-large"]
    await node.say(step(run, "one", b"x" * 1200), step(run, "two", b"x" * 1200))
    assert (await node.hear(wire.Recorded, lambda r: r.name == "one")).code == ""
    assert (await node.hear(wire.Recorded, lambda r: r.name == "two")).code == TooLarge.code
    await node.say(wire.InputAsked(run.task, run.epoch, "q", b"null", timeout_ms=-1))
    assert (await (await world.peer("c2")).ask("task", id=run.task))["error"]["code"] == "bad-input"


async def test_a_task_that_asks_is_answered_once(world: World) -> None:
    await world.controller()
    client, node, run = await working(world)
    assert await answer(client, run.task, b"1") == Conflict.code
    await node.say(step(run, "a"), wire.InputAsked(run.task, run.epoch, "ok?", BIG, ran_ms=3))
    await node.hear(wire.Settled, lambda s: (run.task, run.epoch) in s.reports)
    view = await client.ask("task", id=run.task)
    assert (view["state"], view["reason"], view["questions"][0]["ask"]) == ("input-required", "it asks for 'ok?'", "y" * 5000)
    assert [t["id"] for t in (await client.ask("tasks", state="input-required"))["tasks"]] == [run.task]
    assert await answer(client, run.task, b"1", name="other") == Conflict.code
    assert await answer(client, run.task, b"x" * (LOG_LIMIT + 1)) == TooLarge.code
    assert await answer(client, run.task, b"true", name="ok?", ref=8) in ("waiting", "assigned")
    again = await node.hear(wire.Run)
    assert [(k.kind, k.payload) for k in again.known] == [("step", b"1"), ("answer", b"true")]
    assert await answer(client, run.task, b"false", name="ok?", ref=9) == Conflict.code
    assert await answer(client, run.task, b"true", name="ok?", ref=8) == "assigned", "a resend is the same answer"
    await node.say(wire.Done(again.task, again.epoch, b"1", 1))
    await client.hear(wire.Ended)
    assert await answer(client, run.task, b"true", ref=8) == "completed"
    assert await answer(client, run.task, b"false", ref=9) == Conflict.code
    assert await answer(client, client.ids.next(), b"1") == "unknown-task"
    assert await answer(client, TaskId("odd"), b"1") == "bad-input"


@virtually()
async def test_a_wait_is_over_in_its_time(world: World) -> None:
    await world.controller()
    client, node, run = await working(world)
    await node.say(wire.InputAsked(run.task, run.epoch, "ok?", b"null", timeout_ms=50))
    again = await node.hear(wire.Run)
    assert [(k.kind, k.name) for k in again.known] == [("unanswered", "ok?")]
    assert await answer(client, run.task, b"1") == Conflict.code


@virtually()
async def test_a_task_that_asks_can_be_canceled_and_has_its_deadline(world: World) -> None:
    await world.controller()
    client, node, run = await working(world)
    await node.say(wire.InputAsked(run.task, run.epoch, "ok?", b"null"))
    await node.hear(wire.Settled)
    await client.say(wire.CancelTask(1, run.task))
    assert (await client.hear(wire.Ended)).state is TaskState.CANCELED
    await client.submit(deadline_ms=300)
    run = await node.hear(wire.Run)
    await node.say(wire.InputAsked(run.task, run.epoch, "ok?", b"null", timeout_ms=60_000))
    ended = await client.hear(wire.Ended)
    assert ended.failure is not None and ended.failure.code == "deadline-exceeded"


async def test_a_new_leader_knows_the_records_and_the_questions(world: World) -> None:
    first = await world.controller()
    client, node, run = await working(world)
    await node.say(step(run, "a", BIG), wire.InputAsked(run.task, run.epoch, "ok?", b"null"))
    await node.hear(wire.Settled)
    await first.stop()
    await world.controller("k2")
    assert await answer(client, run.task, b"[]") in ("waiting", "assigned")
    again = await node.hear(wire.Run)
    await node.say(wire.Recall(again.task, again.epoch, "step", "a"), step(again, "a"))
    assert (await node.hear(wire.Recalled)).payload == BIG
    await node.hear(wire.Recorded, lambda r: r.name == "a")


async def test_records_outlive_the_log_they_lie_in_and_go_with_the_task() -> None:
    world = World(snapshot_every=5, keep_finished=1)
    controller = await world.controller()
    client, node, run = await working(world)
    await node.say(step(run, "a", BIG), wire.Checkpointed(run.task, run.epoch, 1, BIG))
    await node.hear(wire.Recorded, lambda r: r.kind == "checkpoint")
    async with asyncio.timeout(LIMIT_S):
        while len(stored(world, keeping.MOVED)) < 2 or world.log.first == 1:
            await client.submit("later")
    await until(lambda: _kept(controller, run.task) == 2)
    await node.say(wire.Recall(run.task, run.epoch, "step", "a"))
    payload = (await node.hear(wire.Recalled)).payload
    assert isinstance(payload, Stored)
    assert await MemoryStore(world.store).read(payload.key) == BIG
    await node.say(wire.Checkpointed(run.task, run.epoch, 2, b"1"))
    await until(lambda: len(stored(world, keeping.MOVED)) == 1)
    await node.say(wire.Done(run.task, run.epoch, b"1", 1))
    await until(lambda: not stored(world, keeping.MOVED))
    assert [s["name"] for s in (await client.ask("task", id=run.task))["steps"]] == ["a"]
    await controller.stop()


async def test_a_new_leader_keeps_what_records_need() -> None:
    """And nothing else that leaders before it moved out of the log."""
    world = World(snapshot_every=5, keep_finished=1)
    first = await world.controller()
    client, node, run = await working(world)
    await node.say(step(run, "a", BIG))
    await node.hear(wire.Recorded, lambda r: r.name == "a")
    async with asyncio.timeout(LIMIT_S):
        while not stored(world, keeping.MOVED) or world.log.first == 1:
            await client.submit("later")
    await until(lambda: _kept(first, run.task) == 1)
    left = f"{keeping.MOVED}x-input-1-1"
    await MemoryStore(world.store).put(left, b"left")
    await first.stop()
    await world.controller("k2")
    await until(lambda: left not in world.store.values)
    await node.say(wire.Recall(run.task, run.epoch, "step", "a"))
    payload = (await node.hear(wire.Recalled)).payload
    assert isinstance(payload, Stored)
    assert await MemoryStore(world.store).read(payload.key) == BIG


def _kept(controller: Any, task: TaskId) -> int:
    """How many records of a task are the network's own."""
    held = controller.state.tasks[task].records or records.Records()
    return sum(isinstance(payload, Stored) and payload.key.startswith(keeping.MOVED) for _, payload in held.payloads())


async def test_what_others_stored_becomes_the_networks_own(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adopting, "ADOPT_AFTER_MS", 0)
    controller = await world.controller()
    client, node, run = await working(world)
    theirs = await MemoryStore(world.store, "n1").put("n1/records/x", b"x" * 300_000)
    gone = Stored("n1/records/gone", 9, b"d" * 16)
    await node.say(step(run, "a", theirs), step(run, "gone", gone))
    await until(lambda: _kept(controller, run.task) == 1)
    place = Place("step", "a")
    held = controller.state.tasks[run.task].records
    assert held is not None
    mine = held.find(place)
    assert isinstance(mine, Stored) and (mine.size, mine.digest) == (theirs.size, theirs.digest)
    assert held.find(Place("step", "gone")) == gone
    await controller.stop()
    second = await world.controller("k2")
    assert second.state.tasks[run.task].records == held
    await client.say(wire.CancelTask(1, run.task))
    await node.hear(wire.Stop)
    await node.say(wire.Done(run.task, run.epoch, b"1", 1))
    await until(lambda: not stored(world, keeping.MOVED))
