"""etcd's servers are killed, paused, restarted and full; its past is compacted; its users' tokens expire."""

from __future__ import annotations

import asyncio
import base64
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from cable import Cable
from log_contract import fill, read_all, take
from registry_contract import Watcher, contents
from test_etcd import EtcdWorld

from comity.errors import Conflict, Indefinite, Unreachable
from comity.log.base import Item
from comity.log.etcd import EtcdLog
from comity.remote import endpoints
from etcds import Etcds

pytestmark = pytest.mark.server
T = TypeVar("T")


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Etcds]:
    servers = Etcds(tmp_path / "trio", 3)
    await servers.start()
    yield servers
    await servers.kill()


@pytest.fixture
async def one(tmp_path: Path) -> AsyncIterator[Etcds]:
    servers = Etcds(tmp_path / "one")
    await servers.start()
    yield servers
    await servers.kill()


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[Etcds]:
    servers = Etcds(tmp_path / "guarded", options=["--auth-token-ttl=1"])
    await servers.start()

    def guard() -> None:
        for name, role in (("root", "root"), ("ada", "writer"), ("bob", "nobody")):
            servers.ask("auth/user/add", {"name": name, "password": f"{name}-secret"})
            servers.ask("auth/role/add", {"name": role})
            servers.ask("auth/user/grant", {"user": name, "role": role})
        perm = {"permType": "READWRITE", "key": text(b"comity/"), "range_end": text(b"comity0")}
        servers.ask("auth/role/grant", {"name": "writer", "perm": perm})
        servers.ask("auth/enable", {})

    await asyncio.to_thread(guard)
    yield servers
    await servers.kill()


@pytest.fixture
async def worlds() -> AsyncIterator[Callable[[str], EtcdWorld]]:
    made: list[EtcdWorld] = []

    def make(address: str) -> EtcdWorld:
        made.append(EtcdWorld(address, "net"))
        return made[-1]

    yield make
    for world in made:
        await world.close()


async def surely(work: Callable[[], Awaitable[T]]) -> T:
    async with asyncio.timeout(30):
        while True:
            try:
                return await work()
            except Indefinite:
                await asyncio.sleep(0.01)


async def append_surely(log: EtcdLog, entry: bytes) -> None:
    """Append at the tail until it is there, as a leader does that takes over."""

    async def work() -> None:
        items = await read_all(log)
        if not any(item.data == entry for item in items):
            try:
                await log.append(entry, items[-1].index if items else 0)
            except Conflict as error:
                raise Unreachable("one of unknown fate came in between") from error

    await surely(work)


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()


