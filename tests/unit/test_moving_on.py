"""A process that hears no leader goes to each other server, and again ever more seldom; one that is well stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf
from random import Random

import pytest
from peers import virtually

from comity import backends
from comity.bus import straying
from comity.bus.base import Link
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.outbox import Outbox
from comity.bus.straying import ASKED, ROUNDS, STRAY_S, Straying, moved
from comity.client import Client
from comity.config import Settings
from comity.errors import Disconnected
from comity.model.ids import ProcessId
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from comity.store.memory import MemoryStore, MemoryStoreState


class OneOfThree(MemoryBus):
    """Counts how often it was to go to another server."""

    asked = 0

    @property
    def servers(self) -> int:
        return 3

    def change_server(self) -> None:
        self.asked += 1


class Clock:
    """A loop's time, as told."""

    now = 100.0

    def time(self) -> float:
        return self.now


class Walk:
    """A process that asks every ``every_s``, and hears what ``heard`` says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.network = MemoryNetwork()
        self.bus = OneOfThree(self.network, ProcessId("p"))
        self.clock = Clock()
        self.straying = Straying(self.bus)
        monkeypatch.setattr(self.straying, "_loop", self.clock)
        self.straying._moved_at = self.straying._since = self.clock.now

    def go(self, seconds: float, every_s: float, heard: Callable[[float], float] = lambda _now: -inf) -> int:
        """How often it moved."""
        before, until = self.bus.asked, self.clock.now + seconds
        while self.clock.now < until:
            self.clock.now += every_s
            self.straying.look(heard(self.clock.now))
        return self.bus.asked - before


@pytest.fixture
async def walk(monkeypatch: pytest.MonkeyPatch) -> Walk:
    return Walk(monkeypatch)


async def test_each_other_server_is_tried_once_then_again_ever_more_seldom(walk: Walk) -> None:
    assert walk.go(STRAY_S - 0.5, 0.5) == 0
    assert walk.go(STRAY_S + 0.5, 0.5) == 2
    assert walk.go(2 * STRAY_S - 0.5, 0.5) == 0
    assert walk.go(2 * STRAY_S + 0.5, 0.5) == 2
    walk.go(10_000, 0.5)
    longest = STRAY_S * 2**ROUNDS
    assert walk.go(10 * longest, 0.5) == 10  # and never less
    heard_at = walk.clock.now
    assert walk.go(0.5, 0.5, lambda _now: heard_at) == 0
    assert walk.go(2 * STRAY_S, 0.5, lambda _now: heard_at) == 2


async def test_whoever_is_heard_stays_however_seldom_that_is(walk: Walk) -> None:
    every_s = 2 * STRAY_S
    assert walk.go(20 * every_s, every_s, lambda now: now - every_s) == 0
    assert walk.go(ASKED * every_s, every_s) == 1


async def test_a_process_that_stood_still_listens_first(walk: Walk) -> None:
    assert walk.go(STRAY_S, 0.5, lambda now: now - 0.5) == 0
    heard_at = walk.clock.now - 0.5
    walk.clock.now += 10 * STRAY_S
    walk.straying.look(heard_at)
    assert walk.bus.asked == 0
    assert walk.go(STRAY_S, 0.5, lambda now: now - 0.5) == 0


async def test_one_that_is_not_connected_has_nothing_to_leave(walk: Walk) -> None:
    walk.network.disconnect(walk.bus.process)
    assert walk.bus.link is Link.DOWN
    assert walk.go(10 * STRAY_S, 0.5) == 0


@virtually()
async def test_whoever_asks_where_the_doors_are_asks_by_way_of_each_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "TOLD_S", 0.05)
    network = MemoryNetwork()

    class Moving(OneOfThree):
        def change_server(self) -> None:
            """It takes longer than a controller's answer may."""
            super().change_server()
            network.disconnect(self.process)
            asyncio.get_running_loop().call_later(0.1, network.reconnect, self.process)

    bus = Moving(network, ProcessId("p"))
    assert await backends.told(bus) == {}
    assert (bus.asked, bus.link) == (2, Link.UP)
    await bus.close()


async def test_a_client_within_a_node_leaves_it_to_the_node_where_to_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straying, "STRAY_S", 0.0)
    monkeypatch.setattr(straying, "ASKED", 0)
    asked = []
    for is_hosted in (True, False):
        bus = OneOfThree(MemoryNetwork(), ProcessId("p"))
        client = Client(
            bus, MemoryRegistry(MemoryRegistryState()), MemoryStore(MemoryStoreState()), Settings(),
            wall=lambda: 0.0, rng=Random(1), outbox=Outbox(bus) if is_hosted else None,
        )  # fmt: skip
        await client.open()
        asked.append(bus.asked)
        await client.close()
    assert asked == [0, 1]


async def test_who_is_taken_by_no_other_server_is_told() -> None:
    with pytest.raises(Disconnected, match="no other server takes p"):
        await moved(OneOfThree(MemoryNetwork(), ProcessId("p")), 0.05)
    with pytest.raises(Disconnected):
        await moved(MemoryBus(MemoryNetwork(), ProcessId("p")), 0.05)
