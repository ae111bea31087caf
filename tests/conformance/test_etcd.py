"""The registry and the log on etcd: the contracts, and what only they promise."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from log_contract import LogContract
from log_contract import Place as LogPlace
from registry_contract import RegistryContract

from comity.etcd.client import Etcd
from comity.log.base import Log
from comity.log.etcd import EtcdLog
from comity.registry.etcd import EtcdRegistry
from comity.remote import endpoints
from comity.remote.address import Where
from etcds import Etcds

_networks = itertools.count(1)


class EtcdWorld:
    """A network's name of its own, and doors to it, each over a connection of its own."""

    def __init__(self, address: str, network: str = "") -> None:
        self.address = address
        self.network = network or f"t{next(_networks)}"
        self._connections: list[Etcd] = []
        self._doors: list[EtcdRegistry | EtcdLog] = []

    async def connection(self) -> Etcd:
        etcd = await Etcd.open(Where.parse(self.address))
        self._connections.append(etcd)
        return etcd

    async def registry(self) -> EtcdRegistry:
        door = await EtcdRegistry.open(await self.connection(), self.network, create=True, network_id=f"id-{self.network}")
        self._doors.append(door)
        return door

    async def log(self) -> EtcdLog:
        door = await EtcdLog.open(await self.connection(), self.network, create=True, network_id=f"id-{self.network}")
        self._doors.append(door)
        return door

    async def close(self) -> None:
        for door in self._doors:
            await door.close()
        for connection in self._connections:
            await connection.close()


@pytest.fixture
async def world(etcds: Etcds, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[EtcdWorld]:
    monkeypatch.setattr(endpoints, "TRY_S", 10.0)  # a machine that stands still is not what is looked at
    world = EtcdWorld(etcds.address)
    yield world
    await world.close()


@pytest.mark.server
class TestEtcdRegistry(RegistryContract):
    pass


@pytest.mark.server
class TestEtcdLog(LogContract):
    @pytest.fixture
    def log(self, world: EtcdWorld) -> LogPlace:
        async def door() -> Log:
            return await world.log()

        return LogPlace(door)
