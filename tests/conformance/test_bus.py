"""The bus contract, held by every backend; and what only one of them promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bus_contract import BusContract, Inbox
from cable import Cable

from comity.bus.base import Bus, Link
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.nats import NatsBus
from comity.embedded import EmbeddedServer
from comity.model.ids import ProcessId


class MemoryWorld:
    def __init__(self) -> None:
        self.network = MemoryNetwork()

    async def bus(self, process: str) -> MemoryBus:
        return MemoryBus(self.network, ProcessId(process))

    async def cut(self, bus: Bus) -> None:
        self.network.disconnect(bus.process)

    async def mend(self, bus: Bus) -> None:
        self.network.reconnect(bus.process)


class TestMemoryBus(BusContract):
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()


class NatsWorld:
    """Buses with a node's permissions, each behind a cable of its own."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.server = server
        self._cables: dict[Bus, Cable] = {}

    async def bus(self, process: str, role: str = "node") -> NatsBus:
        mint = self.server.authority.mint
        cable = Cable(self.server.url)
        await cable.mend()
        made = await NatsBus.connect(
            cable.url,
            process=process,
            options=mint(role, process).connect_options(),
            system=mint("system", process).connect_options(),
        )
        self._cables[made] = cable
        return made

    async def cut(self, bus: Bus) -> None:
        await self._cables[bus].cut()
        await until(bus, Link.DOWN)

    async def mend(self, bus: Bus) -> None:
        await self._cables[bus].mend()
        await until(bus, Link.UP)

    async def close(self) -> None:
        for bus, cable in self._cables.items():
            await bus.close()
            await cable.cut()


async def until(bus: Bus, link: Link) -> None:
    states = Inbox()
    bus.on_state(states)
    await states.when(lambda: bus.link is link)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    server = await EmbeddedServer.start(tmp_path / "data", network="main", port=0)
    yield server
    await server.stop()


@pytest.mark.server
class TestNatsBus(BusContract):
    @pytest.fixture
    async def world(self, server: EmbeddedServer) -> AsyncIterator[NatsWorld]:
        world = NatsWorld(server)
        yield world
        await world.close()
