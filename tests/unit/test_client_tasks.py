"""Tasks, as a client sees them: accepted once, followed to their end, whatever is lost on the way."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from peers import virtually
from stand_in import NOW_MS, ground, until

from comity.errors import (
    BadInput,
    ComityError,
    DeadlineExceeded,
    Disconnected,
    ForeignData,
    InvalidInput,
    TaskCanceled,
    TaskFailed,
    TaskRejected,
    TimedOut,
    UnknownTask,
)
from comity.model import wire
from comity.model.ids import TaskId, task_time_ms
from comity.model.task import Stored, TaskState
from comity.store.memory import MemoryStore


async def test_accepted_then_ended() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("survey", {"path": "a"}, priority=7, retries=1)
        spec = (await leader.first(wire.SubmitTask)).spec
        assert (spec.id, spec.capability, spec.input) == (task.id, "survey", b'{"path":"a"}')
        assert (spec.priority, spec.retries, spec.submitter, spec.deadline_ms) == (7, 1, "c1", 0)
        assert spec.attempt_timeout_s == g.settings.attempt_timeout_s
        assert abs(task_time_ms(task.id) - NOW_MS) < 5_000  # leader time, whatever the wall clock says
        assert not task.has_ended
        leader.complete("c1", task.id, {"lines": 3})
        assert await task.result() == {"lines": 3}
        assert await task == {"lines": 3}
        assert task.has_ended


async def test_answers_given_twice_change_nothing() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        leader.accept(leader.all(wire.SubmitTask)[0], client.process)
        leader.complete("c1", task.id, 1)
        leader.complete("c1", task.id, 2)
        leader.say("c1", wire.Refused(task.id, "overloaded", "late"))
        assert await task.result() == 1


async def test_a_new_leader_is_told_everything_again() -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        accepted = await client.submit("x")
        waiting = asyncio.ensure_future(accepted.result())
        del old.answers[wire.SubmitTask]
        open_submit = asyncio.ensure_future(client.submit("y"))
        await old.first(wire.SubmitTask, 2)
        await old.bus.close()
        new = await g.leader("k2", term=2)
        task = await open_submit
        submitted = new.all(wire.SubmitTask)
        assert [(item.spec.id, item.again) for item in submitted] == [(task.id, True)]
        follow = await new.first(wire.FollowTask)
        assert follow.tasks == (accepted.id,)
        new.complete("c1", accepted.id, "done")
        assert await waiting == "done"


async def test_a_deposed_leader_is_not_believed() -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        task = await client.submit("x")
        new = await g.leader("k2", term=2)
        await until(lambda: client._exchange.contact.term == 2)
        old.complete("c1", task.id, "old")
        waiting = asyncio.ensure_future(task.result())
        await until(lambda: len(old.all(wire.Ask)) >= 2)  # a word from a stranger: who leads?
        assert not task.has_ended
        new.complete("c1", task.id, "new")
        assert await waiting == "new"


async def test_nobody_can_pretend_to_lead() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        thief = await g.node("thief")
        thief.say("c1", wire.Leading(99, thief.process, NOW_MS))
        thief.say("c1", wire.Ended(task.id, TaskState.COMPLETED, b'"forged"'), wire.Accepted(((task.id, TaskId("z")),)))
        thief.say("c1", wire.Answer(1, "", msgspec.json.encode({**leader.hello(), "term": 99})))
        await thief.outbox.drain()
        await client.ready()
        leader.complete("c1", task.id, "true")
        assert await task.result() == "true"
        assert client._exchange.contact.leader == "k1"


@pytest.mark.parametrize("term", [5, 0])
async def test_another_network_in_the_old_place_is_told_from_ours(term: int) -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        task = await client.submit("x")
        await old.bus.close()
        await g.leader("k2", term=term, network_id="other")
        for wait in (client.submit("y"), task.result(), client.ready(), client.ended()):
            with pytest.raises(ForeignData, match="other"):
                await wait


async def test_a_broken_link_is_mended() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        waiting = asyncio.ensure_future(task.result())
        await until(lambda: bool(client._exchange.outcomes._awaited))
        g.network.disconnect(client.process)
        leader.complete("c1", task.id, "lost")
        await leader.outbox.drain()
        leader.answers[wire.FollowTask] = lambda item, sender: leader.complete(sender, item.tasks[0], "found")
        g.network.reconnect(client.process)
        assert await waiting == "found"


async def test_a_late_wait_asks_for_what_was_missed_meanwhile() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        g.network.disconnect(client.process)
        leader.complete("c1", task.id, "lost")
        await leader.outbox.drain()
        leader.answers[wire.FollowTask] = lambda item, sender: leader.complete(sender, item.tasks[0], "found")
        g.network.reconnect(client.process)
        await client.ready()
        assert await task.result() == "found"


async def test_a_lost_push_is_asked_for_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.outcomes.FOLLOW_S", 0.05)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        leader.answers[wire.FollowTask] = lambda item, sender: leader.complete(sender, item.tasks[0], 1)
        assert await task.result() == 1


async def test_a_key_leads_to_the_task_there_is() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        older = TaskId("00" + "0" * 22)
        leader.answers[wire.SubmitTask] = lambda item, sender: leader.say(
            sender, wire.Accepted(((item.spec.id, older),))
        )
        leader.answers[wire.FollowTask] = lambda item, sender: leader.complete(sender, item.tasks[0], "theirs")
        first, second = await client.submit("x", key="k"), await client.submit("x", key="k")
        assert first.id == second.id == older
        assert await asyncio.gather(first.result(), second.result()) == ["theirs", "theirs"]


async def test_ends_are_typed() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        leader.questions["task"] = {"attempts": [{"epoch": 4}]}
        ends = [
            (TaskState.FAILED, "ValueError", TaskFailed),
            (TaskState.FAILED, "deadline-exceeded", DeadlineExceeded),
            (TaskState.CANCELED, "task-canceled", TaskCanceled),
            (TaskState.REJECTED, "access-denied", TaskRejected),
            (TaskState.REJECTED, "unknown-task", UnknownTask),
        ]
        for state, code, kind in ends:
            task = await client.submit("x")
            leader.end("c1", task.id, state, code, "because")
            with pytest.raises(kind, match="because") as caught:
                await task.result()
            assert type(caught.value) is kind
            assert caught.value.details["task"] == task.id
            if kind is not UnknownTask:
                assert caught.value.details["code"] == code
                assert caught.value.details["attempts"] == [{"epoch": 4}]


async def test_a_failure_by_an_exception_names_it() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        leader.questions["task"] = {"attempts": []}
        task = await client.submit("x")
        leader.end("c1", task.id, TaskState.FAILED, "KeyError", "'gone'")
        with pytest.raises(TaskFailed, match=r"failed: KeyError: 'gone'$"):
            await task.result()


async def test_results_may_be_typed_large_or_missing() -> None:
    class Report(msgspec.Struct):
        lines: int

    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        typed, wrong, large, empty = await client.submit_many("x", [1, 2, 3, 4])
        leader.complete("c1", typed.id, {"lines": 3})
        assert await typed.result(as_type=Report) == Report(3)
        leader.complete("c1", wrong.id, {"lines": "many"})
        with pytest.raises(InvalidInput, match="lines"):
            await wrong.result(as_type=Report)
        stored = await client._exchange.store.put("n1/results/1", b'"large"')
        leader.say("c1", wire.Ended(large.id, TaskState.COMPLETED, stored))
        assert await large.result() == "large"
        leader.say("c1", wire.Ended(empty.id, TaskState.COMPLETED, b"null"))
        assert await empty.result() is None


@virtually()
async def test_a_stored_result_that_does_not_come_times_out() -> None:
    class Slow(MemoryStore):
        async def read(self, key: str) -> bytes:
            return await asyncio.get_running_loop().create_future()

    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        client._exchange.store = Slow(g.values)
        leader.say("c1", wire.Ended(task.id, TaskState.COMPLETED, Stored("n1/r", 1, b"")))
        with pytest.raises(TimedOut, match="fetched"):
            await task.result(timeout=0.05)


async def test_a_reading_of_a_stored_result_that_breaks_is_begun_again() -> None:
    class Broken(MemoryStore):
        breaks = 2

        async def read(self, key: str) -> bytes:
            self.breaks -= 1
            if self.breaks >= 0:
                raise Disconnected("the reader was cut off")
            return await super().read(key)

    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        stored = await client._exchange.store.put("n1/results/1", b'"whole"')
        client._exchange.store = Broken(g.values)
        leader.say("c1", wire.Ended(task.id, TaskState.COMPLETED, stored))
        assert await task.result(timeout=30) == "whole"


@virtually()
async def test_waits_end_in_time_and_the_task_goes_on() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        with pytest.raises(TimedOut, match="has not ended"):
            await task.result(timeout=0.02)
        assert client._exchange.outcomes._awaited == {}
        leader.complete("c1", task.id, 1)
        assert await task.result(timeout=30) == 1


async def test_closing_ends_every_wait() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        del leader.answers[wire.SubmitTask]
        waits: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(wait)
            for wait in (
                task.result(),
                client.submit("y"),
                client.stats(),
                client.request("n1/a"),
                anext(client.events()),
            )
        ]
        await leader.first(wire.FollowEvents)
        await leader.first(wire.SubmitTask, 2)
        await client.close()
        for wait in waits:
            with pytest.raises((Disconnected, ComityError)) as caught:
                await wait
            assert caught.value.code in ("disconnected", "peer-lost", "unknown-agent")
        with pytest.raises(Disconnected):
            await client.submit("z")


async def test_a_child_inherits_and_pauses() -> None:
    pauses: list[bool] = []
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        parent = TaskId("00" + "1" * 22)
        deadline = asyncio.get_running_loop().time() + 50
        child = client.child(
            sender="n1/a", parent=parent, parent_epoch=3, deadline=deadline, pausing=pauses.append, trace="t"
        )
        task = await child.submit("x", deadline_s=500)
        spec = leader.all(wire.SubmitTask)[0].spec
        assert (spec.parent, spec.parent_epoch, spec.trace) == (parent, 3, "t")
        assert 45_000 < spec.deadline_ms <= 50_000
        waiting = asyncio.ensure_future(task.result())
        await until(lambda: pauses == [True])
        leader.complete("c1", task.id)
        await waiting
        await task.result()  # known already: no wait
        assert pauses == [True, False]
        late = client.child(parent=parent, deadline=deadline - 100)
        with pytest.raises(DeadlineExceeded):
            await late.submit("x")


async def test_handles_of_others_tasks() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        with pytest.raises(BadInput):
            client.task("nonsense")
        task = client.task("0" * 24)
        leader.answers[wire.FollowTask] = lambda item, sender: leader.complete(sender, item.tasks[0], "theirs")
        assert await task.result() == "theirs"
        leader.questions["task"] = {"state": "completed", "attempts": []}
        leader.questions["why"] = {"reason": "r"}
        assert (await task.status())["state"] == "completed"
        assert await client.why(task.id) == {"reason": "r"}


async def test_cancel_and_rate() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x")
        leader.answers[wire.CancelTask] = lambda item, sender: leader.say(
            sender, wire.Answer(item.ref, "", msgspec.json.encode({"state": "canceled"}))
        )
        assert (await task.cancel("no need"))["state"] == "canceled"
        assert leader.all(wire.CancelTask)[0].reason == "no need"
        assert (await client.cancel(task.id))["state"] == "canceled"
        leader.answers[wire.CancelTask] = lambda item, sender: leader.say(
            sender, wire.Answer(item.ref, "unknown-task", b'{"message":"which?","details":{}}')
        )
        with pytest.raises(UnknownTask, match="which"):
            await client.cancel(task)
        await task.rate(0.5)
        assert leader.all(wire.RateTask) == [wire.RateTask(task.id, 0.5)]
        with pytest.raises(BadInput):
            await task.rate(2)


async def test_a_task_under_way_to_the_leader_has_one_outcome() -> None:
    """Whoever asks for it by its id meanwhile is told by the same push."""
    async with ground() as g:
        await g.leader()
        client = await g.client()
        await client.ready()
        outcomes, task = client._exchange.outcomes, TaskId("t1")
        submitted = outcomes.submitting(task)
        waiter = outcomes.watch(outcomes.of(task))
        outcomes.accepted(submitted)
        assert outcomes.of(task) is submitted
        outcomes.on_ended(wire.Ended(task, TaskState.COMPLETED, b"1"))
        assert (await waiter).state is TaskState.COMPLETED
        assert submitted.ended is not None
