"""Messages that were refused are told to the leader, who makes an event of each: so that it shows who speaks out of turn."""

from __future__ import annotations

from collections.abc import Callable

from comity.model.envelope import Envelope
from comity.model.item import Item
from comity.model.limits import NAME_MAX, REASON_MAX
from comity.model.wire_talk import Misfit

PER_S = 20
"""So many a second at most: whoever floods us shall not flood the leader."""


_TOLD = ("sender", "receiver", "performative", "topic", "protocol", "conversation")


class Complaints:
    """``told`` and ``untold`` count them. ``now`` is the loop's clock."""

    def __init__(self, post: Callable[[Item], None], now: Callable[[], float]) -> None:
        self.told = 0
        self.untold = 0
        self._post = post
        self._now = now
        self._since = float("-inf")
        self._lately = 0

    def tell(self, envelope: Envelope, reason: str) -> None:
        now = self._now()
        if now - self._since >= 1.0:
            self._since, self._lately = now, 0
        if self._lately >= PER_S:
            self.untold += 1
            return
        self._lately += 1
        self.told += 1
        said = {name: getattr(envelope, name)[:NAME_MAX] for name in _TOLD}
        self._post(Misfit(**said, reason=reason[:REASON_MAX]))
