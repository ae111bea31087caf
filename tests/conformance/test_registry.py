"""The registry contract, held by every backend; and what only the one on JetStream promises."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cable import Cable
from registry_contract import SOON_S, RegistryContract, Watcher, contents

from comity.bus.base import Link
from comity.bus.nats import NatsBus
from comity.credentials import Role
from comity.embedded import EmbeddedServer
from comity.errors import AccessDenied, Disconnected, Indefinite, NotFound
from comity.jetstream import Row
from comity.registry import jetstream
from comity.registry.base import Change
from comity.registry.jetstream import JetStreamRegistry
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from conftest import RealNetwork, need_server


class MemoryWorld:
    def __init__(self) -> None:
        self.state = MemoryRegistryState()

    async def registry(self) -> MemoryRegistry:
        return MemoryRegistry(self.state)


class TestMemoryRegistry(RegistryContract):
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()


class JetStreamWorld:
    """Doors with a controller's permissions, each over a connection of its own."""

    def __init__(self, network: RealNetwork) -> None:
        self.network = network
        self._buses: dict[str, NatsBus] = {}
        self._registries: list[JetStreamRegistry] = []

    def bus(self, process: str) -> NatsBus:
        return self._buses[process]

    async def registry(self, process: str = "", role: Role = "controller") -> JetStreamRegistry:
        process = process or f"c{len(self._buses)}"
        assert process not in self._buses
        options = self.network.mint(role, process).connect_options()
        bus = await NatsBus.connect(
            self.network.url, process=process, network=self.network.network, options=options, timeout_s=SOON_S
        )
        self._buses[process] = bus
        registry = await JetStreamRegistry.open(bus.connection, self.network.network, create=role == "controller")
        self._registries.append(registry)
        return registry

    async def close(self) -> None:
        for registry in self._registries:
            await registry.close()
        for bus in self._buses.values():
            await bus.close()


@pytest.mark.server
class TestJetStreamRegistry(RegistryContract):
    @pytest.fixture
    async def world(self, real_network: RealNetwork) -> AsyncIterator[JetStreamWorld]:
        world = JetStreamWorld(real_network)
        yield world
        await world.close()

    async def test_without_create_a_missing_registry_is_an_error(self, world: JetStreamWorld) -> None:
        with pytest.raises(NotFound):
            await world.registry("n1", "node")
        await world.registry()
        await world.registry()
        await world.registry("n2", "node")

    async def test_a_node_writes_its_own_records_and_reads_all(self, world: JetStreamWorld) -> None:
        controller = await world.registry()
        n1, n2 = await world.registry("n1", "node"), await world.registry("n2", "node")
        watcher = Watcher(n2, "")
        for key in ("nodes/n1", "agents/n1/0", "schemas/n1/abc"):
            await n1.put(key, b"x", ttl_s=60)
        await n1.delete("agents/n1/0")
        await watcher.when(lambda: watcher.state == {"nodes/n1": b"x", "schemas/n1/abc": b"x"})
        assert await contents(n2) == watcher.state
        for key in ("nodes/n1", "agents/n1/0", "network/n1x/y"):
            with pytest.raises(AccessDenied):
                await n2.put(key, b"forged")
        with pytest.raises(AccessDenied):
            await n2.delete("nodes/n1")
        await controller.delete("nodes/n1")
        await watcher.when(lambda: watcher.state == {"schemas/n1/abc": b"x"})
        await watcher.stop()

    async def test_a_node_cannot_wipe_out_the_records_of_others(self, world: JetStreamWorld) -> None:
        controller = await world.registry()
        await controller.put("nodes/n2", b"x")
        await world.registry("n1", "node")
        bus = world.bus("n1")
        subject = f"cy.{bus.network}.reg.n1.nodes.="
        for roll_up in ("all", "sub"):
            answer = await bus.connection.request(subject, b"", timeout=20, headers={"Nats-Rollup": roll_up})
            assert "error" in json.loads(answer.data)
        for call in ("PURGE", "DELETE", "UPDATE"):
            refusals = bus.faults["denied"]
            await bus.connection.publish(f"$JS.API.STREAM.{call}.CY_{bus.network}_REG", b"{}")
            await bus.connection.flush()
            assert bus.faults["denied"] == refusals + 1
        assert await contents(controller) == {"nodes/n2": b"x"}

    async def test_a_watch_whose_consumer_is_lost_lists_again(self, world: JetStreamWorld) -> None:
        a, b = await world.registry("c0"), await world.registry("c1")
        await a.put("nodes/n1", b"1")
        await a.put("nodes/n3", b"1", ttl_s=6)
        watcher = Watcher(b, "nodes/")
        await watcher.when(lambda: len(watcher.state) == 2)
        bus = world.bus("c0")
        stream = f"CY_{bus.network}_REG"
        names = await bus.connection.request(f"$JS.API.CONSUMER.NAMES.{stream}", b"", timeout=20)
        (name,) = json.loads(names.data)["consumers"]
        await bus.connection.request(f"$JS.API.CONSUMER.DELETE.{stream}.{name}", b"", timeout=20)
        await a.put("nodes/n3", b"2", ttl_s=60)
        await a.put("nodes/n2", b"2")
        await a.delete("nodes/n1")
        await watcher.when(lambda: watcher.state == {"nodes/n2": b"2", "nodes/n3": b"2"})
        assert [change.key for change in watcher.changes if change.value is None] == ["nodes/n1"]
        await watcher.stop()


