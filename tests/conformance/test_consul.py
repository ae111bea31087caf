"""The registry on Consul: the contract, what only it promises, and what is broken under it."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import urllib.error
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from registry_contract import RegistryContract, Watcher, contents
from test_backend_failpoints import CONSUL, Twice, fails_once
from test_etcd_faults import surely

from comity.consul import Consul
from comity.errors import AccessDenied, BadSettings, ForeignData, Indefinite, NotFound, TooLarge, Unreachable
from comity.registry.consul import VALUE_LIMIT, ConsulRegistry
from comity.remote import endpoints
from comity.remote.address import Where
from consuls import Consuls

pytestmark = pytest.mark.server
_networks = itertools.count(1)


class ConsulWorld:
    """A network's name of its own, and doors to it, each over a connection of its own."""

    def __init__(self, address: str, network: str = "") -> None:
        self.address = address
        self.network = network or f"t{next(_networks)}"
        self.doors: list[ConsulRegistry] = []
        self._connections: list[Consul] = []

    async def registry(self) -> ConsulRegistry:
        consul = await Consul.open(Where.parse(self.address, "consul"))
        self._connections.append(consul)
        self.doors.append(await ConsulRegistry.open(consul, self.network, create=True, network_id=f"id-{self.network}"))
        return self.doors[-1]

    async def close(self) -> None:
        for door in self.doors:
            await door.close()
        for connection in self._connections:
            await connection.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def consuls(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Consuls]:
    started = Consuls(tmp_path_factory.mktemp("consul"))
    await started.start()
    yield started
    await started.kill()


@pytest.fixture
async def world(consuls: Consuls, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ConsulWorld]:
    monkeypatch.setattr(endpoints, "TRY_S", 10.0)  # a machine that stands still is not what is looked at
    world = ConsulWorld(consuls.address)
    yield world
    await world.close()


@pytest.mark.slow  # all together
class TestConsulRegistry(RegistryContract):
    async def test_a_node_is_a_service_that_others_see(self, consuls: Consuls, world: ConsulWorld) -> None:
        registry = await world.registry()

        def seen() -> list[str]:
            found = consuls.ask("GET", f"health/service/comity?passing&tag={world.network}")
            return sorted(row["Service"]["ID"] for row in found)

        await registry.put("nodes/n1", b"x", ttl_s=30)
        await registry.put("agents/n1/0", b"x", ttl_s=30)
        assert await asyncio.to_thread(seen) == [f"comity-{world.network}-n1"]
        await registry.delete("nodes/n1")
        assert await asyncio.to_thread(seen) == []

    async def test_what_is_too_large_is_refused(self, world: ConsulWorld) -> None:
        registry = await world.registry()
        await registry.put("agents/n1/0", bytes(VALUE_LIMIT))
        with pytest.raises(TooLarge):
            await registry.put("agents/n1/0", bytes(VALUE_LIMIT + 1))

    async def test_a_session_is_renewed_or_taken_anew(self, world: ConsulWorld) -> None:
        registry = await world.registry()
        watcher = Watcher(registry, "")
        await registry.put("nodes/n1", b"1", ttl_s=3)
        lease = registry._leases["nodes/n1"]
        await registry.put("nodes/n1", b"2", ttl_s=3)
        assert registry._leases["nodes/n1"] == lease
        await watcher.when(lambda: bool(watcher.changes) and watcher.changes[-1].value is None)
        await registry.put("nodes/n1", b"3", ttl_s=30)
        assert registry._leases["nodes/n1"] != lease
        await watcher.when(lambda: watcher.state == {"nodes/n1": b"3"})
        await watcher.stop()

    async def test_two_networks_of_one_name(self, world: ConsulWorld) -> None:
        await world.registry()
        consul = world._connections[0]
        with pytest.raises(ForeignData, match="not other"):
            await ConsulRegistry.open(consul, world.network, create=True, network_id="other")
        with pytest.raises(NotFound):
            await ConsulRegistry.open(consul, "missing", create=False)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", CONSUL)
