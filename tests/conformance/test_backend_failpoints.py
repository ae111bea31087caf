"""Backends at their durable writes: killed there and started again, or told that it may not have worked. Nothing acknowledged is
lost, and nothing is half there."""

from __future__ import annotations

import ast
import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from nats.aio.client import Client

from buckets import BUCKET, surround
from comity import failpoints
from comity.errors import BadSettings, Conflict, Indefinite, Unreachable
from comity.etcd.client import Etcd
from comity.failpoints import POINTS, SIMULATED, WRITES
from comity.log.base import Log
from comity.log.etcd import EtcdLog
from comity.log.jetstream import JetStreamLog
from comity.registry.base import Registry
from comity.registry.etcd import EtcdRegistry
from comity.registry.jetstream import JetStreamRegistry
from comity.remote.address import Where
from comity.s3 import Bucket
from comity.store.jetstream import JetStreamStore
from comity.store.s3 import S3Store
from conftest import RealNetwork
from etcds import Etcds

HERE = Path(__file__).parent
SRC = HERE.parents[1] / "src" / "comity"
PROGRAMS = {
    "sqlite": ("sqlite.create", "sqlite.append", "sqlite.trim"),
    "folder": ("folder.write", "folder.place", "folder.delete", "folder.expire", "folder.mark"),
    "raft": ("raft.cut", "raft.save", "raft.segment", "raft.drop"),
    "files": ("file.write", "file.place", "keys.place", "context.write", "context.place", "log.mark"),
    "large": ("body.put", "file.put", "file.take"),
    "server": ("network.identify", "server.config", "lock.write"),
}
"""What ``writes.py`` does, and which writes it comes to."""
ETCD = ("etcd.mark", "etcd.begin", "etcd.append", "etcd.trim", "etcd.record", "etcd.remove")
S3 = ("s3.mark", "s3.content", "s3.value", "s3.delete", "s3.expire")
CONSUL = ("consul.mark", "consul.record", "consul.remove")
JETSTREAM = (
    "jetstream.stream", "jetstream.append", "jetstream.purge", "jetstream.record", "jetstream.remove", "jetstream.chunk",
    "jetstream.value", "jetstream.bury",
)  # fmt: skip


def test_every_write_has_its_test() -> None:
    programs = [write for writes in PROGRAMS.values() for write in writes]
    tested = [*SIMULATED, "mail.put", "input.renew", *programs, *JETSTREAM, *ETCD, *CONSUL, *S3]
    assert sorted(tested) == sorted(WRITES)
    assert len(set(POINTS)) == 2 * len(WRITES) >= 45


def test_every_write_stands_in_the_code_and_no_other() -> None:
    named: set[str] = set()
    for path in SRC.rglob("*.py"):
        tree = ast.parse(path.read_text())
        calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and getattr(n.func, "id", "") == "durable"]
        if not calls:
            continue
        for call in calls:
            words = [node.value for node in ast.walk(call) if isinstance(node, ast.Constant) and "." in str(node.value)]
            assert set(words) <= set(WRITES), f"{path}: {words}"
        named |= {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and node.value in WRITES}
    assert named == set(WRITES)


def run(what: str, folder: Path, armed: str = "") -> int:
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    words = [sys.executable, str(HERE / "writes.py"), what, str(folder)]
    done = subprocess.run(words, env=env | {"COMITY_FAILPOINTS": armed}, capture_output=True, text=True, timeout=50, check=False)
    if done.returncode not in (0, -signal.SIGKILL):
        pytest.fail(done.stderr)
    return done.returncode


@pytest.mark.server
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("what", "write"), [(what, write) for what, writes in PROGRAMS.items() for write in writes])
def test_a_program_killed_at_a_write_goes_on(what: str, write: str, when: str, tmp_path: Path) -> None:
    assert run(what, tmp_path, f"{write}.{when}=kill") == -signal.SIGKILL, f"it never came to {write}"
    assert run(what, tmp_path) == 0


Twice = Callable[[Callable[[], Awaitable[object]]], Awaitable[None]]
_networks = itertools.count(1)


class Doors(NamedTuple):
    nc: Client
    network: str


@pytest.fixture
async def doors(real_network: RealNetwork) -> AsyncIterator[Doors]:
    nc = await real_network.connect("controller", "c1")
    yield Doors(nc, real_network.network)
    await nc.close()


async def log(doors: Doors, twice: Twice) -> None:
    await twice(lambda: _opened(JetStreamLog, doors))
    log = await JetStreamLog.open(doors.nc, doors.network, create=True)
    await _append_and_trim(log, twice)
    await log.close()


async def _append_and_trim(log: Log, twice: Twice) -> None:
    async def append() -> None:
        try:
            await log.append(b"one", 0)
        except Conflict:
            assert [item.data for item in await log.read(0)] == [b"one"]

    await twice(append)
    await log.append(b"two", 1)
    await twice(lambda: log.trim(1))
    assert await log.bounds() == (2, 2)


