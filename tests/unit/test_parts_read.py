"""What a reader makes of the parts that arrive, from a node that says what the test wants."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from reading_stage import reading, send
from stand_in import ground, until

from comity import Agent, Attempt, Break
from comity.client import parts as client_parts
from comity.client.task import Task
from comity.errors import InvalidInput, TaskCanceled, TaskFailed
from comity.model import wire
from comity.model.ids import ProcessId
from comity.model.parts import WINDOW, NoParts, Part, PartsEnd, PartsOffered, ReadParts
from comity.model.task import TaskState


async def client_knows(task: Task) -> None:
    await until(lambda: task.has_ended)


async def test_parts_come_in_order_whatever_is_lost_or_said_twice() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        read = await node.first(ReadParts)
        assert (read.taken, read.after, read.until, read.again) == (0, 0, WINDOW, True)
        send(node, read, 1, 2, 2, 1, 4, 5)
        again = await node.first(ReadParts, 2)
        assert (again.after, again.again) == (2, True)
        send(node, read, 3, 4, 5)
        await until(lambda: len(got) == 5)
        node.say("c1", PartsEnd(read.ref, 1, 6))
        assert (await node.first(ReadParts, 3)).after == 5
        send(node, read, 6)
        leader.complete("c1", task.id, "end")
        await work
        assert got == [1, 2, 3, 4, 5, 6]
        await until(lambda: node.all(ReadParts)[-1].for_ms == 0)


async def test_the_next_attempts_parts_follow_a_break() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        read = await node.first(ReadParts)
        send(node, read, 1, 2)
        await until(lambda: len(got) == 2)
        other = await g.node("n2")
        other.say("c1", PartsOffered(task.id, 2, 2))
        second = await other.first(ReadParts)
        assert (second.epoch, second.after) == (2, 0)
        send(node, read, 3)  # late, and of an attempt that counts no more
        node.say("c1", PartsOffered(task.id, 1, 1))
        other.say("c1", Part(second.ref, 2, 1, b'"one"'), PartsEnd(second.ref, 2, 1))
        leader.complete("c1", task.id)
        await work
        assert got == [1, 2, Break(2), "one"]


async def test_what_is_missing_is_said() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        read = await node.first(ReadParts)
        send(node, read, 1)
        node.say("c1", NoParts(read.ref, 1, 11))
        send(node, read, 12)
        await until(lambda: len(got) == 3)
        leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": [{}]}
        node.answers[ReadParts] = lambda item, sender: node.say(sender, NoParts(item.ref, 1))
        node.say("c1", NoParts(read.ref, 1))  # and no more
        leader.complete("c1", task.id)
        await work
        assert got == [1, Break(1, 10), 12, Break(1, 1)]


async def test_a_reader_whose_connection_broke_goes_on_where_it_was() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        read = await node.first(ReadParts)
        send(node, read, 1, 2)
        await until(lambda: len(got) == 2)
        g.network.disconnect(ProcessId("c1"))
        send(node, read, 3, 4)  # to nobody
        await until(lambda: not node.outbox._pumps)
        g.network.reconnect(ProcessId("c1"))
        await until(lambda: node.all(ReadParts)[-1].again and node.all(ReadParts)[-1].after == 2)
        send(node, read, 3, 4)
        node.say("c1", PartsEnd(read.ref, 1, 4))
        leader.complete("c1", task.id)
        await work
        assert got == [1, 2, 3, 4]


async def test_only_the_node_asked_is_believed_and_no_more_than_there_is_room_for() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        read = await node.first(ReadParts)
        evil = await g.node("evil")
        evil.say("c1", Part(read.ref, 1, 1, b'"evil"'), PartsEnd(read.ref, 1, 0), NoParts(read.ref, 1))
        send(node, read, 1, WINDOW * 100)
        send(node, read, 2)
        node.say("c1", PartsEnd(read.ref, 1, 2))
        leader.complete("c1", task.id)
        await work
        assert got == [1, 2]


async def test_who_was_not_offered_it_asks_where_it_is() -> None:
    async with ground() as g:
        leader, client, node = await g.leader(), await g.client(), await g.node()
        task = client.task("00000000000000000000000a")
        leader.questions["task"] = {"node": "n1", "epoch": 4, "attempts": [{}, {}]}
        got: list[Any] = []

        async def read() -> None:
            async for part in task.stream():
                got.append(part)

        work = asyncio.ensure_future(read())
        asked = await node.first(ReadParts)
        assert (asked.epoch, asked.task) == (4, task.id)
        node.say("c1", Part(asked.ref, 4, 1, b"1"), PartsEnd(asked.ref, 4, 1))
        leader.complete("c1", task.id)
        await work
        assert got == [1]


async def test_how_the_task_ends_badly_is_raised() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": []}
        send(node, await node.first(ReadParts), 1)
        await until(lambda: got == [1])
        leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no")
        with pytest.raises(TaskFailed, match="no"):
            await work


async def test_what_was_yielded_before_a_failure_comes_before_its_error() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": []}
        leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no", epoch=1)
        await client_knows(task)
        read = await node.first(ReadParts)
        send(node, read, 1, 2)
        node.say("c1", PartsEnd(read.ref, 1, 2))
        with pytest.raises(TaskFailed, match="no"):
            await work
        assert got == [1, 2]


async def test_a_failed_attempt_without_an_end_is_not_waited_for_for_ever() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": []}
        send(node, await node.first(ReadParts), 1)
        leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no", epoch=1)
        with pytest.raises(TaskFailed, match="no"):
            await work
        assert got == [1]


@pytest.mark.parametrize("failed", [False, True])
async def test_the_last_attempts_parts_are_sought_where_it_ran(failed: bool) -> None:
    """Its offer was lost, and the one before is still there."""
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": [{}]}
        other = await g.node("n2")
        read = await node.first(ReadParts)
        send(node, read, 1)
        node.say("c1", PartsEnd(read.ref, 1, 1))
        await until(lambda: got == [1])
        leader.questions["task"] = {"node": "n2", "epoch": 2, "attempts": [{}, {}]}
        if failed:
            leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no", epoch=2)
        else:
            leader.complete("c1", task.id, epoch=2)
        asked = await other.first(ReadParts)
        other.say("c1", Part(asked.ref, 2, 1, b"9"), PartsEnd(asked.ref, 2, 1))
        if failed:
            with pytest.raises(TaskFailed, match="no"):
                await work
        else:
            await work
        assert got == [1, Break(2), 9]


async def test_who_gets_no_offers_looks_for_the_next_attempt() -> None:
    """Anybody but the submitter: the node keeps what the attempt before yielded, so it would not say that it is over there."""
    async with ground() as g:
        leader, client, node, other = await g.leader(), await g.client(), await g.node(), await g.node("n2")
        task = client.task("00000000000000000000000a")
        leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": [{}]}
        parts = task.stream()
        first = asyncio.ensure_future(anext(parts))
        read = await node.first(ReadParts)
        send(node, read, 1)
        assert await first == 1
        leader.questions["task"] = {"node": "n2", "epoch": 2, "attempts": [{}, {}]}
        node.say("c1", PartsEnd(read.ref, 1, 1))
        again = asyncio.ensure_future(anext(parts))
        asked = await other.first(ReadParts)
        send(other, asked, 1, epoch=2)
        assert [await again, await anext(parts)] == [Break(2), 1]
        await parts.aclose()


async def test_a_task_that_never_ran_has_no_last_parts() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        leader.questions["task"] = {"node": None, "epoch": 0, "attempts": []}
        task = await client.submit("count")
        leader.end("c1", task.id, TaskState.CANCELED, "task-canceled", "no")
        await client_knows(task)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with pytest.raises(TaskCanceled):
            await anext(task.stream())
        assert loop.time() - began < client_parts.LAST_S


async def test_a_part_of_another_type_is_an_error() -> None:
    async with ground() as g:
        _, node, _, _, work = await reading(g, str)
        send(node, await node.first(ReadParts), 1)
        with pytest.raises(InvalidInput, match="is no <class 'str'>"):
            await work


async def test_a_stream_closed_early_cancels_its_task() -> None:
    async with ground() as g:
        leader, client, node = await g.leader(), await g.client(), await g.node()
        leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": []}

        def canceled(item: wire.CancelTask, sender: ProcessId) -> None:
            leader.say(sender, wire.Answer(item.ref, "", b"{}"))
            leader.end(sender, item.task, TaskState.CANCELED, "task-canceled", item.reason)

        leader.answers[wire.CancelTask] = canceled
        async with client.stream("count") as parts:
            task = await parts.task()
            node.say("c1", PartsOffered(task.id, 1, 1))
            first = asyncio.ensure_future(anext(parts))
            send(node, await node.first(ReadParts), 1)
            assert await first == 1
        assert (await leader.first(wire.CancelTask)).reason == "its stream was closed"
        with pytest.raises(TaskCanceled):
            await task.result()


async def test_the_result_of_a_stream_comes_after_what_was_not_read() -> None:
    async with ground() as g:
        leader, client, node = await g.leader(), await g.client(), await g.node()
        parts = client.stream("count")
        task = await parts.task()
        node.say("c1", PartsOffered(task.id, 1, 1))
        result = asyncio.ensure_future(parts.result())
        read = await node.first(ReadParts)
        send(node, read, 1, 2, 3)
        node.say("c1", PartsEnd(read.ref, 1, 3))
        leader.complete("c1", task.id, "all")
        assert await result == "all"


async def test_a_node_that_is_gone_is_looked_for_elsewhere() -> None:
    async with ground() as g:
        leader, node, task, got, work = await reading(g)
        leader.questions["task"] = {"node": "n2", "epoch": 2, "attempts": [{}, {}]}
        other = await g.node("n2")
        send(node, await node.first(ReadParts), 1)
        await until(lambda: got == [1])
        await node.bus.close()
        asked = await other.first(ReadParts)
        other.say("c1", Part(asked.ref, 2, 1, b"9"), PartsEnd(asked.ref, 2, 1))
        leader.complete("c1", task.id)
        await work
        assert got == [1, Break(2), 9]


def test_an_attempt_may_stream_what_a_child_streams() -> None:
    """The verb is there on all who speak."""
    assert Attempt.stream.__doc__ and Agent.stream.__doc__
