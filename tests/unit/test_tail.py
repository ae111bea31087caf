"""A log that has lost what was known of it stops whoever reads it, at once and loudly."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from peers import LIMIT_S, World

from comity.controller import tail
from comity.controller.tail import must_hold
from comity.errors import Corrupt
from comity.log.base import Item
from comity.log.memory import MemoryLog
from comity.model import wire
from comity.model.codec import seal, unseal
from comity.model.ids import NetworkId
from comity.model.task import Barrier, Entry


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tail, "UNREADABLE_S", 0.2)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World(snapshot_every=5)
    yield world
    for controller in world.running:
        await controller.stop()


class Blind(MemoryLog):
    """Cannot read ``index``, as a server that knows of an entry whose bytes are damaged."""

    index = 0

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        return [item for item in await super().read(after, limit) if item.index < self.index]


class Late(MemoryLog):
    """A replica that shows the last entries only after it was asked a few times."""

    lag_s = 5.0
    asked = 0

    async def bounds(self) -> tuple[int, int]:
        first, last = await super().bounds()
        return first, last if self.asked > 3 else last - 2

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        self.asked += 1
        _, last = await self.bounds()
        return [item for item in await super().read(after, limit) if item.index <= last]


async def filled(world: World) -> None:
    """Some entries, with a snapshot among them, and nobody who leads."""
    controller = await world.controller("k1")
    client = await world.peer("c1")
    async with asyncio.timeout(LIMIT_S):
        while not controller.state.snapshots:
            await client.submit("later")
    await controller.stop()


async def test_a_log_that_ends_before_the_snapshot_is_refused(world: World) -> None:
    await filled(world)
    before = dict(world.store.values)
    world.log.entries.clear()
    with pytest.raises(Corrupt, match="the log ends at entry 0, but a snapshot tells of entry"):
        await world.controller("k2")
    assert world.log.entries == [] and world.store.values == before


async def test_a_log_with_another_past_than_the_snapshot_is_refused(world: World) -> None:
    await filled(world)
    entry, _ = seal(Entry(NetworkId("net"), 1, bytes(16), 0, [Barrier()]))
    world.log.entries[:] = [entry] * len(world.log.entries)
    with pytest.raises(Corrupt, match="is another one, but a snapshot tells of it"):
        await world.controller("k2")


async def test_a_log_that_loses_its_end_stops_who_leads(world: World) -> None:
    controller = await world.controller("k1")
    client = await world.peer("c1")
    await client.submit("later")
    del world.log.entries[1:]
    await client.say(wire.SubmitTask(client.spec("later")))
    await asyncio.wait_for(controller.failed.wait(), LIMIT_S)
    assert isinstance(controller.failure, Corrupt)
    assert "its end is lost" in controller.failure.message


async def test_an_entry_that_is_there_but_cannot_be_read_stops_who_reads(world: World) -> None:
    await filled(world)
    log = Blind(world.log)
    log.index = world.log.last
    with pytest.raises(Corrupt, match=f"log entry {log.index} cannot be read"):
        await world.controller("k2", log=log)


async def test_a_replica_that_lags_is_waited_for(world: World) -> None:
    await filled(world)
    log = Late(world.log)
    _, digest = unseal(world.log.entries[-1])
    await must_hold(log, world.log.last, digest, "a mark")
    assert log.asked > 3
    controller = await world.controller("k2", log=Late(world.log))
    assert controller.state.term == 2


async def test_what_was_trimmed_away_is_the_snapshots_to_tell(world: World) -> None:
    await filled(world)
    await MemoryLog(world.log).trim(3)
    await must_hold(MemoryLog(world.log), 2, b"?", "a mark")
    await must_hold(MemoryLog(world.log), 0, b"", "a mark")
    with pytest.raises(Corrupt, match="is another one"):
        await must_hold(MemoryLog(world.log), 4, b"?", "a mark")