async def _opened(kind: type[JetStreamLog], doors: Doors) -> None:
    await (await kind.open(doors.nc, doors.network, create=True)).close()


async def registry(doors: Doors, twice: Twice) -> None:
    registry = await JetStreamRegistry.open(doors.nc, doors.network, create=True)
    await _put_and_delete(registry, twice)
    await registry.close()


async def _put_and_delete(registry: Registry, twice: Twice) -> None:
    await twice(lambda: registry.put("nodes/c1", b"record"))
    found = await registry.get("nodes/c1")
    assert found is not None and found.value == b"record"
    await twice(lambda: registry.delete("nodes/c1"))
    assert await registry.get("nodes/c1") is None


async def store(doors: Doors, twice: Twice) -> None:
    store = await JetStreamStore.open(doors.nc, doors.network, create=True)
    large = bytes(3_000_000)
    await twice(lambda: store.put("c1/large", large))
    assert await store.read("c1/large") == large
    await twice(lambda: store.delete("c1/large"))
    assert await store.list("c1/") == []
    await store.close()


OF = {"append": log, "stream": log, "purge": log, "record": registry, "remove": registry}


async def in_etcd(connection: Etcd, twice: Twice) -> None:
    token = f"again{next(_networks)}"
    await twice(lambda: EtcdLog.open(connection, token, create=True, network_id="id"))
    log = await EtcdLog.open(connection, token, create=True, network_id="id")
    registry = await EtcdRegistry.open(connection, token, create=True, network_id="id")
    await _append_and_trim(log, twice)
    await _put_and_delete(registry, twice)


@pytest.mark.server
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", JETSTREAM)
async def test_a_write_of_unknown_fate_can_be_repeated(write: str, when: str, doors: Doors) -> None:
    await fails_once(write, when, lambda twice: OF.get(write.partition(".")[2], store)(doors, twice))


@pytest.mark.server
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", ETCD)
async def test_so_can_one_in_etcd(write: str, when: str, etcds: Etcds) -> None:
    connection = await Etcd.open(Where.parse(etcds.address))
    await fails_once(write, when, lambda twice: in_etcd(connection, twice))
    await connection.close()


async def in_bucket(where: str, twice: Twice) -> None:
    moment = 1000.0
    await twice(lambda: S3Store.join(where, network_id="id"))
    assert await S3Store.join(where) is not None
    store = S3Store(Bucket(where), wall=lambda: moment)
    large = bytes(3_000_000)
    await twice(lambda: store.put("c1/large", large))
    assert await store.read("c1/large") == large
    await twice(lambda: store.delete("c1/large"))
    assert await store.list("c1/") == []
    await twice(lambda: store.put("c1/short", large, ttl_s=10))
    moment = 10_000.0
    await twice(lambda: store.list("c1/"))
    assert [row.name async for row in Bucket(where).list("values")] == []


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", S3)
async def test_so_can_one_in_a_bucket(write: str, when: str, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    surround(monkeypatch, s3)
    await fails_once(write, when, lambda twice: in_bucket(f"s3://{BUCKET}/again{next(_networks)}", twice))


async def fails_once(write: str, when: str, work: Callable[[Twice], Awaitable[None]]) -> None:
    failed: list[str] = []
    fail = failpoints.parse(f"{write}.{when}=error")

    def once(point: str) -> None:
        if not failed:
            try:
                fail(point)
            except Unreachable:
                failed.append(point)
                raise

    async def twice(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except Indefinite:
            await call()

    with failpoints.watched(once):
        await work(twice)
    assert failed == [f"{write}.{when}"]


class TestArming:
    def test_actions_count(self) -> None:
        hook = failpoints.parse("log.append.before=error(2); log.append.after=delay(0.01)")
        for _ in range(2):
            with pytest.raises(Unreachable, match=r"failpoint log\.append\.before"):
                hook("log.append.before")
        hook("log.append.before")
        began = time.perf_counter()
        hook("log.append.after")
        assert time.perf_counter() - began >= 0.01

    @pytest.mark.parametrize("text", ["log.append=kill", "log.append.before", "log.append.before=explode", "=kill"])
    def test_what_cannot_be_understood_is_named(self, text: str) -> None:
        with pytest.raises(BadSettings, match="COMITY_FAILPOINTS: cannot understand"):
            failpoints.parse(text)

    def test_they_cost_nothing_while_off(self) -> None:
        assert failpoints.durable("log.append") is failpoints.durable("term.append")
        with failpoints.watched(lambda _: None):
            assert failpoints.durable("log.append") is not failpoints.durable("term.append")

    async def test_what_a_hook_raises_ends_the_write(self) -> None:
        def refuse(point: str) -> None:
            raise Unreachable(point)

        done = asyncio.Event()
        with failpoints.watched(refuse), pytest.raises(Unreachable, match="before"), failpoints.durable("log.append"):
            done.set()
        assert not done.is_set()
