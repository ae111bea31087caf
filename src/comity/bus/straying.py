"""A process whose server is well, but cut off from the others, is connected and hears nobody who leads. It goes to another."""

from __future__ import annotations

import asyncio
from math import inf

from comity.bus.base import Bus, Link
from comity.errors import Disconnected

STRAY_S = 5.0
"""Longer than the usual lease. To move costs a moment, and nothing if nobody leads anywhere."""
ASKED = 3
"""And so often the leader was asked in vain: beacons may be seldom, and a process that stood still has not listened."""
ROUNDS = 4
"""Each round among the servers has twice the patience of the one before, so often."""


class Straying:
    """``look`` at it after each question to the leader. Each of the other servers is tried once, then again, ever more seldom:
    where all are well and nobody leads, none helps; and the one that would have may have been tried too early."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._heard_at = -inf
        self._moves = self._asked = 0
        self._moved_at = self._since = self._loop.time()
        bus.on_state(self._on_state)

    def _on_state(self, link: Link) -> None:
        if link is Link.UP:
            self._begin()

    def _begin(self) -> None:
        self._since, self._asked = self._loop.time(), 0

    def look(self, heard_at: float) -> None:
        """Whoever leads was heard ``heard_at``, in the loop's time, and not since."""
        if heard_at > self._heard_at:
            self._heard_at = heard_at
            self._moves = 0 if heard_at > self._moved_at else self._moves
            self._begin()
        self._asked += 1
        others, now = self._bus.servers - 1, self._loop.time()
        if not others or self._bus.link is not Link.UP or self._asked <= ASKED:
            return
        if now - self._since >= STRAY_S * 2 ** min(self._moves // others, ROUNDS):
            self._moves += 1
            self._moved_at = now
            self._begin()
            self._bus.change_server()


async def moved(bus: Bus, timeout_s: float) -> None:
    """Go to another server, now. Raises Disconnected if none takes this process in time."""
    up = asyncio.Event()
    bus.on_state(lambda link: up.set() if link is Link.UP else None)
    bus.change_server()
    try:
        async with asyncio.timeout(timeout_s):
            await up.wait()
    except TimeoutError:
        raise Disconnected(f"no other server takes {bus.process}") from None
