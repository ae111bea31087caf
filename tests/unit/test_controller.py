"""The controller on in-memory doors; the test plays clients and nodes with raw wire items."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from peers import LIMIT_S, World, until, virtually

from comity.bus.base import LEADER, Delivery
from comity.model import wire
from comity.model.capability import Requirements, Strategy
from comity.model.ids import ProcessId, TaskId
from comity.model.task import TaskFailure, TaskState


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


async def test_a_task_is_accepted_run_and_its_end_told(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit(input=b'{"x": 7}')
    run = await node.hear(wire.Run)
    assert (run.task, run.agent, run.capability, run.input, run.number) == (task, "n1/a", "echo", b'{"x": 7}', 1)
    await node.say(wire.Began(task, run.epoch), wire.Done(task, run.epoch, b"42", 3))
    ended = await client.hear(wire.Ended)
    assert (ended.task, ended.state, ended.result) == (task, TaskState.COMPLETED, b"42")
    await node.hear(wire.Settled, lambda s: (task, run.epoch) in s.reports)


async def test_a_resend_is_the_same_task(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    spec = client.spec()
    await client.say(wire.SubmitTask(spec), wire.SubmitTask(spec, again=True))
    run = await node.hear(wire.Run)
    await node.say(wire.Done(spec.id, run.epoch, b"1", 1))
    await client.hear(wire.Ended)
    await client.say(wire.SubmitTask(spec, again=True))
    await client.hear(wire.Ended)
    stats = await client.ask("stats")
    assert stats["totals"]["submitted"] == 1
    assert not any(isinstance(item, wire.Run) for item in node.items)


async def test_the_same_key_is_the_same_task_also_while_it_is_under_way(world: World) -> None:
    await world.controller()
    one, two = await world.peer("c1"), await world.peer("c2")
    first, second = one.spec(key="k"), two.spec(key="k")
    await one.say(wire.SubmitTask(first))
    await two.say(wire.SubmitTask(second))
    pairs = (await two.hear(wire.Accepted)).tasks
    assert pairs == ((second.id, first.id),)
    assert await two.submit(key="k") == first.id
    await one.say(wire.CancelTask(99, first.id))
    assert (await two.hear(wire.Ended)).task == first.id


@virtually()
async def test_a_killed_nodes_work_moves_within_half_a_second(world: World) -> None:
    await world.controller()
    client, node, other = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    await node.say(wire.Began(task, run.epoch))
    await other.join("a")
    began = asyncio.get_running_loop().time()
    await node.kill()
    moved = await other.hear(wire.Run)
    assert asyncio.get_running_loop().time() - began < 0.5
    assert moved.epoch > run.epoch and moved.number == 2
    await other.say(wire.Done(task, moved.epoch, b'"other"', 1))
    assert (await client.hear(wire.Ended)).result == b'"other"'


@virtually(beacon_s=0.05, lease_s=0.4)
async def test_a_silent_nodes_work_moves_when_its_lease_is_over_and_its_late_report_is_void(world: World) -> None:
    await world.controller()
    client, node, other = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    await other.join("a")
    node.silence()
    moved = await other.hear(wire.Run)
    await node.say(wire.Done(task, run.epoch, b'"late"', 1))
    await node.hear(wire.Settled, lambda s: (task, run.epoch) in s.reports)
    await other.say(wire.Done(task, moved.epoch, b'"new"', 1))
    assert (await client.hear(wire.Ended)).result == b'"new"'
    assert (await client.ask("stats"))["totals"]["rejected_reports"] == 1


async def test_a_report_of_somebody_else_counts_for_nothing(world: World) -> None:
    await world.controller()
    client, node, liar = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    await liar.say(wire.Done(task, run.epoch, b'"lie"', 1))
    await liar.hear(wire.Settled)
    assert await client.state(task) == "assigned"


async def test_cancel_tells_the_attempt_and_ends_the_task(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    await client.say(wire.CancelTask(7, task, "changed my mind"))
    stop = await node.hear(wire.Stop)
    assert (stop.task, stop.epoch, stop.reason) == (task, run.epoch, "changed my mind")
    await node.say(wire.Failed(task, run.epoch, TaskFailure("CancelledError"), canceled=True))
    assert (await client.hear(wire.Ended)).state is TaskState.CANCELED


async def test_the_log_says_whether_a_node_holds_its_lease(world: World) -> None:
    await world.controller()
    node = await world.peer("n1")
    await node.join("a")
    assert await node.ask("lease", id="n1", by=1) == {"is_held": True}
    assert await node.ask("lease", id="n1", by=2) == {"is_held": False}
    assert await node.ask("lease", id="n2", by=1) == {"is_held": False}


@virtually()
async def test_a_waiting_task_says_why_it_waits(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    task = await client.submit("nobody")
    view = await client.ask("task", id=task)
    assert view["state"] == "submitted" and view["reason"] == "no agent offers nobody"
    assert (await client.ask("why", id=task))["reason"] == "no agent offers nobody"
    node = await world.peer("n1")
    await node.join("a")
    await client.submit()
    run = await node.hear(wire.Run)
    await node.say(wire.Failed(run.task, run.epoch, TaskFailure("KeyError", "'x'")))
    await client.ask("barrier")
    task = await client.submit(requirements=Requirements(tags=("gpu",)))
    assert (await client.ask("task", id=task))["reason"] == "no agent that meets its requirements is free"
    assert (await client.ask("why", id=task))["reason"].endswith("no agent can take echo now: 1 x lacks tag gpu")
    reason = (await client.ask("task", id=run.task))["reason"]
    assert reason.startswith("it backs off until") and reason.endswith("; n1/a: KeyError: 'x'")


@pytest.mark.parametrize(
    ("more", "queue", "code"),
    [
        ({"capability": "nobody"}, False, "unknown-capability"),
        ({"priority": 10}, True, "bad-input"),
        ({"task": TaskId("0" * 24)}, True, "too-old"),
        ({"task": TaskId("short")}, True, "bad-input"),
    ],
)
async def test_a_submit_that_cannot_be_is_refused_by_a_typed_error(
    world: World, more: dict[str, Any], queue: bool, code: str
) -> None:
    await world.controller()
    client = await world.peer("c1")
    await client.say(wire.SubmitTask(client.spec(**more), queue=queue))
    assert (await client.hear(wire.Refused)).code == code


async def test_who_would_rather_not_wait_is_refused_if_no_agent_meets_the_requirements(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    wanted = Requirements(tags=("gpu",))
    await client.say(wire.SubmitTask(client.spec(requirements=wanted), queue=False))
    assert (await client.hear(wire.Refused)).code == "no-agent"
    await client.say(wire.SubmitTask(client.spec(requirements=wanted), queue=True))
    await client.hear(wire.Accepted)


async def test_more_than_may_wait_is_refused_and_nothing_is_evicted() -> None:
    world = World(max_waiting=3)
    await world.controller()
    client = await world.peer("c1")
    tasks = [await client.submit() for _ in range(3)]
    await client.say(wire.SubmitTask(client.spec()))
    refused = await client.hear(wire.Refused)
    assert (refused.code, refused.details["limit"]) == ("overloaded", 3) and refused.details["retry_after_s"] > 0
    assert [await client.state(task) for task in tasks] == ["submitted"] * 3
    await world.running[0].stop()


async def test_started_again_it_carries_on(world: World) -> None:
    first = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    task = await client.submit()
    await first.stop()
    await world.controller("k2")
    await node.join("a")
    run = await node.hear(wire.Run)
    assert run.task == task
    await node.say(wire.Done(task, run.epoch, b"1", 1))
    assert (await client.hear(wire.Ended)).task == task


@virtually()
async def test_a_standby_takes_over_when_the_leader_is_gone(world: World) -> None:
    first = await world.controller("k1")
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    standby = await world.controller("k2", eager=False)
    await first.stop()
    await asyncio.wait_for(standby.led.wait(), LIMIT_S)
    leading = await node.hear(wire.Leading, lambda item: item.leader == "k2")
    assert leading.term == 2
    await node.say(node.beacon(1000, 1), wire.Done(task, run.epoch, b"1", 1))
    assert (await client.hear(wire.Ended)).task == task


@virtually()
async def test_a_standby_stays_one_while_the_leader_lives(world: World) -> None:
    await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(standby.led.wait(), 2.0)


@virtually()
async def test_a_deposed_leader_says_nothing_that_does_not_count(world: World) -> None:
    first = await world.controller("k1")
    client = await world.peer("c1")
    await client.submit()
    second = await world.controller("k2")
    for _ in range(20):
        await client.submit()
    assert second.led.is_set()
    await until(lambda: first.leading is None)
    assert second.state.totals.submitted == 21


@pytest.mark.parametrize("away", ["n1", "k1"])
async def test_what_did_not_reach_a_node_is_sent_again_when_it_beacons(world: World, away: str) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    runs, later = await client.submit(), client.spec()
    run = await node.hear(wire.Run)
    await node.say(wire.Began(runs, run.epoch))
    await until(lambda: controller.state.tasks[runs].state is TaskState.WORKING)
    node.silence()
    controller._receive(Delivery(client.name, wire.encode([wire.SubmitTask(later), wire.CancelTask(1, runs)])))
    world.network.disconnect(ProcessId(away))
    await until(lambda: later.id in controller.state.tasks and controller.state.tasks[later.id].attempt is not None)
    await until(lambda: controller.outbox._pumps == {})
    assert not [item for item in node.items if isinstance(item, wire.Run | wire.Stop)]
    world.network.reconnect(ProcessId(away))
    for _ in range(2):
        await node.say(node.beacon(100, 1))
        await node.hear(wire.BeaconAck, lambda ack: ack.seq == 100)
    assert [item.task for item in node.items if isinstance(item, wire.Run)] == [later.id]
    assert [item.task for item in node.items if isinstance(item, wire.Stop)] == [runs]


async def test_a_node_that_says_it_was_away_is_sent_everything_again(world: World) -> None:
    """Its server stopped: nobody else saw that it was gone for some milliseconds."""
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    first = await node.hear(wire.Run)
    node.silence()
    await node.say(node.beacon(100, 1))
    await node.hear(wire.BeaconAck, lambda ack: ack.seq == 100)
    assert not [item for item in node.items if isinstance(item, wire.Run)]
    await node.say(msgspec.structs.replace(node.beacon(101, 1), was_away=True))
    again = await node.hear(wire.Run)
    assert (again.task, again.epoch) == (task, first.epoch)


async def test_large_payloads_live_in_the_log_and_arrive_whole(world: World) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    big = b'"' + b"x" * 50_000 + b'"'
    task = await client.submit(input=big)
    controller.payloads._hot.clear()
    await node.join("a")
    run = await node.hear(wire.Run)
    assert run.input == big
    await node.say(wire.Done(task, run.epoch, big, 1))
    assert (await client.hear(wire.Ended)).result == big


async def test_questions_about_what_is_not_are_answered(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    assert await client.ask("task", id=client.ids.next()) == "unknown-task"
    assert await client.ask("task", id="nonsense") == "bad-input"
    assert await client.ask("meaning") == "not-found"
    assert await client.ask("tasks", state="odd") == "bad-input"


async def test_following_a_task_that_is_not_known_ends_in_a_typed_error(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    await client.say(wire.FollowTask((client.ids.next(),)))
    ended = await client.hear(wire.Ended)
    assert ended.failure is not None and ended.failure.code == "unknown-task"


async def test_finished_tasks_go_to_the_archive_and_are_still_found(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("comity.controller.keeping.CHUNK_AGE_MS", 0)
    controller = await world.controller()
    client = await world.peer("c1")
    spec = client.spec()
    await client.say(wire.SubmitTask(spec), wire.CancelTask(1, spec.id))
    await client.hear(wire.Ended)
    await until(lambda: spec.id not in controller.state.tasks)
    assert (await client.ask("task", id=spec.id))["state"] == "canceled"
    assert [task["id"] for task in (await client.ask("tasks"))["tasks"]] == [spec.id]
    await client.say(wire.SubmitTask(spec, again=True))
    assert (await client.hear(wire.Ended)).state is TaskState.CANCELED
    assert (await client.ask("stats"))["totals"]["submitted"] == 1


async def test_a_rating_counts_once_also_after_the_task_is_archived(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")

    def accuracy() -> float:
        why = controller.scheduling.explain("echo", strategy=Strategy.BEST_FIT)
        return float(why["candidates"][0]["figures"]["accuracy"])

    for archived in (False, True):
        task = await client.submit()
        run = await node.hear(wire.Run)
        await node.say(wire.Done(task, run.epoch, b"1", 1))
        await client.hear(wire.Ended)
        if archived:
            monkeypatch.setattr("comity.controller.keeping.CHUNK_AGE_MS", 0)
            await until(lambda task=task: task not in controller.state.tasks)  # type: ignore[misc]
        before = accuracy()
        await client.say(wire.RateTask(task, 1.0))
        await until(lambda before=before: accuracy() > before)  # type: ignore[misc]
        if not archived:
            once = accuracy()
            await client.say(wire.RateTask(task, 1.0))
            await client.ask("barrier")
            assert accuracy() == once


async def test_a_snapshot_and_a_trimmed_log_hold_the_same_state(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(snapshot_every=5, keep_finished=1)
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    big = b'"' + b"y" * 5_000 + b'"'
    waiting = await client.submit("later", input=big)
    async with asyncio.timeout(LIMIT_S):
        while world.log.first == 1:
            await client.submit("later")
    await controller.stop()
    before = msgspec.msgpack.encode(sorted(controller.state.tasks.items()))
    again = await world.controller("k2")
    again.state.check()
    assert msgspec.msgpack.encode(sorted(again.state.tasks.items())) == before
    await node.join("a")
    assert (await client.ask("task", id=waiting))["input"] == "y" * 5_000
    await again.stop()


async def test_events_tell_a_tasks_life(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    await client.say(wire.FollowEvents(5, for_ms=60_000))
    task = await client.submit()
    run = await node.hear(wire.Run)
    await node.say(wire.Began(task, run.epoch), wire.Live(task, run.epoch, b'{"type":"progress","value":0.5}'))
    await node.say(wire.Done(task, run.epoch, b"1", 1))
    seen = []
    while "task.completed" not in seen:
        notice = await client.hear(wire.EventNotice)
        event = msgspec.json.decode(notice.body)
        assert event.get("task", task) == task
        seen.append(event["type"])
    assert [kind for kind in seen if kind != "task.progress"] == [
        "task.submitted", "task.assigned", "task.started", "task.completed",
    ]  # fmt: skip
    assert "task.progress" in seen
    await client.say(wire.FollowEvents(6, after=0))
    first = msgspec.json.decode((await client.hear(wire.EventNotice, lambda n: n.ref == 6)).body)
    assert first["type"] == "leader.elected"
    assert (await client.hear(wire.EventNotice, lambda n: n.body == wire.CURRENT)).ref == 6


async def test_events_say_why_an_attempt_failed_and_nothing_of_it_before(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit(retries=0)
    run = await node.hear(wire.Run)
    await node.say(wire.Failed(task, run.epoch, TaskFailure("KeyError", "'x'")))
    await client.hear(wire.Ended)
    await client.say(wire.FollowEvents(7, after=0, task=task))
    seen = []
    while not seen or seen[-1]["type"] != "task.failed":
        seen.append(msgspec.json.decode((await client.hear(wire.EventNotice)).body))
    assert [(event["type"], event.get("code"), event.get("reason")) for event in seen] == [
        ("task.submitted", None, None), ("task.assigned", None, None), ("task.dead", "KeyError", "'x'"),
        ("task.failed", "KeyError", "'x'"),
    ]  # fmt: skip


async def test_events_of_long_ago_are_read_back_from_the_log(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.controller.events.RECENT", 3)
    await world.controller()
    client = await world.peer("c1")
    tasks = [await client.submit() for _ in range(20)]
    await client.say(wire.FollowEvents(1, after=0))
    late = await client.submit()
    seen: list[dict[str, Any]] = []
    missing = {late, "events.current"}
    while missing:
        notice = await client.hear(wire.EventNotice)
        seen.append(msgspec.json.decode(notice.body))
        missing -= {seen[-1].get("task"), seen[-1]["type"]}
    assert [event["task"] for event in seen if event["type"] == "task.submitted"] == [*tasks, late]
    assert seen[0]["type"] == "leader.elected"


async def test_a_live_call_is_routed_and_counts_as_load(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=1)
    await client.say(wire.Route(1, "echo", 5_000))
    assert (await client.hear(wire.Routed)).agent == "n1/a"
    await client.say(wire.Route(2, "echo", 5_000))
    assert (await client.hear(wire.Routed)).code == "no-agent"
    await client.say(wire.CallEnded(1), wire.Route(3, "echo", 5_000), wire.Route(4, "nothing", 5_000))
    assert (await client.hear(wire.Routed, lambda r: r.ref == 3)).agent == "n1/a"
    assert (await client.hear(wire.Routed, lambda r: r.ref == 4)).code == "unknown-capability"
    client.bus._network.disconnect(client.name)
    other = await world.peer("c2")
    await other.say(wire.Route(1, "echo", 5_000))
    assert (await other.hear(wire.Routed)).agent == "n1/a", "its caller died"


async def test_a_strategy_set_for_a_capability_outlives_the_leader(world: World) -> None:
    first = await world.controller()
    client = await world.peer("c1")
    assert await client.ask("strategy", capability="echo", strategy="mystery") == "bad-input"
    await client.ask("strategy", capability="echo", strategy="round_robin")
    await first.stop()
    second = await world.controller("k2")
    assert second.scheduling.strategy_of("echo") == "round_robin"


async def test_shutdown_refuses_drains_and_says_so(world: World) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    asking = asyncio.create_task(client.ask("shutdown", timeout_s=5))
    await node.hear(wire.Message, lambda m: m.envelope.topic == "system.shutdown")
    await node.say(wire.Done(task, run.epoch, b"1", 1))
    assert (await asking)["running"] == 0
    await asyncio.wait_for(controller.shut_down.wait(), LIMIT_S)
    await client.say(wire.SubmitTask(client.spec()))
    assert (await client.hear(wire.Refused)).code == "shutting-down"


async def test_foreign_bytes_are_counted_and_harm_nothing(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    await client.bus.send(LEADER, b"\x00garbage")
    assert (await client.ask("stats"))["malformed_messages"] == 1


async def test_why_names_candidates_scores_and_the_choice(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", "b")
    task = await client.submit()
    why = await client.ask("why", id=task)
    assert why["assignment"]["choice"] in ("n1/a", "n1/b")
    assert {candidate["agent"] for candidate in why["assignment"]["candidates"]} == {"n1/a", "n1/b"}
