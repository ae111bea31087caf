"""Overload: what is refused, what the refusal says, and that a patient client comes again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from peers import World, virtually
from stand_in import ground, until

from comity.client.turns import PER_TURN, Turns
from comity.controller.room import ENDED_MAX, LATEST_S, SOONEST_S, UNKNOWN_S, Room
from comity.core.backlog import Backlog
from comity.errors import BadInput, Overloaded
from comity.model import wire
from comity.model.ids import ProcessId, TaskId
from comity.model.task import Logged, Stored, TaskSpec, TaskState

C1, C2 = ProcessId("c1"), ProcessId("c2")


def spec(submitter: ProcessId = C1, size: int = 10) -> TaskSpec:
    return TaskSpec(TaskId("t"), "echo", b"x" * size, submitter)


def room(*, each: int = 0, most: int = 1 << 30, pace: float = 0.0, ended: int = 0) -> Room:
    return Room(Backlog(), max_tasks=10, max_bytes=most, max_each=each, drain=lambda: pace, ended=lambda: ended)


def reached(room: Room, submitter: ProcessId = C1) -> str:
    """Which limit refuses a submit; "" if none does."""
    try:
        room.check(submitter)
    except Overloaded as error:
        return str(error.details["reached"])
    return ""


def test_tasks_under_way_to_the_log_take_room_too() -> None:
    full = room(each=10)
    for _ in range(5):
        full.backlog.add(spec())
        full.take(spec())
    assert reached(full) == "tasks"
    full.settle(spec())
    assert reached(full) == ""
    assert full.refused == {"tasks": 1, "bytes": 0, "submitter": 0, "archive": 0}


def test_what_ended_and_is_still_in_memory_takes_room_of_its_own() -> None:
    assert reached(room(ended=ENDED_MAX - 1)) == "", "however few may wait"
    full = room(ended=ENDED_MAX)
    assert reached(full) == "archive"
    assert full.refused["archive"] == 1


def test_one_submitter_leaves_room_for_the_others() -> None:
    full = room()
    for _ in range(8):
        full.backlog.add(spec())
    assert reached(full, C1) == "submitter" and reached(full, C2) == ""
    assert room(each=99).max_each == 10 and room(each=3).max_each == 3


def test_bytes_are_limited_together_and_for_each() -> None:
    full = room(each=5, most=1000)
    full.backlog.add(spec(size=500))
    assert reached(full, C1) == "submitter" and reached(full, C2) == ""
    full.backlog.add(spec(C2, size=600))
    assert reached(full, C2) == "bytes"
    assert reached(room(most=1)) == "", "none is too large to wait alone"


def test_bytes_count_wherever_they_lie() -> None:
    backlog = Backlog()
    for payload in (b"xyz", Logged(1, 0, 1000), Stored("k", 10_000, b"")):
        backlog.add(TaskSpec(TaskId("t"), "echo", payload, C1))
    assert (backlog.tasks, backlog.bytes, backlog.of(C1)) == (3, 11_003, (3, 11_003))


@pytest.mark.parametrize(("pace", "seconds"), [(0.0, UNKNOWN_S), (1e9, SOONEST_S), (1e-9, LATEST_S), (2.0, 0.5)])
def test_when_to_come_again_follows_from_the_pace(pace: float, seconds: float) -> None:
    full = room(pace=pace)
    for _ in range(10):
        full.backlog.add(spec())
    with pytest.raises(Overloaded) as refused:
        full.check(C1)
    assert refused.value.details["retry_after_s"] == seconds


async def test_what_waits_is_counted_by_the_log() -> None:
    world = World(max_waiting=4, max_waiting_per_submitter=2)
    controller = await world.controller()
    one, two, node = await world.peer("c1"), await world.peer("c2"), await world.peer("n1")
    first = await one.submit()
    await one.submit()
    refused = one.spec()
    await one.say(wire.SubmitTask(refused))
    said = await one.hear(wire.Refused)
    assert (said.task, said.code, said.details["reached"], said.details["limit"]) == (refused.id, "overloaded", "submitter", 2)
    await two.submit()
    stats = await one.ask("stats")
    assert stats["waiting"] == {"tasks": 3, "bytes": 21, "submitters": 2}
    assert stats["limits"]["submitter"] == 2 and stats["refused_overload"]["submitter"] == 1
    await node.join("a")
    run = await node.hear(wire.Run, lambda run: run.task == first)
    await node.say(wire.Done(first, run.epoch, b"1", 1))
    await one.hear(wire.Ended, lambda ended: ended.task == first)
    await one.submit()
    controller.state.check()
    assert (await one.ask("task", id=first))["state"] == TaskState.COMPLETED
    await controller.stop()


async def test_limits_hold_in_one_message_and_after_a_change_of_leader() -> None:
    world = World(max_waiting=10, max_waiting_per_submitter=5, max_waiting_bytes=10_000)
    first = await world.controller("k1")
    client = await world.peer("c1")
    await client.say(*(wire.SubmitTask(client.spec()) for _ in range(7)))
    assert len([await client.hear(wire.Refused) for _ in range(2)]) == 2
    await first.stop()
    second = await world.controller("k2")
    await client.say(wire.SubmitTask(client.spec()))
    assert (await client.hear(wire.Refused)).details["reached"] == "submitter"
    second.state.check()
    await second.stop()


# A patient client


def refusing(times: int, leader: object, retry_after_s: float) -> Callable[[wire.SubmitTask, ProcessId], None]:
    """An answer to submits: overloaded, so many times for each, then accepted."""
    seen: dict[TaskId, int] = {}

    def answer(item: wire.SubmitTask, sender: ProcessId) -> None:
        task = item.spec.id
        seen[task] = seen.get(task, 0) + 1
        if seen[task] <= times:
            details = {"retry_after_s": retry_after_s}
            leader.say(sender, wire.Refused(task, "overloaded", "too many wait", details))  # type: ignore[attr-defined]
        else:
            leader.accept(item, sender)  # type: ignore[attr-defined]

    return answer


async def test_a_patient_submit_comes_again_as_the_same_task() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        leader.answers[wire.SubmitTask] = refusing(2, leader, 0.01)
        task = await client.submit("x", patience_s=10)
        sent = leader.all(wire.SubmitTask)
        assert [item.spec.id for item in sent] == [task.id] * 3
        assert not any(item.again for item in sent), "what was refused did not happen"


async def test_of_many_only_the_refused_come_again() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        refuse = refusing(1, leader, 0.01)

        def half(item: wire.SubmitTask, sender: ProcessId) -> None:
            (refuse if item.spec.input in (b"1", b"3") else leader.accept)(item, sender)

        leader.answers[wire.SubmitTask] = half
        tasks = await client.submit_many("x", [0, 1, 2, 3], patience_s=10)
        assert len({task.id for task in tasks}) == 4 and len(leader.all(wire.SubmitTask)) == 6


@virtually()
async def test_patience_ends_in_the_refusal() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        leader.answers[wire.SubmitTask] = refusing(10**6, leader, 0.02)
        with pytest.raises(Overloaded):
            await client.submit("x", patience_s=0.1)
        assert len(leader.all(wire.SubmitTask)) > 1
        exchange = client._exchange
        assert not exchange.submissions._open and not exchange.submissions._parked
        assert exchange.outcomes._open == exchange.outcomes._submitted == {}


@virtually()
async def test_a_leader_that_falls_silent_meanwhile_ends_it_in_the_refusal() -> None:
    async with ground(submit_timeout_s=0.1) as g:
        leader, client = await g.leader(), await g.client()
        leader.answers[wire.SubmitTask] = refusing(10**6, leader, 1000.0)
        with pytest.raises(Overloaded):
            await client.submit("x", patience_s=0.05)


async def test_who_gives_up_waiting_leaves_nothing_behind() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        leader.answers[wire.SubmitTask] = refusing(10**6, leader, 1000.0)
        submit = asyncio.create_task(client.submit("x", patience_s=100))
        submissions = client._exchange.submissions
        await until(lambda: bool(submissions._parked))
        submit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submit
        assert not submissions._parked and client._exchange.outcomes._submitted == {}


async def test_patience_is_a_length_of_time() -> None:
    async with ground() as g:
        await g.leader()
        client = await g.client()
        with pytest.raises(BadInput, match="patience_s"):
            await client.submit("x", patience_s=-1)


async def test_many_submits_at_once_let_the_loop_turn() -> None:
    turns = Turns(asyncio.get_running_loop())
    order: list[str] = []

    async def work(name: str, amount: int) -> None:
        await turns.take(amount)
        order.append(name)

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(work(f"big {number}", PER_TURN))
        waits = group.create_task(work("never", 1))
        group.create_task(work("small", 1))
        await until(lambda: bool(order))
        assert order == ["big 0"], "the others have to wait"
        waits.cancel()
        asyncio.get_running_loop().call_soon(order.append, "timer")
    assert order[0] == "big 0" and order.index("timer") < order.index("big 3") < order.index("small")
    assert "never" not in order
    await asyncio.wait_for(turns.take(1), 20)
