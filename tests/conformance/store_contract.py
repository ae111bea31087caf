"""What every store promises (``comity.store.base``), one test a promise. A backend's test class inherits ``StoreContract`` and
provides the fixture ``store``: a ``Place`` on one empty store.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple

import pytest

from comity.errors import AccessDenied, BadInput, Conflict, Corrupt, Indefinite, NotFound
from comity.model.codec import digest
from comity.model.task import Stored
from comity.store.base import CHUNK, Store

SIZES = [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 20 * CHUNK + 77]


class Place(NamedTuple):
    """``door`` opens the store for a process: ``""`` may write everywhere (a controller), any other name only under itself.
    ``damage`` changes stored content of a key behind the store's back. What was opened is closed when the test ends."""

    door: Callable[[str], Awaitable[Store]]
    damage: Callable[[str], Awaitable[None]]


def content(size: int, seed: int = 7) -> bytes:
    return random.Random(seed).randbytes(size)


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        await asyncio.sleep(0)
        yield data[start : start + size]


async def eventually(check: Callable[[], Awaitable[bool]]) -> None:
    """Return once ``check`` says yes, which nobody announces."""
    async with asyncio.timeout(30):
        while True:
            if await check():
                return
            await asyncio.sleep(0.05)


class StoreContract:
    # Whole or not at all

    @pytest.mark.parametrize("size", SIZES)
    async def test_what_was_put_can_be_read(self, store: Place, size: int) -> None:
        writer, reader = await store.door(""), await store.door("n1")
        data = content(size)
        stored = await writer.put("network/a/b.c", data)
        assert stored == Stored("network/a/b.c", size, digest(data))
        assert await reader.read("network/a/b.c") == data
        chunks = [chunk async for chunk in reader.get("network/a/b.c")]
        assert b"".join(chunks) == data
        assert all(0 < len(chunk) <= CHUNK for chunk in chunks)

    @pytest.mark.parametrize(("size", "piece"), [(0, 1), (1000, 10), (3 * CHUNK + 5, 100_000), (5 * CHUNK, 4 * CHUNK)])
    async def test_a_stream_can_be_put(self, store: Place, size: int, piece: int) -> None:
        door = await store.door("")
        data = content(size)
        assert await door.put("network/streamed", pieces(data, piece)) == Stored("network/streamed", size, digest(data))
        assert await door.read("network/streamed") == data

    async def test_what_is_missing_is_not_found(self, store: Place) -> None:
        door = await store.door("")
        with pytest.raises(NotFound):
            await door.read("network/nothing")
        with pytest.raises(NotFound):
            await anext(aiter(door.get("network/nothing")))

    async def test_an_interrupted_put_leaves_nothing(self, store: Place) -> None:
        door = await store.door("")

        async def broken() -> AsyncIterator[bytes]:
            yield content(3 * CHUNK)
            raise RuntimeError("the source broke")

        with pytest.raises(RuntimeError, match="the source broke"):
            await door.put("network/half", broken())
        with pytest.raises(NotFound):
            await door.read("network/half")
        assert await door.list("network/") == []
        await door.put("network/half", b"another try")
        assert await door.read("network/half") == b"another try"

    async def test_nothing_shows_before_the_end(self, store: Place) -> None:
        writer, reader = await store.door(""), await store.door("")
        gate = asyncio.Event()

        async def slow() -> AsyncIterator[bytes]:
            yield content(2 * CHUNK)
            await gate.wait()
            yield b"end"

        put = asyncio.create_task(writer.put("network/slow", slow()))
        await writer.put("network/other", b"meanwhile")
        assert [stored.key for stored in await reader.list("network/")] == ["network/other"]
        with pytest.raises(NotFound):
            await reader.read("network/slow")
        gate.set()
        await put
        assert await reader.read("network/slow") == content(2 * CHUNK) + b"end"

    # Written once

    @pytest.mark.parametrize("size", [100, 3 * CHUNK])
    async def test_the_same_again_is_fine_and_something_else_is_refused(self, store: Place, size: int) -> None:
        one, two = await store.door(""), await store.door("")
        data = content(size)
        stored = await one.put("network/once", data)
        assert await two.put("network/once", data) == stored
        for other in (content(size, seed=8), data + b"!", b""):
            with pytest.raises(Conflict):
                await two.put("network/once", other)
        assert await one.read("network/once") == data

    @pytest.mark.parametrize("size", [100, 2 * CHUNK])
    async def test_of_racing_writers_one_wins_whole(self, store: Place, size: int) -> None:
        doors = [await store.door("") for _ in range(4)]
        contents = [content(size, seed=n) for n in range(4)]
        results = await asyncio.gather(
            *(door.put("network/race", data) for door, data in zip(doors, contents, strict=True)), return_exceptions=True
        )
        winners = [data for data, result in zip(contents, results, strict=True) if isinstance(result, Stored)]
        assert len(winners) == 1
        assert sum(isinstance(result, Conflict) for result in results) == 3
        for door in doors:
            assert await door.read("network/race") == winners[0]

    # Damage

    @pytest.mark.parametrize("size", [100, 4 * CHUNK])
    async def test_damage_is_found_before_the_last_chunk(self, store: Place, size: int) -> None:
        door = await store.door("")
        data = content(size)
        await door.put("network/damaged", data)
        await store.damage("network/damaged")
        got = b""
        with pytest.raises(Corrupt) as caught:
            async for chunk in door.get("network/damaged"):
                got += chunk
        assert caught.value.details["key"] == "network/damaged"
        assert len(got) < size
        with pytest.raises(Corrupt):
            await door.read("network/damaged")

    # Deletion and time

    @pytest.mark.parametrize("size", [100, 3 * CHUNK])
    async def test_what_was_deleted_is_gone_and_its_key_free(self, store: Place, size: int) -> None:
        door, other = await store.door(""), await store.door("")
        await door.put("network/x", content(size))
        await door.put("network/y", b"stays")
        await other.delete("network/x")
        await door.delete("network/x")
        with pytest.raises(NotFound):
            await door.read("network/x")
        assert [stored.key for stored in await door.list("network/")] == ["network/y"]
        again = content(size, seed=9)
        await door.put("network/x", again)
        assert await other.read("network/x") == again

    async def test_deleting_what_never_was_is_fine(self, store: Place) -> None:
        await (await store.door("")).delete("network/never")

    @pytest.mark.parametrize("size", [100, 2 * CHUNK])
    async def test_a_key_with_a_lifetime_ends_after_it_not_before(self, store: Place, size: int) -> None:
        door = await store.door("")
        loop = asyncio.get_running_loop()
        start = loop.time()
        data = content(size)
        await door.put("network/brief", data, ttl_s=1.2)
        await door.put("network/lasting", data, ttl_s=3600)
        async with asyncio.timeout(30):
            while True:
                asked = loop.time()
                try:
                    assert await door.read("network/brief") == data
                except NotFound:
                    assert loop.time() - start >= 1.2
                    break
                assert asked - start < 10.0
                await asyncio.sleep(0.02)
        assert [stored.key for stored in await door.list("")] == ["network/lasting"]
        await door.put("network/brief", b"new", ttl_s=60)
        assert await door.read("network/brief") == b"new"

    @pytest.mark.parametrize("size", [100, 2 * CHUNK])
    async def test_a_second_put_can_lengthen_a_lifetime_and_not_shorten_it(self, store: Place, size: int) -> None:
        door = await store.door("")
        data = content(size)
        lifetimes: dict[str, tuple[float | None, ...]] = {"longer": (1, 60), "endless": (1, None), "shorter": (60, 1)}
        for name, ttls in {**lifetimes, "ends": (1,)}.items():
            for ttl_s in ttls:
                assert await door.put(f"network/{name}", data, ttl_s=ttl_s) == Stored(f"network/{name}", size, digest(data))

        async def has_ended() -> bool:
            return "network/ends" not in [stored.key for stored in await door.list("network/")]

        await eventually(has_ended)
        for name in lifetimes:
            assert await door.read(f"network/{name}") == data

    # Names

    async def test_list_is_sorted_and_by_prefix(self, store: Place) -> None:
        door, node = await store.door(""), await store.door("n1")
        keys = ["network/a/1", "network/a/10", "network/a/2", "network/a", "network/ab/1", "network/b", "n1/x", "n1/x/y.z"]
        expected = {}
        for n, key in enumerate(keys):
            size = 3 * CHUNK if n == 0 else n
            writer = node if key.startswith("n1/") else door
            expected[key] = await writer.put(key, content(size, seed=n))

        async def listed(prefix: str) -> list[str]:
            found = await door.list(prefix)
            assert all(stored == expected[stored.key] for stored in found)
            return [stored.key for stored in found]

        assert await listed("") == sorted(keys)
        assert await listed("network/a/") == ["network/a/1", "network/a/10", "network/a/2"]
        assert await listed("network/a/1") == ["network/a/1", "network/a/10"]
        assert await listed("network/a") == ["network/a", "network/a/1", "network/a/10", "network/a/2", "network/ab/1"]
        assert await listed("n") == sorted(keys)
        assert await listed("n1") == ["n1/x", "n1/x/y.z"]
        assert await listed("n1/x/y.") == ["n1/x/y.z"]
        assert await listed("elsewhere/") == []

    async def test_keys_that_differ_name_different_values(self, store: Place) -> None:
        door = await store.door("")
        keys = ["network/a.b", "network/a/b", "network/a-b", "network/a_b", "network/a.b/c", "network/a/b.c", "network/m/c"]
        for key in keys:
            await door.put(key, key.encode())
        for key in keys:
            assert await door.read(key) == key.encode()
        assert [stored.key for stored in await door.list("network/")] == sorted(keys)

    @pytest.mark.parametrize(
        "key",
        ["", "network", "network/", "/network/a", "network//a", "network/../n1/a", "network/.", "network/a b", "network/*",
         "network/>", "network/a=", "network/ä", "a.b/c", "network/" + "x" * 600],
    )  # fmt: skip
    async def test_what_is_no_key_is_refused(self, store: Place, key: str) -> None:
        door = await store.door("")
        with pytest.raises(BadInput):
            await door.put(key, b"data")
        with pytest.raises(BadInput):
            await door.read(key)
        with pytest.raises(BadInput):
            await door.delete(key)

    @pytest.mark.parametrize("prefix", ["../", "network/../", "/", "network/*", ">", "a b"])
    async def test_what_begins_no_key_is_refused(self, store: Place, prefix: str) -> None:
        with pytest.raises(BadInput):
            await (await store.door("")).list(prefix)

    @pytest.mark.parametrize("size", [10, 2 * CHUNK])
    async def test_only_the_owner_writes_under_its_name(self, store: Place, size: int) -> None:
        one, two = await store.door("n1"), await store.door("n2")
        await one.put("n1/mine", b"mine")
        with pytest.raises(AccessDenied):
            await two.put("n1/forged", content(size))
        with pytest.raises(AccessDenied):
            await two.delete("n1/mine")
        assert await two.read("n1/mine") == b"mine"
        assert [stored.key for stored in await two.list("")] == ["n1/mine"]

    # End

    async def test_a_closed_store_refuses(self, store: Place) -> None:
        door = await store.door("")
        await door.put("network/a", b"a")
        await door.close()
        await door.close()
        with pytest.raises(Indefinite):
            await door.put("network/b", b"b")
        with pytest.raises(Indefinite):
            await door.read("network/a")
        with pytest.raises(Indefinite):
            await door.list("")
