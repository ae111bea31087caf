"""What a reader does when parts are late, lost or gone, on virtual time."""

from __future__ import annotations

import asyncio

import pytest
from own_loop import on_loop
from reading_stage import play, reading, send
from stand_in import Ground

from comity import Break
from comity.client import parts as client_parts
from comity.errors import TaskCanceled, TaskFailed
from comity.model import wire
from comity.model.ids import ProcessId
from comity.model.parts import NoParts, PartsEnd, PartsOffered, ReadParts
from comity.model.task import TaskState
from comity.sim.loop import VirtualLoop

on_virtual = on_loop(VirtualLoop, play, "g")


@on_virtual
async def test_who_is_slow_gets_all_of_what_has_ended(g: Ground) -> None:
    """The last parts have two seconds from when there was room for them, and not from the end of the task."""
    leader, client, node = await g.leader(), await g.client(), await g.node()
    task = await client.submit("count")
    node.say("c1", PartsOffered(task.id, 1, 1))
    leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no", epoch=1)
    await asyncio.sleep(0.1)
    parts = task.stream()
    first = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0.1)
    [read] = node.all(ReadParts)[:1]
    send(node, read, 1)
    assert await first == 1
    await asyncio.sleep(client_parts.LAST_S * 2)
    second = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0.1)
    send(node, read, 2)
    node.say("c1", PartsEnd(read.ref, 1, 2))
    assert await second == 2
    with pytest.raises(TaskFailed, match="no"):
        await anext(parts)


@on_virtual
async def test_what_is_not_read_of_an_attempt_is_not_acknowledged_to_the_next(g: Ground) -> None:
    _, client, node, other = await g.leader(), await g.client(), await g.node(), await g.node("n2")
    task = await client.submit("count")
    node.say("c1", PartsOffered(task.id, 1, 1))
    parts = task.stream()
    first = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0.1)
    read = node.all(ReadParts)[0]
    send(node, read, *range(1, 61))
    other.say("c1", PartsOffered(task.id, 2, 2))
    await asyncio.sleep(0.1)
    assert [await first, *[await anext(parts) for _ in range(60)]] == [*range(1, 61), Break(2)]
    await asyncio.sleep(5)
    assert {read.taken for read in other.all(ReadParts)} == {0}
    await parts.aclose()


@on_virtual
async def test_every_attempt_that_is_begun_is_told(g: Ground) -> None:
    leader, node, task, got, work = await reading(g)
    await asyncio.sleep(0.1)
    send(node, node.all(ReadParts)[0], 1)
    await asyncio.sleep(0.1)
    nodes = [await g.node("n2"), await g.node("n3")]
    nodes[0].say("c1", PartsOffered(task.id, 2, 2))
    await asyncio.sleep(0.1)
    assert got == [1, Break(2)]
    nodes[1].say("c1", PartsOffered(task.id, 3, 3))
    await asyncio.sleep(0.1)
    [third] = nodes[1].all(ReadParts)
    send(nodes[1], third, 1, epoch=3)
    leader.complete("c1", task.id, epoch=3)
    await work
    assert got == [1, Break(2), Break(3), 1, Break(3, 1)]


@on_virtual
async def test_that_nothing_of_the_last_attempt_came_is_said(g: Ground) -> None:
    leader, node, task, got, work = await reading(g)
    await asyncio.sleep(0.1)
    send(node, node.all(ReadParts)[0], 1)
    other = await g.node("n2")
    other.say("c1", PartsOffered(task.id, 2, 2))
    await asyncio.sleep(0.1)
    other.say("c1", NoParts(other.all(ReadParts)[0].ref, 2))
    leader.questions["task"] = {"node": "n2", "epoch": 2, "attempts": [{}, {}]}
    leader.complete("c1", task.id, epoch=2)
    await work
    assert got == [1, Break(2), Break(2, 1)]


@on_virtual
async def test_who_asked_too_early_asks_once_more(g: Ground) -> None:
    """Where the task went, before it had begun there."""
    leader, client, node = await g.leader(), await g.client(), await g.node()
    task = client.task("00000000000000000000000a")
    leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": [{}]}
    parts = task.stream()
    first = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0.5)
    [read] = node.all(ReadParts)
    node.say("c1", NoParts(read.ref, 1))
    await asyncio.sleep(0.1)
    leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no", epoch=1)
    await asyncio.sleep(0.1)
    assert len(node.all(ReadParts)) == 2
    send(node, read, 1)
    node.say("c1", PartsEnd(read.ref, 1, 1))
    assert await first == 1
    with pytest.raises(TaskFailed, match="no"):
        await anext(parts)


