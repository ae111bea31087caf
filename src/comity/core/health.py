"""Whether an agent is well, from probes of it: it is unwell after some failures in a row, and well again after some successes."""

from __future__ import annotations

from comity.model.capability import AgentStatus


class Health:
    """``why`` is what the last failed probe said, while it is unwell."""

    __slots__ = ("_against", "_failures", "_successes", "is_well", "why")

    def __init__(self, failures: int, successes: int) -> None:
        self.is_well = True
        self.why = ""
        self._failures = failures
        self._successes = successes
        self._against = 0
        """Probes in a row that say otherwise than ``is_well``."""

    def saw(self, fault: str) -> bool:
        """A probe was answered: ``fault`` is what is wrong, "" if nothing is. Whether that changes the verdict."""
        if bool(fault) is not self.is_well:
            self._against = 0
            self.why = fault
            return False
        self._against += 1
        if self._against < (self._failures if self.is_well else self._successes):
            return False
        self._against = 0
        self.is_well, self.why = not self.is_well, fault
        return True

    def status(self, now: AgentStatus) -> AgentStatus:
        """What its status shall be. Who was paused, or drains, stays so."""
        if now is AgentStatus.ACTIVE and not self.is_well:
            return AgentStatus.UNHEALTHY
        return AgentStatus.ACTIVE if now is AgentStatus.UNHEALTHY and self.is_well else now
