"""All deadlines of a process in one heap, with one timer of the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from heapq import heapify, heappop, heappush

_SWEEP = 256


class Alarm:
    """One deadline. ``cancel`` is cheap and idempotent."""

    __slots__ = ("_timers", "call")

    def __init__(self, timers: Timers, call: Callable[[], None]) -> None:
        self._timers = timers
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        if self.call is not None:
            self.call = None
            self._timers._canceled()


class Timers:
    """Invariant: while the heap is not empty, the loop's timer is set no later than the earliest live deadline."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._heap: list[tuple[float, int, Alarm]] = []
        self._number = 0
        self._dead = 0
        self._handle: asyncio.TimerHandle | None = None
        self._set_for = float("inf")

    def at(self, when: float, call: Callable[[], None]) -> Alarm:
        """``call()`` at ``when`` (the loop's time), unless the alarm is canceled."""
        alarm = Alarm(self, call)
        self._number += 1
        heappush(self._heap, (when, self._number, alarm))
        if when < self._set_for:
            self._arm()
        return alarm

    def after(self, seconds: float, call: Callable[[], None]) -> Alarm:
        return self.at(self._loop.time() + seconds, call)

    def close(self) -> None:
        """Forget them all."""
        self._heap.clear()
        self._arm()

    def _canceled(self) -> None:
        self._dead += 1
        if self._dead > _SWEEP and self._dead * 2 > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2].call is not None]
            heapify(self._heap)
            self._dead = 0

    def _arm(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        self._set_for = self._heap[0][0] if self._heap else float("inf")
        if self._heap:
            self._handle = self._loop.call_at(self._set_for, self._ring)

    def _ring(self) -> None:
        now = max(self._loop.time(), self._set_for)  # a loop may wake a moment early
        try:
            while self._heap and self._heap[0][0] <= now:
                alarm = heappop(self._heap)[2]
                call, alarm.call = alarm.call, None
                if call is None:
                    self._dead -= 1
                else:
                    call()
        finally:
            self._arm()
