"""What the leader keeps and lets go: log, snapshots, archive and moved payloads, over several terms."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from peers import LIMIT_S, Peer, World, until

from comity.controller import keeping
from comity.controller.controller import Controller
from comity.errors import Unreachable
from comity.log.base import Item
from comity.log.memory import MemoryLog
from comity.model import wire
from comity.model.ids import TaskId
from comity.model.task import Moved, TaskFailure
from comity.store.memory import MemoryStore

BIG = b'"' + b"y" * 5_000 + b'"'


def stored(world: World, prefix: str) -> list[str]:
    return [key for key in sorted(world.store.values) if key.startswith(prefix)]


async def filled(world: World, snapshots: int) -> Controller:
    """A leader that took snapshots, with a waiting task whose input lies in the log before them."""
    controller = await world.controller("k1")
    client = await world.peer("c1")
    await client.submit("later", input=BIG)
    async with asyncio.timeout(LIMIT_S):
        while len(controller.state.snapshots) < snapshots:
            await client.submit("later")
    return controller


async def test_the_age_of_the_log_is_known_over_a_change_of_leader() -> None:
    """Else a network whose leader changes more often than its events are kept never cuts its log."""
    short: dict[str, Any] = {"submit_timeout_s": 0.1, "dedup_window_s": 0.2, "keep_finished_s": 600.0}
    world = World(snapshot_every=5, **short)
    first = await filled(world, 2)
    await first.stop()
    assert world.log.first == 1
    world.settings = World(snapshot_every=1_000_000, **short).settings
    world.wall += 1200
    second = await world.controller("k2")
    await until(lambda: world.log.first > 1)
    await second.stop()


async def test_a_moved_payload_goes_with_its_task_to_the_archive(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(snapshot_every=5, keep_finished=1)
    controller = await filled(world, 2)
    client = await world.peer("c2")
    async with asyncio.timeout(LIMIT_S):
        while not stored(world, keeping.MOVED) or world.log.first == 1:
            await client.submit("later")
    moved = next(task for task in controller.state.tasks.values() if keeping._is_moved(task.spec.input)).spec.id
    monkeypatch.setattr(keeping, "CHUNK_AGE_MS", 0)
    await client.say(wire.CancelTask(1, moved))
    await until(lambda: moved not in controller.state.tasks and not stored(world, keeping.MOVED))
    assert (await client.ask("task", id=moved))["input"] == "y" * 5_000
    await controller.stop()


async def moved_input(world: World) -> tuple[Controller, Peer, TaskId]:
    """A leader, its client, and a task that waits for an agent and whose input went from the log to the store."""
    controller = await world.controller("k1")
    client = await world.peer("c1")
    task = await client.submit(input=BIG)
    async with asyncio.timeout(LIMIT_S):
        while not keeping._is_moved(controller.state.tasks[task].spec.input) or world.log.first == 1:
            await client.submit("later")
    return controller, client, task


async def test_a_dead_letter_that_is_replayed_at_once_keeps_its_moved_input(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(snapshot_every=5, keep_finished=1)
    controller, client, task = await moved_input(world)
    node = await world.peer("n1")
    await node.join("a")
    run = await node.hear(wire.Run)
    await node.say(wire.Failed(task, run.epoch, TaskFailure("broken", "", retryable=False)))
    await until(lambda: task in controller.state.dead.letters)
    tries, read = 0, MemoryStore.read

    async def read_in_the_end(self: MemoryStore, key: str) -> bytes:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise Unreachable("nobody serves the store")
        return await read(self, key)

    monkeypatch.setattr(MemoryStore, "read", read_in_the_end)
    replayed = (await client.ask("replay-dead", ids=[task]))["replayed"][0]["as"]
    again = await node.hear(wire.Run, lambda run: run.task == replayed)
    monkeypatch.setattr(keeping, "CHUNK_AGE_MS", 0)
    await until(lambda: task not in controller.state.tasks and not stored(world, keeping.MOVED))
    assert again.input == BIG, "what the old task had of its own went with it"
    await controller.stop()


class Gated(MemoryLog):
    """Entries are read one by one only when the gate is open."""

    gate = asyncio.Event()

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        if limit == 1:
            await self.gate.wait()
        return await super().read(after, limit)


async def test_a_payload_that_goes_to_the_store_while_it_is_read_is_read_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gated, "gate", gate := asyncio.Event())
    world = World()
    controller = await world.controller("k1", log=Gated(world.log))
    client, node = await world.peer("c1"), await world.peer("n1")
    task = await client.submit(input=BIG)
    controller.payloads._hot.clear()
    await node.join("a")
    await until(lambda: len(controller.payloads._entries._under_way) == 1 and len(controller.state.nodes) == 1)
    kept = await MemoryStore(world.store).put(f"{keeping.MOVED}{task}-input-1-1", BIG)
    assert controller.leading is not None
    controller.leading.leader.propose(Moved(task, kept))
    await until(lambda: keeping._is_moved(controller.state.tasks[task].spec.input))
    await controller.log.trim(controller.ledger.index)
    gate.set()
    run = await node.hear(wire.Run)
    assert run.input == kept and await client.state(task) == "assigned"
    await controller.stop()


async def test_what_leaders_before_left_behind_is_deleted() -> None:
    world = World(snapshot_every=5)
    first = await filled(world, 2)
    known = stored(world, "network/")
    store = MemoryStore(world.store)
    left = ["network/archive/x-1-1", "network/snapshot/0000000000000001-1", "network/payload/x-input-1-1"]
    newer = [key.removesuffix("-1") + "-9" for key in left]
    for key in [*left, *newer]:
        await store.put(key, b"left")
    await first.stop()
    second = await world.controller("k2")
    await until(lambda: not any(key in world.store.values for key in left))
    assert set(known) <= set(world.store.values), "what the log tells of stays"
    assert set(newer) <= set(world.store.values), "a later leader may be about to tell of it"
    await second.stop()


async def test_a_snapshot_that_goes_while_it_is_looked_for_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(snapshot_every=5)
    first = await filled(world, 2)
    await first.stop()
    newest = first.state.snapshots[-1].key
    listed = keeping.newest_snapshot

    async def then_gone(*args: Any) -> list[str]:
        keys = await listed(*args)
        world.store.values.pop(newest, None)
        return keys

    monkeypatch.setattr("comity.controller.origin.newest_snapshot", then_gone)
    second = await world.controller("k2")
    assert second.state.totals == first.state.totals
    await second.stop()
