"""Batches on the bus: every hop carries many items, and an idle pipe sends at once."""

from __future__ import annotations

import asyncio

from comity.bus.base import Address, Bus
from comity.errors import Disconnected, NotSerializable, TooLarge
from comity.model import wire


class Outbox:
    """Gathers items per address and sends each batch as one bus message, in order.

    While one batch is on its way the next one gathers; when nothing is on its way, a batch holds what is posted until the end
    of this turn of the event loop. There is no linger timer. Like the bus, at most once: what is posted while the bus is down
    is dropped, and counted in ``dropped``.
    """

    def __init__(self, bus: Bus) -> None:
        self.dropped = 0
        self._bus = bus
        self._lanes: dict[Address, list[bytes]] = {}
        self._pumps: dict[Address, asyncio.Task[None]] = {}

    def post(self, address: Address, item: wire.Item) -> None:
        """Send ``item`` soon. Call it from the event loop's thread. Raises TooLarge, NotSerializable."""
        try:
            data = wire.encode_one(item)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise NotSerializable(f"a {type(item).__name__} cannot be sent: {error}") from error
        if len(data) > wire.BATCH_LIMIT:
            kind = type(item).__name__
            raise TooLarge(f"{kind} of {len(data)} bytes does not fit in one message", limit=wire.BATCH_LIMIT)
        lane = self._lanes.get(address)
        if lane is not None:
            lane.append(data)
        else:
            self._lanes[address] = [data]
            self._pumps[address] = asyncio.get_running_loop().create_task(self._pump(address))

    async def drain(self) -> None:
        """Return once everything posted so far is handed to the bus, or dropped."""
        while self._pumps:
            await asyncio.wait(list(self._pumps.values()))

    async def _pump(self, address: Address) -> None:
        lane = self._lanes[address]
        try:
            while lane:
                batch = _cut(lane)
                try:
                    await self._bus.send(address, wire.join(batch))
                except Disconnected:
                    self.dropped += len(batch)
        finally:
            self.dropped += len(lane)
            del self._lanes[address], self._pumps[address]


def _cut(lane: list[bytes]) -> list[bytes]:
    """Take from the front what makes one message: ``wire.BATCH_BYTES``, or one larger item."""
    size = 0
    for number, data in enumerate(lane):
        size += len(data)
        if size > wire.BATCH_BYTES and number:
            batch = lane[:number]
            del lane[:number]
            return batch
    batch = lane[:]
    lane.clear()
    return batch
