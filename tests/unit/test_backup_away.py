"""A backup whose log or store is away for a moment: the servers elect a leader, a connection is made anew."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from backed import Town, create, restored, town, until
from peers import World, virtually

from comity import patience
from comity.backup import create as creating
from comity.backup.check import check
from comity.backup.create import Reader
from comity.backup.targets import FolderTarget
from comity.errors import Unreachable
from comity.log.base import Item
from comity.log.memory import MemoryLog
from comity.model.task import Logged, Stored
from comity.store.memory import MemoryStore

AWAY = Unreachable("JetStream: JetStream system temporarily unavailable")


class Once:
    """Refuses each thing the first time."""

    def __init__(self) -> None:
        self.refused: set[object] = set()

    def ask(self, what: object) -> None:
        if what not in self.refused:
            self.refused.add(what)
            raise AWAY


class AwayLog(MemoryLog):
    def __init__(self, world: World) -> None:
        super().__init__(world.log)
        self.once = Once()

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        self.once.ask(("read", limit))
        return await super().read(after, limit)

    async def bounds(self) -> tuple[int, int]:
        self.once.ask("bounds")
        return await super().bounds()


class AwayStore(MemoryStore):
    """An object goes away after its first chunk."""

    def __init__(self, world: World) -> None:
        super().__init__(world.store)
        self.once = Once()

    async def list(self, prefix: str) -> list[Stored]:
        self.once.ask(("list", prefix))
        return await super().list(prefix)

    async def get(self, key: str) -> AsyncIterator[bytes]:
        async for chunk in super().get(key):
            yield chunk
            self.once.ask(("get", key))


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "RETRY_S", 0.001)


@pytest.fixture
async def here(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    made = await town(monkeypatch)
    monkeypatch.setattr("comity.controller.payloads.HOT_BYTES", 1)  # payloads are read from the log
    yield made
    await made.controller.stop()


async def test_everything_may_be_away_for_a_moment(here: Town, tmp_path: Path) -> None:
    once = Once()

    async def head() -> int:
        once.ask("head")
        await here.client.ask("barrier")
        return here.controller.ledger.index

    log, store = AwayLog(here.world), AwayStore(here.world)
    made = (await create(here, tmp_path, log=log, store=store, head=head)).manifest
    await check(FolderTarget(tmp_path), made)
    assert {("get", held.key) for held in made.objects} | {("list", "")} <= store.once.refused
    assert log.once.refused == {("read", creating.READ), ("read", 1)}, "entries, and a payload in one"
    whole = (await create(here, tmp_path / "other")).manifest
    assert (made.payloads, made.objects, made.tasks, made.missing) == (whole.payloads, whole.objects, whole.tasks, [])


async def test_what_a_restored_network_began_from_may_be_away_for_a_moment(here: Town, tmp_path: Path) -> None:
    world, _ = await restored(tmp_path, (await create(here, tmp_path)).manifest, "new")
    controller = await world.controller("k9")
    reader = Reader(AwayLog(world), AwayStore(world), world.network_id)
    await reader.reach(controller.ledger.index)
    assert reader.ledger.digest == controller.ledger.digest
    await controller.stop()


async def test_a_snapshot_and_the_logs_bounds_may_be_away_for_a_moment(here: Town, tmp_path: Path) -> None:
    """The bounds say whether a payload that cannot be read was trimmed: this one is damaged."""
    assert here.controller.leading is not None
    here.controller.leading.keeping.snapshot_wanted = True
    await until(lambda: bool(here.controller.state.snapshots))
    place = here.controller.state.tasks[here.waiting].spec.input
    assert type(place) is Logged
    entries = here.world.log.entries
    entries[place.index - 1] = entries[place.index - 1][:-1]
    log, store = AwayLog(here.world), AwayStore(here.world)
    made = (await create(here, tmp_path, log=log, store=store)).manifest
    assert len(made.damaged) == 1
    assert ("get", here.controller.state.snapshots[-1].key) in store.once.refused and "bounds" in log.once.refused


@virtually()
async def test_a_log_that_is_away_is_not_one_that_is_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    here = await town(monkeypatch)
    monkeypatch.setattr(creating, "BEHIND_S", 0.5)
    monkeypatch.setattr(patience, "SELDOM_S", 0.2)
    loop = asyncio.get_running_loop()
    back = loop.time() + 1.0

    class Away(MemoryLog):
        async def read(self, after: int, limit: int = 256) -> list[Item]:
            if loop.time() < back:
                raise AWAY
            return await super().read(after, limit)

    reader = Reader(Away(here.world.log), MemoryStore(here.world.store), here.world.network_id)
    await reader.reach(here.controller.ledger.index)
    assert loop.time() >= back
    await here.controller.stop()


async def test_what_stays_away_ends_it(here: Town, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(creating, "AWAY_S", 0.05)

    class Away(MemoryStore):
        async def get(self, key: str) -> AsyncIterator[bytes]:
            yield b""
            raise AWAY

    with pytest.raises(Unreachable, match="temporarily unavailable"):
        await create(here, tmp_path, store=Away(here.world.store))
