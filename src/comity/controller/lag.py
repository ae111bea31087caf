"""How late the controller's event loop is while it works, and how much of that it worked itself; the rest is the machine's, which
let others run."""

from __future__ import annotations

import asyncio
from collections import deque
from time import thread_time
from typing import Any

LOOK_S = 0.01
WINDOW_S = 10.0


class Lag:
    """Looks every ``LOOK_S`` while it is ``touch``ed in between, and not at all while nothing happens. The loop's clock may count
    whole milliseconds, and so does this."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._late: deque[tuple[float, float, float]] = deque()  # when, how late, worked for at most
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._worked = 0.0
        self._touched = False

    def touch(self) -> None:
        """There is work."""
        self._touched = True
        if self._timer is None:
            self._arm()

    def _arm(self) -> None:
        self._touched = False
        self._due = self._loop.time() + LOOK_S
        self._worked = thread_time()
        self._timer = self._loop.call_at(self._due, self._look)

    def _look(self) -> None:
        now = self._loop.time()
        late = max(0.0, now - self._due)
        self._late.append((now, late, min(late, thread_time() - self._worked)))
        self._timer = None
        self._forget(now)
        if self._touched:
            self._arm()

    def _forget(self, now: float) -> None:
        while self._late and self._late[0][0] < now - WINDOW_S:
            self._late.popleft()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def figures(self) -> dict[str, Any]:
        """Of the last ten seconds, in milliseconds: ``p99_ms``, ``max_ms``, ``max_ms_by_second``, the last second first, and
        ``work_ms_by_second``: for how long the loop worked itself without a turn, at most."""
        now = self._loop.time()
        self._forget(now)
        late = sorted(seconds for _, seconds, _ in self._late) or [0.0]
        by_second, work = [0.0] * (int(WINDOW_S) + 1), [0.0] * (int(WINDOW_S) + 1)
        for at, seconds, worked in self._late:
            ago = int(now - at)
            by_second[ago] = max(by_second[ago], _ms(seconds))
            work[ago] = max(work[ago], _ms(worked))
        return {
            "p99_ms": _ms(late[int(len(late) * 0.99)]), "max_ms": _ms(late[-1]),
            "max_ms_by_second": by_second, "work_ms_by_second": work,
        }  # fmt: skip


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 1)
