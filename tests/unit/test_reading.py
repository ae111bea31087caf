"""What the leader reads back, from the log and the archive: once, however many ask, and little at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from peers import World, until

from comity.controller import keeping
from comity.controller.archive import Archive, encode_chunk
from comity.controller.sharing import Sharing
from comity.errors import Corrupt, Disconnected
from comity.log.base import Item
from comity.log.memory import MemoryLog
from comity.model import wire
from comity.model.ids import TaskId
from comity.store.memory import MemoryStore, MemoryStoreState


class Reads:
    """Counts them, and lets go of those under way when told."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.now = 0
        self.most = 0
        self.go = asyncio.Event()

    async def __call__(self, key: str) -> str:
        self.made.append(key)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self.go.wait()
        finally:
            self.now -= 1
        if key == "bad":
            raise Disconnected("gone")
        return key * 2


async def turn() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_thing_is_read_once_for_all_who_ask_and_again_for_the_next() -> None:
    reads = Reads()
    sharing = Sharing(reads, 2)
    asked = [asyncio.create_task(sharing.get("a")) for _ in range(5)]
    await turn()
    asked[0].cancel()  # the first who asked; the others still wait
    await turn()
    reads.go.set()
    assert await asyncio.gather(*asked[1:]) == ["aa"] * 4
    assert reads.made == ["a"]
    assert await sharing.get("a") == "aa"
    assert reads.made == ["a", "a"]


async def test_few_things_are_read_at_a_time() -> None:
    reads = Reads()
    sharing = Sharing(reads, 2)
    asked = [asyncio.create_task(sharing.get(key)) for key in "abcde"]
    await turn()
    assert reads.made == ["a", "b"]
    reads.go.set()
    assert await asyncio.gather(*asked) == ["aa", "bb", "cc", "dd", "ee"]
    assert reads.most == 2


async def test_a_failure_reaches_all_who_wait_and_is_not_remembered() -> None:
    reads = Reads()
    sharing = Sharing(reads, 1)
    reads.go.set()
    answers = await asyncio.gather(*(sharing.get("bad") for _ in range(3)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [Disconnected] * 3
    assert reads.made == ["bad"]


async def test_at_the_end_who_waits_is_canceled() -> None:
    sharing = Sharing(Reads(), 1)
    asked = [asyncio.create_task(sharing.get(key)) for key in "ab"]
    await turn()
    sharing.end()
    await asyncio.wait(asked, timeout=20)
    assert all(task.cancelled() for task in asked)


class CountingLog(MemoryLog):
    """Knows which single entries were read."""

    single: list[int]

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        if limit == 1:
            self.single.append(after + 1)
            await asyncio.sleep(0)
        return await super().read(after, limit)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


async def test_payloads_of_one_entry_are_read_with_it(world: World) -> None:
    """A new leader dispatches thousands of tasks whose inputs lie in few entries."""
    log = CountingLog(world.log)
    log.single = []
    controller = await world.controller(log=log)
    client, node = await world.peer("c1"), await world.peer("n1")
    big = b'"' + b"x" * 5_000 + b'"'
    specs = [client.spec(input=big) for _ in range(40)]
    await client.say(*(wire.SubmitTask(spec) for spec in specs))
    await until(lambda: controller.state.totals.submitted == 40)
    entries = {task.spec.input.index for task in controller.state.tasks.values()}  # type: ignore[union-attr]
    assert len(entries) < 10
    controller.payloads._hot.clear()
    await node.join("a", slots=40)
    for _ in range(40):
        assert (await node.hear(wire.Run)).input == big
    assert sorted(log.single) == sorted(entries)


async def test_an_archived_chunk_is_read_once_for_many_questions(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "CHUNK_TASKS", 30)
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=40)
    tasks = [await client.submit() for _ in range(30)]
    for task in tasks:
        run = await node.hear(wire.Run, lambda run, task=task: run.task == task)  # type: ignore[misc]
        await node.say(wire.Done(task, run.epoch, b"1", 1))
    await until(lambda: controller.state.archived == 30)
    reads: list[str] = []
    read = MemoryStore.read

    async def counted(self: MemoryStore, key: str) -> bytes:
        reads.append(key)
        await asyncio.sleep(0)
        return await read(self, key)

    monkeypatch.setattr(MemoryStore, "read", counted)
    assert await asyncio.gather(*(client.state(task) for task in tasks)) == ["completed"] * 30
    assert len(reads) == 1


async def test_a_chunk_of_the_archive_is_bounded_in_bytes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "CHUNK_TASKS", 30)
    monkeypatch.setattr(keeping, "CHUNK_BYTES", 50_000)
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=40)
    sizes = [20_000] * 29 + [90_000]
    tasks = [await client.submit(input=b'"' + b"x" * size + b'"') for size in sizes]
    for task in tasks:
        run = await node.hear(wire.Run, lambda run, task=task: run.task == task)  # type: ignore[misc]
        await node.say(wire.Done(task, run.epoch, b"1", 1))
    await until(lambda: controller.state.archived > 0)
    assert [chunk.count for chunk in controller.state.archive] == [2]


async def test_the_last_few_chunks_are_at_hand_and_a_damaged_one_is_said_to_be() -> None:
    store = MemoryStore(MemoryStoreState())
    for name in "abc":
        await store.put(f"network/archive/{name}", encode_chunk([]))
    await store.put("network/archive/damaged", b"\xc1")
    reads: list[str] = []
    read = store.read

    async def counted(key: str) -> bytes:
        reads.append(key[-1])
        return await read(key)

    store.read = counted  # type: ignore[method-assign]
    archive = Archive(store)
    for name in "aabbaacca":
        found: dict[TaskId, Any] = dict(await archive.chunk(f"network/archive/{name}"))
        assert found == {}
    assert reads == ["a", "b", "c", "a"]
    with pytest.raises(Corrupt, match="damaged"):
        await archive.chunk("network/archive/damaged")