@on_virtual
async def test_the_end_of_a_task_makes_sure_of_the_end_of_its_parts(g: Ground) -> None:
    """What said so may be lost, and a node that is gone is known to be gone when it is told something."""
    leader, node, task, got, work = await reading(g)
    await asyncio.sleep(0.1)
    read = node.all(ReadParts)[0]
    send(node, read, 1)
    await asyncio.sleep(0.1)
    leader.complete("c1", task.id, epoch=1)
    await asyncio.sleep(0.1)
    assert len(node.all(ReadParts)) == 2
    node.say("c1", PartsEnd(read.ref, 1, 1))
    await work
    assert got == [1]


@on_virtual
@pytest.mark.parametrize("where", ["in a queue", "not a stream", "waits for an answer"])
async def test_who_waits_for_long_asks_seldom(g: Ground, where: str) -> None:
    leader, client, node = await g.leader(), await g.client(), await g.node()
    task = client.task("00000000000000000000000a")
    leader.questions["task"] = {"node": None if where == "in a queue" else "n1", "epoch": 1, "attempts": [{}]}

    def says(item: ReadParts, sender: ProcessId) -> None:
        node.say(sender, PartsEnd(item.ref, 1, 0) if where == "waits for an answer" else NoParts(item.ref, 1))

    node.answers[ReadParts] = says
    first = asyncio.ensure_future(anext(task.stream()))
    await asyncio.sleep(600)
    asked = sum(item.what == "task" for item in leader.all(wire.Ask))
    assert 30 < asked < 50
    leader.end("c1", task.id, TaskState.CANCELED, "task-canceled", "no")
    with pytest.raises(TaskCanceled):
        await first


@on_virtual
async def test_who_reads_from_a_node_that_says_nothing_looks_for_the_next_attempt(g: Ground) -> None:
    """It hangs, so nobody says that it is gone; and no offer comes."""
    leader, client, node, other = await g.leader(), await g.client(), await g.node(), await g.node("n2")
    node.answers[ReadParts] = lambda item, sender: node.say(sender, NoParts(item.ref, 1, 0))
    task = client.task("00000000000000000000000a")
    leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": [{}]}
    parts = task.stream()
    first = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(600)  # it is slow, but it is there
    assert [item.what for item in leader.all(wire.Ask)].count("task") == 1
    send(node, node.all(ReadParts)[0], 1)
    assert await first == 1
    node.answers.clear()
    leader.questions["task"] = {"node": "n2", "epoch": 2, "attempts": [{}, {}]}
    await asyncio.sleep(8)
    again = asyncio.ensure_future(anext(parts))
    send(other, other.all(ReadParts)[0], 1, epoch=2)
    assert [await again, await anext(parts)] == [Break(2), 1]
    await parts.aclose()


@on_virtual
async def test_what_is_missing_is_said_before_an_error(g: Ground) -> None:
    leader, node, task, got, work = await reading(g)
    await asyncio.sleep(0.1)
    read = node.all(ReadParts)[0]
    send(node, read, 1)
    node.say("c1", PartsEnd(read.ref, 1, 3))
    leader.questions["task"] = {"node": "n1", "epoch": 1, "attempts": [{}]}
    leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no", epoch=1)
    with pytest.raises(TaskFailed, match="no"):
        await work
    assert got == [1, Break(1, 2)]


@on_virtual
async def test_who_is_slow_asks_for_the_last_attempt_while_it_is_kept(g: Ground) -> None:
    leader, client, node, other = await g.leader(), await g.client(), await g.node(), await g.node("n2")
    task = await client.submit("count")
    node.say("c1", PartsOffered(task.id, 1, 1))
    parts = task.stream()
    first = asyncio.ensure_future(anext(parts))
    await asyncio.sleep(0.1)
    send(node, node.all(ReadParts)[0], 1, 2)
    assert await first == 1
    leader.questions["task"] = {"node": "n2", "epoch": 2, "attempts": [{}, {}]}
    leader.end("c1", task.id, TaskState.FAILED, "ValueError", "no", epoch=2)
    await asyncio.sleep(0.1)
    send(other, other.all(ReadParts)[0], 1, epoch=2)
    await asyncio.sleep(60)
    assert [await anext(parts) for _ in range(3)] == [2, Break(2), 1]
    await parts.aclose()
