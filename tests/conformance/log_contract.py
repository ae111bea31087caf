"""What every log promises (``comity.log.base``), one test a promise. A backend's test class inherits ``LogContract`` and
provides the fixture ``log``: a ``Place`` whose ``door()`` opens one more process's door to the same, empty log.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import pytest

from comity.core.ledger import Effective, Ledger, Reason, Void
from comity.errors import Conflict, Corrupt, Indefinite, TooLarge
from comity.log.base import Item, Log
from comity.model.codec import ROOT_DIGEST, seal
from comity.model.ids import ProcessId
from comity.model.task import Barrier, Entry, Lead

PATIENCE_S = 20.0


class Place(NamedTuple):
    """``door`` opens the log as one more process would; what it opened is closed when the test ends."""

    door: Callable[[], Awaitable[Log]]


async def fill(log: Log, count: int, after: int = 0) -> list[bytes]:
    entries = [b"entry %d" % n for n in range(after + 1, after + count + 1)]
    for n, entry in enumerate(entries):
        assert await log.append(entry, after + n) == after + n + 1
    return entries


async def read_all(log: Log, after: int = 0) -> list[Item]:
    found: list[Item] = []
    while items := await log.read(found[-1].index if found else after):
        found += items
    return found


async def take(items: AsyncIterator[list[Item]], count: int) -> list[Item]:
    """The next ``count`` items or more of a follower."""
    found: list[Item] = []
    async with asyncio.timeout(PATIENCE_S):
        while len(found) < count:
            found += await anext(items)
    return found


class LogContract:
    # Append

    async def test_an_empty_log_starts_at_one(self, log: Place) -> None:
        door = await log.door()
        assert await door.bounds() == (1, 0)
        assert await door.read(0) == []
        assert await door.append(b"first", 0) == 1
        assert await door.bounds() == (1, 1)

    async def test_append_needs_the_tail(self, log: Place) -> None:
        one, two = await log.door(), await log.door()
        entries = await fill(one, 3)
        for after in (0, 2, 4, 99):
            with pytest.raises(Conflict):
                await two.append(b"refused", after)
        assert await two.append(b"fourth", 3) == 4
        assert [item.data for item in await read_all(one)] == [*entries, b"fourth"]

    async def test_hundreds_of_appends_in_flight_land_in_the_order_of_their_start(self, log: Place) -> None:
        door = await log.door()
        count = 500
        appends = [asyncio.create_task(door.append(b"entry %d" % n, n)) for n in range(count)]
        async with asyncio.timeout(60):
            assert await asyncio.gather(*appends) == list(range(1, count + 1))
        assert await read_all(door) == [Item(n + 1, b"entry %d" % n) for n in range(count)]

    async def test_one_of_five_racing_writers_wins_each_index(self, log: Place) -> None:
        doors = [await log.door() for _ in range(5)]
        won: list[tuple[int, bytes]] = []

        async def write(name: int, door: Log) -> None:
            tail = 0
            for n in range(40):
                entry = b"%d-%d" % (name, n)
                try:
                    tail = await door.append(entry, tail)
                    won.append((tail, entry))
                except Conflict:
                    tail = (await door.bounds())[1]

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*(write(name, door) for name, door in enumerate(doors)))
        assert [index for index, _ in sorted(won)] == list(range(1, len(won) + 1))
        for door in doors:
            assert [tuple(item) for item in await read_all(door)] == sorted(won)

    async def test_racing_for_one_index_has_one_winner(self, log: Place) -> None:
        doors = [await log.door() for _ in range(5)]
        for after in range(20):
            results = await asyncio.gather(
                *(door.append(b"%d" % name, after) for name, door in enumerate(doors)), return_exceptions=True
            )
            assert sum(result == after + 1 for result in results) == 1
            assert sum(isinstance(result, Conflict) for result in results) == 4

    async def test_an_entry_may_be_as_large_as_the_limit_and_no_larger(self, log: Place) -> None:
        door = await log.door()
        largest = bytes(range(256)) * (door.entry_limit // 256)
        assert await door.append(largest, 0) == 1
        with pytest.raises(TooLarge):
            await door.append(bytes(door.entry_limit + 1), 1)
        assert await door.append(b"", 1) == 2
        assert await read_all(door) == [Item(1, largest), Item(2, b"")]

    # Read

    async def test_read_gives_what_follows_in_order_up_to_the_limit(self, log: Place) -> None:
        door = await log.door()
        entries = await fill(door, 10)
        assert await door.read(0, 4) == [Item(n, entries[n - 1]) for n in (1, 2, 3, 4)]
        assert await door.read(4, 4) == [Item(n, entries[n - 1]) for n in (5, 6, 7, 8)]
        assert await door.read(8, 4) == [Item(9, entries[8]), Item(10, entries[9])]
        assert await door.read(10, 4) == []
        assert await door.read(12, 4) == []
        assert await door.read(2, 2) == [Item(3, entries[2]), Item(4, entries[3])]

    async def test_one_entry_can_be_read_from_anywhere(self, log: Place) -> None:
        door = await log.door()
        entries = await fill(door, 10)
        for index in (7, 1, 10, 3):
            assert await door.read(index - 1, 1) == [Item(index, entries[index - 1])]
        assert await door.read(10, 1) == []

    async def test_reading_goes_on_after_the_tail_was_reached(self, log: Place) -> None:
        door = await log.door()
        await fill(door, 3)
        assert len(await read_all(door)) == 3
        assert await door.read(3) == []
        await fill(door, 2, after=3)
        assert [item.index for item in await door.read(3)] == [4, 5]

    async def test_what_was_read_never_changes(self, log: Place) -> None:
        one, two = await log.door(), await log.door()
        await fill(one, 20)
        before = await read_all(two)
        await fill(two, 20, after=20)
        assert (await read_all(one))[:20] == before

    async def test_two_readers_of_one_door_do_not_disturb_each_other(self, log: Place) -> None:
        door = await log.door()
        entries = await fill(door, 30)
        found = await asyncio.gather(*(door.read(after, 5) for after in (0, 10, 20, 25, 0)))
        for after, items in zip((0, 10, 20, 25, 0), found, strict=True):
            assert items == [Item(n, entries[n - 1]) for n in range(after + 1, after + 6)]

    # Follow

    async def test_follow_gives_the_past_and_then_what_comes(self, log: Place) -> None:
        writer, reader = await log.door(), await log.door()
        await fill(writer, 3)
        items = reader.follow(1)
        assert [item.index for item in await take(items, 2)] == [2, 3]
        coming = asyncio.create_task(take(items, 2))
        await fill(writer, 2, after=3)
        assert await coming == [Item(4, b"entry 4"), Item(5, b"entry 5")]
        await items.aclose()  # type: ignore[attr-defined]

    async def test_followers_wait_at_an_empty_tail(self, log: Place) -> None:
        writer, reader = await log.door(), await log.door()
        followers = [reader.follow(0), reader.follow(0), writer.follow(0)]
        coming = [asyncio.create_task(take(items, 50)) for items in followers]
        await fill(writer, 50)
        for found in await asyncio.gather(*coming):
            assert [item.index for item in found] == list(range(1, 51))
        for items in followers:
            await items.aclose()  # type: ignore[attr-defined]

    # Trim

    async def test_trim_removes_the_start_and_reading_it_is_corrupt(self, log: Place) -> None:
        door, other = await log.door(), await log.door()
        entries = await fill(door, 10)
        assert len(await other.read(0, 4)) == 4
        await door.trim(6)
        assert await door.bounds() == (7, 10)
        assert await other.bounds() == (7, 10)
        for reader in (door, other):
            for after in (0, 4, 5):
                with pytest.raises(Corrupt) as caught:
                    await reader.read(after)
                assert caught.value.details["index"] == after + 1
                with pytest.raises(Corrupt):
                    await reader.read(after, 1)
            assert await reader.read(6) == [Item(n, entries[n - 1]) for n in (7, 8, 9, 10)]

    async def test_a_follower_below_the_first_entry_is_told(self, log: Place) -> None:
        door = await log.door()
        await fill(door, 5)
        await door.trim(3)
        with pytest.raises(Corrupt):
            await take(door.follow(1), 1)
        await door.trim(5)
        with pytest.raises(Corrupt):
            await take(door.follow(4), 1)

    @pytest.mark.parametrize("upto", [5, 6, 1000])
    async def test_trim_never_moves_the_tail(self, log: Place, upto: int) -> None:
        door = await log.door()
        await fill(door, 5)
        await door.trim(upto)
        assert await door.bounds() == (6, 5)
        assert await door.read(5) == []
        with pytest.raises(Corrupt):
            await door.read(3)
        with pytest.raises(Conflict):
            await door.append(b"from zero", 0)
        assert await door.append(b"entry 6", 5) == 6
        assert await read_all(door, 5) == [Item(6, b"entry 6")]

    async def test_trimming_twice_or_less_changes_nothing(self, log: Place) -> None:
        door = await log.door()
        await door.trim(0)
        await fill(door, 5)
        await door.trim(3)
        await door.trim(3)
        await door.trim(1)
        assert await door.bounds() == (4, 5)

    # The ledger's reason

    async def test_an_old_leaders_entries_in_flight_land_and_count_for_nothing(self, log: Place) -> None:
        """Leader c1 has 6, 7 and 8 in flight when c2's term entry takes 6. The log refuses c1's 6 and accepts its 7 and 8."""
        old, new = await log.door(), await log.door()
        chain = ROOT_DIGEST
        for index in range(5):
            first = Lead(ProcessId("c1")) if index == 0 else Barrier()
            data, chain = seal(Entry("net", 1, chain, index, [first]))
            await old.append(data, index)
        flight = []
        tip = chain
        for index in (5, 6, 7):
            data, tip = seal(Entry("net", 1, tip, index, [Barrier()]))
            flight.append((data, index))
        term, term_digest = seal(Entry("net", 2, chain, 6, [Lead(ProcessId("c2"))]))

        assert await new.append(term, 5) == 6
        results = await asyncio.gather(*(old.append(data, after) for data, after in flight), return_exceptions=True)
        assert isinstance(results[0], Conflict)
        assert results[1:] == [7, 8]
        follower = new.follow(0)
        work, _ = seal(Entry("net", 2, term_digest, 8, [Barrier()]))
        assert await new.append(work, 8) == 9

        seen = [await read_all(old), await read_all(new), await take(follower, 9)]
        await follower.aclose()  # type: ignore[attr-defined]
        for items in seen:
            ledger = Ledger("net")
            verdicts = [ledger.offer(item.index, item.data) for item in items]
            assert all(isinstance(verdict, Effective) for verdict in verdicts[:6])
            assert verdicts[6:8] == [Void(7, Reason.OLD_TERM), Void(8, Reason.OLD_TERM)]
            assert isinstance(verdicts[8], Effective)
            assert (ledger.term, ledger.effective_index) == (2, 9)

    # Life and end

    async def test_durability_is_stated(self, log: Place) -> None:
        level, reason = await (await log.door()).durability()
        assert level in ("verified", "asserted", "unverified")
        assert reason

    async def test_close_ends_followers_and_refuses_more(self, log: Place) -> None:
        door = await log.door()
        await fill(door, 1)
        items = door.follow(0)
        await take(items, 1)
        coming = asyncio.create_task(anext(items, None))
        await asyncio.sleep(0)
        await door.close()
        async with asyncio.timeout(PATIENCE_S):
            assert await coming is None
        with pytest.raises(Indefinite):
            await door.append(b"late", 1)
        with pytest.raises(Indefinite):
            await door.read(0)
        await door.close()
