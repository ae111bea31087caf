"""What every registry promises (comity.registry.base), one test each. A backend inherits the class and provides ``world``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Protocol, cast

import pytest

from comity.errors import BadInput, Conflict, Disconnected
from comity.registry.base import Change, Changes, Registry

SOON_S = 20.0
"""Nothing here takes longer, even on a busy machine."""


class World(Protocol):
    async def registry(self) -> Registry:
        """A door of a process of its own, which may write any key."""


class Watcher:
    """Follows a watch and keeps what it said: ``batches``, and the ``state`` that follows from them."""

    def __init__(self, registry: Registry, prefix: str) -> None:
        self.batches: list[Changes] = []
        self.state: dict[str, bytes] = {}
        self.revisions: dict[str, int] = {}
        self._changed = asyncio.Event()
        self._source = cast(AsyncGenerator[Changes, None], registry.watch(prefix))
        self._task = asyncio.get_running_loop().create_task(self._follow())

    @property
    def changes(self) -> list[Change]:
        return [change for batch in self.batches for change in batch]

    async def when(self, condition: Callable[[], bool], limit_s: float = SOON_S) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                if self._task.done():
                    self._task.result()
                    raise AssertionError("the watch ended")
                self._changed.clear()
                await self._changed.wait()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.wait([self._task])
        await self._source.aclose()

    async def ended(self) -> None:
        async with asyncio.timeout(SOON_S):
            await self._task

    async def _follow(self) -> None:
        try:
            async for batch in self._source:
                self._take(batch)
                self._changed.set()
        finally:
            self._changed.set()

    def _take(self, batch: Changes) -> None:
        assert batch or not self.batches, "only the first answer may be empty"
        for change in batch:
            assert change.revision > self.revisions.get(change.key, 0) or change.value is None, f"repeated: {change}"
            self.revisions[change.key] = change.revision
            if change.value is None:
                assert change.key in self.state, f"gone, but never there: {change}"
                del self.state[change.key]
            else:
                self.state[change.key] = change.value
        self.batches.append(batch)


async def contents(registry: Registry, prefix: str = "") -> dict[str, bytes]:
    records, _ = await registry.list(prefix)
    return {record.key: record.value for record in records}


class RegistryContract:
    # Records

    async def test_a_record_is_what_was_put_last(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        assert await a.get("nodes/n1") is None
        first = await a.put("nodes/n1", b"1")
        second = await a.put("nodes/n1", b"")
        record = await b.get("nodes/n1")
        assert record is not None
        assert (record.key, record.value, record.revision) == ("nodes/n1", b"", second)
        assert second > first > 0

    async def test_revisions_grow_over_the_whole_registry(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        revisions = [await door.put(f"nodes/n{n}", b"x") for n, door in enumerate((a, b, a, b, a))]
        assert revisions == sorted(set(revisions))
        for n, revision in enumerate(revisions):
            record = await a.get(f"nodes/n{n}")
            assert record is not None
            assert record.revision == revision

    @pytest.mark.parametrize("key", ["", "nodes", "nodes/", "/n1", "nodes/n.1", "nodes/*", "agents//1", "nodes/a b"])
    async def test_a_bad_key_is_refused(self, world: World, key: str) -> None:
        a = await world.registry()
        with pytest.raises(BadInput):
            await a.put(key, b"")
        with pytest.raises(BadInput):
            await a.get(key)
        with pytest.raises(BadInput):
            await a.delete(key)

    async def test_a_bad_prefix_is_refused(self, world: World) -> None:
        a = await world.registry()
        for prefix in ("nodes/*/", ">/", "/", "a b/c"):
            with pytest.raises(BadInput):
                await a.list(prefix)
            with pytest.raises(BadInput):
                await anext(aiter(a.watch(prefix)))

    # Compare-and-set

    async def test_a_put_that_expects_another_revision_is_refused(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        first = await a.put("network/c/x", b"1", expect=0)
        for expect in (0, first + 1, first - 1):
            with pytest.raises(Conflict):
                await b.put("network/c/x", b"2", expect=expect)
        second = await b.put("network/c/x", b"2", expect=first)
        with pytest.raises(Conflict):
            await a.put("network/c/x", b"3", expect=first)
        record = await a.get("network/c/x")
        assert record is not None
        assert (record.value, record.revision) == (b"2", second)
        with pytest.raises(Conflict):
            await a.put("network/c/new", b"1", expect=second)

    async def test_what_was_deleted_does_not_exist(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        for _ in range(3):
            await a.put("nodes/n1", b"x", expect=0)
            await b.delete("nodes/n1")
            await b.delete("nodes/n1")

    async def test_one_of_eight_writers_wins_each_race(self, world: World) -> None:
        doors = [await world.registry() for _ in range(8)]
        revision = 0
        for turn in range(25):
            tries = [door.put("network/c/race", b"%d" % n, expect=revision) for n, door in enumerate(doors)]
            outcomes = await asyncio.gather(*tries, return_exceptions=True)
            won = [(n, outcome) for n, outcome in enumerate(outcomes) if isinstance(outcome, int)]
            assert len(won) == 1, outcomes
            assert all(isinstance(outcome, int | Conflict) for outcome in outcomes), outcomes
            winner, revision = won[0]
            record = await doors[turn % 8].get("network/c/race")
            assert record is not None
            assert (record.value, record.revision) == (b"%d" % winner, revision)
            if turn % 5 == 4:
                await doors[0].delete("network/c/race", expect=revision)
                revision = 0

    # Deletion

    async def test_a_deleted_record_is_gone_everywhere(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        watcher = Watcher(b, "")
        await a.put("nodes/n1", b"x")
        await a.put("nodes/n2", b"y")
        await watcher.when(lambda: len(watcher.state) == 2)
        await a.delete("nodes/n1")
        assert await b.get("nodes/n1") is None
        assert await contents(b) == {"nodes/n2": b"y"}
        await watcher.when(lambda: watcher.state == {"nodes/n2": b"y"})
        await watcher.stop()

    async def test_a_delete_that_expects_another_revision_is_refused(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        first = await a.put("nodes/n1", b"x")
        second = await a.put("nodes/n1", b"y")
        with pytest.raises(Conflict):
            await b.delete("nodes/n1", expect=first)
        assert await contents(b) == {"nodes/n1": b"y"}
        await b.delete("nodes/n1", expect=second)
        assert await contents(b) == {}
        await b.delete("nodes/n1", expect=second)
        await b.delete("nodes/never", expect=second)

    # Lifetimes

    async def test_a_record_ends_with_its_lifetime_not_before(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        loop = asyncio.get_running_loop()
        early = Watcher(b, "nodes/")
        await early.when(lambda: bool(early.batches))
        await a.put("nodes/stays", b"x")
        for turn in range(5):  # a busy machine may be late in telling of one, or in beginning to watch
            begin = loop.time()
            await a.put("nodes/goes", b"x", ttl_s=2.5)
            late = Watcher(b, "")
            await late.when(lambda late=late: bool(late.batches))
            is_seen = "nodes/goes" in late.state
            assert is_seen or loop.time() - begin >= 2.5
            await early.when(lambda turn=turn: [change.key for change in early.changes].count("nodes/goes") > 2 * turn)
            for watcher in (early, late):
                await watcher.when(lambda watcher=watcher: "nodes/goes" not in watcher.state)
                took_s = loop.time() - begin
                assert took_s >= 2.5
            if is_seen and took_s <= 2.5 + a.lease_granularity_s + 1.0:
                break
            await late.stop()
        else:
            pytest.fail(f"it lasted for {took_s:.1f} s")
        assert await a.get("nodes/goes") is None
        assert await contents(b) == early.state == late.state == {"nodes/stays": b"x"}
        await a.put("nodes/goes", b"again", expect=0)
        await early.when(lambda: early.state.get("nodes/goes") == b"again")
        await early.stop()
        await late.stop()

    async def test_each_put_begins_a_new_lifetime(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        for n in range(3):  # a machine that stands still for long leaves no time to put again
            if await self._is_renewed(a, b, f"nodes/forever{n}", f"nodes/renewed{n}"):
                return
        pytest.fail("there was no time to put again before the first life was over")

    async def _is_renewed(self, a: Registry, b: Registry, forever: str, renewed: str) -> bool:
        """False if the second life began too late."""
        now = asyncio.get_running_loop().time
        watcher = Watcher(b, "")
        begin = now()

        async def are(expected: set[bytes], before: float) -> None:
            """Both are there with such a value, unless the answer came later."""
            found = [value for key, value in (await contents(b)).items() if key in (forever, renewed)]
            assert now() >= before or (len(found) == 2 and set(found) == expected)

        await a.put(forever, b"1", ttl_s=2.5)
        await a.put(renewed, b"1", ttl_s=2.5)
        while now() - begin < 0.7:
            await are({b"1"}, begin + 2.5)
            await asyncio.sleep(0.05)
        again = now()
        await a.put(renewed, b"2", ttl_s=4.0)
        put = now()
        await a.put(forever, b"2")
        if now() - begin >= 2.5:
            await watcher.stop()
            return False
        while now() - begin < 3.7:
            await are({b"2"}, again + 4.0)
            await asyncio.sleep(0.1)
        late = Watcher(b, "")
        await late.when(lambda: bool(late.batches))
        assert renewed in late.state or now() >= again + 4.0
        for each in (watcher, late):
            await each.when(lambda each=each: renewed not in each.state)
            assert now() - begin >= 4.7
            assert now() - put <= 4.0 + a.lease_granularity_s + 5.0
        assert [change.value for change in watcher.changes if change.key == renewed] == [b"1", b"2", None]
        assert [change.value for change in watcher.changes if change.key == forever] == [b"1", b"2"]
        await late.stop()
        await watcher.stop()
        return True

    # Lists

    async def test_a_list_is_sorted_and_filtered_by_prefix(self, world: World) -> None:
        a = await world.registry()
        keys = [
            "nodes/n1",
            "nodes/n10",
            "nodes/n2",
            "agents/n1/0",
            "agents/n1/1",
            "agents/n10/0",
            "schemas/n1/ab-c_d",
            "nodes2/n1",
        ]
        for key in keys:
            await a.put(key, key.encode())
        for prefix in (
            "",
            "n",
            "nodes",
            "nodes/",
            "nodes/n1",
            "agents/n1",
            "agents/n1/",
            "agents/n1/0",
            "x/",
            "nodes/n1/",
        ):
            records, _ = await a.list(prefix)
            assert [record.key for record in records] == sorted(key for key in keys if key.startswith(prefix)), prefix
            assert all(record.value == record.key.encode() for record in records)

    async def test_a_list_is_complete_as_of_its_revision(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        none, before = await a.list("")
        assert none == []
        for n in range(50):
            last = await a.put(f"nodes/n{n % 10}", b"%d" % n)
            assert last > before
            records, revision = await b.list("nodes/")
            assert revision >= last
            assert max(record.revision for record in records) == last
            assert {record.key: record.value for record in records}[f"nodes/n{n % 10}"] == b"%d" % n
        records, revision = await b.list("agents/")
        assert (records, revision >= before + 50) == ([], True)

    async def test_a_long_list_is_whole(self, world: World) -> None:
        a = await world.registry()
        for at in range(0, 3000, 250):
            await asyncio.gather(*(a.put(f"agents/n1/{n}", bytes(1000)) for n in range(at, at + 250)))
        assert len(await contents(a, "agents/")) == 3000

    # Watches

    async def test_a_watch_begins_with_what_is_there_even_nothing(self, world: World) -> None:
        a = await world.registry()
        empty = Watcher(a, "")
        await empty.when(lambda: bool(empty.batches))
        assert empty.batches == [[]]
        revisions = [await a.put(key, b"x") for key in ("nodes/n1", "nodes/n2", "agents/n1/0")]
        await a.put("nodes/n3", b"x")
        await a.delete("nodes/n3")
        full = Watcher(a, "nodes/")
        await full.when(lambda: bool(full.batches))
        assert sorted((change.key, change.revision) for change in full.batches[0]) == [
            ("nodes/n1", revisions[0]),
            ("nodes/n2", revisions[1]),
        ]
        await empty.stop()
        await full.stop()

    async def test_a_watch_sees_every_change_once_and_only_its_own(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        watcher = Watcher(b, "agents/n1/")
        await watcher.when(lambda: bool(watcher.batches))
        said = []
        for n in range(30):
            revision = await a.put(f"agents/n1/{n % 3}", b"%d" % n)
            said.append((f"agents/n1/{n % 3}", b"%d" % n, revision))
            await watcher.when(lambda: len(watcher.changes) == len(said))
            await a.put(f"agents/n2/{n % 3}", b"other")
        assert [(change.key, change.value, change.revision) for change in watcher.changes] == said
        await a.delete("agents/n1/0")
        await watcher.when(lambda: len(watcher.changes) > len(said))
        last = watcher.changes[-1]
        assert (last.key, last.value) == ("agents/n1/0", None)
        assert last.revision >= said[-1][2]
        await watcher.stop()

    async def test_a_watch_opened_under_load_ends_with_the_truth(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()

        async def write(owner: int) -> None:
            for n in range(150):
                key = f"agents/n{owner}/{n % 7}"
                if n % 11 == 10:
                    await a.delete(key)
                else:
                    await a.put(key, b"%d" % n)

        writing = [asyncio.create_task(write(owner)) for owner in range(4)]
        watchers = []
        for _ in range(5):
            watcher = Watcher(b, "")
            watchers.append(watcher)
            await watcher.when(lambda watcher=watcher: bool(watcher.batches))
        await asyncio.gather(*writing)
        truth = await contents(a)
        assert len(truth) > 4
        for watcher in watchers:
            await watcher.when(lambda watcher=watcher: watcher.state == truth)
            await watcher.stop()

    async def test_a_slow_watcher_catches_up(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        source = cast(AsyncGenerator[Changes, None], b.watch(""))
        assert await anext(source) == []
        for n in range(500):
            await a.put(f"nodes/n{n % 50}", b"%d" % n)
        state: dict[str, bytes | None] = {}
        async with asyncio.timeout(SOON_S):
            while state.get("nodes/n49") != b"499":
                state |= {change.key: change.value for change in await anext(source)}
        assert state == await contents(a)
        await source.aclose()

    async def test_the_end_of_a_door_ends_its_watches(self, world: World) -> None:
        a, b = await world.registry(), await world.registry()
        watcher = Watcher(a, "")
        await watcher.when(lambda: bool(watcher.batches))
        await a.close()
        await a.close()
        await watcher.ended()
        with pytest.raises(Disconnected):
            await a.put("nodes/n1", b"x")
        with pytest.raises(Disconnected):
            await a.list("")
        await b.put("nodes/n1", b"x")
