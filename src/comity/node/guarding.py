"""Holds effects back while another node may have been given the task: as long as this one does not hold its lease for sure."""

from __future__ import annotations

import asyncio

from comity.bus.base import Bus, Link
from comity.node.lease import Lease


class Guard:
    """``known`` is set while the leader knows this life of the node."""

    def __init__(self, lease: Lease, bus: Bus, known: asyncio.Event) -> None:
        self._lease = lease
        self._bus = bus
        self._known = known
        self._waiting: set[asyncio.Future[None]] = set()
        lease.renewed = self._ring

    async def held(self) -> None:
        """Return while the lease is held."""
        loop = asyncio.get_running_loop()
        while not (self._known.is_set() and self._bus.link is Link.UP and self._lease.may_begin(loop.time())):
            renewed = loop.create_future()
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
