"""Plain functions: in threads and in processes, on a real event loop."""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import psutil
import pytest
from node_stage import Caller, Leader, Stage, settle
from pooled import compute, crew

from comity.agent import Agent
from comity.errors import BadInput, Conflict, Refuse
from comity.handles import Attempt
from comity.message import Message
from comity.model import wire
from comity.node import pools
from comity.node.measure import measured
from comity.node.node import Node


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    stage = Stage(cancel_grace_s=0.3)
    yield stage
    await stage.stop()


async def failure(leader: Leader) -> tuple[str, bool]:
    item = await leader.next(wire.Failed)
    leader.say("n1", settle(item))
    return item.failure.code, item.failure.retryable


async def test_plain_functions_run_in_threads_side_by_side(stage: Stage) -> None:
    agent = Agent("a")
    together = threading.Barrier(3, timeout=20)

    @agent.capability
    def work(attempt: Attempt, n: int) -> list[Any]:
        attempt.progress(n / 3)
        attempt.log("from a thread")
        together.wait()
        return [n, threading.current_thread() is not threading.main_thread(), attempt.epoch]

    _, leader = await stage.started(agent)
    for n in range(3):
        leader.assign("work", {"n": n}, task=f"t{n}", epoch=n + 1)
    results = sorted([await leader.done() for _ in range(3)])
    assert results == [[0, True, 1], [1, True, 2], [2, True, 3]]
    assert len(leader.all(wire.Began)) == 3
    said = [msgspec.json.decode(item.body) for item in leader.all(wire.Live)]
    assert len(said) == 6 and {"type": "log", "message": "from a thread"} in said


