"""Bugs to plant in the built-in Raft. Each must be found by the judge of ``comity.sim.raft`` in one of a few lives; those that
only show when several rare things meet, by the test of the rule that they break."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import pytest

from comity.core import quorum, raft
from comity.core import raft_events as r
from comity.core.raft import Raft
from comity.core.raft_leading import Leading
from comity.core.raft_log import RaftLog
from comity.core.raft_progress import Progress
from comity.core.raft_state import RaftState
from comity.errors import NotLeader
from comity.model.raft import Append, Appended, AskVote, Ballot, Config, LogEntry, Snapshot
from comity.raft import kept
from comity.raft.kept import Kept
from comity.raft.member import Member
from comity.sim.raft.disk import SimDisk

Patch = pytest.MonkeyPatch


class PlantedRaft(NamedTuple):
    """A bug, and the faults of the lives in which it must show (None: whatever the seed draws), from life ``first`` on; or the
    test of ``tests/unit/test_raft_paper.py`` that must fail."""

    name: str
    plant: Callable[[Patch], None]
    faults: dict[str, int] | None
    first: int
    rule: str


PLANTED: list[PlantedRaft] = []


def plant(first: int = 0, rule: str = "", **faults: int) -> Callable[[Callable[[Patch], None]], None]:
    kinds = {name.replace("_", " "): count for name, count in faults.items()}

    def add(function: Callable[[Patch], None]) -> None:
        PLANTED.append(PlantedRaft(function.__name__, function, kinds or None, first, rule))

    return add


# Majorities


@plant()
def half_is_a_majority(patch: Patch) -> None:
    patch.setattr(quorum, "_median", lambda group, of: sorted((of(voter) for voter in group), reverse=True)[len(group) // 2 - 1])


@plant()
def one_vote_less_elects(patch: Patch) -> None:
    def outcome(config: Config, votes: dict[str, bool]) -> bool | None:
        return sum(votes.values()) >= len(config.voters) // 2 or None

    patch.setattr(raft, "outcome", outcome)


@plant(first=9, replace=6, crash_leader=2, split=4, cut_leader=2)
def a_joint_membership_needs_the_new_majority_only(patch: Patch) -> None:
    def groups(config: Config) -> Any:
        yield config.voters

    patch.setattr(quorum, "groups", groups)


@plant(change=6)
def a_learner_is_counted(patch: Patch) -> None:
    def counts(config: Config) -> Any:
        yield (*config.voters, *config.learners)
        if config.outgoing:
            yield config.outgoing

    patch.setattr(quorum, "groups", counts)


# What must be on the disk first


@plant()
def a_vote_is_not_synced(patch: Patch) -> None:
    send = RaftState.send

    def at_once(self: RaftState, to: str, message: Any) -> None:
        (self.effects.append(r.Send(to, message)) if not isinstance(message, AskVote) else send(self, to, message))

    patch.setattr(RaftState, "send", at_once)


@plant()
def a_vote_is_not_written(patch: Patch) -> None:
    save = SimDisk.save

    async def without(self: SimDisk, records: list[Any]) -> None:
        await save(self, [msgspec.structs.replace(r, ballot=r.ballot and Ballot(r.ballot.term)) for r in records])

    patch.setattr(SimDisk, "save", without)


@plant()
def a_term_is_not_synced(patch: Patch) -> None:
    patch.setattr(RaftState, "has_saved_ballot", True)


@plant()
def entries_are_acknowledged_before_they_are_synced(patch: Patch) -> None:
    def lazy(self: Raft) -> None:
        self._acknowledged = min(self._verified, self.log.saved)
        self.state.send(self.state.leader, Appended(self.state.term, self._verified, round=self._round))

    patch.setattr(Raft, "_acknowledge", lazy)


@plant()
def a_leader_counts_its_own_copy_before_it_is_synced(patch: Patch) -> None:
    count = Leading.count

    def eager(self: Leading) -> None:
        saved, self.state.log.saved = self.state.log.saved, self.state.log.last
        try:
            count(self)
        finally:
            self.state.log.saved = saved

    patch.setattr(Leading, "count", eager)


@plant(crash=8, slow_disk=4, power_cut=2)
def a_snapshot_is_acknowledged_before_it_is_synced(patch: Patch) -> None:
    restore = RaftLog.restore

    def hasty(self: RaftLog, snapshot: Snapshot) -> None:
        restore(self, snapshot)
        self.saved = snapshot.index

    patch.setattr(RaftLog, "restore", hasty)


@plant(first=9, slow_disk=10, cut_leader=6, pause_leader=2)
def what_replaced_an_entry_counts_as_saved_with_it(patch: Patch) -> None:
    patch.setattr(RaftState, "_shorten", lambda self, last: None)


@plant(power_cut=3, crash=3)
def a_torn_write_is_believed(patch: Patch) -> None:
    crash = SimDisk.crash

    def cut(self: SimDisk) -> None:
        crash(self)
        found = len(self._data)
        if found > 400:
            del self._data[found - 30 :]

    patch.setattr(SimDisk, "crash", cut)


# Elections


@plant()
def the_election_timer_is_inverted(patch: Patch) -> None:
    def inverted(self: Raft) -> None:
        if self.leading is not None:
            self.leading.tick()
        elif self.state.now < self._deadline and self.config.is_voter(self.state.id):
            self._campaign(is_trial=True)

    patch.setattr(Raft, "_look_at_the_clock", inverted)


@plant(crash_leader=6, slow_network=6)
def two_votes_in_one_term(patch: Patch) -> None:
    asked = Raft._asked_to_vote

    def generous(self: Raft, sender: str, ask: AskVote) -> None:
        if not ask.is_trial and ask.term == self.state.term and self.state.role is r.Role.FOLLOWER:
            self.state.ballot = Ballot(ask.term)
        asked(self, sender, ask)

    patch.setattr(Raft, "_asked_to_vote", generous)


@plant()
def who_lacks_committed_entries_is_elected(patch: Patch) -> None:
    patch.setattr(RaftLog, "is_newer", lambda self, last, last_term: False)


@plant(rule="TestElection::test_5_2_votes_of_an_earlier_term_do_not_count")
def votes_of_an_earlier_term_count(patch: Patch) -> None:
    received = Raft._received

    def any_term(self: Raft, sender: str, message: Any) -> None:
        if isinstance(message, raft.Vote) and message.is_granted and not message.is_trial:
            message = msgspec.structs.replace(message, term=self.state.term)
        received(self, sender, message)

    patch.setattr(Raft, "_received", any_term)


# Replication


@plant()
def a_follower_takes_entries_without_their_predecessor(patch: Patch) -> None:
    append = Raft._append

    def gullible(self: Raft, leader: str, message: Append) -> None:
        after = min(message.after, self.log.last)
        if after >= self.log.commit:
            message = msgspec.structs.replace(message, after=after, after_term=self.log.term_at(after))
            entries = [LogEntry(after + n, e.term, e.data, e.kind) for n, e in enumerate(message.entries, 1)]
            message = msgspec.structs.replace(message, entries=entries)
        append(self, leader, message)

    patch.setattr(Raft, "_append", gullible)


@plant()
def entries_are_sent_without_their_predecessors(patch: Patch) -> None:
    """What was refused is not sent again."""
    patch.setattr(Progress, "refused", lambda self, after, agreement: False)


@plant()
def a_late_append_cuts_off_what_follows(patch: Patch) -> None:
    def merge(self: RaftLog, entries: list[LogEntry]) -> list[LogEntry]:
        if entries and entries[0].index <= self.last:
            del self.entries[entries[0].index - self.snapshot.index - 1 :]
            self.saved = min(self.saved, entries[0].index - 1)
        self.append(entries)
        return entries

    patch.setattr(RaftLog, "merge", merge)


@plant(rule="TestReplication::test_5_3_a_follower_tells_only_what_it_compared")
def the_match_is_the_followers_length(patch: Patch) -> None:
    def length(self: Raft) -> None:
        self._acknowledged = self.log.saved
        self.state.send(self.state.leader, Appended(self.state.term, self.log.saved, round=self._round))

    patch.setattr(Raft, "_acknowledge", length)


@plant(crash_leader=8, slow_disk=3, cut=3)
def an_entry_of_an_old_term_is_committed_by_counting(patch: Patch) -> None:
    term_at = RaftLog.term_at

    def any_term(self: Leading) -> None:
        with pytest.MonkeyPatch.context() as inner:
            term = self.state.term
            inner.setattr(RaftLog, "term_at", lambda log, index: term if term_at(log, index) is not None else None)
            count(self)

    count = Leading.count
    patch.setattr(Leading, "count", any_term)


@plant(first=14)
def a_follower_commits_what_it_did_not_compare(patch: Patch) -> None:
    append = Raft._append

    def trusting(self: Raft, leader: str, message: Append) -> None:
        append(self, leader, message)
        if self.state.leader == leader:
            self.log.commit = max(self.log.commit, min(message.commit, self.log.last))

    patch.setattr(Raft, "_append", trusting)


@plant()
def a_conflict_is_kept(patch: Patch) -> None:
    def keeps(self: RaftLog, entries: list[LogEntry]) -> list[LogEntry]:
        new = [entry for entry in entries if entry.index > self.last]
        self.append(new)
        return new

    patch.setattr(RaftLog, "merge", keeps)


@plant(cut=6, loss=2)
def a_member_that_lacks_what_was_cut_away_gets_no_snapshot(patch: Patch) -> None:
    patch.setattr(Leading, "_send_part", lambda self, member, progress: None)


@plant(change=8, slow_disk=1)
def a_snapshot_forgets_the_membership(patch: Patch) -> None:
    compact = RaftLog.compact

    def forgetful(self: RaftLog, index: int, data: bytes) -> Snapshot:
        first = self._configs[0][1]
        snapshot = compact(self, index, data)
        self.snapshot = msgspec.structs.replace(snapshot, config=first)
        return self.snapshot

    patch.setattr(RaftLog, "compact", forgetful)


# Leading and answering


@plant(hand_over=6, freeze_leader=4)
def a_leader_acts_after_it_lost_its_term_across_an_await(patch: Patch) -> None:
    def propose(self: Member, data: bytes) -> asyncio.Future[int]:
        leading = self.raft.leading
        if leading is None:
            return self._refused(NotLeader(""))

        async def later() -> int:
            await asyncio.sleep(0.3)
            future = self._ask()
            leading.propose(r.Propose([(self._key, data)]))
            self.step(r.Tick())
            return int(await future)

        return asyncio.ensure_future(later())

    patch.setattr(Member, "_propose", propose)


@plant(slow_network=8, cut_leader=10, first=70)
def a_read_is_answered_because_it_led_before_an_await(patch: Patch) -> None:
    async def barrier(self: Member) -> None:
        if self.raft.leading is None:
            raise NotLeader("")
        await asyncio.sleep(0.001)

    patch.setattr(Member, "_barrier", barrier)


@plant(rule="TestReads::test_6_4_a_read_waits_for_an_entry_of_the_term_and_a_majority_asked_after_it_came")
def a_new_leader_reads_before_it_knows_what_is_committed(patch: Patch) -> None:
    def ask(self: Leading) -> None:
        if self._reads and not self._asked:
            self._asked, self._reads, self._readable = self._reads, [], self.state.log.commit
            self._round += 1
            self.beat()
            self._count_round()

    patch.setattr(Leading, "_ask", ask)


@plant(rule="TestReads::test_6_4_an_answer_to_an_older_question_does_not_count")
def an_answer_to_any_question_counts(patch: Patch) -> None:
    """A read is answered by whoever answers next, whatever was asked."""
    answered = Leading._answered
    patch.setattr(Leading, "_answered", lambda self, member, question: answered(self, member, self._round))


@plant()
def a_follower_never_applies(patch: Patch) -> None:
    apply = Member._apply
    patch.setattr(Member, "_apply", lambda self, entries: apply(self, entries) if self.raft.leading is not None else None)


@plant(slow_disk=8, slow_network=2)
def an_append_is_decided_when_it_is_proposed(patch: Patch) -> None:
    """By what the leader has applied, and not again when it is applied."""
    apply, propose = Kept.apply, Member._propose

    def blind(self: Kept, entry: LogEntry) -> Any:
        if entry.kind == 0 and entry.data[:1] == b"A":
            entry = msgspec.structs.replace(entry, data=kept.add(kept.content(entry), self.last))
        return apply(self, entry)

    def early(self: Member, data: bytes) -> asyncio.Future[int]:
        after = int.from_bytes(data[1:9], "little")
        if data[:1] == b"A" and after != self.kept.last:
            return self._refused(NotLeader(""))
        return propose(self, data)

    patch.setattr(Kept, "apply", blind)
    patch.setattr(Member, "_propose", early)


@plant()
def what_was_proposed_is_done_when_its_leader_steps_down(patch: Patch) -> None:
    def sure(self: Member) -> None:
        while self._proposed:
            self._answer(self._proposed.popleft()[2], self.kept.last + 1)

    patch.setattr(Member, "_let_go", sure)


@plant()
def a_restarted_member_forgets_the_start_of_its_log(patch: Patch) -> None:
    restore = Kept.restore
    patch.setattr(Kept, "restore", lambda self, snapshot: restore(self, b""))


@plant(freeze_leader=2)
def another_leaders_entry_answers_an_append(patch: Patch) -> None:
    """Whatever is committed in an entry's place says that it was taken."""
    apply = Member._apply

    def by_place(self: Member, entries: list[LogEntry]) -> None:
        terms = {entry.index: entry.term for entry in entries}
        self._proposed = deque((index, terms.get(index, term), key) for index, term, key in self._proposed)
        apply(self, entries)

    patch.setattr(Member, "_apply", by_place)
