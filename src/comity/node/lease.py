"""A node's right to run attempts: renewed by beacons that the leader acknowledges, counted from when they were sent.

    in contact ──(lease_s − margin without an acknowledged beacon)──▶ out of contact ──(orphan_s)──▶ orphan
        ▲                                                                 │
        └──────────────────────(a beacon is acknowledged)────────────────┘

In contact, attempts may begin. Out of contact none begins, but those that run go on. An orphan stops them: its work is long
somebody else's. Beacons carry secret numbers and go where only controllers listen, so that only a controller can acknowledge
one: that is how a node knows its leader.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from math import inf

from comity.model.ids import ProcessId
from comity.model.wire import BeaconAck

MARGIN = 0.1
"""Part of the lease at whose end no attempt begins any more: clocks drift, and beginning takes a moment."""
_BEACONS_KEPT = 64
LISTED_S = 5.0
LOOK_S, LOOK_MAX_S = 0.01, 0.5


class Lease:
    """``term`` never falls. ``leader`` is the process that last acknowledged a beacon in that term, "" before;
    ``aside`` how it said that an operator set the node aside, ``is_listed`` whether it knows the node's agents."""

    def __init__(self, orphan_s: float, secret: Callable[[], int]) -> None:
        self.term = 0
        self.leader = ProcessId("")
        self.contact_at = -inf
        self.aside = ""
        self.is_listed = False
        self.renewed: Callable[[], None] = lambda: None
        """Called whenever a beacon was acknowledged."""
        self._orphan_s = orphan_s
        self._secret = secret
        self._begins_until = -inf
        self._sent: dict[int, float] = {}

    def beacon(self, now: float) -> int:
        """The number of a beacon that is being sent."""
        number = self._secret()
        self._sent[number] = now
        while len(self._sent) > _BEACONS_KEPT:
            del self._sent[next(iter(self._sent))]
        return number

    def take(self, ack: BeaconAck, sender: ProcessId) -> bool:
        """Whether ``ack`` counts: it answers a beacon of ours, and its term is not over."""
        sent_at = self._sent.pop(ack.seq, None)
        if sent_at is None or ack.term < self.term:
            return False
        self.term = ack.term
        self.leader = sender
        self.aside = ack.aside
        self.is_listed = ack.listed
        self.contact_at = max(self.contact_at, sent_at)
        self._begins_until = max(self._begins_until, sent_at + ack.lease_s * (1 - MARGIN))
        self.renewed()
        return True

    async def listed(self, beacon: Callable[[], None], limit_s: float = LISTED_S) -> bool:
        """Wait until the leader knows the node's agents, of which it hears by the registry, perhaps later than of the node; send
        beacons to ask it. False if it does not in time."""
        pause_s = LOOK_S
        try:
            async with asyncio.timeout(limit_s):
                while not self.is_listed:
                    beacon()
                    await asyncio.sleep(pause_s)
                    pause_s = min(pause_s * 2, LOOK_MAX_S)
        except TimeoutError:
            return False
        return True

    def end(self) -> None:
        """Evicted: no acknowledgement of an earlier beacon counts any more."""
        self._sent.clear()
        self._begins_until = -inf

    def may_begin(self, now: float) -> bool:
        return now < self._begins_until

    def is_orphan(self, now: float) -> bool:
        return now >= self.contact_at + self._orphan_s
