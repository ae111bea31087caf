"""A reader of parts, and a node that says what a test wants."""

from __future__ import annotations

import asyncio
from typing import Any

from own_loop import Test
from stand_in import Ground, StandIn, StandInLeader

from comity.client.task import Task
from comity.model.parts import Part, PartsOffered, ReadParts


async def reading(g: Ground, kind: Any = Any) -> tuple[StandInLeader, StandIn, Task, list[Any], asyncio.Task[None]]:
    leader, client, node = await g.leader(), await g.client(), await g.node()
    task = await client.submit("count")
    node.say("c1", PartsOffered(task.id, 1, 1))
    got: list[Any] = []

    async def read() -> None:
        async for part in task.stream(kind):
            got.append(part)

    return leader, node, task, got, asyncio.ensure_future(read())


def send(node: StandIn, read: ReadParts, *numbers: int, epoch: int = 1) -> None:
    node.say("c1", *(Part(read.ref, epoch, number, b"%d" % number) for number in numbers))


async def play(test: Test, given: dict[str, Any]) -> None:
    g = Ground()
    try:
        await test(g=g, **given)
    finally:
        for client in g.clients:
            await client.close()
