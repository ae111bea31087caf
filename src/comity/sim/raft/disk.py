"""A member's disk in a simulated life: the real frames of ``comity.raft.records``, and what a crash leaves of them.

What a save was writing when the power went may be there whole, in part, with sectors missing, or not at all; what a save had
ended with is there.
"""

from __future__ import annotations

import asyncio
from random import Random

from comity.errors import ComityError, DiskFull
from comity.model.raft import Ballot, Snapshot
from comity.raft.records import SECTOR, Head, Record, Recovered, frame, recover


class SimDisk:
    """``latency_s``: what a save takes, at least and at most. ``stored`` is what recovery would find now."""

    def __init__(self, member: str, founding: Snapshot, random: Random) -> None:
        self.member = member
        self.random = random
        self.latency_s = (0.0002, 0.002)
        self.is_full = False
        self.torn = 0
        """Writes that crashes have cut short so far."""
        self._data = bytearray(frame(1, Head("sim", member, Ballot(), founding)))
        self._flying = b""
        self.stored = recover([(member, bytes(self._data))])

    async def save(self, records: list[Record]) -> None:
        if self.is_full:
            await asyncio.sleep(self.latency_s[0])
            raise DiskFull(f"{self.member} has no room left")
        self._flying = data = frame(self.stored.number + 1, records)
        await asyncio.sleep(self.random.uniform(*self.latency_s))
        self._flying = b""
        self._data += data
        self.stored.number += 1
        for record in records:
            self.stored.take(record, self.member)

    def crash(self) -> None:
        """The power goes."""
        data, self._flying = self._flying, b""
        if not data:
            return
        fate = self.random.random()
        if fate < 0.25:
            return
        if fate < 0.6:
            data = data[: self.random.randrange(len(data) + 1)]
        elif fate < 0.9:
            data = self._without_sectors(data)
        self._data += data

    def _without_sectors(self, data: bytes) -> bytes:
        """Some sectors of the write reached the disk, others did not."""
        start = len(self._data)
        whole = bytearray(data)
        for sector in range(start // SECTOR, (start + len(data) - 1) // SECTOR + 1):
            if self.random.random() < 0.5:
                begin, end = max(sector * SECTOR - start, 0), min((sector + 1) * SECTOR - start, len(data))
                whole[begin:end] = bytes(end - begin)
        return bytes(whole)

    def recover(self) -> Recovered:
        """What a member that starts finds. Raises Corrupt, ForeignData."""
        found = recover([(self.member, bytes(self._data))])
        self.torn += found.torn is not None
        del self._data[found.good :]
        self.stored = found
        return found

    def damage(self) -> ComityError | None:
        """Flip a bit of what is there; what recovery says to it. None: it was believed."""
        place = self.random.randrange(len(self._data))
        self._data[place] ^= 1 << self.random.randrange(8)
        try:
            recover([(self.member, bytes(self._data))])
        except ComityError as error:
            return error
        return None
