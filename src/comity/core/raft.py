"""Raft: members agree on one log, whatever a minority of them does, and whatever is lost on the way.

          no leader for 1 to 2 election times      a majority would vote        a majority votes
    FOLLOWER -----------------------------> TRIAL ------------> CANDIDATE ------------> LEADER
       ^                                      |                     |                     |
       +--- a leader, a higher term, refused -+---------------------+---------------------+
                                                 no majority answers, or no voter any more

After Ongaro and Ousterhout, In Search of an Understandable Consensus Algorithm (2014), whose sections are cited by number, and
Ongaro's thesis. Who was cut off does not disturb the others when it is back: it asks first (pre-vote, thesis 9.6), and nobody who
hears a leader listens to it (4.2.3). What must not be known before it is saved is held back in ``raft_state``; what a leader does
is in ``raft_leading``; entries of a leader's own are those of ``Propose``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from comity.core.quorum import outcome
from comity.core.raft_events import (
    Change,
    Compact,
    Effect,
    Event,
    HandOver,
    Lost,
    Propose,
    Read,
    Received,
    Refusal,
    Refused,
    Role,
    Saved,
    Tick,
    Timing,
)
from comity.core.raft_leading import Leading
from comity.core.raft_log import RaftLog
from comity.core.raft_state import RaftState
from comity.model.raft import (
    Append,
    Appended,
    AskVote,
    Ballot,
    CampaignNow,
    Config,
    LogEntry,
    Message,
    Snapshot,
    SnapshotGot,
    SnapshotPart,
    Vote,
)


class Raft:
    """One member. ``chance`` gives numbers from 0 to 1. ``ballot``, ``snapshot`` and ``entries`` are what its disk has; a new
    network's members begin with ``founding``, one that joins with nothing."""

    def __init__(
        self,
        id: str,
        now: float,
        chance: Callable[[], float],
        timing: Timing | None = None,
        *,
        ballot: Ballot | None = None,
        snapshot: Snapshot | None = None,
        entries: Sequence[LogEntry] = (),
    ) -> None:
        log = RaftLog(snapshot or Snapshot(), list(entries))
        self.state = RaftState(id, (timing or Timing()).validate(), ballot or Ballot(), log, now)
        self.leading: Leading | None = None
        self._chance = chance
        self._votes: dict[str, bool] = {}
        self._followed = self.state.term, ""  # the term and leader of what comes next
        self._heard = -1.0  # from the leader
        self._verified = 0  # up to there the log is the leader's
        self._acknowledged = 0
        self._round = 0  # the leader's newest question
        self._incoming: tuple[int, int, bytearray] = (0, 0, bytearray())  # a snapshot: the leader's term, index, its start
        self._deadline = now  # who alone has a vote need not wait
        if self.config.voters != (id,) or self.config.outgoing:
            self._wind()

    @property
    def log(self) -> RaftLog:
        return self.state.log

    @property
    def config(self) -> Config:
        return self.state.log.config

    # The machine

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; ``now`` never goes back. A leader first looks whether it still may lead."""
        state = self.state
        state.now = max(now, state.now)
        if self.leading is not None and self.leading.is_alone:
            self._follow(state.term, "")
        match event:
            case Received():
                self._received(event.sender, event.message)
            case Saved():
                self._saved(event.number)
            case Compact():
                if event.index > self.log.snapshot.index:
                    state.compact(event.index, event.data)
            case Lost():
                if self.leading is not None:
                    self.leading.lost(event.member)
            case Tick():
                pass
            case _:
                self._asked(event)
        if self.leading is not None and self.leading.is_over:
            self._follow(state.term, "")
        self._look_at_the_clock()
        return state.finish()

    def next_deadline(self) -> float | None:
        if self.leading is not None:
            return self.leading.deadline
        return self._deadline if self.config.is_voter(self.state.id) else None

    def _look_at_the_clock(self) -> None:
        if self.leading is not None:
            self.leading.tick()
        elif self.state.now >= self._deadline and self.config.is_voter(self.state.id):
            self._campaign(is_trial=True)

    def _wind(self) -> None:
        """Without a leader, campaign after one to two election times, not all at once (5.2)."""
        self._deadline = self.state.now + self.state.timing.election_s * (1 + self._chance())

    def _asked(self, event: Propose | Read | Change | HandOver) -> None:
        """What only a leader can do."""
        leading = self.leading
        if isinstance(event, HandOver):
            if leading is not None:
                leading.hand_over(event.target)
        elif leading is None:
            keys = [key for key, _ in event.items] if isinstance(event, Propose) else [event.key]
            self.state.effects += [Refused(key, Refusal.NOT_LEADER) for key in keys]
        elif isinstance(event, Propose):
            leading.propose(event)
        elif isinstance(event, Read):
            leading.read(event.key)
        else:
            leading.change(event)

    def _saved(self, number: int) -> None:
        self.state.end_save(number)
        if self.leading is not None:
            self.leading.count()
        elif self.state.role is Role.CANDIDATE:
            self._count_votes()
        elif self.state.leader and min(self._verified, self.log.saved) > self._acknowledged:
            self._acknowledge()

    # Terms and messages

    def _received(self, sender: str, message: Message) -> None:
        state = self.state
        if isinstance(message, AskVote):
            self._asked_to_vote(sender, message)
            return
        leads = isinstance(message, Append | SnapshotPart)
        promised = isinstance(message, Vote) and message.is_trial and message.is_granted
        if message.term > state.term and not promised:
            self._follow(message.term, sender if leads else "")
        if message.term < state.term:
            if leads:  # so that it hears of us and gives up
                state.send(sender, Appended(state.term, 0, is_refused=True))
            return
        match message:
            case Append():
                self._append(sender, message)
            case SnapshotPart():
                self._snapshot_part(sender, message)
            case Vote():
                self._voted(sender, message)
            case CampaignNow():
                if state.role is not Role.LEADER and state.id in self.config.voters:
                    self._campaign(is_trial=False, is_forced=True)
            case Appended() if self.leading is not None:
                self.leading.appended(sender, message)
            case SnapshotGot() if self.leading is not None:
                self.leading.snapshot_got(sender, message)

    def _follow(self, term: int, leader: str) -> None:
        """Be a follower in ``term``, of ``leader`` if one is known (5.1)."""
        state = self.state
        if term > state.term:
            state.cast(term, "")
        if (term, leader) != self._followed:
            self._verified = self._acknowledged = self._round = 0
            self._followed = term, leader
        leading, self.leading = self.leading, None
        state.role, state.leader = Role.FOLLOWER, leader
        if leading is not None:
            leading.end()
        if leader:
            self._heard = state.now
        self._wind()

    # Elections

    def _campaign(self, *, is_trial: bool, is_forced: bool = False) -> None:
        state, log = self.state, self.log
        if not is_trial:
            state.cast(state.term + 1, state.id)
        state.role, state.leader = Role.TRIAL if is_trial else Role.CANDIDATE, ""
        self._votes = {}
        self._wind()
        ask = AskVote(state.term + is_trial, log.last, log.last_term, is_trial, is_forced)
        for member in log.config.members:
            if member != state.id and log.config.is_voter(member):
                state.send(member, ask)
        self._count_votes()

    def _has_leader(self) -> bool:
        """A leader is there, or was heard of within the least election time (4.2.3)."""
        state = self.state
        is_near = state.leader != "" and state.now < self._heard + state.timing.election_s
        return is_near or state.role is Role.LEADER

    def _asked_to_vote(self, sender: str, ask: AskVote) -> None:
        state = self.state
        if ask.term > state.term and not ask.is_forced and self._has_leader():
            return
        fits = not self.log.is_newer(ask.last_index, ask.last_term)
        if ask.is_trial:
            is_granted = fits and ask.term > state.term
            state.send(sender, Vote(ask.term if is_granted else state.term, is_granted, is_trial=True))
            return
        if ask.term > state.term:
            self._follow(ask.term, "")
        is_granted = fits and ask.term == state.term and state.ballot.vote in ("", sender)
        if is_granted:
            if state.ballot.vote != sender:
                state.cast(state.term, sender)
            self._wind()
        state.send(sender, Vote(state.term, is_granted))

    def _voted(self, sender: str, vote: Vote) -> None:
        state = self.state
        if state.role is (Role.TRIAL if vote.is_trial else Role.CANDIDATE):
            if vote.is_granted and vote.term != state.term + vote.is_trial:
                return  # of an earlier campaign
            self._votes[sender] = vote.is_granted
            self._count_votes()

    def _count_votes(self) -> None:
        """Our own vote counts once it is on the disk."""
        state = self.state
        is_trial = state.role is Role.TRIAL
        mine = {state.id: True} if is_trial or state.has_saved_ballot else {}
        match outcome(self.config, self._votes | mine):
            case True if is_trial:
                self._campaign(is_trial=False)
            case True:
                state.role, state.leader = Role.LEADER, state.id
                self.leading = Leading(state)
            case False:
                state.role = Role.FOLLOWER

    # Following

    def _append(self, leader: str, message: Append) -> None:
        self._follow(message.term, leader)
        state, log = self.state, self.log
        self._round = max(self._round, message.round)
        if message.after < log.commit:  # what is committed is the leader's, too (leader completeness, 5.4.3)
            known = log.commit - message.after
            state.merge(message.entries[known:])
            self._verified = max(self._verified, message.after + max(known, len(message.entries)))
        elif log.term_at(message.after) == message.after_term:
            state.merge(message.entries)
            self._verified = max(self._verified, message.after + len(message.entries))
        else:
            hint = log.agreement(message.after, message.after_term)
            state.send(leader, Appended(state.term, message.after, True, hint, log.term_at(hint) or 0, self._round))
            return
        log.commit = max(log.commit, min(message.commit, self._verified))
        if not message.entries or self._verified <= log.saved:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Say how far the log is the leader's and on the disk; what is not there yet is said when it is."""
        state = self.state
        self._acknowledged = min(self._verified, self.log.saved)
        state.send(state.leader, Appended(state.term, self._acknowledged, round=self._round))

    def _snapshot_part(self, leader: str, part: SnapshotPart) -> None:
        self._follow(part.term, leader)
        state, log = self.state, self.log
        self._round = max(self._round, part.round)
        if log.term_at(part.index) == part.last_term:  # we have all that, and maybe more (7)
            log.commit = max(log.commit, part.index)
        if part.index <= log.commit:
            self._verified = max(self._verified, log.commit)
            self._acknowledge()
            return
        term, index, start = self._incoming
        if (term, index) != (part.term, part.index):
            start = bytearray()
            self._incoming = part.term, part.index, start
        if part.offset == len(start):
            start += part.data
            if part.is_last:
                state.restore(Snapshot(part.index, part.last_term, part.config, bytes(start)))
                self._incoming = (0, 0, bytearray())
                self._verified = part.index
                self._acknowledged = min(self._acknowledged, log.saved)
                return
        state.send(leader, SnapshotGot(state.term, part.index, len(start), self._round))

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        self.state.check()
        assert (self.leading is not None) == (self.state.role is Role.LEADER)
        assert self._acknowledged <= self.log.saved
        if self.leading is not None:
            assert self.state.leader == self.state.id
            self.leading.check()
