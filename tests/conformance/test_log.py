"""Every log backend against the contract, and what is special to each."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from log_contract import LogContract, Place, fill, read_all, take
from nats.aio.client import Client

from comity.embedded import EmbeddedServer
from comity.errors import (
    AccessDenied,
    AlreadyRunning,
    BadSettings,
    Conflict,
    Corrupt,
    ForeignData,
    Indefinite,
    NotFound,
)
from comity.jetstream import JetStream
from comity.log.base import Durability, Item, Log
from comity.log.jetstream import JetStreamLog, stream_config
from comity.log.memory import MemoryLog, MemoryLogState
from comity.log.sqlite import SqliteLog
from conftest import RealNetwork, need_server, pause


class TestMemoryLog(LogContract):
    @pytest.fixture
    def log(self) -> Place:
        state = MemoryLogState()

        async def door() -> Log:
            return MemoryLog(state)

        return Place(door)


async def test_a_block_that_is_damaged_in_the_midst_of_the_log_is_noticed(tmp_path: Path) -> None:
    """The server drops what follows the damage in that block, and goes on with the next one."""
    need_server()
    data = tmp_path / "data"
    server = await EmbeddedServer.start(data, network="main", port=0)
    nc = await _controller(server)
    log = await JetStreamLog.open(nc, "main", create=True)
    for index in range(12):
        await log.append(bytes(log.entry_limit - 1000), index)
    await nc.close()
    await server.stop()
    (blocks,) = (data / "jetstream").glob("*/streams/CY_main_LOG/msgs")
    (blocks / "index.db").unlink()  # as after a crash
    with (blocks / "1.blk").open("r+b") as block:
        block.seek(4_000_000)
        block.write(b"damage")
    server = await EmbeddedServer.start(data, network="main", port=0)
    nc = await _controller(server)
    with pytest.raises(Corrupt, match="entries in the midst of the log are gone"):
        await JetStreamLog.open(nc, "main", create=True)
    await nc.close()
    await server.stop()


async def _controller(server: EmbeddedServer) -> Client:
    options = server.authority.mint("controller", "ctl").connect_options()
    return await nats.connect(server.url, inbox_prefix="_INBOX_ctl", **options)


class TestSqliteLog(LogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[Place]:
        """One process, so one door; whoever asks shares it."""
        shared = await SqliteLog.open(tmp_path / "log.sqlite")

        async def door() -> Log:
            return shared

        yield Place(door)
        await shared.close()

    async def test_it_outlives_its_process(self, tmp_path: Path) -> None:
        path = tmp_path / "kept.sqlite"
        log = await SqliteLog.open(path)
        await fill(log, 5)
        await log.trim(2)
        assert (await log.durability()).level == "verified"
        await log.close()
        again = await SqliteLog.open(path)
        assert await again.bounds() == (3, 5)
        assert await again.append(b"entry 6", 5) == 6
        assert [item.index for item in await read_all(again, 2)] == [3, 4, 5, 6]
        await again.close()

    async def test_the_file_is_one_processs_own(self, tmp_path: Path) -> None:
        path = tmp_path / "held.sqlite"
        log = await SqliteLog.open(path)
        with pytest.raises(AlreadyRunning):
            await SqliteLog.open(path)
        await log.close()
        await (await SqliteLog.open(path)).close()

    async def test_a_foreign_file_is_left_alone(self, tmp_path: Path) -> None:
        text, database = tmp_path / "notes.txt", tmp_path / "other.sqlite"
        text.write_bytes(b"not a database, and long enough to be looked at as one" * 100)
        with sqlite3.connect(database) as db:
            db.execute("CREATE TABLE mine (x)")
        db.close()
        for path in (text, database):
            with pytest.raises(ForeignData):
                await SqliteLog.open(path)
        assert text.read_bytes().startswith(b"not a database")

    async def test_a_hole_is_corrupt(self, tmp_path: Path) -> None:
        path = tmp_path / "holed.sqlite"
        log = await SqliteLog.open(path)
        await fill(log, 5)
        await log.close()
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM entries WHERE position = 3")
        db.close()
        log = await SqliteLog.open(path)
        assert len(await log.read(0, 2)) == 2
        with pytest.raises(Corrupt) as caught:
            await log.read(0)
        assert caught.value.details["index"] == 3
        await log.close()

    async def test_a_damaged_file_is_corrupt(self, tmp_path: Path) -> None:
        path = tmp_path / "damaged.sqlite"
        log = await SqliteLog.open(path)
        for n in range(50):
            await log.append(bytes(5000), n)
        await log.close()
        data = bytearray(path.read_bytes())
        for page in range(2, len(data) // 4096):
            data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
        path.write_bytes(data)
        with pytest.raises(Corrupt):
            log = await SqliteLog.open(path)
            try:
                await read_all(log)
            finally:
                await log.close()

    async def test_what_sqlite_cannot_do_may_have_happened(self, tmp_path: Path) -> None:
        path = tmp_path / "broken.sqlite"
        log = await SqliteLog.open(path)
        await log.close()
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE entries")
            db.execute("CREATE TABLE entries (other)")
        db.close()
        log = await SqliteLog.open(path)
        with pytest.raises(Indefinite):
            await log.append(b"x", 0)
        assert await log.bounds() == (1, 0)
        await log.close()


class TestJetStreamLog(LogContract):
    @pytest.fixture
    async def log(self, real_network: RealNetwork) -> AsyncIterator[Place]:
        opened: list[tuple[Client, JetStreamLog]] = []

        async def door() -> Log:
            nc = await real_network.connect("controller", f"c{len(opened)}")
            log = await JetStreamLog.open(nc, real_network.network, create=True)
            opened.append((nc, log))
            return log

        yield Place(door)
        for nc, log in opened:
            await log.close()
            await nc.close()

    @pytest.fixture
    async def nc(self, real_network: RealNetwork) -> AsyncIterator[Client]:
        nc = await real_network.connect("controller", "c9")
        yield nc
        await nc.close()

    async def test_a_missing_log_is_not_made_unasked(self, real_network: RealNetwork, nc: Client) -> None:
        with pytest.raises(NotFound):
            await JetStreamLog.open(nc, real_network.network, create=False)
        await (await JetStreamLog.open(nc, real_network.network, create=True)).close()
        await (await JetStreamLog.open(nc, real_network.network, create=False)).close()

    @pytest.mark.parametrize(
        "change",
        [{"storage": "memory"}, {"deny_delete": False}, {"discard": "old"}, {"max_msgs": 1000}, {"persist_mode": "async"}],
        ids=lambda change: next(iter(change)),
    )
    async def test_a_stream_that_may_lose_entries_is_refused(
        self, real_network: RealNetwork, nc: Client, change: dict[str, Any]
    ) -> None:
        js = await JetStream(nc).open()
        config = {**stream_config(real_network.network, 1), **change}
        await js.api(f"STREAM.CREATE.{config['name']}", config)
        with pytest.raises(BadSettings) as caught:
            await JetStreamLog.open(nc, real_network.network, create=True)
        assert caught.value.details["setting"] == next(iter(change))
        await js.close()

    async def test_a_node_may_not_write_it(self, real_network: RealNetwork, log: Place) -> None:
        await fill(await log.door(), 1)
        nc = await real_network.connect("node", "n1")
        with pytest.raises(AccessDenied):
            await JetStreamLog.open(nc, real_network.network, create=False)
        js = await JetStream(nc).open()
        with pytest.raises(AccessDenied):
            await js.publish(f"cy.{real_network.network}.log", b"forged", {"Nats-Expected-Last-Sequence": "1"})
        await js.close()
        await nc.close()

    async def test_durability_is_what_the_opener_knows(self, real_network: RealNetwork, nc: Client) -> None:
        log = await JetStreamLog.open(nc, real_network.network, create=True)
        assert (await log.durability()).level == "unverified"
        await log.close()
        known = Durability("verified", "embedded")
        log = await JetStreamLog.open(nc, real_network.network, create=True, durability=known)
        assert await log.durability() == known
        await log.close()


class Life:
    """A server of the test's own, to be killed, and connections to it that come back quickly."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self.network = RealNetwork(server.url, server.network, server.authority, server)
        self._ends: list[Callable[[], Awaitable[None]]] = []
        self._count = 0

    async def door(self) -> JetStreamLog:
        self._count += 1
        nc = await self.network.connect(
            "controller", f"c{self._count}", max_reconnect_attempts=-1, reconnect_time_wait=0.02, error_cb=_ignore
        )
        log = await JetStreamLog.open(nc, self.network.network, create=True)
        self._ends += [nc.close, log.close]
        return log

    async def kill(self) -> None:
        """End the server with SIGKILL; returns once another runs in its place."""
        back = asyncio.Event()
        self.server.on_restart = back.set
        os.kill(self.server.pid, signal.SIGKILL)
        async with asyncio.timeout(20):
            await back.wait()

    async def end(self) -> None:
        for end in reversed(self._ends):
            await end()
        await self.server.stop()


