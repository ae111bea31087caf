"""What a Raft leader does, for as long as it leads: replicate, commit, answer for reads, change the membership, hand over.

It writes its own disk while it sends (thesis, 10.2.1), so its own copy counts like any other: once it is saved. It commits by
counting only what is of its own term (5.4.2). A read waits until a majority has answered a question that was put after the read
came in, which proves that nobody else led then (read-index, thesis 6.4); reads that come meanwhile share the next question.
"""

from __future__ import annotations

from math import inf

from comity.core.quorum import agreed
from comity.core.raft_events import Change, Propose, Proposed, Readable, Refusal, Refused
from comity.core.raft_log import encode_config
from comity.core.raft_progress import Phase, Progress
from comity.core.raft_state import RaftState
from comity.model.raft import (
    CONFIG,
    DATA,
    EMPTY,
    Append,
    Appended,
    CampaignNow,
    Config,
    LogEntry,
    SnapshotGot,
    SnapshotPart,
)


class Leading:
    """``progress``: by member, all but ourselves. ``is_over``: we are no voter any more, and that is committed."""

    def __init__(self, state: RaftState) -> None:
        self.state = state
        self.progress: dict[str, Progress] = {}
        self.is_over = False
        self._beat = state.now + state.timing.heartbeat_s
        self._round = 0
        self._reads: list[int] = []  # they wait for the next question
        self._asked: list[int] = []  # they wait for answers to this one
        self._readable = 0
        self._target = ""
        self._hand_over_by = inf
        self._write([(EMPTY, b"")])

    # Deadlines

    def _heard(self) -> float:
        """When a majority was last there."""
        me = self.state.id
        return agreed(self.state.log.config, lambda voter: inf if voter == me else self.progress[voter].heard)

    @property
    def is_alone(self) -> bool:
        """No majority answered for an election time (check-quorum, thesis 6.2)."""
        return self.state.now >= self._heard() + self.state.timing.election_s

    @property
    def deadline(self) -> float:
        return min(self._beat, self._heard() + self.state.timing.election_s, self._hand_over_by)

    def tick(self) -> None:
        now = self.state.now
        if now >= self._hand_over_by:
            self._target, self._hand_over_by = "", inf  # it did not come to it: go on
        if now >= self._beat:
            self.beat()

    def beat(self) -> None:
        """Say that we lead, and what waits to be said again."""
        self._beat = self.state.now + self.state.timing.heartbeat_s
        for member in self.progress:
            self._feed(member, is_beat=True)

    # Replication

    def _write(self, items: list[tuple[int, bytes]]) -> int:
        """Append entries of ours; the index of the first."""
        state = self.state
        first = state.log.last + 1
        state.append([LogEntry(first + n, state.term, data, kind) for n, (kind, data) in enumerate(items)])
        if state.log.config_index >= first or not self.progress:
            self._meet()
        for member in self.progress:
            self._feed(member)
        return first

    def _meet(self) -> None:
        """Know those who take part, and forget who does no more."""
        state = self.state
        others = [member for member in state.log.config.members if member != state.id]
        known = self.progress
        self.progress = {m: known[m] if m in known else Progress(state.log.last, state.now) for m in others}

    def _feed(self, member: str, *, is_beat: bool = False) -> None:
        """Send what it lacks, as far as it may be on its way."""
        log, timing = self.state.log, self.state.timing
        progress = self.progress[member]
        if progress.phase is Phase.SNAPSHOT:
            if is_beat:
                self._send_part(member, progress)
            return
        if log.term_at(progress.next - 1) is None:
            progress.begin_snapshot(log.snapshot)
            self._send_part(member, progress)
            return
        if is_beat:
            progress.is_asked = False
        while progress.may_send(timing.most_messages, timing.most_bytes):
            entries = log.batch(progress.next - 1, timing.batch_bytes)
            if not entries:
                break
            self._send(member, progress, entries)
            is_beat = False
        if is_beat:
            self._send(member, progress, [])

    def _send(self, member: str, progress: Progress, entries: list[LogEntry]) -> None:
        state, after = self.state, progress.next - 1
        after_term = state.log.term_at(after)
        assert after_term is not None
        state.send(member, Append(state.term, after, after_term, entries, state.log.commit, self._round))
        progress.sent(entries)

    def _send_part(self, member: str, progress: Progress) -> None:
        state, snapshot = self.state, progress.snapshot
        assert snapshot is not None
        data = snapshot.data[progress.offset : progress.offset + state.timing.part_bytes]
        is_last = progress.offset + len(data) == len(snapshot.data)
        about = state.term, snapshot.index, snapshot.term, snapshot.config
        state.send(member, SnapshotPart(*about, progress.offset, data, is_last, self._round))

    def appended(self, member: str, message: Appended) -> None:
        progress = self._answered(member, message.round)
        if progress is None:
            return
        if message.is_refused:
            agreement = self.state.log.agreement(message.hint, message.hint_term)
            if not progress.refused(message.match, agreement):
                return
        else:
            progress.took(message.match)
            self.count()
        if member in self.progress:
            self._feed(member)
        self._hand_over_if_ready()

    def snapshot_got(self, member: str, message: SnapshotGot) -> None:
        progress = self._answered(member, message.round)
        if progress is None or progress.snapshot is None or progress.snapshot.index != message.index:
            return
        if message.offset != progress.offset:
            progress.offset = message.offset
            self._send_part(member, progress)

    def _answered(self, member: str, question: int) -> Progress | None:
        progress = self.progress.get(member)
        if progress is not None:
            progress.heard = self.state.now
            progress.round = max(progress.round, question)
            self._count_round()
        return progress

    def lost(self, member: str) -> None:
        """It may have started again, from a disk that has less than it said: then it gets the rest again, rather than never."""
        progress = self.progress.get(member)
        if progress is not None and progress.phase is not Phase.SNAPSHOT:
            progress.probe()
            progress.match = 0

    def count(self) -> None:
        """Commit what a majority has on its disks, if it is of our term."""
        log, me = self.state.log, self.state.id
        index = agreed(log.config, lambda voter: log.saved if voter == me else self.progress[voter].match)
        if index <= log.commit or log.term_at(index) != self.state.term:
            return
        log.commit = index
        config = log.config
        if log.config_index <= log.commit:
            if config.outgoing:
                kept = {m: a for m, a in config.addresses.items() if m in config.voters or m in config.learners}
                left = Config(config.voters, (), config.learners, kept)
                self._write([(CONFIG, encode_config(left))])
            elif me not in config.voters:
                self.is_over = True
        self._ask()

    # What is asked of us

    def propose(self, event: Propose) -> None:
        if self._target:
            self._refuse([key for key, _ in event.items], Refusal.HANDING_OVER)
            return
        first = self._write([(DATA, data) for _, data in event.items])
        self.state.effects += [Proposed(key, first + n, self.state.term) for n, (key, _) in enumerate(event.items)]

    def read(self, key: int) -> None:
        self._reads.append(key)
        self._ask()

    def _ask(self) -> None:
        """Put the next question, if somebody waits, none is open, and something of our term is committed: before that we do not
        know what was (thesis, 6.4, step 1)."""
        log = self.state.log
        if self._reads and not self._asked and log.term_at(log.commit) == self.state.term:
            self._asked, self._reads = self._reads, []
            self._readable = log.commit
            self._round += 1
            self.beat()
            self._count_round()

    def _count_round(self) -> None:
        me = self.state.id
        if not self._asked:
            return
        if agreed(self.state.log.config, lambda v: self._round if v == me else self.progress[v].round) >= self._round:
            self.state.effects += [Readable(key, self._readable) for key in self._asked]
            self._asked = []
            self._ask()

    def change(self, event: Change) -> None:
        """Begin a change of membership by the joint one (thesis, 4.3); the rest follows by itself."""
        log, old = self.state.log, self.state.log.config
        if self._target:
            self._refuse([event.key], Refusal.HANDING_OVER)
        elif old.outgoing or log.config_index > log.commit or log.term_at(log.commit) != self.state.term:
            self._refuse([event.key], Refusal.CHANGING)
        elif not event.voters:
            self._refuse([event.key], Refusal.NO_VOTERS)
        elif not all(voter in old.voters or self._is_near(voter) for voter in event.voters):
            self._refuse([event.key], Refusal.BEHIND)
        else:
            voters = tuple(dict.fromkeys(event.voters))  # each has one vote
            outgoing = old.voters if set(old.voters) != set(voters) else ()
            learners = tuple(member for member in dict.fromkeys(event.learners) if member not in voters)
            config = Config(voters, outgoing, learners, {**old.addresses, **event.addresses})
            index = self._write([(CONFIG, encode_config(config))])
            self.state.effects.append(Proposed(event.key, index, self.state.term))

    def _is_near(self, member: str) -> bool:
        """A learner that has almost everything, so that as a voter it holds up nobody (thesis, 4.2.1)."""
        progress = self.progress.get(member)
        return progress is not None and progress.match + self.state.timing.near >= self.state.log.last and progress.match > 0

    def hand_over(self, target: str) -> None:
        """Take no more, until ``target`` has everything; then it campaigns at once (thesis, 3.10)."""
        if target in self.state.log.config.voters and target in self.progress:
            self._target = target
            self._hand_over_by = self.state.now + self.state.timing.election_s
            self._hand_over_if_ready()

    def _hand_over_if_ready(self) -> None:
        progress = self.progress.get(self._target)
        if progress is not None and progress.match == self.state.log.last:
            self.state.send(self._target, CampaignNow(self.state.term))

    def end(self) -> None:
        """We lead no more."""
        self._refuse(self._asked + self._reads, Refusal.NOT_LEADER)
        if self.is_over:
            self.beat()  # so that they know it, too
            best = max(self.state.log.config.voters, key=lambda voter: self.progress[voter].match)
            self.state.send(best, CampaignNow(self.state.term))

    def _refuse(self, keys: list[int], reason: Refusal) -> None:
        self.state.effects += [Refused(key, reason) for key in keys]

    def check(self) -> None:
        log = self.state.log
        for progress in self.progress.values():
            assert progress.match < progress.next <= log.last + 1
            assert progress.size == sum(size for _, size in progress.on_their_way)
        assert set(self.progress) == {*log.config.members} - {self.state.id}
