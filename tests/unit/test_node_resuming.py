"""The node's side of resuming: what an attempt records, and what it is given, told by a leader played with raw items."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from typing import Any

import msgspec
import pytest
from node_stage import Caller, Leader, Stage, settle, staged_on, until

from comity.agent import Agent
from comity.errors import BadInput, Fenced, InvalidOutput, NotSerializable, TooLarge, Unanswered
from comity.handles import Attempt
from comity.model import wire
from comity.model.codec import digest
from comity.model.envelope import Performative
from comity.model.task import LOG_LIMIT, Stored
from comity.model.wire import Known
from comity.node import resuming
from comity.node.attempts import REPEAT_S
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore

staged = staged_on(VirtualLoop)


def record(step: wire.StepDone, **error: str) -> wire.Recorded:
    return wire.Recorded(step.task, step.epoch, "step", step.name, **error)


@dataclasses.dataclass
class Found:
    place: str
    lines: tuple[int, ...] = ()


async def look(place: str) -> Found:
    return Found(place, (1, 2))


async def give(value: Any) -> Any:
    return value


@staged
async def test_a_step_returns_once_it_is_recorded_and_gives_what_the_next_attempt_will_get(stage: Stage) -> None:
    agent = Agent("a")
    given: list[Any] = []

    @agent.capability
    async def work(attempt: Attempt) -> str:
        given.append(await attempt.step("look", look, "here"))
        given.append(await attempt.step("look", give, ("a", "tuple")))
        return "done"

    _, leader = await stage.started(agent)
    leader.assign("work")
    step = await leader.next(wire.StepDone)
    assert (step.task, step.epoch, step.name, step.result) == ("t1", 1, "look", b'{"place":"here","lines":[1,2]}')
    await asyncio.sleep(REPEAT_S * 2)
    assert not given, "it is not durable yet"
    assert len(leader.all(wire.StepDone)) > 1, "the leader is asked again"
    leader.say("n1", record(step), record(step))
    await until(lambda: any(item.name == "look#2" for item in leader.all(wire.StepDone)))
    leader.say("n1", wire.Recorded("t1", 1, "step", "look#2"))  # type: ignore[arg-type]
    assert await leader.done() == "done"
    assert given == [Found("here", (1, 2)), ["a", "tuple"]]


@staged
async def test_what_is_recorded_is_not_done_again(stage: Stage) -> None:
    agent = Agent("a")
    ran: list[str] = []

    async def part(name: str) -> str:
        ran.append(name)
        return name

    @agent.capability
    async def work(attempt: Attempt) -> list[Any]:
        found = [attempt.resume_state, attempt.resume_state_as(Found)]
        found += [await attempt.step(name, part, name) for name in ("small", "logged", "stored", "new")]
        return [*found, await attempt.wait_for("approval")]

    _, leader = await stage.started(agent)
    stored = await MemoryStore(stage.store, "n0").put("n0/records/t1/1-1", b'"from the store"')
    known = (
        Known("step", "small", 3, b'"at hand"'), Known("step", "logged", 2000), Known("step", "stored", 300_000, stored),
        Known("checkpoint", "", 2000), Known("answer", "approval", 4, b"true"),
    )  # fmt: skip
    leader.assign("work", epoch=7, known=known)
    asked = await leader.next(wire.Recall)
    assert (asked.epoch, asked.kind, asked.name, ran) == (7, "checkpoint", "", [])
    state = msgspec.json.encode({"place": "there"})
    leader.say("n1", wire.Recalled(asked.task, 7, "checkpoint", "", state))
    asked = await leader.next(wire.Recall)
    assert (asked.kind, asked.name) == ("step", "logged")
    leader.say("n1", wire.Recalled(asked.task, 7, "step", "logged", b'"from the log"'))
    leader.say("n1", record(await leader.next(wire.StepDone)))
    done = await leader.done()
    assert done == [{"place": "there"}, {"place": "there", "lines": []}, "at hand", "from the log", "from the store", "new", True]
    assert ran == ["new"]


@staged
async def test_a_question_ends_the_attempt_whatever_catches_exceptions(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt, how: str) -> Any:
        try:
            if how == "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(attempt.wait_for("ok?", ask=[how]))
                    group.create_task(asyncio.sleep(60))
            elif how == "gather":
                await asyncio.gather(attempt.wait_for("ok?", ask=[how]), attempt.step("x", asyncio.sleep, 60))
            return await asyncio.wait_for(attempt.wait_for("ok?", ask=[how], timeout=2.5), 10)
        except Exception:
            return "swallowed"

    _, leader = await stage.started(agent)
    for epoch, how in enumerate(["plain", "group", "gather"], 1):
        leader.assign("work", {"how": how}, epoch=epoch)
        asked = await leader.next(wire.InputAsked)
        assert (asked.epoch, asked.name, asked.ask) == (epoch, "ok?", msgspec.json.encode([how]))
        assert asked.timeout_ms == (2500 if how == "plain" else 0)
        leader.say("n1", wire.Settled(((asked.task, epoch),)))
        await until(lambda: stage.nodes[0].attempts.quiet.is_set())
    assert not leader.all(wire.Done) and not leader.all(wire.Failed)


@staged
async def test_what_else_goes_wrong_beside_a_question_is_a_failure(stage: Stage) -> None:
    agent = Agent("a")

    async def fails() -> None:
        raise ValueError("beside it")

    @agent.capability
    async def work(attempt: Attempt) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(attempt.wait_for("ok?"))
            group.create_task(fails())

    _, leader = await stage.started(agent)
    leader.assign("work")
    assert (await leader.next(wire.Failed)).failure.code == "BaseExceptionGroup"


@staged
async def test_nobody_answered_in_time(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt) -> str:
        with pytest.raises(Unanswered, match="approval"):
            await attempt.wait_for("approval", timeout=1)
        return "went on"

    _, leader = await stage.started(agent)
    leader.assign("work", known=(Known("unanswered", "approval", 0),))
    assert await leader.done() == "went on"


@staged
async def test_a_checkpoint_is_durable_when_it_returns_also_while_it_is_told_to_stop(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt) -> None:
        await attempt.checkpoint({"upto": 1})
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await attempt.checkpoint({"upto": 2})
            raise

    node, leader = await stage.started(agent)
    leader.assign("work")
    for number in (1, 2):
        saved = await leader.next(wire.Checkpointed)
        assert (saved.number, saved.state) == (number, msgspec.json.encode({"upto": number}))
        leader.say("n1", wire.Recorded(saved.task, saved.epoch, "checkpoint", str(number)))
        if number == 1:
            await until(lambda: bool(node.attempts.running) and not node.attempts._recording)
            node.attempts.hand_back("elsewhere", 5.0)
    assert (await leader.next(wire.Declined)).reason == "elsewhere"


@staged
async def test_an_attempt_that_is_over_is_told_so(stage: Stage) -> None:
    agent = Agent("a")
    errors: list[BaseException] = []

    @agent.capability
    async def work(attempt: Attempt) -> None:
        for call in (lambda: attempt.step("b", look, "x"), lambda: attempt.checkpoint(1)):
            try:
                await call()
            except (Fenced, asyncio.CancelledError) as error:
                errors.append(error)

    _, leader = await stage.started(agent)
    leader.assign("work")
    step = await leader.next(wire.StepDone)
    leader.say("n1", wire.Settled(((step.task, step.epoch),)))
    await until(lambda: len(errors) == 2)
    assert [type(error) for error in errors] == [asyncio.CancelledError, Fenced]
    leader.say("n1", record(step))


@staged
async def test_a_new_leader_is_told_again(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt) -> str:
        return (await attempt.step("b", look, "x")).place

    _, leader = await stage.started(agent)
    leader.assign("work")
    await leader.next(wire.StepDone)
    await leader.bus.close()
    new = await stage.leader("k2", 2)
    step = await new.next(wire.StepDone)
    new.say("n1", record(step))
    assert await new.done() == "x"


@staged
async def test_a_large_record_goes_by_the_store(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt) -> int:
        await attempt.checkpoint("y" * LOG_LIMIT)
        return len(await attempt.step("big", give, "x" * LOG_LIMIT))

    _, leader = await stage.started(agent)
    leader.assign("work")
    saved = await leader.next(wire.Checkpointed)
    leader.say("n1", wire.Recorded(saved.task, saved.epoch, "checkpoint", "1"))
    step = await leader.next(wire.StepDone)
    assert isinstance(saved.state, Stored) and isinstance(step.result, Stored)
    assert (saved.state.key, step.result.key) == ("n1/records/t1/1-1", "n1/records/t1/1-2")
    assert step.result.digest == digest(b'"' + b"x" * LOG_LIMIT + b'"')
    leader.say("n1", record(step))
    assert await leader.done() == LOG_LIMIT


@staged
async def test_what_cannot_be_recorded_is_refused(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent("a")

    async def wrong() -> int:
        return "seven"  # type: ignore[return-value]

    @agent.capability
    async def work(attempt: Attempt) -> list[str]:
        async def code(call: Any) -> str:
            with pytest.raises((BadInput, InvalidOutput)) as caught:
                await call
            return str(caught.value.code)

        return [
            await code(attempt.step("", look, "x")),
            await code(attempt.step("n" * 96, look, "x")),
            await code(attempt.step("half \udcff", look, "x")),
            await code(attempt.step("object", give, object())),
            await code(attempt.step("wrong", wrong)),
            await code(attempt.step("much", give, "x" * 200)),
            await code(attempt.checkpoint("x" * 200)),
            await code(attempt.checkpoint({1, object()})),
            await code(attempt.wait_for("q", ask="x" * LOG_LIMIT)),
            await code(attempt.wait_for("q", timeout=0)),
            await code(attempt.step("refused", look, "x")),
        ]

    monkeypatch.setattr(resuming, "RECORDS_BYTES", 100)
    _, leader = await stage.started(agent)
    leader.assign("work")
    step = await leader.next(wire.StepDone)
    leader.say("n1", record(step, code=TooLarge.code, message="no room"))
    kinds = [BadInput, TooLarge, BadInput, NotSerializable, InvalidOutput, TooLarge, TooLarge, NotSerializable, TooLarge]
    assert await leader.done() == [kind.code for kind in [*kinds, BadInput, TooLarge]]


@staged
async def test_too_many_steps_are_refused_before_they_run(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt) -> None:
        await attempt.step("third", asyncio.sleep, 3600)

    monkeypatch.setattr(resuming, "RECORDS_MAX", 2)
    _, leader = await stage.started(agent)
    leader.assign("work", known=(Known("step", "one", 1, b"1"), Known("answer", "two", 1, b"1")))
    failed = await leader.next(wire.Failed)
    assert (failed.failure.code, failed.failure.retryable) == (TooLarge.code, False)


@staged
async def test_a_live_call_runs_its_steps_and_waits_for_nobody(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(attempt: Attempt, ask: bool) -> Any:
        found = await attempt.step("look", look, "here")
        await attempt.checkpoint(1)
        if ask:
            await attempt.wait_for("ok?")
        return [found.place, attempt.resume_state]

    await stage.started(agent)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", {"ask": False}, topic="work") == (Performative.INFORM, ["here", None])
    how, said = await caller.ask("n1/a", {"ask": True}, topic="work")
    assert (how, said["code"]) == (Performative.FAILURE, "bad-input")


@staged_on(asyncio.SelectorEventLoop)
async def test_plain_functions_of_steps_run_in_threads(stage: Stage) -> None:
    agent = Agent("a")
    threads: list[int] = []

    def plain(name: str) -> str:
        threads.append(threading.get_ident())
        return name

    @agent.capability
    async def work(attempt: Attempt) -> str:
        first = await attempt.step("plain", plain, "x")
        return first + (await attempt.step("either", lambda: look("y")))["place"]

    _, leader = await stage.started(agent)
    leader.assign("work")
    await answer(leader, 2)
    assert await leader.done() == "xy"
    assert threads and threads[0] != threading.get_ident()
    leader.say("n1", settle(leader.all(wire.Done)[0]))


async def answer(leader: Leader, steps: int) -> None:
    for _ in range(steps):
        leader.say("n1", record(await leader.next(wire.StepDone)))


# Effects that should not happen twice


def payer() -> tuple[Agent, list[float]]:
    agent = Agent("a")
    paid: list[float] = []

    @agent.capability
    async def pay(attempt: Attempt, after_s: float = 0.0) -> str:
        await asyncio.sleep(after_s)
        await attempt.guard()
        paid.append(asyncio.get_running_loop().time())
        return "paid"

    return agent, paid


@pytest.mark.parametrize("how", ["is_mute", "is_cut_off"])  # the latter acknowledges beacons, and can write nothing
@staged
async def test_a_guarded_effect_waits_while_the_node_is_out_of_contact_or_its_leader_cut_off(stage: Stage, how: str) -> None:
    agent, paid = payer()
    _, leader = await stage.started(agent)
    leader.assign("pay")
    assert await leader.done() == "paid" and len(paid) == 1, "in contact it does not wait"
    leader.assign("pay", {"after_s": 5.0}, task="t2")
    await leader.next(wire.Began)
    setattr(leader, how, True)
    await asyncio.sleep(20.0)
    assert len(paid) == 1
    setattr(leader, how, False)
    await until(lambda: any(done.task == "t2" for done in leader.all(wire.Done)))
    assert len(paid) == 2


@staged
async def test_a_guarded_effect_does_not_happen_once_the_task_may_be_elsewhere(stage: Stage) -> None:
    agent, paid = payer()
    node, leader = await stage.started(agent)
    leader.assign("pay", {"after_s": 5.0})
    await leader.next(wire.Began)
    leader.is_mute = True
    await asyncio.sleep(10.0)
    leader.knows, leader.is_mute = False, False
    await until(lambda: not node._ready.is_set())
    await asyncio.sleep(1.0)
    assert not paid, "the leader answers, but gave the node up meanwhile"
    leader.say("n1", wire.Evicted(node.incarnation, "silent"))
    leader.knows = True
    await node.ready()
    await asyncio.sleep(1.0)
    assert not paid and not node.attempts.running


@staged
async def test_a_guarded_effect_of_a_live_call_happens_at_once(stage: Stage) -> None:
    agent, paid = payer()
    await stage.started(agent)
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", {"after_s": 0.0}, topic="pay") == (Performative.INFORM, "paid") and len(paid) == 1
