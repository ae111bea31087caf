"""What a Raft member is in every role: its ballot, its log, and what must be on the disk before what leaves.

A member says nothing of a term that its disk does not know yet, nor asks for votes before its own is there (5.2, figure 2:
"updated on stable storage before responding"). So messages wait for the save that holds the newest ballot; what the log has on
the disk is ``log.saved``.
"""

from __future__ import annotations

from collections import deque

from comity.core.raft_events import Became, Commit, Effect, Members, Restore, Role, Save, Send, Timing
from comity.core.raft_log import RaftLog
from comity.model.raft import Ballot, LogEntry, Message, Snapshot


class RaftState:
    """``role`` and ``leader`` are the machine's; the rest is changed by the methods."""

    def __init__(self, id: str, timing: Timing, ballot: Ballot, log: RaftLog, now: float) -> None:
        self.id = id
        self.timing = timing
        self.ballot = ballot
        self.log = log
        self.now = now
        self.role = Role.FOLLOWER
        self.leader = ""
        self.effects: list[Effect] = []
        self.saved = 0
        """The number of the last save that has ended."""
        self._issued = 0
        self._ballot_save = 0  # the save that holds the newest ballot
        self._under_way: deque[list[int]] = deque()  # saves: number, and the last entry that is on the disk after it
        self._held: deque[tuple[int, Send]] = deque()
        self._new_ballot: Ballot | None = None
        self._new_entries: list[LogEntry] = []
        self._new_snapshot: Snapshot | None = None
        self._told = Became(Role.FOLLOWER, ballot.term, "")
        self._told_config = log.config

    @property
    def term(self) -> int:
        return self.ballot.term

    @property
    def has_saved_ballot(self) -> bool:
        return self._new_ballot is None and self._ballot_save <= self.saved

    def send(self, to: str, message: Message) -> None:
        """Now, or as soon as the disk knows our ballot."""
        if self.has_saved_ballot:
            self.effects.append(Send(to, message))
        else:
            number = self._ballot_save if self._new_ballot is None else self._issued + 1
            self._held.append((number, Send(to, message)))

    # What changes and must be saved

    def cast(self, term: int, vote: str) -> None:
        assert term >= self.term
        self.ballot = self._new_ballot = Ballot(term, vote)

    def append(self, entries: list[LogEntry]) -> None:
        """A leader's own."""
        self.log.append(entries)
        self._new_entries += entries

    def merge(self, entries: list[LogEntry]) -> None:
        """Those of the leader."""
        if new := self.log.merge(entries):
            self._shorten(new[0].index - 1)
            self._new_entries += new

    def restore(self, snapshot: Snapshot) -> None:
        self._shorten(self.log.commit)
        self.log.restore(snapshot)
        self._new_snapshot = snapshot
        self.effects.append(Restore(snapshot))

    def compact(self, index: int, data: bytes) -> None:
        self._new_snapshot = self.log.compact(index, data)

    def _shorten(self, last: int) -> None:
        """What was saved behind ``last``, or is being saved, is not what the log has there now."""
        for save in self._under_way:
            save[1] = min(save[1], last)

    # The end of a save, and of a step

    def end_save(self, number: int) -> None:
        self.saved = max(self.saved, number)
        while self._under_way and self._under_way[0][0] <= number:
            self.log.saved = max(self.log.saved, self._under_way.popleft()[1])
        while self._held and self._held[0][0] <= number:
            self.effects.append(self._held.popleft()[1])

    def finish(self) -> list[Effect]:
        """What a step led to."""
        log = self.log
        if self._new_ballot is not None or self._new_entries or self._new_snapshot is not None:
            self._issued += 1
            self.effects.append(Save(self._issued, self._new_ballot, self._new_entries, self._new_snapshot))
            self._under_way.append([self._issued, log.last])
            if self._new_ballot is not None:
                self._ballot_save = self._issued
            self._new_ballot, self._new_entries, self._new_snapshot = None, [], None
        if log.applied < log.commit:
            self.effects.append(Commit(log.between(log.applied, log.commit)))
            log.applied = log.commit
        if log.config != self._told_config:
            self._told_config = log.config
            self.effects.append(Members(log.config))
        now = Became(self.role, self.term, self.leader)
        if now != self._told:
            self._told = now
            self.effects.append(now)
        effects, self.effects = self.effects, []
        return effects

    def check(self) -> None:
        self.log.check()
        assert self.term >= self.log.last_term
        assert self.log.saved <= self.log.last
        numbers = [number for number, _ in self._held]
        assert numbers == sorted(numbers), "messages leave in their order"
        assert all(number > self.saved for number in numbers)
        assert all(number > self.saved and last <= self.log.last for number, last in self._under_way)
