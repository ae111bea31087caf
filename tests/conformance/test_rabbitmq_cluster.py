"""The bus on three servers of RabbitMQ that are a cluster: one is killed, or paused; the rest of the bus goes on."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bus_contract import Inbox, answering

from comity.bus.base import Address, Link, any_of, to
from comity.bus.rabbitmq import RabbitBus
from comity.errors import Disconnected, TimedOut, Unreachable
from rabbits import Rabbits

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(360)]
LONG_S = 60.0
MADE_UP_S = 180.0
"""Mostly it takes RabbitMQ a second; a minute or two if its own attempts meet one another."""
NAMES = "abc"
CREW = any_of("crew")


class Town:
    """Each bus is connected to the server of its number. All answer requests to themselves, and a group's."""

    def __init__(self, rabbits: Rabbits) -> None:
        self.rabbits = rabbits
        self.buses: list[RabbitBus] = []
        self._answers: list[asyncio.Task[None]] = []

    async def join(self) -> None:
        for n, name in enumerate(NAMES):
            bus = await RabbitBus.connect(self.rabbits.url(name), process=name, timeout_s=LONG_S)
            self.buses.append(bus)
            while self.server_of(bus) != n:
                bus.change_server()
                await until(bus, Link.DOWN)
                await until(bus, Link.UP)
            await bus.subscribe(to(name), answering(bus, self._answers))
            await bus.subscribe(CREW, answering(bus, self._answers))

    def server_of(self, bus: RabbitBus) -> int:
        transport = bus._line.connection._transport
        assert transport is not None
        return self.rabbits.ports.index(transport.get_extra_info("peername")[1])

    async def reaches(self, *names: str, within_s: float = LONG_S) -> float:
        """How long it took until each of ``names`` had reached each of them."""
        began = time.monotonic()
        await self._reached({(bus, to(name)) for bus in self.buses for name in names if bus.process in names}, within_s)
        return time.monotonic() - began

    async def group_works(self) -> None:
        await self._reached({(bus, CREW) for bus in self.buses}, MADE_UP_S)

    async def _reached(self, pairs: set[tuple[RabbitBus, Address]], within_s: float) -> None:
        async with asyncio.timeout(within_s):
            for bus, address in sorted(pairs, key=str):
                while not await _answered(bus, address):  # noqa: ASYNC110 (it tells nobody)
                    await asyncio.sleep(0.02)

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()


async def _answered(bus: RabbitBus, address: Address) -> bool:
    try:
        return await bus.request(address, b"x", 1.0) == b"re:x"
    except (Unreachable, Disconnected, TimedOut):
        return False


async def until(bus: RabbitBus, link: Link) -> None:
    states = Inbox()
    bus.on_state(states)
    async with asyncio.timeout(LONG_S):
        while bus.link is not link:
            states._changed.clear()
            await states._changed.wait()


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    rabbits = Rabbits(tmp_path / "rabbits", 3, tuple(NAMES))
    town = Town(rabbits)
    try:
        await rabbits.start()
        await town.join()
        yield town
    finally:
        await town.close()
        await rabbits.close()


async def test_one_server_may_die_or_hang(town: Town) -> None:
    rabbits, (_, b, c) = town.rabbits, town.buses
    await town.reaches(*NAMES)

    # Killed: the first, which has the group's queue. Its process goes to another server, and the two others are not disturbed.
    calm = Inbox()
    b.on_state(calm)
    c.on_state(calm)
    killing = asyncio.create_task(rabbits.kill(0))
    assert await town.reaches(*NAMES) < 10
    await killing
    assert calm.items == []
    with pytest.raises(Unreachable):
        await b.request(CREW, b"x", LONG_S)  # a group's queue is on one server: while that is away, so is the group
    await rabbits.start(0)
    await town.group_works()
    assert calm.items == []

    # Paused for longer than the others wait. They make up by themselves.
    victim = town.server_of(c)
    rabbits.signal(signal.SIGSTOP, victim)
    try:
        await until(c, Link.DOWN)
        await until(c, Link.UP)
        assert town.server_of(c) != victim
        await town.reaches(*NAMES)
    finally:
        rabbits.signal(signal.SIGCONT, victim)
    await town.reaches(*NAMES, within_s=MADE_UP_S)
    await town.group_works()
