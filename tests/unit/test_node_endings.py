"""How attempts end, and what goes in and out of them."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from node_stage import Stage, settle, staged_on

from comity.agent import Agent
from comity.errors import Disconnected, InvalidInput, NoAgent, Refuse, TimedOut, Unreachable
from comity.handles import Attempt
from comity.model import wire
from comity.model.codec import digest
from comity.model.ids import TaskId
from comity.model.task import LOG_LIMIT, Logged, Stored
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore

staged = staged_on(VirtualLoop)


@staged
async def test_an_error_is_reported_with_its_name(stage: Stage) -> None:
    agent = Agent("a")

    class Hopeless(Exception): ...

    @agent.capability(no_retry=(Hopeless,))
    async def work(kind: str) -> Any:
        match kind:
            case "value":
                raise ValueError("x" * 10_000)
            case "hopeless":
                raise Hopeless("never")
            case "ours":
                raise NoAgent("nobody")
            case "input":
                raise InvalidInput("bad")
            case "exit":
                raise SystemExit(3)
            case "canceled":
                raise asyncio.CancelledError
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(work("value"))
            case "object":
                return object()
        return None

    _, leader = await stage.started(agent)

    async def failure(kind: Any) -> tuple[str, bool]:
        epoch = len(leader.all(wire.Failed)) + 1
        leader.say("n1", leader.run("work", {"kind": kind}, epoch=epoch))
        failed = await leader.next(wire.Failed)
        leader.say("n1", settle(failed))
        assert not failed.canceled and len(failed.failure.message) <= 4096
        return failed.failure.code, failed.failure.retryable

    assert await failure("value") == ("ValueError", True)
    assert await failure("hopeless") == ("Hopeless", False)
    assert await failure("ours") == ("no-agent", True)
    assert await failure("input") == ("invalid-input", False)
    assert await failure("exit") == ("SystemExit", True)
    assert await failure("canceled") == ("CancelledError", True)
    assert await failure("group") == ("ValueError", True)
    assert await failure("object") == ("not-serializable", False)
    assert await failure(7) == ("invalid-input", False)


@staged
async def test_a_result_of_the_wrong_type_is_a_clear_failure(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> int:
        return "seven"  # type: ignore[return-value]

    _, leader = await stage.started(agent)
    leader.assign("work")
    failed = await leader.next(wire.Failed)
    assert failed.failure.code == "invalid-output" and not failed.failure.retryable
    assert "work returned what its annotation does not allow: Expected `int`, got `str`" in failed.failure.message


@staged
async def test_an_agent_may_refuse(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> None:
        raise Refuse("too hot")

    _, leader = await stage.started(agent)
    leader.assign("work")
    assert (await leader.next(wire.Declined)).reason == "too hot"


@staged
async def test_an_attempt_has_a_time_out(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt) -> None:
        assert attempt.remaining_s == pytest.approx(7.0) and attempt.deadline is None
        await asyncio.sleep(100)

    _, leader = await stage.started(agent)
    began_at = asyncio.get_running_loop().time()
    leader.assign("work", timeout_s=7.0)
    failed = await leader.next(wire.Failed)
    assert (failed.failure.code, failed.failure.retryable, failed.canceled) == ("attempt-timeout", True, False)
    assert asyncio.get_running_loop().time() - began_at == pytest.approx(7.0, abs=0.01)


@staged
async def test_a_task_has_a_deadline(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt) -> None:
        assert attempt.remaining_s == pytest.approx(3.0)
        assert attempt.deadline is not None and attempt.deadline.timestamp() == pytest.approx(stage.wall() + 3.0, abs=0.01)
        await asyncio.sleep(100)

    _, leader = await stage.started(agent)
    leader.assign("work", timeout_s=7.0, remaining_ms=3000)
    failed = await leader.next(wire.Failed)
    assert (failed.failure.code, failed.failure.retryable) == ("deadline-exceeded", False)


@staged
async def test_a_function_that_does_not_stop_is_given_up_after_its_grace(stage: Stage) -> None:
    agent = Agent("a")
    ended: list[str] = []

    @agent.capability
    async def work() -> str:
        for _ in range(3):
            try:
                await asyncio.sleep(50)
            except asyncio.CancelledError:
                ended.append("ignored")
        return "late"

    _, leader = await stage.started(agent)
    leader.assign("work")
    await leader.next(wire.Began)
    told_at = asyncio.get_running_loop().time()
    leader.say("n1", wire.Stop(TaskId("t1"), 1, "not needed", 2000))
    failed = await leader.next(wire.Failed)
    assert failed.canceled and failed.failure.code == "task-canceled" and failed.failure.message == "not needed"
    assert asyncio.get_running_loop().time() - told_at == pytest.approx(2.0, abs=0.01)
    await asyncio.sleep(200)
    assert ended == ["ignored", "ignored"]
    assert not leader.all(wire.Done)


@staged
async def test_a_canceled_function_may_clean_up_and_then_it_is_canceled(stage: Stage) -> None:
    agent = Agent("a")
    cleaned: list[bool] = []

    @agent.capability
    async def work(attempt: Attempt) -> str:
        try:
            await asyncio.sleep(50)
        except asyncio.CancelledError:
            cleaned.append(attempt.is_canceled)
            await asyncio.sleep(1)
        return "all the same"

    _, leader = await stage.started(agent)
    leader.assign("work")
    await leader.next(wire.Began)
    told_at = asyncio.get_running_loop().time()
    leader.say("n1", wire.Stop(TaskId("t1"), 1, "canceled", 2000), wire.Stop(TaskId("t1"), 1, "canceled", 2000))
    assert (await leader.next(wire.Failed)).canceled
    assert asyncio.get_running_loop().time() - told_at == pytest.approx(1.0, abs=0.01)
    assert cleaned == [True] and not leader.all(wire.Done)


@staged
async def test_stopping_what_is_not_there(stage: Stage) -> None:
    agent = Agent("a")
    ran: list[int] = []

    @agent.capability
    async def work() -> None:
        ran.append(1)

    _, leader = await stage.started(agent)
    leader.say("n1", wire.Stop(TaskId("t1"), 1, "canceled", 2000))
    assert (await leader.next(wire.Failed)).canceled
    leader.say("n1", wire.Stop(TaskId("t2"), 5, "moved", 0))
    leader.assign("work", task="t2", epoch=5)  # overtaken by its stop
    leader.assign("work", task="t2", epoch=6)
    await leader.next(wire.Done)
    assert ran == [1]


# Payloads


@staged
async def test_large_inputs_and_results_go_by_the_store(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def repeat(text: str, times: int = 1) -> str:
        return text * times

    _, leader = await stage.started(agent)
    data = msgspec.json.encode({"text": "x" * LOG_LIMIT})
    await leader.bus.send("to/n1", b"\x90")  # an empty batch harms nobody
    store = MemoryStore(stage.store)
    stored = await store.put("c1/inputs/t1", data)
    leader.say("n1", leader.run("repeat", input=stored))
    done = await leader.next(wire.Done)
    assert isinstance(done.result, Stored) and done.result.key == "n1/results/t1/1"
    assert msgspec.json.decode(await store.read(done.result.key)) == "x" * LOG_LIMIT

    leader.say("n1", leader.run("repeat", task="t2", input=Stored("c1/inputs/none", 1, digest(b"1"))))
    failure = (await leader.next(wire.Failed)).failure
    assert (failure.code, failure.retryable) == ("invalid-input", True), "the caller's fault, unless a replica is behind"
    leader.say("n1", leader.run("repeat", task="t3", input=Logged(1, 1, 10)))
    assert (await leader.next(wire.Failed)).failure.code == "bad-input"


@staged
async def test_a_store_that_does_not_answer_is_asked_again(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def large(n: int) -> str:
        return "x" * n

    node, leader = await stage.started(agent)
    store = node.attempts._store
    answers: list[Exception] = [TimedOut("slow"), Disconnected("gone"), Unreachable("away")]
    put = store.put

    async def shaky(*args: Any, **options: Any) -> Stored:
        if answers:
            raise answers.pop()
        return await put(*args, **options)

    store.put = shaky  # type: ignore[method-assign]
    leader.assign("large", {"n": LOG_LIMIT})
    assert isinstance((await leader.next(wire.Done)).result, Stored)
    answers += [TimedOut("slow")] * 10_000
    leader.assign("large", {"n": LOG_LIMIT}, task="t2", timeout_s=5.0)
    failed = await leader.next(wire.Failed)
    assert failed.failure.code == "attempt-timeout" and failed.failure.retryable, "it has all of its time"


# The handle


@staged
async def test_the_handle_tells_of_the_attempt(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt, n: int) -> dict[str, Any]:
        attempt.progress(0.5, stage="half way")
        attempt.log("hello", level="info")
        return {
            "id": attempt.id, "epoch": attempt.epoch, "number": attempt.number, "parent": attempt.parent, "n": n,
            "capability": attempt.capability, "agent": attempt.agent, "canceled": attempt.is_canceled,
        }  # fmt: skip

    _, leader = await stage.started(agent)
    leader.assign("work", 4, epoch=8, number=2, parent=TaskId("t0"))
    assert await leader.done() == {
        "id": "t1", "epoch": 8, "number": 2, "parent": "t0", "n": 4, "capability": "work", "agent": "n1/a", "canceled": False,
    }  # fmt: skip
    said = [msgspec.json.decode(item.body) for item in leader.all(wire.Live)]
    assert said == [
        {"type": "progress", "value": 0.5, "stage": "half way"},
        {"type": "log", "message": "hello", "level": "info"},
    ]


@staged
async def test_what_cannot_be_told_is_an_error_of_the_function(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt, size: int) -> None:
        attempt.log("x" * size, thing=object() if not size else None)

    _, leader = await stage.started(agent)
    leader.assign("work", {"size": 0})
    assert (await leader.next(wire.Failed)).failure.code == "not-serializable"
    leader.assign("work", {"size": 100_000}, task="t2")
    assert (await leader.next(wire.Failed)).failure.code == "too-large"
