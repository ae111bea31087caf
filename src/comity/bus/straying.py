"""A process whose server is well, but cut off from the others, is connected and hears nobody who leads. It goes to another."""

from __future__ import annotations

import asyncio

from comity.bus.base import Bus, Link
from comity.errors import Disconnected

STRAY_S = 5.0
"""Longer than a lease. To move costs a moment, and nothing if nobody leads anywhere."""


class Straying:
    """``look`` at it now and then. Each of the other servers is tried once: where all are well and nobody leads, none helps."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._loop = asyncio.get_running_loop()
        self._moves = 0
        self._moved_at = self._up_at = self._loop.time()
        bus.on_state(self._on_state)

    def _on_state(self, link: Link) -> None:
        if link is Link.UP:
            self._up_at = self._loop.time()

    def look(self, heard_at: float) -> None:
        """Whoever leads was heard ``heard_at``, in the loop's time, and not since."""
        now = self._loop.time()
        if heard_at > self._moved_at:
            self._moves = 0
        if now - max(heard_at, self._up_at) < STRAY_S or self._bus.link is not Link.UP:
            return
        if self._moves < self._bus.servers - 1:
            self._moves += 1
            self._moved_at = now
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