async def test_a_write_of_unknown_fate_can_be_repeated(write: str, when: str, world: ConsulWorld) -> None:
    async def work(twice: Twice) -> None:
        await twice(world.registry)
        registry = await world.registry()
        await twice(lambda: registry.put("nodes/c1", b"record"))
        assert await contents(registry) == {"nodes/c1": b"record"}
        await twice(lambda: registry.delete("nodes/c1"))
        assert await contents(registry) == {}

    await fails_once(write, when, work)


class TestFaults:
    @pytest.mark.slow
    async def test_servers_killed_paused_and_restarted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        servers = Consuls(tmp_path / "trio", 3)
        await servers.start()
        world = ConsulWorld(servers.address, "net")
        try:
            a, b = await world.registry(), await world.registry()
            await a.put("nodes/stays", b"1")
            watcher = Watcher(b, "nodes/")
            await watcher.when(lambda: "nodes/stays" in watcher.state)
            await servers.kill(0)  # the one that all talk to
            await surely(lambda: a.put("nodes/n1", b"1"))
            await watcher.when(lambda: "nodes/n1" in watcher.state)
            await servers.start(0)
            servers.signal(signal.SIGSTOP, 1)
            try:
                await surely(lambda: a.put("nodes/n2", b"1"))
                await watcher.when(lambda: "nodes/n2" in watcher.state, 30)
            finally:
                servers.signal(signal.SIGCONT, 1)
            monkeypatch.setattr(endpoints, "PATIENCE_S", 0.5)
            await servers.kill()
            with pytest.raises(Indefinite):
                await a.put("nodes/n3", b"1")
            with pytest.raises(Indefinite):
                await a.get("nodes/n1")
            await servers.start()
            await surely(lambda: a.put("nodes/n4", b"1"))
            await watcher.when(lambda: "nodes/n4" in watcher.state, 30)
            assert await contents(a, "nodes/") == watcher.state
            await watcher.stop()
        finally:
            await world.close()
            await servers.kill()


class TestRefusals:
    async def test_nobody_there_or_something_else(self, free_port: Callable[[], int]) -> None:
        with pytest.raises(Unreachable):
            await Consul.open(Where.parse(f"consul://127.0.0.1:{free_port()}", "consul"))
        with pytest.raises(BadSettings, match="begins with consul://"):
            Where.parse("etcd://h", "consul")

    async def test_a_token_decides_what_one_may(self, tmp_path: Path) -> None:
        acl = {"enabled": True, "default_policy": "deny", "tokens": {"master": "root-token"}}
        servers = Consuls(tmp_path / "guarded", acl=acl, primary_datacenter="dc1")
        await servers.start(wait=False)
        rules = 'key_prefix "comity/" { policy = "write" } session_prefix "" { policy = "write" }'
        policy = {"Name": "registry", "Rules": rules}

        def made() -> str:
            servers.ask("PUT", "acl/policy", json.dumps(policy).encode(), token="root-token")
            body = {"Policies": [{"Name": "registry"}]}
            return str(servers.ask("PUT", "acl/token", json.dumps(body).encode(), token="root-token")["SecretID"])

        token = ""
        async with asyncio.timeout(30):
            while not token:
                try:
                    token = await asyncio.to_thread(made)
                except (OSError, urllib.error.HTTPError):
                    await asyncio.sleep(0.1)
        (tmp_path / "token").write_text(token)
        world = ConsulWorld(f"{servers.address}?password_file={tmp_path}/token", "net")
        try:
            registry = await world.registry()
            assert await registry.put("nodes/n1", b"x", ttl_s=30) > 0
            assert await contents(registry) == {"nodes/n1": b"x"}
            for wrong in ("", ":no-such-token@"):
                other = ConsulWorld(servers.address.replace("//", f"//{wrong}"), "net")
                with pytest.raises(AccessDenied):
                    await other.registry()
                await other.close()
        finally:
            await world.close()
            await servers.kill()
