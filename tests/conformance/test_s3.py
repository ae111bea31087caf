"""The store in a bucket, against the contract, and what is special to it."""

from __future__ import annotations

import asyncio
import sys
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta

import pytest
from store_contract import Place, StoreContract, content, pieces

from buckets import BUCKET, refusing, surround
from comity.backends import Elsewhere, check_places
from comity.errors import AccessDenied, BadSettings, Conflict, Corrupt, ForeignData, NotFound, Unreachable
from comity.s3 import PART, Bucket, Row
from comity.store.base import CHUNK, Store
from comity.store.s3 import _ABANDONED_S, HIDDEN_S, S3Store

LARGE = 2 * PART + 77


@pytest.fixture
def where(s3: str, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    surround(monkeypatch, s3)
    return f"s3://{BUCKET}/{tmp_path_factory.mktemp('place').name}"


@pytest.fixture
def bucket(where: str) -> Bucket:
    return Bucket(where, is_waited_for=True)


async def names(bucket: Bucket, folder: str = "") -> list[str]:
    return sorted([row.name async for row in bucket.list(folder)])


class TestS3Store(StoreContract):
    @pytest.fixture
    def store(self, where: str) -> Place:
        async def door(owner: str) -> Store:
            return await S3Store.join(where, owner, network_id="net")

        async def damage(key: str) -> None:
            bucket = Bucket(where)
            apart = await names(bucket, f"large/{key}=")
            name = apart[0] if apart else f"values/{key}="
            await bucket.put(name, b"?" + (await bucket.get(name)).data[1:], instead_of=None)

        return Place(door, damage)


class TestLarge:
    async def test_it_is_streamed_in_parts_and_memory_is_bounded(self, bucket: Bucket) -> None:
        store = S3Store(bucket)
        size = 12 * PART

        async def made() -> AsyncIterator[bytes]:
            for n in range(size // CHUNK):
                yield bytes([n % 256]) * CHUNK

        tracemalloc.start()
        try:
            await store.put("n/large", made())
            read = 0
            async for chunk in store.get("n/large"):
                assert chunk == bytes([read // CHUNK % 256]) * CHUNK
                read += len(chunk)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert read == size
        assert peak < size // 3

    async def test_racing_writers_of_large_values_leave_one_content(self, bucket: Bucket) -> None:
        doors = [S3Store(bucket) for _ in range(3)]
        results = await asyncio.gather(
            *(door.put("n/race", content(LARGE, seed=n)) for n, door in enumerate(doors)), return_exceptions=True
        )
        assert sorted(type(result).__name__ for result in results) == ["Conflict", "Conflict", "Stored"]
        assert len(await names(bucket, "large")) == 1
        won = next(n for n, result in enumerate(results) if not isinstance(result, Conflict))
        assert await doors[0].read("n/race") == content(LARGE, seed=won)

    async def test_put_again_and_deleted_it_leaves_nothing(self, bucket: Bucket) -> None:
        store = S3Store(bucket)
        await store.put("n/large", pieces(content(3 * CHUNK), CHUNK))
        await store.put("n/large", content(3 * CHUNK))
        assert len(await names(bucket)) == 2
        await store.delete("n/large")
        assert await names(bucket) == []

    async def test_put_again_for_longer_it_stays_where_its_readers_have_it(self, bucket: Bucket) -> None:
        now = 1000.0
        store = S3Store(bucket, wall=lambda: now)
        data = content(5 * CHUNK)
        await store.put("n/large", data, ttl_s=10)
        reading = store.get("n/large")
        got = await anext(reading)
        before = await names(bucket, "large")
        await store.put("n/large", data)
        assert await names(bucket, "large") == before
        now = 5000.0
        assert got + b"".join([chunk async for chunk in reading]) == data
        assert await store.read("n/large") == data

    async def test_missing_content_is_corrupt(self, bucket: Bucket) -> None:
        store = S3Store(bucket)
        await store.put("n/large", content(3 * CHUNK))
        (name,) = await names(bucket, "large")
        await bucket.put(name, b"", instead_of=None)
        with pytest.raises(Corrupt, match="n/large"):
            await store.read("n/large")
        await bucket.delete(name)
        with pytest.raises(Corrupt, match="missing"):
            await store.read("n/large")

    async def test_abandoned_content_is_swept_and_other_is_not(
        self, where: str, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await S3Store.join(where, network_id="net")
        await store.put("n/kept", content(2 * CHUNK))
        await bucket.put("large/n/lost=/ab", b"abandoned")
        (await S3Store.join(where, network_id="net"))
        assert "large/n/lost=/ab" in await names(bucket)
        listed = Bucket.list

        async def a_day_later(self: Bucket, folder: str) -> AsyncIterator[Row]:
            async for row in listed(self, folder):
                yield row._replace(modified=row.modified - timedelta(seconds=_ABANDONED_S + 1))

        monkeypatch.setattr(Bucket, "list", a_day_later)
        (await S3Store.join(where, network_id="net"))
        assert [name.partition("=")[0] for name in await names(bucket, "large")] == ["large/n/kept"]
        assert await store.read("n/kept") == content(2 * CHUNK)


async def test_a_list_asks_only_for_what_begins_so(bucket: Bucket) -> None:
    store = S3Store(bucket)
    for n in range(120):
        await store.put(f"n/files/{n:03}", b"x")
    await store.put("n/files/035/more", b"x")
    assert [stored.key for stored in await store.list("n/files/03")] == [
        *(f"n/files/{n:03}" for n in range(30, 36)), "n/files/035/more", *(f"n/files/{n:03}" for n in range(36, 40)),
    ]  # fmt: skip
    assert len(await store.list("n/files/")) == 121
    assert [stored.key for stored in await store.list("n/files/119")] == ["n/files/119"]
    assert await store.list("n/files/2") == []


class TestTime:
    @pytest.mark.parametrize("size", [10, 2 * CHUNK])
    async def test_what_is_over_is_hidden_and_then_cleared_away(self, bucket: Bucket, size: int) -> None:
        now = 1000.0
        store = S3Store(bucket, wall=lambda: now)
        await store.put("n/a", content(size), ttl_s=5)
        await store.put("n/b", content(size), ttl_s=5)
        now = 1004.9
        assert len(await store.list("")) == 2
        now = 1005.1
        assert await store.list("") == []
        with pytest.raises(NotFound):
            await store.read("n/a")
        await store.put("n/a", b"new")
        now += HIDDEN_S
        assert [stored.key for stored in await S3Store(bucket, "other", lambda: now).list("")] == ["n/a"]
        assert "values/n/b=" in await names(bucket), "another may not delete it"
        assert [stored.key for stored in await store.list("")] == ["n/a"]
        assert await names(bucket) == ["values/n/a="]


class TestDamage:
    @pytest.mark.parametrize("keep", [0, 1, 30, 50])
    async def test_a_torn_object_is_corrupt_and_does_not_hide_others(self, bucket: Bucket, keep: int) -> None:
        store = S3Store(bucket)
        whole = await store.put("n/whole", content(100))
        await store.put("n/torn", content(100))
        await bucket.put("values/n/torn=", (await bucket.get("values/n/torn=")).data[:keep], instead_of=None)
        with pytest.raises(Corrupt, match="n/torn"):
            await store.read("n/torn")
        with pytest.raises(Corrupt, match="n/torn"):
            await store.put("n/torn", b"something else")
        assert [stored for stored in await store.list("n/") if stored.digest] == [whole]
        assert [stored.key for stored in await store.list("n/")] == ["n/torn", "n/whole"]
        await store.delete("n/torn")
        await store.put("n/torn", b"again")
        assert await store.read("n/torn") == b"again"


class TestWhose:
    async def test_a_store_belongs_to_one_network(self, where: str) -> None:
        with pytest.raises(NotFound, match=r"network"):
            await S3Store.join(where)
        await S3Store.join(where, network_id="one")
        await S3Store.join(where)
        with pytest.raises(ForeignData, match="store of network one, not two"):
            await S3Store.join(where, network_id="two")

    async def test_each_network_has_its_own_place(self, where: str) -> None:
        async with AsyncExitStack() as stack:
            elsewhere = Elsewhere(stack, {"store": where})
            with pytest.raises(BadSettings, match="the bucket that the controllers have"):
                await elsewhere.store("main", "n1")
            store = await elsewhere.store("main", network_id="one")
            await store.put("network/x", b"y")
            assert await (await elsewhere.store("main", "n1")).read("network/x") == b"y"
            assert await (await elsewhere.store("other", network_id="two")).list("") == []

    async def test_a_missing_bucket_is_not_found(self, where: str) -> None:
        with pytest.raises(NotFound, match="no bucket"):
            await S3Store.join("s3://missing/x", network_id="one")
        with pytest.raises(NotFound, match="no bucket"):
            await S3Store.join("s3://missing/x")
        for size in (10, 2 * CHUNK, LARGE):
            with pytest.raises(NotFound, match="no bucket"):
                await S3Store(Bucket("s3://missing/x")).put("n/a", content(size))

    @pytest.mark.parametrize("address", ["s3:///x", "s3://key:secret@bucket/x", "s3://bucket/x?region=y"])
    async def test_an_address_bears_no_secrets(self, address: str) -> None:
        with pytest.raises(BadSettings, match="AWS_") as caught:
            check_places({"store": address})
        assert "secret" not in str(caught.value)

    async def test_what_is_not_installed_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "obstore", None)
        with pytest.raises(BadSettings, match=r"comity\[s3\]"):
            await S3Store.join("s3://bucket/x")


async def test_refusals_and_silence_of_a_server_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async with refusing(monkeypatch):
        with pytest.raises(AccessDenied):
            await S3Store.join("s3://bucket/x", network_id="one")
        with pytest.raises(AccessDenied):
            await S3Store(Bucket("s3://bucket/x")).put("n/large", content(2 * CHUNK))
    with pytest.raises(Unreachable):
        await S3Store.join("s3://bucket/x", network_id="one")
    for size in (10, 2 * CHUNK, LARGE):
        with pytest.raises(Unreachable):
            await S3Store(Bucket("s3://bucket/x", is_waited_for=True)).put("n/large", content(size))
