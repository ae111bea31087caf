"""What was measured of attempts and live calls, by the network itself: how long they took, how often they succeeded, how many
ended in a second. Of one agent at one capability, and of a capability as a whole. Pure, and not replicated: a new leader begins
to measure anew."""

from __future__ import annotations

from array import array
from math import ceil, exp

OF_AGENT, OF_CAPABILITY = 64, 256
"""How many of the last ones count for latency and success."""
_DECAY_MS = 30_000.0
_STEP = 1000.0 / _DECAY_MS
_FAILED = -1.0


class Tally:
    """``_took`` holds the last ``window`` in ms, failed ones as ``_FAILED``; ``_rate`` is a moving mean per second that forgets
    within ``_DECAY_MS``."""

    __slots__ = ("_at_ms", "_rate", "_since_ms", "_took", "_window", "ended")

    def __init__(self, window: int) -> None:
        self.ended = 0
        self._window = window
        self._took = array("f")
        self._rate = 0.0
        self._at_ms = self._since_ms = 0

    def add(self, took_ms: float, ok: bool, now_ms: int) -> None:
        """One ended."""
        number = self.ended
        if not number:
            self._since_ms = self._at_ms = now_ms
        took = (took_ms if took_ms > 0.0 else 0.0) if ok else _FAILED
        if number < self._window:
            self._took.append(took)
        else:
            self._took[number % self._window] = took
        self.ended = number + 1
        if now_ms > self._at_ms:
            self._rate = self._faded(now_ms)
            self._at_ms = now_ms
        self._rate += _STEP

    def _faded(self, now_ms: int) -> float:
        since_ms = now_ms - self._at_ms
        return self._rate * exp(-since_ms / _DECAY_MS) if since_ms > 0 else self._rate

    def per_s(self, now_ms: int) -> float:
        """How many end in a second, over the last half minute or so; it counts no time before the first."""
        return self._faded(now_ms) / (1.0 - exp(-max(now_ms - self._since_ms, 1000) / _DECAY_MS))

    def figures(self, now_ms: int) -> dict[str, float | None]:
        """In plain units; None: nothing is known."""
        good = sorted(took for took in self._took if took >= 0.0)
        return {
            "p50_ms": _rank(good, 0.5),
            "p95_ms": _rank(good, 0.95),
            "per_s": round(self.per_s(now_ms), 3) if self.ended else None,
            "success": round(len(good) / len(self._took), 4) if self._took else None,
            "samples": len(self._took),
        }


def _rank(values: list[float], share: float) -> float | None:
    """The nearest rank: at least ``share`` of ``values`` are no higher."""
    return round(values[ceil(share * len(values)) - 1], 3) if values else None