class TestServersLost:
    async def test_all_that_was_acknowledged_survives_the_leaders_kill(
        self, trio: Etcds, worlds: Callable[[str], EtcdWorld]
    ) -> None:
        world = worlds(trio.address)
        log, reader = await world.log(), await world.log()
        items = reader.follow(0)
        acknowledged: dict[int, bytes] = {}
        unknown: list[Exception] = []
        tail = 0

        async def write() -> None:
            nonlocal tail
            while not unknown:
                after, tail = tail, tail + 1
                entry = b"entry %d " % after + bytes(2000)
                try:
                    acknowledged[await log.append(entry, after)] = entry
                except (Indefinite, Conflict) as error:
                    unknown.append(error)

        writing = asyncio.gather(*(write() for _ in range(16)))
        await take(items, 200)
        began = time.monotonic()
        await trio.kill(await trio.until_led())
        unknown.append(Unreachable("enough"))  # what is in flight goes on
        await writing
        await append_surely(log, b"goes on")
        assert time.monotonic() - began < 12
        found = await surely(lambda: read_all(log))
        assert acknowledged.items() <= {item.index: item.data for item in found}.items()
        seen = (await take(reader.follow(0), len(found)))[: len(found)]
        assert seen == found
        await items.aclose()  # type: ignore[attr-defined]

    @pytest.mark.slow
    @pytest.mark.parametrize("which", ["the leader", "a follower"])
    async def test_a_paused_server_is_left(self, trio: Etcds, worlds: Callable[[str], EtcdWorld], which: str) -> None:
        leader = await trio.until_led()
        paused = leader if which == "the leader" else (leader + 1) % 3
        first = [trio.ports[paused], *(port for n, port in enumerate(trio.ports) if n != paused)]
        world = worlds(f"etcd://{','.join(f'127.0.0.1:{port}' for port in first)}")
        log, registry = await world.log(), await world.registry()
        await fill(log, 3)
        items = log.follow(0)
        assert len(await take(items, 3)) == 3
        watcher = Watcher(registry, "nodes/")
        await registry.put("nodes/n1", b"1")
        await watcher.when(lambda: "nodes/n1" in watcher.state)
        trio.signal(signal.SIGSTOP, paused)
        try:
            began = time.monotonic()
            await append_surely(log, b"entry 4")
            await surely(lambda: registry.put("nodes/n2", b"2"))
            assert (await take(items, 1))[0] == Item(4, b"entry 4")
            await watcher.when(lambda: "nodes/n2" in watcher.state)
            assert time.monotonic() - began < 20
        finally:
            trio.signal(signal.SIGCONT, paused)
        await append_surely(log, b"entry 5")
        await watcher.stop()
        await items.aclose()  # type: ignore[attr-defined]

    async def test_without_a_majority_nothing_is_decided_and_afterwards_all_is_there(
        self, trio: Etcds, worlds: Callable[[str], EtcdWorld], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        world = worlds(trio.address)
        log, registry = await world.log(), await world.registry()
        await fill(log, 3)
        await registry.put("nodes/stays", b"1")
        watcher = Watcher(registry, "nodes/")
        await registry.put("nodes/ends", b"1", ttl_s=3)
        await watcher.when(lambda: len(watcher.state) == 2)
        items = log.follow(3)
        coming = asyncio.create_task(take(items, 1))
        monkeypatch.setattr(endpoints, "PATIENCE_S", 0.5)
        await trio.kill(0, 1)
        with pytest.raises(Indefinite):
            await log.append(b"unknown", 3)
        await trio.kill(2)
        with pytest.raises(Unreachable):
            await log.append(b"never sent", 3)
        with pytest.raises(Indefinite):
            await log.bounds()
        with pytest.raises(Indefinite):
            await registry.get("nodes/stays")
        await trio.start()
        await append_surely(log, b"goes on")
        assert [item.data for item in await coming if item.data != b"unknown"] in ([b"goes on"], [])
        await surely(lambda: registry.put("nodes/late", b"2"))
        await watcher.when(lambda: watcher.state == {"nodes/stays": b"1", "nodes/late": b"2"})
        assert await contents(registry, "nodes/") == watcher.state
        await watcher.stop()
        await items.aclose()  # type: ignore[attr-defined]

    async def test_half_of_the_endpoints_are_enough(
        self, one: Etcds, free_port: Callable[[], int], worlds: Callable[[str], EtcdWorld]
    ) -> None:
        address = f"etcd://127.0.0.1:{free_port()},127.0.0.1:{one.ports[0]}"
        world = worlds(address)
        log = await world.log()
        assert await log.append(b"one", 0) == 1
        faults = [endpoint.fault != "" for endpoint in await (await world.connection()).survey()]
        assert faults == [True, False]
        assert (await log.durability()).level == "unverified"


class TestCompaction:
    async def test_a_watch_that_was_cut_off_lists_again(self, one: Etcds, worlds: Callable[[str], EtcdWorld]) -> None:
        cable = Cable(one.url())
        await cable.mend()
        near, far = worlds(one.address), worlds(cable.url.replace("nats://", "etcd://"))
        a, b = await near.registry(), await far.registry()
        log, reader = await near.log(), await far.log()
        for name in ("stays", "changes", "goes"):
            await a.put(f"nodes/{name}", b"1")
        await fill(log, 2)
        watcher = Watcher(b, "nodes/")
        items = reader.follow(0)
        await watcher.when(lambda: len(watcher.state) == 3)
        assert len(await take(items, 2)) == 2
        coming = asyncio.create_task(take(items, 2))
        await cable.cut()
        await a.put("nodes/changes", b"2")
        await a.put("nodes/new", b"1")
        await a.delete("nodes/goes")
        await fill(log, 2, after=2)
        await one.compact()
        await cable.mend()
        await watcher.when(lambda: watcher.state == {"nodes/stays": b"1", "nodes/changes": b"2", "nodes/new": b"1"})
        late = sorted((change.key, change.value) for change in watcher.changes[3:])
        assert late == [("nodes/changes", b"2"), ("nodes/goes", None), ("nodes/new", b"1")]
        assert [item.index for item in await coming] == [3, 4]
        await watcher.stop()
        await items.aclose()  # type: ignore[attr-defined]
        await far.close()
        await cable.cut()

    async def test_who_follows_below_a_trim_is_told(self, one: Etcds, worlds: Callable[[str], EtcdWorld]) -> None:
        log = await worlds(one.address).log()
        await fill(log, 5)
        await log.trim(5)
        await one.compact()
        assert await log.bounds() == (6, 5)
        assert await log.append(b"entry 6", 5) == 6
        assert await read_all(log, 5) == [Item(6, b"entry 6")]


class TestLeases:
    async def test_one_that_ended_meanwhile_is_taken_anew(self, one: Etcds, worlds: Callable[[str], EtcdWorld]) -> None:
        registry = await worlds(one.address).registry()
        watcher = Watcher(registry, "")
        await watcher.when(lambda: bool(watcher.batches))  # else it may begin with the second
        await registry.put("nodes/n1", b"1", ttl_s=3)
        lease = registry._leases["nodes/n1"]
        await registry.put("nodes/n1", b"2", ttl_s=3)
        assert registry._leases["nodes/n1"] == lease
        await watcher.when(lambda: [change.value for change in watcher.changes] == [b"1", b"2", None])
        await registry.put("nodes/n1", b"3", ttl_s=1)
        assert registry._leases["nodes/n1"] != lease
        await watcher.when(lambda: len(watcher.changes) == 5)
        assert watcher.state == {}
        await watcher.stop()


class TestFull:
    async def test_an_etcd_that_is_full_says_so_can_be_trimmed_and_goes_on(
        self, tmp_path: Path, worlds: Callable[[str], EtcdWorld]
    ) -> None:
        servers = Etcds(tmp_path / "small", options=[f"--quota-backend-bytes={8 * 2**20}"])
        await servers.start()
        try:
            world = worlds(servers.address)
            log, registry = await world.log(), await world.registry()
            tail = 0
            with pytest.raises(Unreachable, match="is full"):
                for tail in range(64):
                    await log.append(bytes(500_000), tail)
            with pytest.raises(Unreachable, match="is full"):
                await registry.put("nodes/n1", b"1")
            (endpoint,) = await (await world.connection()).survey()
            assert any("NOSPACE" in alarm for alarm in endpoint.alarms)
            landed = (await log.bounds())[1]
            assert landed in (tail, tail + 1)  # the one at which it became full may be there
            tail = landed
            await log.trim(tail)
            assert await log.bounds() == (tail + 1, tail)
            await servers.compact()
            await asyncio.to_thread(servers.ask, "maintenance/defragment", {})
            for alarm in (await asyncio.to_thread(servers.ask, "maintenance/alarm", {"action": "GET"}))["alarms"]:
                await asyncio.to_thread(servers.ask, "maintenance/alarm", {"action": "DEACTIVATE", **alarm})
            assert await log.append(b"goes on", tail) == tail + 1
        finally:
            await servers.kill()


class TestUsers:
    async def test_a_token_that_expired_is_renewed(self, guarded: Etcds, worlds: Callable[[str], EtcdWorld]) -> None:
        world = worlds(guarded.address.replace("//", "//ada:ada-secret@"))
        registry, log = await world.registry(), await world.log()
        watcher = Watcher(registry, "")
        await registry.put("nodes/n1", b"1")
        tokens = {connection._token for connection in world._connections}
        tail = 0
        async with asyncio.timeout(45):
            while tokens & {connection._token for connection in world._connections}:  # a server that stands still forgets none
                until = time.monotonic() + 2.5
                while time.monotonic() < until:  # noqa: ASYNC110 (to ask whether a token is still good makes it last longer)
                    await asyncio.sleep(0.1)
                await registry.put("nodes/n2", b"2")
                tail = await log.append(b"one", tail)
        assert (await log.durability()).level == "verified"
        (endpoint,) = await world._connections[0].survey()
        assert (endpoint.fault, endpoint.leads, len(endpoint.member) > 8) == ("", True, True)
        await watcher.when(lambda: len(watcher.state) == 2)
        await watcher.stop()
