"""What Raft promises (figure 3 of the paper), looked at in every step of every member, and what clients may see.

    election safety        a term has at most one leader
    log matching           an entry's index and term tell what it is, and all that is before it
    leader completeness    who is elected has all that was committed before
    state machine safety   what is applied at an index is the same everywhere
    durability             what a member says that it has, or has voted, is on its disk; committed is what a majority's disks have
    reads                  what was committed when a read came is applied when it is answered (thesis, 6.4)
    linearizability        of compare-and-append, and of reads of the tail
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from comity.core import raft_events as r
from comity.model.raft import CONFIG, Appended, AskVote, Ballot, Config, LogEntry, Snapshot, Vote
from comity.sim.checkers import Violation
from comity.sim.history import History, Operation
from comity.sim.linear import check as check_linear

if TYPE_CHECKING:
    from comity.raft.member import Member
    from comity.sim.raft.disk import SimDisk


class Written(NamedTuple):
    before: int  # term of the entry before it
    data: bytes
    kind: int


class Judge:
    """Sees all members and disks of a life. ``leading`` gives whoever leads a term now, if it is there."""

    def __init__(self, disk_of: Callable[[str], SimDisk], leading: Callable[[int], Member | None], founding: Config) -> None:
        self._leading = leading
        self._founding = founding
        self._votes: dict[tuple[int, str], str] = {}  # by term and voter
        self._reads: dict[tuple[str, int], int] = {}  # what was committed when the read came
        self.committed: dict[int, LogEntry] = {}
        self._committed_in: dict[int, int] = {}  # the term of whoever committed it, by index
        self.leaders: dict[int, str] = {}
        self._disk_of = disk_of
        self._written: dict[tuple[int, int], Written] = {}
        self._last_committed = 0

    def see(self, member: Member, effect: r.Effect) -> None:
        """A member is about to do this."""
        match effect:
            case r.Save():
                self._saves(member, effect.entries)
                if effect.snapshot is not None:
                    self._stands_for(member, effect.snapshot)
            case r.Readable(key, index):
                if index < (known := self._reads.pop((member.id, key), 0)):
                    raise Violation(f"reads: {member.id} answers with entry {index}; {known} was committed when it was asked")
            case r.Send(to, message):
                self._says(member, to, message)
            case r.Commit(entries):
                self._commits(member, entries)
            case r.Became(r.Role.LEADER, term, _):
                self._leads(member, term)

    def asked(self, member: Member, event: r.Event) -> None:
        """A member is told this."""
        if isinstance(event, r.Read):
            self._reads[member.id, event.key] = self._last_committed

    def _leads(self, member: Member, term: int) -> None:
        other = self.leaders.setdefault(term, member.id)
        if other != member.id:
            raise Violation(f"election safety: {other} and {member.id} lead term {term}")
        log = member.raft.log
        if not _is_majority(log.config, lambda voter: self._votes.get((term, voter)) == member.id):
            raise Violation(f"election safety: {member.id} leads term {term}, and no majority has voted for it")
        for index in range(max(log.snapshot.index, 1) + 1, self._last_committed + 1):
            if self._committed_in[index] >= term:
                break  # late votes elected a leader that is deposed already: what later ones committed need not be there
            if (found := log.term_at(index)) != self.committed[index].term:
                raise Violation(
                    f"leader completeness: {member.id} leads term {term}; entry {index} was committed in term "
                    f"{self.committed[index].term}, and it has {found}"
                )

    def _saves(self, member: Member, entries: list[LogEntry]) -> None:
        log = member.raft.log
        before = log.term_at(entries[0].index - 1) if entries else 0
        for entry in entries:
            written = Written(before or 0, entry.data, entry.kind)
            if self._written.setdefault((entry.index, entry.term), written) != written:
                raise Violation(f"log matching: {member.id} has another entry {entry.index} of term {entry.term}")
            before = entry.term

    def _says(self, member: Member, to: str, message: object) -> None:
        stored = self._disk_of(member.id).stored
        if isinstance(message, Vote | AskVote) and not message.is_trial and (isinstance(message, AskVote) or message.is_granted):
            candidate = to if isinstance(message, Vote) else member.id
            other = self._votes.setdefault((message.term, member.id), candidate)
            if other != candidate:
                raise Violation(f"election safety: {member.id} votes for {other} and {candidate} in term {message.term}")
        if isinstance(message, Appended) and not message.is_refused:
            self._acknowledges(member, message)
        match message:
            case Appended(_, match, False):
                have = stored.entries[-1].index if stored.entries else stored.snapshot.index
                if match > have:
                    raise Violation(f"durability: {member.id} acknowledges entry {match}, and its disk has {have}")
            case Vote(term, True, False) if not _keeps(stored.ballot, Ballot(term, to)):
                raise Violation(f"durability: {member.id} votes for {to} in term {term}, and its disk has {stored.ballot}")
            case AskVote(term, _, _, False) if not _keeps(stored.ballot, Ballot(term, member.id)):
                raise Violation(f"durability: {member.id} asks for votes in term {term}, and its disk has {stored.ballot}")

    def _acknowledges(self, member: Member, message: Appended) -> None:
        leader = self._leading(message.term)
        if leader is None:
            return
        mine, other = member.raft.log.term_at(message.match), leader.raft.log.term_at(message.match)
        if message.match > leader.raft.log.last or (mine != other and None not in (mine, other)):
            raise Violation(
                f"log matching: {member.id} acknowledges entry {message.match} of term {mine}; {leader.id}'s is of {other}"
            )

    def _stands_for(self, member: Member, snapshot: Snapshot) -> None:
        configs = [e for e in self.committed.values() if e.kind == CONFIG and e.index <= snapshot.index]
        newest = max(configs, key=lambda entry: entry.index, default=None)
        config = msgspec.msgpack.decode(newest.data, type=Config) if newest is not None else self._founding
        if snapshot.config != config:
            raise Violation(f"state machine safety: {member.id}'s snapshot {snapshot.index} has {snapshot.config}, not {config}")

    def _commits(self, member: Member, entries: list[LogEntry]) -> None:
        for entry in entries:
            known = self.committed.setdefault(entry.index, entry)
            self._committed_in.setdefault(entry.index, member.raft.state.term)
            if known != entry:
                raise Violation(f"state machine safety: {member.id} applies another entry {entry.index}: {entry}, not {known}")
        if entries[-1].index > self._last_committed:
            self._last_committed = entries[-1].index
            self._on_disks(member, entries[-1])
            if member.raft.leading is not None and entries[-1].term != member.raft.state.term:
                raise Violation(f"leader completeness: {member.id} commits entry {entries[-1].index} of an old term (5.4.2)")

    def _on_disks(self, member: Member, entry: LogEntry) -> None:
        """The first to commit it is the leader."""

        def has(voter: str) -> bool:
            stored = self._disk_of(voter).stored
            if stored.snapshot.index >= entry.index:
                return True
            place = entry.index - stored.snapshot.index - 1
            return place < len(stored.entries) and stored.entries[place].term == entry.term

        if not _is_majority(member.raft.config, has):
            raise Violation(f"durability: {member.id} commits entry {entry.index}, and no majority has it on its disks")


def _is_majority(config: Config, has: Callable[[str], bool]) -> bool:
    """Not the code that is judged."""
    return all(2 * sum(map(has, group)) > len(group) for group in (config.voters, config.outgoing) if group)


def _keeps(stored: Ballot, ballot: Ballot) -> bool:
    """Whether who starts from ``stored`` casts no other vote in that term."""
    return stored == ballot or stored.term > ballot.term


class Tail:
    """The model of one copy: its state is the tail's number."""

    def start(self) -> Hashable:
        return 0

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        assert isinstance(state, int)
        if operation.kind == "tail":
            return state if operation.answer == state else None
        after = operation.argument
        if not operation.is_known:
            return state + 1 if after == state else state
        if operation.error == "conflict":
            return state if after != state and operation.answer == state else None
        return state + 1 if after == state and operation.answer == state + 1 else None


def judge_history(history: History) -> None:
    """Raises Violation. Reads that came back with nothing, and definite refusals, say nothing."""
    told = [o for o in history.operations if (o.error in ("", "conflict") if o.is_known else o.kind == "append")]
    if (found := check_linear(told, Tail(), "the log")) is not None:
        raise Violation(str(found))
