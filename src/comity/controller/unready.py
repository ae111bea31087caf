"""Says what a start waits for: not at once, for elections take a moment, and not again and again."""

from __future__ import annotations

from typing import Any

from comity.errors import Indefinite

QUIET_S, AGAIN_S = 2.0, 10.0


class Unready:
    """Hears each error, and for how many seconds there have been such; tells ``log`` of one that lasts."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._due_s = QUIET_S

    def __call__(self, error: Indefinite, waited_s: float) -> None:
        if waited_s == 0.0:  # the first one, or the first since it got on
            self._due_s = QUIET_S
        if waited_s >= self._due_s:
            self._due_s = waited_s + AGAIN_S
            self._log.warning("cannot begin yet; trying again", code=error.code, error=error.message)
