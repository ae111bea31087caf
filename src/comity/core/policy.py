"""How long the leader waits for what, where the task does not say."""

from __future__ import annotations

import msgspec

from comity.model.capability import Retry

STEPS_MAX = 64
"""No pause grows any more after so many retries."""


class Policy(msgspec.Struct, frozen=True):
    """Times in milliseconds. ``retry_budget``: see ``core.budget``."""

    aging_ms: int = 30_000
    backoff_ms: int = 200
    backoff_factor: float = 2.0
    backoff_max_ms: int = 60_000
    retry_budget: float = 0.1
    refusal_ms: int = 10_000
    cancel_grace_ms: int = 5_000
    attempt_slack_ms: int = 2_000

    def pause_ms(self, said: Retry | None, retries_used: int, chance: float) -> int:
        """Before the next attempt: ``first`` x ``factor``^retries, at most ``max``, cut by up to half at random."""
        first, factor, most = float(self.backoff_ms), self.backoff_factor, float(self.backoff_max_ms)
        if said is not None:
            first = first if said.first_s is None else said.first_s * 1000
            factor = factor if said.factor is None else said.factor
            most = most if said.max_s is None else said.max_s * 1000
        full = min(most, first * factor ** min(retries_used, STEPS_MAX))
        return int(full * (0.5 + 0.5 * chance))
