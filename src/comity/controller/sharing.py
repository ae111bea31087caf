"""Reading what many ask for at once: each thing is read once, and few things at a time.

Whatever the leader reads comes over the connection that it leads by. A server cuts a connection for which more waits than it
will hold (``max_pending``, 64 MB): then nobody leads for a moment, and everybody asks again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from comity.patience import patiently

K = TypeVar("K")
V = TypeVar("V")


class Sharing(Generic[K, V]):
    """``read`` at most ``at_once`` times at a time, and for one key only once, however many wait for it. What is away is read
    again for ``limit_s`` seconds."""

    def __init__(self, read: Callable[[K], Awaitable[V]], at_once: int, limit_s: float = 0.0) -> None:
        self._read = read
        self._turns = asyncio.Semaphore(at_once)
        self._limit_s = limit_s
        self._under_way: dict[K, asyncio.Task[V]] = {}

    async def get(self, key: K) -> V:
        """What ``read(key)`` gives, or raises. Who stops waiting disturbs nobody else."""
        work = self._under_way.get(key)
        if work is None:
            work = self._under_way[key] = asyncio.get_running_loop().create_task(self._work(key))
            work.add_done_callback(_seen)
        return await asyncio.shield(work)

    async def _work(self, key: K) -> V:
        try:
            return await patiently(lambda: self._in_turn(key), self._limit_s)
        finally:
            del self._under_way[key]

    async def _in_turn(self, key: K) -> V:
        async with self._turns:
            return await self._read(key)

    def end(self) -> None:
        """Stop reading: whoever waits is canceled."""
        for work in self._under_way.values():
            work.cancel()


def _seen(work: asyncio.Task[V]) -> None:
    if not work.cancelled():
        work.exception()  # nobody may be waiting any more
