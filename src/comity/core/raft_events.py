"""What a Raft machine is told, and what it asks for.

Effects are done in their order. ``Save`` is the one that takes time: its driver says ``Saved`` when it is on the disk; saves
end in the order in which they began. Everything that must not leave before a save has ended, the machine itself holds back.
"""

from __future__ import annotations

import enum

import msgspec

from comity.errors import BadSettings
from comity.model.raft import Ballot, Config, LogEntry, Message, Snapshot


class Timing(msgspec.Struct, frozen=True):
    """``election_s``: a follower campaigns after one to two of them without a leader; a leader that hears no majority for one
    gives up. A leader speaks every ``heartbeat_s``. The others are bounds: bytes of a message's entries, messages and bytes on
    their way to one member, bytes of a snapshot's chunk, and how many entries a learner may lack that becomes a voter."""

    election_s: float = 0.5
    heartbeat_s: float = 0.1
    batch_bytes: int = 1 << 20
    most_messages: int = 64
    most_bytes: int = 8 << 20
    part_bytes: int = 1 << 18
    near: int = 1000

    def validate(self) -> Timing:
        """Raises BadSettings for times that contradict each other."""
        if not 0 < self.heartbeat_s * 2 <= self.election_s:
            raise BadSettings(
                f"an election time of {self.election_s} s needs a heartbeat of at most half of it, not {self.heartbeat_s} s",
                setting="raft_heartbeat_s",
            )
        if min(self.batch_bytes, self.most_messages, self.most_bytes, self.part_bytes) < 1:
            raise BadSettings("limits of what is sent must be at least 1", setting="raft")
        return self


class Role(enum.StrEnum):
    FOLLOWER = "follower"
    TRIAL = "trial"
    """It asks whether others would vote for it (pre-vote)."""
    CANDIDATE = "candidate"
    LEADER = "leader"


# Events


class Received(msgspec.Struct, frozen=True):
    sender: str
    message: Message


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class Propose(msgspec.Struct, frozen=True):
    """Entries to append, in this order, each with its caller's number."""

    items: list[tuple[int, bytes]]


class Read(msgspec.Struct, frozen=True):
    """Up to where must be applied, before a read that begins now may be answered?"""

    key: int


class Change(msgspec.Struct, frozen=True):
    """Another membership is wanted."""

    key: int
    voters: tuple[str, ...]
    learners: tuple[str, ...]
    addresses: dict[str, str]


class HandOver(msgspec.Struct, frozen=True):
    """Another voter shall lead."""

    target: str


class Saved(msgspec.Struct, frozen=True):
    """That ``Save``, and all before it, are on the disk."""

    number: int


class Compact(msgspec.Struct, frozen=True):
    """``data`` stands for all entries up to ``index``, which were handed out."""

    index: int
    data: bytes


class Lost(msgspec.Struct, frozen=True):
    """The connection to that member broke: what was on its way may be gone."""

    member: str


Event = Received | Tick | Propose | Read | Change | HandOver | Saved | Compact | Lost

# Effects


class Save(msgspec.Struct, frozen=True):
    """Write the snapshot, if there is one; then entries, which replace those from the first one's index on; and the ballot."""

    number: int
    ballot: Ballot | None
    entries: list[LogEntry]
    snapshot: Snapshot | None


class Send(msgspec.Struct, frozen=True):
    to: str
    message: Message


class Commit(msgspec.Struct, frozen=True):
    """Apply these."""

    entries: list[LogEntry]


class Restore(msgspec.Struct, frozen=True):
    """Forget what was applied; go on from this."""

    snapshot: Snapshot


class Became(msgspec.Struct, frozen=True):
    """The role, the term, and who leads it ("" unknown)."""

    role: Role
    term: int
    leader: str


class Members(msgspec.Struct, frozen=True):
    """These take part now."""

    config: Config


class Proposed(msgspec.Struct, frozen=True):
    """What ``key`` stands for is entry ``index`` of ``term``, if it becomes committed."""

    key: int
    index: int
    term: int


class Readable(msgspec.Struct, frozen=True):
    """The read may be answered once ``index`` is applied."""

    key: int
    index: int


class Refusal(enum.StrEnum):
    NOT_LEADER = "not-leader"
    HANDING_OVER = "handing-over"
    CHANGING = "changing"
    """Another change of membership is under way, or the term has just begun."""
    BEHIND = "behind"
    """Who is to become a voter is no learner yet, or lacks too much."""
    NO_VOTERS = "no-voters"


class Refused(msgspec.Struct, frozen=True):
    """It was not done and will not be."""

    key: int
    reason: Refusal


Effect = Save | Send | Commit | Restore | Became | Members | Proposed | Readable | Refused
