"""To begin although what is needed is away for a moment: a group of servers without a leader, a server that starts again."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog

from comity.errors import Indefinite

RETRY_S = 0.2
QUIET_S = 2.0
"""For so long nobody is told: elections take a moment."""

_log = structlog.get_logger("comity.controller")
T = TypeVar("T")


async def patiently(work: Callable[[], Awaitable[T]], limit_s: float, progress: Callable[[], object] = lambda: None) -> T:
    """Do ``work`` again until it succeeds. Raises its Indefinite error once it has failed for ``limit_s`` while what ``progress``
    gives stayed the same."""
    time = asyncio.get_running_loop().time
    began, reached, said = time(), progress(), False
    while True:
        try:
            return await work()
        except Indefinite as error:
            if progress() != reached:
                began, reached = time(), progress()
            waited_s = time() - began
            if waited_s >= limit_s:
                raise
            if not said and waited_s >= QUIET_S:
                said = True
                _log.warning("cannot begin yet; trying again", code=error.code, error=error.message)
        await asyncio.sleep(RETRY_S)  # that a group has a leader again cannot be awaited
