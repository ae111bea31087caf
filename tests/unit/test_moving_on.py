"""A process that hears no leader goes to each other server, and again ever more seldom; one that is well stays."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest

from comity.bus.base import Link
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.straying import ASKED, ROUNDS, STRAY_S, Straying, moved
from comity.errors import Disconnected
from comity.model.ids import ProcessId


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


async def test_who_is_taken_by_no_other_server_is_told() -> None:
    with pytest.raises(Disconnected, match="no other server takes p"):
        await moved(OneOfThree(MemoryNetwork(), ProcessId("p")), 0.05)
    with pytest.raises(Disconnected):
        await moved(MemoryBus(MemoryNetwork(), ProcessId("p")), 0.05)
