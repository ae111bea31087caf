"""Nouns of the built-in Raft: what its log holds, who takes part, and what members say to each other.

Terms, votes, entries and messages are those of Ongaro and Ousterhout (2014) and of Ongaro's thesis. A member's name is its id;
indexes start at 1.
"""

from __future__ import annotations

import msgspec

DATA, EMPTY, CONFIG = range(3)
"""Kinds of entries: a caller's bytes, what a new leader begins its term with, a membership."""


class LogEntry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One entry of a member's log."""

    index: int
    term: int
    data: bytes = b""
    kind: int = DATA


class Config(msgspec.Struct, array_like=True, frozen=True):
    """Who takes part. While there are ``outgoing`` voters the change is joint: both groups must agree (thesis, 4.3).
    ``addresses``: where each member is reached."""

    voters: tuple[str, ...] = ()
    outgoing: tuple[str, ...] = ()
    learners: tuple[str, ...] = ()
    addresses: dict[str, str] = {}

    @property
    def members(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.voters, *self.outgoing, *self.learners)))

    def is_voter(self, member: str) -> bool:
        return member in self.voters or member in self.outgoing


class Snapshot(msgspec.Struct, array_like=True, frozen=True):
    """Stands for all entries up to and with ``index``."""

    index: int = 0
    term: int = 0
    config: Config = Config()
    data: bytes = b""


def founding(config: Config) -> Snapshot:
    """What a new network's members all begin with. It takes index 1, so that who joins later, with an empty log, must get it:
    the first membership stands in no entry."""
    return Snapshot(1, 0, config)


class Ballot(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The newest term a member knows, and whom it voted for in that term ("": nobody)."""

    term: int = 0
    vote: str = ""


class AskVote(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """``is_trial``: would you vote for me in this term (pre-vote)? ``is_forced``: the leader wants it, so its being there is no
    reason to refuse."""

    term: int
    last_index: int
    last_term: int
    is_trial: bool = False
    is_forced: bool = False


class Vote(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    """A granted trial names the term that was asked for, a refused one the voter's own."""

    term: int
    is_granted: bool
    is_trial: bool = False


class Append(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Entries that follow the one at ``after``, of ``after_term``; none: a heartbeat. ``round`` counts the leader's questions
    whether it still leads."""

    term: int
    after: int
    after_term: int
    entries: list[LogEntry]
    commit: int
    round: int = 0


class Appended(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    """``match``: up to there the member's log is the leader's, and on its disk. If refused, ``match`` is the ``after`` that does
    not fit, and the logs may agree at ``hint``, which has ``hint_term`` there, or before it."""

    term: int
    match: int
    is_refused: bool = False
    hint: int = 0
    hint_term: int = 0
    round: int = 0


class SnapshotPart(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """A chunk of the snapshot ``index``, from ``offset`` on."""

    term: int
    index: int
    last_term: int
    config: Config
    offset: int
    data: bytes
    is_last: bool
    round: int = 0


class SnapshotGot(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=6):
    """The member has the first ``offset`` bytes of the snapshot."""

    term: int
    index: int
    offset: int
    round: int = 0


class CampaignNow(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=7):
    """The leader hands over to whoever gets this."""

    term: int


Message = AskVote | Vote | Append | Appended | SnapshotPart | SnapshotGot | CampaignNow
