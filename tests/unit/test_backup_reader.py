"""A backup's own view of the log."""

from __future__ import annotations

import asyncio

import pytest
from peers import World, a_while, virtually

from comity.backup import create
from comity.backup.create import Reader
from comity.errors import TimedOut
from comity.log.base import Item
from comity.log.memory import MemoryLog
from comity.store.memory import MemoryStore


class Slow(MemoryLog):
    """One entry at a time, each after a while."""

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        await a_while(0.03)
        return await super().read(after, 1)


@virtually()
async def test_a_long_log_is_read_as_long_as_something_comes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await world.controller()
    client = await world.peer("c1")
    for _ in range(6):
        await client.submit("later")
    monkeypatch.setattr(create, "BEHIND_S", 0.1)
    reader = Reader(Slow(world.log), MemoryStore(world.store), world.network_id)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await reader.reach(controller.ledger.index)
    assert loop.time() - began > 0.1 and len(reader.state.tasks) == 6
    with pytest.raises(TimedOut, match=f"ends at {controller.ledger.index} here"):
        await reader.reach(controller.ledger.index + 1)