async def test_errors_of_plain_functions(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    def work(kind: str) -> int:
        match kind:
            case "stop":
                raise StopIteration
            case "exit":
                raise SystemExit(1)
            case "interrupt":
                raise KeyboardInterrupt
            case "cancel":
                raise asyncio.CancelledError
            case "refuse":
                raise Refuse("no")
        return kind  # type: ignore[return-value]

    _, leader = await stage.started(agent)
    for number, kind in enumerate(("stop", "exit", "cancel", "text")):
        leader.assign("work", {"kind": kind}, task=f"t{number}")
    codes = {(await failure(leader))[0] for _ in range(4)}
    assert codes == {"StopIteration", "SystemExit", "CancelledError", "invalid-output"}
    leader.assign("work", {"kind": "refuse"}, task="t9")
    assert (await leader.next(wire.Declined)).reason == "no"


async def test_a_plain_function_sees_that_it_is_canceled(stage: Stage) -> None:
    agent = Agent("a")
    left = threading.Event()

    @agent.capability
    def work(attempt: Attempt) -> str:
        limit = time.monotonic() + 20
        while not attempt.is_canceled and time.monotonic() < limit:
            left.wait(0.01)
        return "ended early"

    node, leader = await stage.started(agent)
    leader.assign("work")
    await leader.next(wire.Began)
    leader.say("n1", wire.Stop("t1", 1, "enough", 20_000))  # type: ignore[arg-type]
    failed = await leader.next(wire.Failed)
    assert failed.canceled and failed.failure.message == "enough"
    assert node.pools.running == 0 and not leader.all(wire.Done)


async def test_a_plain_function_that_does_not_look_is_given_up(stage: Stage) -> None:
    agent = Agent("a")
    free = threading.Event()

    @agent.capability
    def work() -> None:
        free.wait(30)

    node, leader = await stage.started(agent)
    leader.assign("work", timeout_s=1.0)
    assert await failure(leader) == ("attempt-timeout", True)
    assert node.pools.running == 1 and not node.attempts.running, "its thread is still busy"
    free.set()
    async with asyncio.timeout(20):
        while node.pools.running:  # noqa: ASYNC110 - a thread ends when it likes
            await asyncio.sleep(0.005)


async def test_without_a_free_thread_an_attempt_has_not_begun(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "THREADS", 1)
    agent = Agent("a")
    free = threading.Event()

    @agent.capability
    def work(wait: bool) -> bool:
        return free.wait(30) if wait else True

    _, leader = await stage.started(agent)
    leader.assign("work", {"wait": True})
    await leader.next(wire.Began)
    leader.assign("work", {"wait": False}, task="t2")
    leader.assign("work", {"wait": False}, task="t3", remaining_ms=100)
    leader.assign("work", {"wait": False}, task="t4")
    failed = await leader.next(wire.Failed)
    assert (failed.task, failed.failure.code) == ("t3", "deadline-exceeded")
    leader.say("n1", wire.Stop("t4", 1, "canceled", 5000))  # type: ignore[arg-type]
    assert (await leader.next(wire.Failed)).task == "t4", "what has not begun stops at once"
    assert {item.task for item in leader.all(wire.Began)} == {"t1"}
    free.set()
    done = {(await leader.next(wire.Done)).task for _ in range(2)}
    assert done == {"t1", "t2"}


async def test_a_plain_function_may_change_and_address_its_agent_from_its_thread(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    def rename() -> None:
        agent.update(tags={"new"})

        @agent.on("hello")
        def hello(message: Message) -> None:
            message.reply("from a thread")

    node, leader = await stage.started(agent)
    leader.assign("rename")
    await leader.next(wire.Done)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", topic="hello") == ("inform", "from a thread")
    await node.announcer.announced.wait()
    assert stage.agents()["n1/a"].tags == ("new",)


async def test_what_a_plain_function_returns_may_be_awaited(stage: Stage) -> None:
    agent = Agent("a")

    async def later(n: int) -> int:
        return n + 1

    @agent.capability
    def work(n: int) -> int:
        return later(n)  # type: ignore[return-value]

    _, leader = await stage.started(agent)
    leader.assign("work", 1)
    assert await leader.done() == 2


async def test_the_process_pool(stage: Stage) -> None:
    node = stage.node("n1", [crew])
    leader = await stage.leader()
    await node.start()
    await node.ready()
    leader.assign("compute")
    pid = await leader.done()
    assert pid != os.getpid()
    leader.assign("compute", {"kind": "square", "n": 12}, task="t2")
    assert await leader.done() == 144
    for number, (kind, expected) in enumerate(
        {
            "spoiled": ("Spoiled", False),
            "exit": ("SystemExit", True),
            "text": ("invalid-output", False),
            "die": ("process-lost", True),
        }.items()
    ):
        leader.assign("compute", {"kind": kind}, task=f"f{number}")
        assert await failure(leader) == expected
    leader.assign("compute", {"n": "x"}, task="t3")
    assert await failure(leader) == ("invalid-input", False)
    leader.assign("compute", {"kind": "refuse"}, task="t4")
    assert (await leader.next(wire.Declined)).reason == "not here"
    await node.stop()


COMPUTING = """
import asyncio, pooled
from comity.node.pools import Pools

async def main():
    await Pools().in_process(pooled.compute, b'{"kind": "stay"}', (), lambda: None)

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells a process that its parent ended")
async def test_what_computes_ends_with_a_node_that_is_killed() -> None:
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    node = await asyncio.create_subprocess_exec(sys.executable, "-c", COMPUTING, stdout=asyncio.subprocess.PIPE, env=env)
    try:
        assert node.stdout is not None
        worker = psutil.Process(int(await asyncio.wait_for(node.stdout.readline(), 30.0)))
    finally:
        node.kill()
        await node.wait()
    _, alive = await asyncio.to_thread(psutil.wait_procs, [worker], 20.0)
    assert alive == []


def test_what_cannot_run_in_another_process_is_refused() -> None:
    agent = Agent("a")

    def local() -> None: ...

    async def asynchronous() -> None: ...

    def handled(attempt: Attempt) -> None: ...

    for function in (local, asynchronous, handled, functools.partial(compute, "pid")):
        with pytest.raises(BadInput):
            agent.capability(pool="process")(function)
    with pytest.raises(Conflict):
        crew.capability(pool="process")(compute)


async def test_a_process_can_be_measured(stage: Stage) -> None:
    measure = measured()
    load = measure()
    assert load.memory_mb > 10 and load.cpu >= 0
    assert 0 <= load.host_cpu_free <= (os.cpu_count() or 1) and load.host_memory_free_mb > 0
    node: Node = stage.node("n1", [])
    node._measure = None
    leader = await stage.leader()
    await node.start()
    await node.ready()
    assert leader.all(wire.Beacon)[-1].memory_mb > 10