async def _ignore(error: Exception) -> None:
    """Connection errors are what these tests are about."""


class TestServerFailures:
    @pytest.fixture
    async def life(self, tmp_path: Path) -> AsyncIterator[Life]:
        need_server()
        life = Life(await EmbeddedServer.start(tmp_path / "data", network="net", port=0))
        yield life
        await life.end()

    async def test_a_follower_goes_on_within_three_seconds_of_a_restart(self, life: Life) -> None:
        writer, reader = await life.door(), await life.door()
        await fill(writer, 3)
        items = reader.follow(0)
        assert len(await take(items, 3)) == 3
        coming = asyncio.create_task(take(items, 1))
        took_s: list[float] = []
        for tail in (3, 4, 5):
            start = time.monotonic()
            await life.kill()
            while True:
                try:
                    await writer.append(b"entry %d" % (tail + 1), tail)
                    break
                except Indefinite:
                    await asyncio.sleep(0.01)
            assert await coming == [Item(tail + 1, b"entry %d" % (tail + 1))]
            took_s.append(time.monotonic() - start)
            coming = asyncio.create_task(take(items, 1))
            await asyncio.sleep(0)
        coming.cancel()
        assert sorted(took_s)[1] < 3.0, "most of the time: the machine may be busy"

    async def test_all_that_was_acknowledged_survives_kill_9(self, life: Life) -> None:
        """Appends in flight at the kill are acknowledged, refused for lack of their predecessor, or unknown."""
        log = await life.door()
        acknowledged: dict[int, bytes] = {}
        unknown: list[Exception] = []

        numbers = itertools.count()

        async def append() -> None:
            while not unknown:
                n = next(numbers)
                entry = b"entry %d " % (n + 1) + bytes(5000)
                try:
                    acknowledged[await log.append(entry, n)] = entry
                    if len(acknowledged) == 300:
                        os.kill(life.server.pid, signal.SIGKILL)
                except (Indefinite, Conflict) as error:
                    unknown.append(error)

        async with asyncio.timeout(30):
            await asyncio.gather(*(append() for _ in range(64)))
        assert len(acknowledged) >= 300
        found: list[Item] = []
        async with asyncio.timeout(20):
            while not found:
                try:
                    found = await read_all(log)
                except Indefinite:
                    await asyncio.sleep(0.01)
        assert [item.index for item in found] == list(range(1, len(found) + 1))
        assert acknowledged.items() <= {item.index: item.data for item in found}.items()
        assert (await log.bounds())[1] == len(found)
        assert await log.append(b"goes on", len(found)) == len(found) + 1

    async def test_what_was_in_flight_fails_soon_after_the_connection(self, life: Life) -> None:
        log = await life.door()
        await fill(log, 1)
        log._js.timeout_s = 50.0
        await pause(life.server.pid)
        append = asyncio.create_task(log.append(b"unknown", 1))
        await asyncio.sleep(0.05)
        assert not append.done()
        await life.kill()
        async with asyncio.timeout(20):
            with pytest.raises(Indefinite):
                await append

    async def test_reading_goes_on_after_a_restart(self, life: Life) -> None:
        log = await life.door()
        await fill(log, 20)
        assert len(await log.read(0, 10)) == 10
        await life.kill()
        async with asyncio.timeout(20):
            while True:
                try:
                    items = await log.read(10, 10)
                    break
                except Indefinite:
                    await asyncio.sleep(0.01)
        assert [item.index for item in items] == list(range(11, 21))

    async def test_a_trimmed_empty_log_keeps_its_number_over_a_restart(self, life: Life) -> None:
        log = await life.door()
        await fill(log, 5)
        await log.trim(5)
        await life.kill()
        async with asyncio.timeout(20):
            while True:
                try:
                    assert await log.append(b"entry 6", 5) == 6
                    break
                except Indefinite:
                    await asyncio.sleep(0.01)
        assert await log.bounds() == (6, 6)
