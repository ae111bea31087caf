"""To do again what could not be done: a group of servers has no leader just then, a connection is being made anew.

Only for what may be done twice. An Indefinite error leaves open whether it was done.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, TypeVar

from comity.errors import Indefinite, TimedOut

RETRY_S, SELDOM_S = 0.2, 2.0
"""From one try to the next: at first, and in the end. Many may be waiting for the same."""
QUIET_S, AGAIN_S = 2.0, 10.0
"""Nobody is told at once, for elections take a moment, nor again and again."""

T = TypeVar("T")


class Unready:
    """Hears each error, and for how many seconds there have been such; tells ``log`` of those that last."""

    def __init__(self, log: Any, event: str = "cannot begin yet; trying again", **about: Any) -> None:
        self._log = log
        self._event = event
        self._about = about
        self._due_s = QUIET_S

    def __call__(self, error: Indefinite, waited_s: float) -> None:
        if waited_s == 0.0:  # it got on meanwhile
            self._due_s = QUIET_S
        if waited_s >= self._due_s:
            self._due_s = waited_s + AGAIN_S
            self._log.warning(self._event, **self._about, code=error.code, error=error.message)


async def patiently(
    work: Callable[[], Awaitable[T]],
    limit_s: float = inf,
    *,
    hopeless: Callable[[], bool] = lambda: False,
    progress: Callable[[], object] = lambda: None,
    tell: Callable[[Indefinite, float], None] = lambda _error, _waited_s: None,
) -> T:
    """Do ``work`` until it succeeds. Its Indefinite errors are raised once that is ``hopeless``, or it has failed for ``limit_s``
    seconds while what ``progress`` gives stayed the same. ``tell`` hears each error, and for how many seconds it has failed."""
    time = asyncio.get_running_loop().time
    failing_since: float | None = None
    reached, pause_s = progress(), RETRY_S
    while True:
        try:
            return await work()
        except Indefinite as error:
            now = time()
            if failing_since is None or progress() != reached:
                failing_since, reached, pause_s = now, progress(), RETRY_S
            waited_s = now - failing_since
            if hopeless() or waited_s >= limit_s:
                raise
            tell(error, waited_s)
        await asyncio.sleep(min(pause_s, limit_s - waited_s))  # that it can be done now cannot be awaited
        pause_s = min(2 * pause_s, SELDOM_S)


async def in_time(
    work: Callable[[], Awaitable[T]],
    until: float,
    *,
    hopeless: Callable[[], bool] = lambda: False,
    late: str = "it was not done in time",
) -> T:
    """Do ``work`` until it succeeds, or ``until`` (loop time): then the error that it failed with last is raised, or TimedOut,
    which says ``late``, if it did not come to any."""
    last: Indefinite | None = None

    def heard(error: Indefinite, _: float) -> None:
        nonlocal last
        last = error

    limit = asyncio.timeout_at(until)
    try:
        async with limit:
            return await patiently(work, hopeless=hopeless, tell=heard)
    except TimeoutError:
        if not limit.expired():
            raise
        raise last or TimedOut(late) from None