@pytest.mark.server
class TestBreaks:
    """A watch and what breaks under it. Every record changes or goes while the watch cannot see it."""

    @pytest.fixture
    async def own_server(self, tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
        need_server()
        server = await EmbeddedServer.start(tmp_path / "data", network="main", port=0)
        yield server
        await server.stop()

    async def test_a_restart_of_the_server(self, own_server: EmbeddedServer) -> None:
        world = JetStreamWorld(RealNetwork(own_server.url, "main", own_server.authority, own_server))
        loop = asyncio.get_running_loop()
        try:
            a, b = await world.registry("c0"), await world.registry("n1", "node")
            for n in range(20):
                await a.put(f"nodes/n{n}", b"1")
            watcher = Watcher(b, "nodes/")
            await watcher.when(lambda: len(watcher.state) == 20)
            took_s: list[float] = []
            for turn, signum in enumerate((signal.SIGKILL, signal.SIGTERM)):
                os.kill(own_server.pid, signum)
                await until(world.bus("c0"), Link.DOWN)
                await until(world.bus("c0"), Link.UP)
                begin = loop.time()
                await put_surely(a, f"nodes/late{turn}", b"x")
                await a.delete(f"nodes/n{turn}")
                await watcher.when(lambda turn=turn: f"nodes/late{turn}" in watcher.state)
                await watcher.when(lambda turn=turn: f"nodes/n{turn}" not in watcher.state)
                took_s.append(loop.time() - begin)
            assert min(took_s) < 3, "a busy machine is not what is looked at"
            assert watcher.state == await contents(a, "nodes/")
            told = {(change.key, change.value) for change in watcher.changes}
            assert len(told) == 24, "what is put surely may be put twice"
            await watcher.stop()
        finally:
            await world.close()

    @pytest.mark.parametrize("ends", [True, False])
    async def test_a_cut_connection(
        self, own_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, ends: bool
    ) -> None:
        """A long one: of what was deleted, and of what came to its end, nothing is left in the stream."""
        monkeypatch.setattr(jetstream, "GONE_FOR_S", 1)
        world = JetStreamWorld(RealNetwork(own_server.url, "main", own_server.authority, own_server))
        cable = Cable(own_server.url)
        await cable.mend()
        far = JetStreamWorld(RealNetwork(cable.url, "main", own_server.authority, own_server))
        try:
            a = await world.registry("c0")
            b = await far.registry("n1", "node")
            await a.put("nodes/stays", b"1")
            await a.put("nodes/changes", b"1")
            await a.put("nodes/deleted", b"1")
            if ends:
                await a.put("nodes/ends", b"1", ttl_s=5)
            before = await contents(a)
            watcher = Watcher(b, "")
            await watcher.when(lambda: watcher.state == before)
            await cable.cut()
            await until(far.bus("n1"), Link.DOWN)
            await a.put("nodes/changes", b"2")
            await a.put("nodes/new", b"1")
            await a.delete("nodes/deleted")
            async with asyncio.timeout(20):
                while await messages(world.bus("c0")) != 3:  # noqa: ASYNC110 (the server does not tell)
                    await asyncio.sleep(0.05)
            assert watcher.state == before
            with pytest.raises(Disconnected):
                await b.get("nodes/new")
            await cable.mend()
            await until(far.bus("n1"), Link.UP)
            truth = {"nodes/stays": b"1", "nodes/changes": b"2", "nodes/new": b"1"}
            await watcher.when(lambda: watcher.state == truth)
            late = sorted((change.key, change.value) for change in watcher.changes[len(before) :])
            assert late == [
                ("nodes/changes", b"2"),
                ("nodes/deleted", None),
                *([("nodes/ends", None)] if ends else []),
                ("nodes/new", b"1"),
            ]
            await watcher.stop()
        finally:
            await far.close()
            await world.close()
            await cable.cut()


def test_a_record_that_outlives_its_time_on_the_server_is_there_until_it_is_gone() -> None:
    view = jetstream._View("", len("cy.main.reg."))
    view.revision, view.server_time = 7, 1000.0
    row = Row(5, "cy.main.reg.n1.nodes.=", b"x", {"Nats-TTL": "3s"}, int(998.0 * 1e9))
    assert view.replace([row], now=50.0) == [Change("nodes/n1", b"x", 5)]
    assert view.deadline == 51.0 + jetstream.CHECK_S
    assert view.due(51.0) == []
    (record,) = view.due(51.5)
    assert view.checked(record, row, 51.5) == []
    assert view.deadline == 51.5 + jetstream.CHECK_S
    (record,) = view.due(52.0)
    assert view.checked(record, None, 52.0) == [Change("nodes/n1", None, 7)]
    assert view.deadline is None


async def messages(bus: NatsBus) -> int:
    """How many there are in the registry's stream."""
    answer = await bus.connection.request(f"$JS.API.STREAM.INFO.CY_{bus.network}_REG", b"", timeout=20)
    return int(json.loads(answer.data)["state"]["messages"])


async def until(bus: NatsBus, link: Link) -> None:
    reached = asyncio.Event()
    bus.on_state(lambda now: reached.set() if now is link else None)
    if bus.link is not link:
        async with asyncio.timeout(20):
            await reached.wait()


async def put_surely(registry: JetStreamRegistry, key: str, value: bytes) -> None:
    """A server that just started takes connections before its streams are there."""
    async with asyncio.timeout(20):
        while True:
            try:
                await registry.put(key, value)
                return
            except Indefinite:
                await asyncio.sleep(0.01)
