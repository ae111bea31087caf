"""What a leader knows of one follower's log, and how much it may send.

    PROBE      nothing is sure: one message at a time, until one is taken
    REPLICATE  as far as known they agree: many messages on their way (thesis, 10.2.1), up to a limit of messages and bytes
    SNAPSHOT   what it lacks is cut away: it gets a snapshot, chunk by chunk
"""

from __future__ import annotations

import enum
from collections import deque

from comity.model.raft import LogEntry, Snapshot


class Phase(enum.StrEnum):
    PROBE = "probe"
    REPLICATE = "replicate"
    SNAPSHOT = "snapshot"


class Progress:
    """``match``: up to there its log is ours, durably. ``next``: what is sent next. ``heard``: when it last answered in our term.
    ``round``: the newest of our questions that it answered. Invariant: ``match < next``."""

    __slots__ = ("heard", "is_asked", "match", "next", "offset", "on_their_way", "phase", "round", "size", "snapshot")

    def __init__(self, start: int, heard: float) -> None:
        self.match = 0
        self.next = start
        self.heard = heard
        self.round = 0
        self.phase = Phase.PROBE
        self.is_asked = False  # of a probe: its answer is awaited
        self.on_their_way: deque[tuple[int, int]] = deque()  # last index and bytes of each message
        self.size = 0
        self.snapshot: Snapshot | None = None
        self.offset = 0

    def may_send(self, messages: int, size: int) -> bool:
        if self.phase is Phase.REPLICATE:
            return len(self.on_their_way) < messages and self.size < size
        return self.phase is Phase.PROBE and not self.is_asked

    def sent(self, entries: list[LogEntry]) -> None:
        if self.phase is Phase.PROBE:
            self.is_asked = True
        elif entries:
            size = sum(len(entry.data) for entry in entries)
            self.next = entries[-1].index + 1
            self.on_their_way.append((entries[-1].index, size))
            self.size += size

    def probe(self) -> None:
        """Begin again from what is certain."""
        self.phase = Phase.PROBE
        self.next = self.match + 1
        self.is_asked = False
        self.on_their_way.clear()
        self.size = 0
        self.snapshot = None

    def begin_snapshot(self, snapshot: Snapshot) -> None:
        self.probe()
        self.phase, self.snapshot, self.offset = Phase.SNAPSHOT, snapshot, 0

    def took(self, match: int) -> None:
        """It has everything up to ``match``."""
        self.match = max(self.match, match)
        self.next = max(self.next, self.match + 1)
        while self.on_their_way and self.on_their_way[0][0] <= match:
            self.size -= self.on_their_way.popleft()[1]
        if self.phase is Phase.PROBE or (self.snapshot is not None and match >= self.snapshot.index):
            self.probe()
            self.phase = Phase.REPLICATE

    def refused(self, after: int, agreement: int) -> bool:
        """What followed ``after`` did not fit, and the logs agree at ``agreement`` at best. False: that is old news."""
        if self.phase is Phase.SNAPSHOT or after <= self.match or (self.phase is Phase.PROBE and after != self.next - 1):
            return False
        self.probe()
        self.next = max(min(after, agreement + 1), self.match + 1)
        return True
