"""Many callers at the same moment, and one event loop: so much is done in one turn of it, the rest in later ones, first come
first served. Else thousands of submits would keep a process from saying that it lives."""

from __future__ import annotations

import asyncio
from collections import deque

PER_TURN = 256
"""Inputs checked and sent in a turn: about ten milliseconds."""


class Turns:
    """Invariant: nobody waits unless a turn's share is used up, and then the next turn is asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def take(self, amount: int) -> None:
        """Wait for a turn in which ``amount`` may be done."""
        if self._used >= PER_TURN:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((amount, waiter))
            await waiter
        else:
            self._use(amount)

    def _use(self, amount: int) -> None:
        if not self._used:
            self._loop.call_soon(self._next)
        self._used += amount

    def _next(self) -> None:
        self._used = 0
        while self._waiting and self._used < PER_TURN:
            amount, waiter = self._waiting.popleft()
            if not waiter.done():
                self._use(amount)
                waiter.set_result(None)
