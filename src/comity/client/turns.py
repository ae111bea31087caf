"""Many callers at the same moment, and one event loop: so much is done in one turn of it, the rest in later ones, first come
first served. Else thousands that submit, or are told of a result, would keep a process from saying that it lives."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

PER_TURN = 128
"""Inputs checked and sent, or callers woken, in a turn: about five milliseconds."""


class Turns:
    """Invariant: nobody waits unless a turn's share is used up, and then the next turn is asked for."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._used = 0
        self._waiting: deque[tuple[int, asyncio.Future[Any], Any]] = deque()

    async def take(self, amount: int) -> None:
        """Wait for a turn in which ``amount`` may be done."""
        if self._used >= PER_TURN:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append((amount, waiter, None))
            await waiter
        else:
            self._use(amount)

    def wake(self, waiter: asyncio.Future[Any], result: Any) -> None:
        """Give ``waiter`` its result, in this turn or a later one, unless it is done by then."""
        if self._used >= PER_TURN:
            self._waiting.append((1, waiter, result))
        elif not waiter.done():
            self._use(1)
            waiter.set_result(result)

    def _use(self, amount: int) -> None:
        if not self._used:
            self._loop.call_soon(self._next)
        self._used += amount

    def _next(self) -> None:
        self._used = 0
        while self._waiting and self._used < PER_TURN:
            amount, waiter, result = self._waiting.popleft()
            if not waiter.done():
                self._use(amount)
                waiter.set_result(result)
