"""The bus on RabbitMQ: the contract, and what only it promises."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest
from bus_contract import SOON_S, BusContract, Inbox
from cable import Cable

from comity.bus.base import Bus, Link
from comity.bus.rabbitmq import RabbitBus
from rabbits import Rabbit


class RabbitWorld:
    """Buses of processes with a user each, each behind a cable of its own."""

    def __init__(self, rabbit: Rabbit) -> None:
        self.rabbit = rabbit
        self._cables: dict[Bus, Cable] = {}

    async def bus(self, process: str, user: str | None = None) -> RabbitBus:
        cable = Cable(self.rabbit.url())
        await cable.mend()
        address = self.rabbit.url(process if user is None else user, urlsplit(cable.url).port or 0)
        made = await RabbitBus.connect(address, process=process, departures=True, timeout_s=SOON_S)
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
async def world(rabbit: Rabbit) -> AsyncIterator[RabbitWorld]:
    world = RabbitWorld(rabbit)
    yield world
    await world.close()


@pytest.mark.server
class TestRabbitBus(BusContract):
    pass
