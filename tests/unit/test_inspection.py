"""Damage in the log and the store: found, told of once with its place, and no false alarm."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from backed import Town, town, until

from comity.controller import keeping
from comity.controller.inspection import Inspection
from comity.errors import Corrupt
from comity.log.base import Item
from comity.log.memory import MemoryLog
from comity.model.codec import seal, unseal
from comity.model.task import Barrier, Dropped, Entry
from comity.store.memory import MemoryStore


class Gapped(MemoryLog):
    """As a stream reads that has lost entries."""

    def __init__(self, inner: MemoryLog, lost: set[int]) -> None:
        super().__init__(inner.state)
        self.lost = lost

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        items = await super().read(after, limit)
        missing = next((item.index for item in items if item.index in self.lost), None)
        if missing is None:
            return items
        if items[0].index == missing:
            raise Corrupt(f"log entry {missing} is missing", index=missing)
        return items[: missing - items[0].index]


class Eye:
    """An inspection and what it told."""

    def __init__(self, here: Town, log: MemoryLog | None = None) -> None:
        self.told: list[str] = []
        self.look = Inspection(
            here.controller.state, here.controller.ledger, log or MemoryLog(here.world.log), MemoryStore(here.world.store),
            tell=lambda place, _: self.told.append(place), now_ms=lambda: 7, rate_mb=10_000, pause_s=0.01,
        )  # fmt: skip

    async def rounds(self, count: int) -> list[str]:
        for _ in range(count):
            await self.look.round()
        return self.told


@pytest.fixture
async def here(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    made = await town(monkeypatch)
    yield made
    await made.controller.stop()


async def test_what_is_intact_is_read_through_and_nothing_told(here: Town) -> None:
    eye = Eye(here)
    assert await eye.rounds(3) == []
    figures = eye.look.figures()
    assert (figures["damaged"], figures["rounds"], figures["ended_at"]) == (0, 3, 7)
    assert figures["entries"] == here.world.log.last
    assert figures["objects"] == len(here.world.store.values)
    assert figures["bytes"] > sum(map(len, here.world.log.entries))


@pytest.mark.parametrize("at", [0, 3, -1])
async def test_a_flipped_bit_in_the_log_is_told_of_once(here: Town, at: int) -> None:
    entries = here.world.log.entries
    index = here.world.log.first + (at % len(entries))
    entries[at] = entries[at][:-5] + bytes([entries[at][-5] ^ 16]) + entries[at][-4:]
    eye = Eye(here)
    assert await eye.rounds(3) == [f"log entry {index}"]
    assert eye.look.figures()["places"] == [{"place": f"log entry {index}", "reason": eye.look.damaged[f"log entry {index}"]}]


async def test_a_damaged_and_mended_place_is_no_longer_known_as_damaged(here: Town) -> None:
    entries = here.world.log.entries
    whole, entries[2] = entries[2], entries[2][:40]
    eye = Eye(here)
    assert await eye.rounds(1) == ["log entry 3"]
    entries[2] = whole
    await eye.rounds(1)
    assert eye.look.damaged == {}


async def test_entries_that_are_missing_are_told_of_when_two_rounds_miss_them(here: Town) -> None:
    eye = Eye(here, Gapped(MemoryLog(here.world.log), {3, 4, 7}))
    assert await eye.rounds(1) == []
    assert await eye.rounds(1) == ["log entry 3", "log entry 4", "log entry 7"]


async def test_a_log_that_ends_too_early_is_told_of(here: Town) -> None:
    del here.world.log.entries[-2:]
    eye = Eye(here)
    assert await eye.rounds(2) == [], "a replica may lag"
    assert await eye.rounds(1) == ["the log's end"]


async def test_an_intact_entry_in_anothers_place_is_told_of(here: Town) -> None:
    """Its checksum is right, but it is not what was appended."""
    entries = here.world.log.entries
    entry, _ = unseal(entries[-1])
    entries[-1], _ = seal(Entry(entry.network, entry.term, entry.parent, entry.time_ms, [Barrier()]))
    eye = Eye(here)
    assert await eye.rounds(1) == [f"log entry {here.world.log.last}"]
    other, _ = seal(Entry("other", entry.term, entry.parent, entry.time_ms, [Barrier()]))
    entries[-1] = other
    assert "other" in next(iter((await looked(here)).values()))


async def looked(here: Town) -> dict[str, str]:
    eye = Eye(here)
    await eye.rounds(3)
    return eye.look.damaged


async def test_a_damaged_value_in_the_store_is_told_of(here: Town) -> None:
    chunk = here.controller.state.archive[0].key
    for key in (chunk, "c1/inputs/x"):
        here.world.store.values[key].data = here.world.store.values[key].data[:-1]
    assert sorted(await looked(here)) == ["c1/inputs/x", chunk]


async def test_a_value_that_state_names_and_the_store_lacks_is_told_of(here: Town) -> None:
    chunk = here.controller.state.archive[0].key
    del here.world.store.values[chunk]
    del here.world.store.values["c1/inputs/x"]
    assert list(await looked(here)) == [chunk], "what others stored may have expired"


async def test_what_is_dropped_meanwhile_is_no_damage(here: Town) -> None:
    chunk = here.controller.state.archive[0].key
    eye = Eye(here)
    del here.world.store.values[chunk]
    assert await eye.rounds(1) == []
    assert here.controller.leading is not None
    here.controller.leading.leader.propose(Dropped((chunk,)))
    await until(lambda: not here.controller.state.archive)
    assert await eye.rounds(2) == []


async def test_a_trimmed_log_is_followed_from_its_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    here = await town(monkeypatch, snapshot_every=5, keep_finished=1)
    while here.world.log.first == 1 or len(here.controller.state.snapshots) < 2:
        await here.client.submit("later")
    assert await Eye(here).rounds(2) == []
    after = here.controller.state.snapshots[0].index + 1 - here.world.log.first
    here.world.log.entries[after], _ = seal(Entry("net", 1, bytes(16), 1, [Barrier()]))
    assert await looked(here), "the chain of parents does not lead to what the leader knows"
    key = here.controller.state.snapshots[0].key
    here.world.store.values[key].data += b"x"
    assert key in await looked(here)
    await here.controller.stop()


async def test_trimming_while_it_is_read_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    here = await town(monkeypatch, snapshot_every=5, keep_finished=1)

    class Trimming(MemoryLog):
        async def read(self, after: int, limit: int = 256) -> list[Item]:
            first = self.state.first
            while self.state.first == first and after < 4:
                await here.client.submit("later")
            return await super().read(after, limit)

    assert await Eye(here, Trimming(here.world.log)).rounds(2) == []
    await here.controller.stop()


async def test_a_round_with_very_much_damage_ends(here: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.controller.inspection.FAULTS", 3)
    here.world.log.entries[:] = [data[:30] for data in here.world.log.entries]
    eye = Eye(here)
    await eye.rounds(1)
    assert 3 <= len(eye.look.damaged) <= len(here.world.log.entries)
    assert len(eye.look.figures()["places"]) == 3


async def test_the_leader_looks_by_itself_and_tells_everybody(monkeypatch: pytest.MonkeyPatch) -> None:
    here = await town(monkeypatch, inspect_pause_s=0.05, inspect_rate_mb=1000.0)
    chunk = here.controller.state.archive[0].key
    assert chunk.startswith(keeping.ARCHIVE)
    here.world.store.values[chunk].data += b"x"
    client = here.client
    await until(lambda: bool(here.controller.stats()["storage"]["damaged"]))
    assert (await client.ask("stats"))["storage"]["places"][0]["place"] == chunk
    assert await client.ask("task", id=here.archived) == "corrupt", "it is never served"
    await here.controller.stop()


async def test_it_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    here = await town(monkeypatch, inspect_pause_s=0.01, inspect_rate_mb=0)
    await here.client.ask("barrier")
    assert here.controller.stats()["storage"]["rounds"] == 0
    await here.controller.stop()
