"""What a hostile or broken client or node says harms nobody but itself, and stops no controller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from peers import ECHO, LIMIT_S, Peer, World, a_while, until

from comity.bus.base import LEADER
from comity.controller.controller import CONTROLLERS
from comity.log.memory import MemoryLog
from comity.model import published, wire
from comity.model.capability import AgentRecord, Requirements, Retry
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.task import LOG_LIMIT, Logged, Stored, TaskFailure, TaskState
from comity.store.memory import MemoryStore


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        assert controller.failure is None
        await controller.stop()


NAN, INF = float("nan"), float("inf")
DIGEST = b"d" * 16


@pytest.mark.parametrize(
    "more",
    [
        {"attempt_timeout_s": NAN},
        {"attempt_timeout_s": INF},
        {"start_timeout_s": NAN},
        {"start_timeout_s": INF},
        {"start_timeout_s": 0.0},
        {"deadline_ms": 2**64 - 1},
        {"retries": 2**63},
        {"parent": TaskId("x" * 500)},
        {"parent_epoch": -1},
        {"capability": "x" * 201},
        {"requirements": Requirements(cpu=NAN)},
        {"requirements": Requirements(version=">=one")},
        {"requirements": Requirements(tags=("x" * 5000,))},
        {"input": Logged(1, 0, 10)},
        {"input": Stored("c2/inputs/x", 10, DIGEST)},
        {"input": Stored("network/snapshot/1", 10, DIGEST)},
        {"input": Stored("c1/" + "x" * 1000, 10, DIGEST)},
        {"input": Stored("c1/x", 10, b"d" * 1000)},
        {"input": Stored("c1/x", -1, DIGEST)},
        {"key": "k" * 501},
        {"not_before_ms": 2**64 - 1},
        {"not_before_ms": -1},
        {"progress_timeout_s": NAN},
        {"progress_timeout_s": -1.0},
        {"retry": Retry(first_s=NAN)},
        {"retry": Retry(factor=INF)},
        {"retry": Retry(max_s=0.0)},
        {"retry": Retry(retries=-1)},
        {"retry": Retry(no_retry=("x" * 2000,))},
        {"replays": TaskId("x")},
    ],
)
async def test_a_submit_with_a_field_beyond_reason_is_refused(world: World, more: dict[str, Any]) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    await client.say(wire.SubmitTask(client.spec(**more)))
    refused = await client.hear(wire.Refused)
    assert refused.code in ("bad-input", "too-large", "access-denied")
    await client.submit()
    await node.hear(wire.Run)


async def test_a_task_id_of_any_length_is_no_way_to_break_an_answer(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    long = TaskId("x" * 500_000)
    await client.say(wire.SubmitTask(client.spec(task=long)))
    await client.say(wire.CancelTask(1, long))
    assert (await client.hear(wire.Answer)).code == "bad-input"
    await client.say(wire.FollowTask((long,)))
    await client.say(wire.RateTask(long, 0.5))
    assert await client.ask("task", id=long) == "bad-input"
    await client.submit()
    assert sum(map(len, world.log.entries)) < 10_000


async def test_bytes_that_are_no_text_are_a_malformed_message(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    await client.bus.send(LEADER, msgspec.msgpack.encode([[3, 1, "x"]]).replace(b"\xa1x", b"\xa1\xff"))
    assert (await client.ask("stats"))["malformed_messages"] == 1


@pytest.mark.parametrize("key", ["nodes/evil", "agents/evil/0", "agents/evil"])
async def test_a_registry_record_that_cannot_be_read_is_skipped(world: World, key: str) -> None:
    await world.controller()
    evil, client, node = await world.peer("evil"), await world.peer("c1"), await world.peer("n1")
    await evil.registry.put(key, b"\x92\xa1\xff\x01")
    await node.join("a")
    await client.submit()
    await node.hear(wire.Run)
    assert (await client.ask("stats"))["malformed_messages"] == 1


async def test_an_agent_named_in_two_chunks_lives_as_long_as_the_last_says(world: World) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    record = AgentRecord(id=AgentId("n1/a"), name="a", node=ProcessId("n1"), concurrency=1, offers=(ECHO,))
    await node.registry.put("agents/n1/1", published.encode_agents([record]))
    await node.registry.delete("agents/n1/0")
    await until(lambda: "agents/n1/0" not in controller.census._chunks)
    assert list(controller.census.agents) == ["n1/a"]
    await client.submit()
    await node.hear(wire.Run)
    await node.registry.delete("agents/n1/1")
    await until(lambda: not controller.census.agents)
    assert controller.scheduling.record(AgentId("n1/a")) is None



async def test_who_says_that_he_leads_a_higher_term_deposes_nobody(world: World) -> None:
    controller = await world.controller()
    client = await world.peer("c1")
    for term in (5, 2**62):
        await client.bus.send(CONTROLLERS, wire.encode([wire.Leading(term, client.name, 0)]))
    for _ in range(3):
        await a_while(0.3)
        await client.submit("x")
    assert controller.led.is_set() and controller.state.term == 1


async def test_who_says_that_he_leads_keeps_no_standby_from_taking_over(world: World) -> None:
    first = await world.controller("k1")
    client = await world.peer("c1")
    await client.submit("x")
    standby = await world.controller("k2", eager=False)

    async def lie() -> None:
        while True:
            for leader in ("k1", "c1"):
                await client.bus.send(CONTROLLERS, wire.encode([wire.Leading(2**62, ProcessId(leader), 0)]))
            await a_while(0.1)

    lying = asyncio.create_task(lie())
    await first.stop()
    await asyncio.wait_for(standby.led.wait(), LIMIT_S)
    await a_while(0.6)
    assert standby.led.is_set() and standby.state.term == 2
    lying.cancel()


@pytest.mark.parametrize(
    "result",
    [
        b'"' + b"x" * LOG_LIMIT + b'"',
        Logged(1, 0, 10),
        Stored("network/snapshot/1", 10, DIGEST),
        Stored("n2/results/x", 10, DIGEST),
        Stored("n1/" + "x" * 100_000, 10, DIGEST),
    ],
)
async def test_a_result_that_cannot_be_one_fails_the_attempt(world: World, result: Any) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    await node.say(wire.Done(task, run.epoch, result, 1))
    ended = await client.hear(wire.Ended)
    assert ended.state is TaskState.FAILED and ended.failure is not None
    assert ended.failure.code in ("bad-input", "too-large", "access-denied")


async def test_a_negative_running_time_is_none(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    await node.say(wire.Done(task, run.epoch, b"1", -(2**62)))
    await client.hear(wire.Ended)
    view = await client.ask("task", id=task)
    assert view["assigned"] == view["started"] or view["started"] is None


async def test_many_long_failures_fit_into_entries(world: World) -> None:
    log = MemoryLog(world.log)
    log.entry_limit = 600_000
    controller = await world.controller(log=log)
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=1000)
    specs = [client.spec(retries=0) for _ in range(600)]
    await client.say(*(wire.SubmitTask(spec) for spec in specs))
    runs = [await node.hear(wire.Run) for _ in specs]
    failure = TaskFailure("Boom", "\N{EURO SIGN}" * 2000)
    for at in range(0, len(runs), 50):
        await node.say(*(wire.Failed(run.task, run.epoch, failure) for run in runs[at : at + 50]))
    await until(lambda: controller.state.totals.failed == len(specs))
    assert controller.state.term == 1, "the pipeline never broke"


async def test_many_requirements_fit_into_entries(world: World) -> None:
    log = MemoryLog(world.log)
    log.entry_limit = 600_000
    controller = await world.controller(log=log)
    client = await world.peer("c1")
    needs = Requirements(labels={f"label{i}": "x" * 30 for i in range(90)})
    for _ in range(10):
        specs = [client.spec("x", requirements=needs, trace="\N{EURO SIGN}" * 500) for _ in range(60)]
        await client.say(*map(wire.SubmitTask, specs))
    await until(lambda: controller.state.totals.submitted == 600)
    assert controller.state.term == 1, "the pipeline never broke"


async def test_only_its_own_node_lets_go_of_an_attempts_slot(world: World) -> None:
    await world.controller()
    client, node, liar = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await node.join("a", slots=1)
    task = await client.submit()
    run = await node.hear(wire.Run)
    await liar.say(wire.Slot(task, run.epoch, held=False))
    second = await client.submit()
    assert await client.state(second) == "submitted"


async def test_a_node_counts_the_calls_of_its_own_agents_only(world: World) -> None:
    controller = await world.controller()
    client, node, liar = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await node.join("a", slots=1)
    await liar.join("b")
    calls = {AgentId("n1/a"): 100, AgentId("n2/b"): 2**63, AgentId("n2/c"): -1}
    await liar.say(msgspec.structs.replace(liar.beacon(1, 1), calls=calls))
    await liar.hear(wire.BeaconAck, lambda ack: ack.seq == 1)
    assert controller.scheduling.load(AgentId("n1/a")) == 0
    await client.submit()
    await node.hear(wire.Run)


async def test_a_node_cannot_cancel_what_nobody_canceled(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    failure = TaskFailure("task-canceled", "because", retryable=False)
    await node.say(wire.Failed(task, run.epoch, failure, canceled=True))
    assert (await client.hear(wire.Ended)).state is TaskState.FAILED


async def test_live_events_cannot_pass_for_what_the_log_says(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    await client.say(wire.FollowEvents(5, for_ms=60_000))
    task = await client.submit()
    run = await node.hear(wire.Run)
    await node.say(wire.Live(task, run.epoch, b'{"type":"completed"}'), wire.Live(task, run.epoch, b'{"type":["x"]}'))
    await node.say(wire.Live(task, run.epoch, b'{"type":"progress"}'))
    seen: list[str] = []
    while "task.progress" not in seen:
        seen.append(msgspec.json.decode((await client.hear(wire.EventNotice)).body)["type"])
    assert "task.completed" not in seen


@pytest.mark.parametrize(
    ("what", "args"),
    [
        ("tasks", {"limit": "many"}),
        ("tasks", {"state": ["x"]}),
        ("tasks", {"limit": 1e300}),
        ("shutdown", {"timeout_s": "soon"}),
        ("strategy", {"capability": "x" * 100_000, "strategy": "best_fit"}),
        ("strategy", {"capability": "", "strategy": "best_fit"}),
        ("dead", {"since_ms": "yesterday"}),
        ("replay-dead", {"ids": "all"}),
    ],
)
async def test_a_question_with_odd_arguments_is_answered(world: World, what: str, args: dict[str, Any]) -> None:
    await world.controller()
    client = await world.peer("c1")
    assert await client.ask(what, **args) == "bad-input"


async def _stored(peer: Peer, data: bytes) -> Stored:
    return await MemoryStore(peer.world.store).put(f"{peer.name}/inputs/x", data)


async def test_a_stored_input_is_shown_by_what_it_is_not_by_what_it_says(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    stored = await _stored(client, b'"' + b"x" * 1_000_000 + b'"')
    lie = await client.submit("x", input=Stored(stored.key, 10, stored.digest))
    gone = await client.submit("x", input=Stored("c1/gone", 10, DIGEST))
    for task in (lie, gone):
        assert (await client.ask("task", id=task))["input"]["$stored"].startswith("c1/")


async def test_only_its_own_node_shows_progress_of_an_attempt(world: World) -> None:
    controller = await world.controller()
    client, node, other = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await node.join("a")
    task = await client.submit(progress_timeout_s=0.6, retries=0)
    run = await node.hear(wire.Run)
    await node.say(wire.Began(task, run.epoch))
    await other.say(wire.Progress(((task, run.epoch, -(2**40)),)))
    ended = await client.hear(wire.Ended)
    assert ended.failure is not None
    assert ended.failure.code == "stuck"
    assert controller.state.totals.stuck == 1
    stop = await node.hear(wire.Stop)
    assert (stop.task, stop.epoch, stop.reason) == (task, run.epoch, "stuck")
