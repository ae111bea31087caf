"""Holds effects back while another node may have been given the task: as long as this one does not hold its lease for sure.

An acknowledged beacon is not enough: a leader that was cut off together with this node acknowledges beacons until it notices. So
the leader is asked, and answers once the log has confirmed that it leads. What the log said holds nearly as long as a lease.
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
        """Return while the lease is held."""
        loop = asyncio.get_running_loop()
        while not ((in_contact := self._in_contact(now := loop.time())) and now < self._lease.sure_until):
            if not (in_contact and await self._confirm(now)):
                await self._renewal()

    def _in_contact(self, now: float) -> bool:
        return self._known.is_set() and self._bus.link is Link.UP and self._lease.may_begin(now)

    async def _confirm(self, now: float) -> bool:
        """Have the log say it. False: it does not, or cannot now."""
        try:
            is_held = await self._holds()
        except Indefinite:
            return False
        if is_held:
            self._lease.confirm(now)
        return is_held

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
