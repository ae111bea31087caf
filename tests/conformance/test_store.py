"""Every store backend against the contract, and what is special to each."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from store_contract import Place, StoreContract, content, eventually, pieces

from comity.embedded import EmbeddedServer
from comity.errors import BadSettings, Corrupt, Indefinite, NotFound, Unreachable
from comity.jetstream import JetStream
from comity.model.task import Stored
from comity.store.base import CHUNK, Store
from comity.store.folder import FolderStore
from comity.store.jetstream import CHUNK_GRACE_S, JetStreamStore, stream_config
from comity.store.memory import MemoryStore, MemoryStoreState
from conftest import RealNetwork, need_server


class TestMemoryStore(StoreContract):
    @pytest.fixture
    def store(self) -> Place:
        state = MemoryStoreState()

        async def door(owner: str) -> Store:
            return MemoryStore(state, owner)

        async def damage(key: str) -> None:
            state.values[key].data = b"?" + state.values[key].data[1:]

        return Place(door, damage)


class TestFolderStore(StoreContract):
    @pytest.fixture
    def store(self, tmp_path: Path) -> Place:
        async def door(owner: str) -> Store:
            return await FolderStore.open(tmp_path / "store", owner)

        async def damage(key: str) -> None:
            path = tmp_path / "store" / "values" / f"{key}="
            path.write_bytes(b"?" + path.read_bytes()[1:])

        return Place(door, damage)

    @pytest.mark.parametrize("keep", [0, 1, 30, 50])
    async def test_a_torn_file_is_corrupt_and_does_not_hide_others(self, tmp_path: Path, keep: int) -> None:
        store = await FolderStore.open(tmp_path)
        whole = await store.put("n/whole", content(100))
        await store.put("n/torn", content(100))
        path = tmp_path / "values" / "n" / "torn="
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(Corrupt):
            await store.read("n/torn")
        assert [stored for stored in await store.list("n/") if stored.digest] == [whole]
        assert [stored.key for stored in await store.list("n/")] == ["n/torn", "n/whole"]
        await store.delete("n/torn")
        await store.put("n/torn", b"again")
        assert await store.read("n/torn") == b"again"

    async def test_an_altered_label_is_corrupt(self, tmp_path: Path) -> None:
        store = await FolderStore.open(tmp_path)
        await store.put("n/a", content(100))
        path = tmp_path / "values" / "n" / "a="
        data = bytearray(path.read_bytes())
        data[-30] ^= 1
        path.write_bytes(bytes(data))
        with pytest.raises(Corrupt) as caught:
            await store.read("n/a")
        assert caught.value.details["key"] == "n/a"
        with pytest.raises(Corrupt):
            await store.put("n/a", b"something else")

    async def test_it_outlives_its_process_and_clears_what_was_abandoned(self, tmp_path: Path) -> None:
        store = await FolderStore.open(tmp_path)
        await store.put("n/kept", b"kept")
        fresh, old = tmp_path / "coming" / "fresh", tmp_path / "coming" / "old"
        for path in (fresh, old):
            path.write_bytes(b"half")
        os.utime(old, (1, time.time() - 100_000))
        await store.close()
        again = await FolderStore.open(tmp_path)
        assert await again.read("n/kept") == b"kept"
        assert fresh.exists() and not old.exists()

    async def test_what_has_expired_frees_its_space(self, tmp_path: Path) -> None:
        now = 1000.0
        store = await FolderStore.open(tmp_path, wall=lambda: now)
        await store.put("n/a", b"a", ttl_s=5)
        await store.put("n/b", b"b", ttl_s=5)
        now = 1004.9
        assert len(await store.list("")) == 2
        now = 1005.1
        with pytest.raises(NotFound):
            await store.read("n/a")
        await store.put("n/a", b"new")
        assert [stored.key for stored in await store.list("")] == ["n/a"]
        assert not (tmp_path / "values" / "n" / "b=").exists()

    async def test_a_folder_that_cannot_be_written_is_an_indefinite_error(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("not a folder")
        with pytest.raises(Indefinite):
            await FolderStore.open(tmp_path / "file" / "store")


class TestJetStreamStore(StoreContract):
    @pytest.fixture
    async def store(self, real_network: RealNetwork) -> AsyncIterator[Place]:
        opened: list[tuple[Client, JetStreamStore]] = []
        made = False

        async def door(owner: str) -> Store:
            nonlocal made
            if owner and not made:
                await door("")
            made = True
            name = owner or f"c{len(opened)}"
            nc = await real_network.connect("node" if owner else "controller", name, error_cb=_ignore)
            store = await JetStreamStore.open(nc, real_network.network, create=not owner)
            opened.append((nc, store))
            return store

        async def damage(key: str) -> None:
            """Publish other bytes where the content's last message is, as only one with all rights can."""
            nc, _ = opened[0]
            js = await JetStream(nc).open()
            owner, rest = key.split("/")
            chunk = f"cy.{real_network.network}.store.{owner}.c.*.3"
            stream = f"CY_{real_network.network}_STORE"
            state = (await js.api(f"STREAM.INFO.{stream}", {"subjects_filter": chunk}))["state"]
            subject = next(iter(state.get("subjects") or {f"cy.{real_network.network}.store.{owner}.m.{rest}": 1}))
            msg = await js.call(f"$JS.API.DIRECT.GET.{stream}.{subject}")
            headers = {name: value for name, value in (msg.headers or {}).items() if name.startswith("Comity-")}
            await js.publish(subject, b"?" + msg.data[1:], headers)
            await js.close()

        yield Place(door, damage)
        for nc, store in opened:
            await store.close()
            await nc.close()

    @pytest.fixture
    async def nc(self, real_network: RealNetwork) -> AsyncIterator[Client]:
        nc = await real_network.connect("controller", "c9")
        yield nc
        await nc.close()

    async def test_a_missing_store_is_not_made_unasked(self, real_network: RealNetwork, nc: Client) -> None:
        with pytest.raises(NotFound):
            await JetStreamStore.open(nc, real_network.network, create=False)

    @pytest.mark.parametrize("change", [{"allow_msg_ttl": False}, {"max_msgs_per_subject": 5}, {"allow_rollup_hdrs": True}])
    async def test_a_stream_of_other_settings_is_refused(
        self, real_network: RealNetwork, nc: Client, change: dict[str, Any]
    ) -> None:
        js = await JetStream(nc).open()
        config = {**stream_config(real_network.network, 1), "deny_purge": "allow_rollup_hdrs" not in change, **change}
        await js.api(f"STREAM.CREATE.{config['name']}", config)
        with pytest.raises(BadSettings):
            await JetStreamStore.open(nc, real_network.network, create=True)
        await js.close()

    async def test_a_small_value_is_one_message(self, real_network: RealNetwork, nc: Client) -> None:
        store = await JetStreamStore.open(nc, real_network.network, create=True)
        js = await JetStream(nc).open()
        await store.put("network/small", content(CHUNK))
        info = await js.api(f"STREAM.INFO.CY_{real_network.network}_STORE")
        assert info["state"]["messages"] == 1
        await store.put("network/large", content(CHUNK + 1))
        info = await js.api(f"STREAM.INFO.CY_{real_network.network}_STORE")
        assert info["state"]["messages"] == 4
        await store.close()
        await js.close()

    @pytest.mark.parametrize("size", [CHUNK, 6 * CHUNK])
    async def test_reading_much_at_once_does_not_cost_the_connection(
        self, real_network: RealNetwork, nc: Client, size: int
    ) -> None:
        """The server holds 64 MB for a connection that does not keep up, and then cuts it."""
        store = await JetStreamStore.open(nc, real_network.network, create=True)
        await store.put("c/big", content(size))
        reads = [asyncio.create_task(store.read("c/big")) for _ in range(100 * 2**20 // size)]
        for _ in range(12):
            await asyncio.sleep(0)
            hashlib.pbkdf2_hmac("sha256", b"busy", b"with something else", 80_000)
        for read in await asyncio.gather(*reads):
            assert read == content(size)
        await store.close()

    async def test_refused_and_repeated_uploads_leave_no_chunks(self, real_network: RealNetwork, nc: Client) -> None:
        store = await JetStreamStore.open(nc, real_network.network, create=True)
        js = await JetStream(nc).open()
        await store.put("network/large", content(3 * CHUNK))
        await store.put("network/large", content(3 * CHUNK))
        await store.delete("network/large")
        stream = f"CY_{real_network.network}_STORE"

        async def is_empty() -> bool:
            return (await js.api(f"STREAM.INFO.{stream}"))["state"]["messages"] == 0

        await eventually(is_empty)
        await store.close()
        await js.close()

    async def test_uploads_that_break_off_do_not_pile_up(
        self, real_network: RealNetwork, nc: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """There is room for four chunks; whoever has something to store tries again and again."""
        store = await JetStreamStore.open(nc, real_network.network, create=True)
        js = await JetStream(nc).open()
        stream = f"CY_{real_network.network}_STORE"
        publish, room = JetStream.publish, 4

        async def limited(self: JetStream, subject: str, data: bytes, headers: dict[str, str] | None = None) -> int:
            if ".c." in subject and data and int(subject.rpartition(".")[2]) >= room:
                raise Unreachable("no space left on device")
            return await publish(self, subject, data, headers)

        monkeypatch.setattr(JetStream, "publish", limited)
        for _ in range(3):
            with pytest.raises(Unreachable):
                await store.put("network/large", content(8 * CHUNK))

        async def messages() -> int:
            return int((await js.api(f"STREAM.INFO.{stream}"))["state"]["messages"])

        async def is_only_the_last() -> bool:
            return await messages() == room

        await eventually(is_only_the_last)
        room = 8
        stored = await store.put("network/large", content(8 * CHUNK))

        async def is_only_the_value() -> bool:
            return await messages() == 9

        await eventually(is_only_the_value)
        assert await store.read("network/large") == content(stored.size)
        await store.close()
        await js.close()

    async def test_abandoned_chunks_are_swept_and_others_are_not(
        self, real_network: RealNetwork, nc: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = await JetStreamStore.open(nc, real_network.network, create=True)
        js = await JetStream(nc).open()
        kept = await store.put("network/kept", content(2 * CHUNK))
        root = f"cy.{real_network.network}.store.network"
        for n in range(3):
            await js.publish(f"{root}.c.abandoned.{n}", content(CHUNK))
        later = time.time_ns() + int(CHUNK_GRACE_S * 1e9) - 60 * 10**9

        async def chunks() -> list[str]:
            stream = f"CY_{real_network.network}_STORE"
            info = await js.api(f"STREAM.INFO.{stream}", {"subjects_filter": f"{root}.c.>"})
            return list(info["state"].get("subjects") or {})

        monkeypatch.setattr(time, "time_ns", lambda: later)
        await (await JetStreamStore.open(nc, real_network.network, create=True)).close()
        for n in range(3):
            msg = await js.call(f"$JS.API.DIRECT.GET.CY_{real_network.network}_STORE.{root}.c.abandoned.{n}")
            assert msg.data == content(CHUNK)
        monkeypatch.setattr(time, "time_ns", lambda: later + 120 * 10**9)
        await (await JetStreamStore.open(nc, real_network.network, create=True)).close()

        async def only_kept() -> bool:
            return len(await chunks()) == 2

        await eventually(only_kept)
        assert await store.list("") == [kept]
        assert await store.read("network/kept") == content(2 * CHUNK)
        await store.close()
        await js.close()

    async def test_a_missing_chunk_is_corrupt(self, real_network: RealNetwork, nc: Client) -> None:
        store = await JetStreamStore.open(nc, real_network.network, create=True)
        js = await JetStream(nc).open()
        await store.put("network/large", content(4 * CHUNK))
        state = (await js.api(
            f"STREAM.INFO.CY_{real_network.network}_STORE", {"subjects_filter": f"cy.{real_network.network}.store.*.c.>"}
        ))["state"]  # fmt: skip
        subject = next(subject for subject in state["subjects"] if subject.endswith(".2"))
        await js.publish(subject, b"", {"Comity-Gone": "1", "Nats-TTL": "1s"})
        with pytest.raises(Corrupt):
            await store.read("network/large")
        await store.close()
        await js.close()


async def _ignore(error: Exception) -> None:
    """Refused permissions come here too; the door's error is what counts."""


class TestServerFailures:
    async def test_all_that_was_put_survives_kill_9(self, tmp_path: Path) -> None:
        need_server()
        server = await EmbeddedServer.start(tmp_path / "data", network="net", port=0)
        network = RealNetwork(server.url, server.network, server.authority, server)
        nc = await network.connect(
            "controller", "c1", max_reconnect_attempts=-1, reconnect_time_wait=0.02, error_cb=_ignore
        )
        store = await JetStreamStore.open(nc, "net", create=True)
        kept: list[Stored] = []
        failed: list[str] = []

        async def put(n: int) -> None:
            key, data = f"network/{n:03d}", content(3 * CHUNK if n % 4 == 0 else 5000, seed=n)
            while not failed:
                try:
                    kept.append(await store.put(key, pieces(data, 100_000)))
                    if len(kept) == 40:
                        os.kill(server.pid, signal.SIGKILL)
                    return
                except Indefinite:
                    failed.append(key)

        async with asyncio.timeout(30):
            for start in range(0, 200, 8):
                await asyncio.gather(*(put(n) for n in range(start, start + 8)))
                if failed:
                    break
        assert len(kept) >= 40 and failed
        found: list[Stored] = []
        async with asyncio.timeout(30):
            while not found:
                try:
                    found = await store.list("network/")
                except Indefinite:
                    await asyncio.sleep(0.02)
        by_key = {stored.key: stored for stored in found}
        for stored in kept:
            assert by_key[stored.key] == stored
        for stored in found:
            n = int(stored.key[-3:])
            assert await store.read(stored.key) == content(3 * CHUNK if n % 4 == 0 else 5000, seed=n)
        again = failed[0]
        n = int(again[-3:])
        data = content(3 * CHUNK if n % 4 == 0 else 5000, seed=n)
        await store.put(again, data)
        assert await store.read(again) == data
        await store.close()
        await nc.close()
        await server.stop()
