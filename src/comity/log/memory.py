"""The log in memory, shared by any number of doors in one event loop: for tests and the simulated world, which puts its own
delays and failures in front of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from comity.errors import Conflict, Corrupt, Disconnected, TooLarge
from comity.log.base import Durability, Item


class MemoryLogState:
    """The log behind the doors. ``entries[i]`` has index ``first + i``; a test may damage or drop what is there, as a disk
    does. Invariant: without such a test, the tail's number never falls."""

    def __init__(self, entry_limit: int = 1024 * 1024) -> None:
        self.entry_limit = entry_limit
        self.first = 1
        self.entries: list[bytes] = []
        self._followers: list[asyncio.Future[None]] = []

    @property
    def last(self) -> int:
        return self.first + len(self.entries) - 1

    def ring(self) -> None:
        """Wake all followers to look again."""
        followers, self._followers = self._followers, []
        for follower in followers:
            if not follower.done():
                follower.set_result(None)

    async def changed(self) -> None:
        follower: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._followers.append(follower)
        await follower


class MemoryLog:
    """One process's door to a ``MemoryLogState``."""

    lag_s = 0.0

    def __init__(self, state: MemoryLogState) -> None:
        self.state = state
        self.entry_limit = state.entry_limit
        self._closed = False

    async def append(self, entry: bytes, after: int) -> int:
        state = self._open()
        if len(entry) > self.entry_limit:
            raise TooLarge(f"an entry of {len(entry)} bytes; the limit is {self.entry_limit}")
        if after != state.last:
            raise Conflict(f"the log's tail is {state.last}, not {after}", after=after, last=state.last)
        state.entries.append(entry)
        state.ring()
        await asyncio.sleep(0)  # an append is never instantaneous: let others run, as a real one would
        return after + 1

    async def bounds(self) -> tuple[int, int]:
        state = self._open()
        return state.first, state.last

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        state = self._open()
        if after + 1 < state.first:
            raise Corrupt(f"log entry {after + 1} was trimmed away; the first is {state.first}", index=after + 1)
        start = after + 1 - state.first
        return [Item(after + 1 + n, data) for n, data in enumerate(state.entries[start : start + limit])]

    async def follow(self, after: int) -> AsyncIterator[list[Item]]:
        while not self._closed:
            items = await self.read(after)
            if items:
                after = items[-1].index
                yield items
            else:
                await self.state.changed()

    async def trim(self, upto: int) -> None:
        state = self._open()
        count = min(upto, state.last) - state.first + 1
        if count > 0:
            del state.entries[:count]
            state.first += count

    async def durability(self) -> Durability:
        return Durability("unverified", "the log is in memory and ends with its process")

    async def close(self) -> None:
        self._closed = True
        self.state.ring()

    def _open(self) -> MemoryLogState:
        if self._closed:
            raise Disconnected("the log is closed")
        return self.state
