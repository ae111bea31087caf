"""A network with something of every kind in it, its backups in a folder, and networks restored from them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from peers import LIMIT_S, Peer, World, until

from comity.backup.create import Creating, Made
from comity.backup.manifest import Manifest
from comity.backup.restore import next_generation, record, restore
from comity.backup.targets import FolderTarget
from comity.controller import keeping
from comity.controller.controller import Controller
from comity.log.base import Log
from comity.log.memory import MemoryLog
from comity.model import wire
from comity.model.ids import NetworkId, TaskId
from comity.model.task import Restored
from comity.store.base import Store
from comity.store.memory import MemoryStore

BIG = b'"' + b"y" * 5_000 + b'"'
HUGE = b'"' + b"z" * 300_000 + b'"'
__all__ = ["BIG", "HUGE", "LIMIT_S", "Town", "create", "town", "until"]


class Town(NamedTuple):
    """``archived`` and ``finished`` completed with "done"; ``running`` works on node n1; ``waiting`` has a large input in the
    log, ``stored`` one in the store, under the client's own name."""

    world: World
    controller: Controller
    client: Peer
    node: Peer
    archived: TaskId
    finished: TaskId
    running: TaskId
    waiting: TaskId
    stored: TaskId
    epoch: int


async def complete(client: Peer, node: Peer, **more: Any) -> TaskId:
    task = await client.submit(**more)
    run = await node.hear(wire.Run, lambda run: run.task == task)
    await node.say(wire.Done(task, run.epoch, b'"done"', 1))
    await client.hear(wire.Ended, lambda ended: ended.task == task)
    return task


async def town(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> Town:
    world = World(**settings)
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=8)
    with monkeypatch.context() as patch:
        patch.setattr(keeping, "CHUNK_AGE_MS", 0)
        archived = await complete(client, node, key="once")
        await until(lambda: archived not in controller.state.tasks)
    finished = await complete(client, node, input=BIG)
    running = await client.submit()
    run = await node.hear(wire.Run, lambda run: run.task == running)
    await node.say(wire.Began(running, run.epoch))
    waiting = await client.submit("later", input=BIG)
    kept = await MemoryStore(world.store).put("c1/inputs/x", HUGE, ttl_s=600)
    stored = await client.submit("later", input=kept)
    await until(lambda: str(controller.state.tasks[running].state) == "working")
    return Town(world, controller, client, node, archived, finished, running, waiting, stored, run.epoch)


async def create(
    town: Town, folder: Path, *, store: Store | None = None, head: Callable[[], Awaitable[int]] | None = None,
    log: Log | None = None, keys: bytes | None = None,
) -> Made:  # fmt: skip
    world = town.world

    async def tail() -> int:
        await town.client.ask("barrier")
        return town.controller.ledger.index

    return await Creating(
        log or MemoryLog(world.log), store or MemoryStore(world.store), FolderTarget(folder), head or tail,
        network="main", network_id=world.network_id, version="1", now_ms=lambda: int(world.now() * 1000), keys=keys,
    ).run()  # fmt: skip


async def restored(folder: Path, of: Manifest, name: str) -> tuple[World, Restored]:
    """A new network, not yet led."""
    target, world = FolderTarget(folder), World()
    world.network_id, world.wall = NetworkId(name), world.wall + 60
    now_ms = int(world.now() * 1000)
    generation = await next_generation(target, of)
    await record(target, of, world.network_id, generation, now_ms)
    said = await restore(
        target, of, MemoryLog(world.log), MemoryStore(world.store),
        network_id=world.network_id, generation=generation, now_ms=now_ms, keep_s=600,
    )  # fmt: skip
    return world, said
