"""Holds effects back while another node may have been given the task: as long as this one does not hold its lease for sure.

An acknowledged beacon is not enough: a leader that was cut off together with this node acknowledges beacons until it notices. So
the leader is asked each time, and answers once the log has confirmed that it leads. What it said before counts for nothing: a
node whose connection ends is given up within a moment, and may be the last to notice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from comity.bus.base import Bus, Link
from comity.errors import Indefinite
from comity.node.lease import Lease


class Guard:
    """``known`` is set while the leader knows this life of the node; ``holds()`` asks the log whether it holds its lease. Its
    Indefinite errors are waited out."""

    def __init__(self, lease: Lease, bus: Bus, known: asyncio.Event, holds: Callable[[], Awaitable[bool]]) -> None:
        self._lease = lease
        self._bus = bus
        self._known = known
        self._holds = holds
        self._waiting: set[asyncio.Future[None]] = set()
        lease.renewed = self._ring

    async def held(self) -> None:
        """Return once the log has said, after now, that the lease is held."""
        while not (self._in_contact() and await self._is_held()):
            await self._renewal()

    def _in_contact(self) -> bool:
        now = asyncio.get_running_loop().time()
        return self._known.is_set() and self._bus.link is Link.UP and self._lease.may_begin(now)

    async def _is_held(self) -> bool:
        """Whether the log says so. False: it does not, or cannot now."""
        try:
            return await self._holds()
        except Indefinite:
            return False

    async def _renewal(self) -> None:
        renewed = asyncio.get_running_loop().create_future()
        self._waiting.add(renewed)
        try:
            await renewed
        finally:
            self._waiting.discard(renewed)

    def _ring(self) -> None:
        """A beacon was acknowledged; what else its acknowledgement says is known once those who wait have their turn."""
        for renewed in self._waiting:
            if not renewed.done():
                renewed.set_result(None)
