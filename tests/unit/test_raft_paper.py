"""The rules of Raft, one test each, with the section that has it: of the paper (Ongaro and Ousterhout 2014) or of the thesis
(Ongaro 2014).

One machine, and messages made by hand; how several behave together stands in ``tests/scenarios/raft``.
"""

from __future__ import annotations

from typing import Any

import pytest
from one_member import FIVE, THREE, Member, append

from comity.core import raft_events as r
from comity.core.quorum import agreed, outcome
from comity.core.raft import Raft
from comity.core.raft_log import encode_config
from comity.errors import BadSettings
from comity.model.raft import (
    CONFIG,
    EMPTY,
    Append,
    Appended,
    AskVote,
    Ballot,
    CampaignNow,
    Config,
    LogEntry,
    Snapshot,
    SnapshotPart,
    Vote,
)


class TestTerms:
    def test_5_1_a_newer_term_makes_a_follower_of_anyone(self) -> None:
        for member in (Member(), Member().lead()):
            term = member.machine.state.term
            member.hear("c", Appended(term + 4, 0, is_refused=True))
            assert (member.role, member.machine.state.ballot) == (r.Role.FOLLOWER, Ballot(term + 4))

    def test_5_1_an_older_leader_is_refused_and_told_the_term(self) -> None:
        member = Member(ballot=Ballot(5))
        assert member.hear("b", append(4, 0, 0, 4)) == [Appended(5, 0, is_refused=True)]
        assert member.hear("b", SnapshotPart(4, 9, 1, THREE, 0, b"", True)) == [Appended(5, 0, is_refused=True)]
        assert member.terms() == []

    def test_5_1_an_older_candidate_is_refused_and_told_the_term(self) -> None:
        assert Member(ballot=Ballot(5)).hear("b", AskVote(4, 9, 4)) == [Vote(5, False)]

    def test_figure_2_nothing_is_answered_before_the_term_and_vote_are_saved(self) -> None:
        member = Member()
        member.is_slow = True
        assert member.hear("b", AskVote(1, 0, 0)) == []
        assert member.saves[-1].ballot == Ballot(1, "b")
        member.step(r.Saved(member.saves[-1].number))
        assert member.sent == [("b", Vote(1, True))]


class TestElection:
    def test_5_2_without_a_leader_a_follower_campaigns(self) -> None:
        member = Member()
        member.at(0.74)
        assert member.role is r.Role.FOLLOWER
        member.at(0.75)
        assert member.role is r.Role.TRIAL

    def test_5_2_a_leaders_word_puts_it_off(self) -> None:
        member = Member()
        member.at(0.7)
        member.hear("b", append(1, 0, 0))
        member.at(1.44)
        assert member.role is r.Role.FOLLOWER

    def test_5_2_one_vote_a_term(self) -> None:
        member = Member()
        assert member.hear("b", AskVote(1, 0, 0)) == [Vote(1, True)]
        assert member.hear("c", AskVote(1, 0, 0)) == [Vote(1, False)]
        assert member.hear("b", AskVote(1, 0, 0)) == [Vote(1, True)]

    def test_5_2_a_majority_elects(self) -> None:
        member = Member(FIVE)
        member.at(0.75)
        for voter in ("b", "c"):
            member.hear(voter, Vote(1, True, True))
        member.hear("b", Vote(1, True))
        assert member.role is r.Role.CANDIDATE
        member.hear("b", Vote(1, True))
        assert member.role is r.Role.CANDIDATE
        member.hear("c", Vote(1, True))
        assert member.role is r.Role.LEADER

    def test_5_2_votes_of_an_earlier_term_do_not_count(self) -> None:
        member = Member()
        member.at(0.75)
        member.hear("b", Vote(1, True, True))
        member.at(10)
        member.hear("b", Vote(2, True, True))
        assert (member.role, member.machine.state.term) == (r.Role.CANDIDATE, 2)
        member.hear("b", Vote(1, True))
        assert member.role is r.Role.CANDIDATE

    def test_5_2_its_own_vote_counts_once_it_is_saved(self) -> None:
        member = Member()
        member.at(0.75)
        member.is_slow = True
        member.hear("b", Vote(1, True, True))
        member.hear("b", Vote(1, True))
        assert member.role is r.Role.CANDIDATE
        member.step(r.Saved(member.saves[-1].number))
        assert member.role is r.Role.LEADER

    def test_5_2_a_candidate_gives_way_to_a_leader_of_its_term(self) -> None:
        member = Member()
        member.at(0.75)
        member.hear("b", Vote(1, True, True))
        member.hear("c", append(1, 0, 0))
        assert (member.role, member.machine.state.leader) == (r.Role.FOLLOWER, "c")

    def test_5_2_who_is_refused_by_a_majority_waits(self) -> None:
        member = Member()
        member.at(0.75)
        for voter in ("b", "c"):
            member.hear(voter, Vote(0, False, True))
        assert (member.role, member.machine.state.term) == (r.Role.FOLLOWER, 0)

    @pytest.mark.parametrize(
        ("mine", "last", "last_term", "granted"),
        [((1, 1), 2, 1, True), ((1, 1), 1, 2, True), ((1, 1), 3, 1, True), ((1, 1), 1, 1, False), ((1, 2), 9, 1, False)],
    )
    def test_5_4_1_only_who_has_all_that_may_be_committed_is_elected(
        self, mine: tuple[int, ...], last: int, last_term: int, granted: bool
    ) -> None:
        assert Member(terms=mine).hear("b", AskVote(3, last, last_term)) == [Vote(3, granted)]
        asked = Member(terms=mine).hear("b", AskVote(3, last, last_term, is_trial=True))
        assert asked == [Vote(3 if granted else max(mine), granted, True)]

    def test_9_6_a_trial_changes_nothing(self) -> None:
        member = Member(ballot=Ballot(2, "c"))
        assert member.hear("b", AskVote(3, 0, 0, is_trial=True)) == [Vote(3, True, True)]
        assert (member.machine.state.ballot, member.saves) == (Ballot(2, "c"), [])

    def test_4_2_3_who_hears_a_leader_listens_to_nobody_else(self) -> None:
        member = Member()
        member.hear("b", append(1, 0, 0))
        member.now = 0.49
        assert member.hear("c", AskVote(2, 9, 1, is_trial=True)) == []
        assert member.hear("c", AskVote(2, 9, 1)) == []
        member.now = 0.51
        assert member.hear("c", AskVote(2, 9, 1)) == [Vote(2, True)]
        leader = Member().lead()
        assert leader.hear("c", AskVote(9, 9, 8)) == []

    def test_6_2_a_leader_without_a_majority_gives_up(self) -> None:
        member = Member().lead()
        began = member.now
        member.at(began + 0.3)
        member.hear("b", Appended(1, 1))
        member.at(began + 0.79)
        assert member.role is r.Role.LEADER
        member.at(began + 0.81)
        assert member.role is r.Role.FOLLOWER

    def test_6_2_a_leader_that_slept_gives_up_before_it_does_anything(self) -> None:
        member = Member().lead()
        member.now += 10
        effects = member.step(r.Propose([(1, b"late")]))
        assert r.Refused(1, r.Refusal.NOT_LEADER) in effects
        assert member.role is r.Role.FOLLOWER

    def test_a_member_alone_leads_once_its_vote_is_saved(self) -> None:
        member = Member(Config(("a",)))
        member.is_slow = True
        member.at(0.0)
        assert (member.role, len(member.saves)) == (r.Role.CANDIDATE, 1)
        member.at(0.01)
        member.is_slow = False
        member.step(r.Saved(1))
        assert (member.role, member.machine.state.term) == (r.Role.LEADER, 1)
        assert member.machine.log.commit == 1

    def test_who_has_no_vote_does_not_campaign(self) -> None:
        for config in (Config(("b",), learners=("a",)), Config()):
            member = Member(config)
            assert member.machine.next_deadline() is None
            member.at(100)
            assert member.sent == []
            member.hear("b", CampaignNow(0))
            assert member.role is r.Role.FOLLOWER


class TestReplication:
    def test_5_3_entries_need_their_predecessor(self) -> None:
        member = Member(terms=(1, 1))
        assert member.hear("b", append(2, 3, 1, 2)) == [Appended(2, 3, True, 2, 1)]
        assert member.hear("b", append(2, 2, 2, 2)) == [Appended(2, 2, True, 2, 1)]
        assert member.terms() == [1, 1]
        assert member.hear("b", append(2, 2, 1, 2)) == [Appended(2, 3)]
        assert member.terms() == [1, 1, 2]

    def test_5_3_what_conflicts_goes_with_all_that_follows(self) -> None:
        member = Member(terms=(1, 1, 2, 2))
        member.hear("b", append(3, 1, 1, 1, 3))
        assert member.terms() == [1, 1, 3]
        assert [entry.index for entry in member.saves[-1].entries] == [3]

    def test_5_3_a_late_message_cuts_nothing_off(self) -> None:
        member = Member()
        member.hear("b", append(1, 0, 0, 1, 1, 1))
        assert member.hear("b", append(1, 0, 0, 1)) == [Appended(1, 3)]
        assert member.terms() == [1, 1, 1]

    def test_5_3_what_follows_what_is_committed_is_taken(self) -> None:
        """Whatever the message begins with: what is committed the leader has, too, and need not be compared."""
        member = Member()
        member.hear("b", append(1, 0, 0, 1, 1, commit=2))
        assert member.hear("b", append(1, 0, 0, 1, 1, 1)) == [Appended(1, 3)]
        member.step(r.Compact(2, b""))
        assert member.hear("b", append(1, 0, 0, 1, 1, 1, 1)) == [Appended(1, 4)]
        assert member.hear("c", append(2, 1, 1, 1, 1, 2)) == [Appended(2, 4)]
        assert member.terms() == [1, 2]
        assert member.hear("c", append(2, 0, 0, 1)) == [Appended(2, 4)]

    def test_5_3_a_follower_tells_only_what_it_compared(self) -> None:
        """Its log is longer, but the rest may not be the leader's."""
        member = Member(terms=(1, 1, 1))
        assert member.hear("b", append(2, 1, 1)) == [Appended(2, 1)]
        assert member.hear("b", append(2, 0, 0, 1, 1)) == [Appended(2, 2)]

    def test_5_3_a_follower_commits_no_more_than_it_compared(self) -> None:
        member = Member(terms=(1, 1, 1))
        member.hear("b", append(2, 1, 1, commit=3))
        assert member.machine.log.commit == 1

    def test_5_3_entries_are_acknowledged_once_they_are_saved(self) -> None:
        member = Member(ballot=Ballot(1))
        member.is_slow = True
        assert member.hear("b", append(1, 0, 0, 1)) == []
        assert member.hear("b", append(1, 1, 1)) == [Appended(1, 0)]
        member.step(r.Saved(1))
        assert member.sent[-1] == ("b", Appended(1, 1))

    def test_5_3_what_another_leader_replaced_while_it_was_saved_does_not_count(self) -> None:
        member = Member(ballot=Ballot(1))
        member.is_slow = True
        member.hear("b", append(1, 0, 0, 1, 1))
        member.hear("c", append(2, 1, 1, 2, 2))
        member.step(r.Saved(1))
        assert member.machine.log.saved == 1
        member.step(r.Saved(2))
        assert (member.machine.log.saved, member.sent[-1]) == (3, ("c", Appended(2, 3)))

    def test_5_3_a_leader_never_changes_its_own_log(self) -> None:
        member = Member(terms=(1, 1)).lead()
        member.step(r.Propose([(1, b"x")]))
        assert member.terms() == [1, 1, 2, 2]

    def test_5_3_a_leader_goes_back_to_where_they_agree(self) -> None:
        """A whole term at a time: figure 7, f."""
        member = Member(terms=(1, 1, 1, 4, 4, 5, 5, 6, 6, 6), ballot=Ballot(7)).lead()
        (again,) = member.hear("b", Appended(8, 10, True, 10, 3))
        assert isinstance(again, Append)
        assert (again.after, again.after_term, [entry.index for entry in again.entries]) == (3, 1, [*range(4, 12)])

    def test_5_3_a_refusal_that_comes_late_is_no_news(self) -> None:
        member = Member(terms=(1,)).lead()
        member.hear("b", Appended(2, 2))
        assert member.hear("b", Appended(2, 1, True, 0, 0)) == []

    def test_5_3_committed_is_what_a_majority_has_saved(self) -> None:
        member = Member(FIVE).lead()
        member.hear("b", Appended(1, 1))
        assert member.machine.log.commit == 0
        member.hear("c", Appended(1, 1))
        assert member.machine.log.commit == 1

    def test_10_2_1_a_leaders_own_copy_counts_once_it_is_saved(self) -> None:
        member = Member().lead()
        member.is_slow = True
        member.step(r.Propose([(1, b"x")]))
        assert ("b", Append(1, 0, 0, member.machine.log.entries, 0)) not in member.sent
        member.hear("b", Appended(1, 1))
        assert member.machine.log.commit == 1
        assert [len(m.entries) for to, m in member.sent if to == "b" and isinstance(m, Append)] == [1, 1]
        member.step(r.Saved(member.saves[-1].number))
        assert member.machine.log.commit == 1
        member.hear("c", Appended(1, 2))
        assert member.machine.log.commit == 2

    def test_5_4_2_an_entry_of_an_old_term_is_not_committed_by_counting(self) -> None:
        """Figure 8."""
        member = Member(FIVE, terms=(1, 2), ballot=Ballot(3)).lead()
        for voter in ("b", "c", "d"):
            member.hear(voter, Appended(4, 2))
        assert member.machine.log.commit == 0
        for voter in ("b", "c"):
            member.hear(voter, Appended(4, 3))
        assert member.machine.log.commit == 3

    def test_5_3_every_committed_entry_is_applied_once_and_in_order(self) -> None:
        member = Member()
        member.hear("b", append(1, 0, 0, 1, 1, 1, commit=2))
        member.hear("b", append(1, 3, 1, 1, commit=4))
        assert [[e.index for e in commit.entries] for commit in member.found(r.Commit)] == [[1, 2], [3, 4]]

    def test_8_a_leader_begins_its_term_with_an_entry(self) -> None:
        member = Member(terms=(1,)).lead()
        assert member.machine.log.entries[-1] == LogEntry(2, 2, b"", EMPTY)

    def test_10_2_1_messages_follow_each_other_up_to_a_limit(self) -> None:
        member = Member(timing=r.Timing(most_messages=3)).lead()
        member.hear("b", Appended(1, 1))
        for key in range(5):
            member.step(r.Propose([(key, b"x")]))
        on_their_way = [m.after for to, m in member.sent if to == "b" and isinstance(m, Append) and m.after]
        assert on_their_way == [1, 2, 3]
        (following,) = member.hear("b", Appended(1, 2))
        assert isinstance(following, Append)
        assert (following.after, len(following.entries)) == (4, 2)


class TestSnapshots:
    def part(self, offset: int, data: bytes, *, is_last: bool = False, term: int = 5) -> SnapshotPart:
        return SnapshotPart(term, 9, 4, THREE, offset, data, is_last)

    def test_7_chunks_make_a_snapshot_that_replaces_the_log(self) -> None:
        member = Member(terms=(1, 1))
        (got,) = member.hear("b", self.part(0, b"one"))
        assert got == type(got)(5, 9, 3)
        (got,) = member.hear("b", self.part(0, b"one"))
        assert got == type(got)(5, 9, 3)
        assert member.hear("b", self.part(3, b"two", is_last=True)) == [Appended(5, 9)]
        assert member.found(r.Restore) == [r.Restore(Snapshot(9, 4, THREE, b"onetwo"))]
        assert (member.terms(), member.machine.log.commit, member.saves[-1].snapshot) == ([], 9, Snapshot(9, 4, THREE, b"onetwo"))

    def test_7_it_is_acknowledged_once_it_is_saved(self) -> None:
        member = Member(ballot=Ballot(5))
        member.is_slow = True
        assert member.hear("b", self.part(0, b"all", is_last=True)) == []
        member.step(r.Saved(member.saves[-1].number))
        assert member.sent[-1] == ("b", Appended(5, 9))

    def test_7_until_it_is_saved_nothing_is_acknowledged_that_the_disk_did_not_have(self) -> None:
        member = Member(ballot=Ballot(5))
        member.is_slow = True
        member.hear("b", append(5, 0, 0, 4, 4, commit=2))
        member.hear("b", self.part(0, b"all", is_last=True))
        assert member.hear("b", self.part(0, b"all", is_last=True)) == [Appended(5, 0)]

    def test_7_another_leaders_chunks_begin_anew(self) -> None:
        member = Member()
        member.hear("b", self.part(0, b"one"))
        (got,) = member.hear("c", self.part(3, b"two", is_last=True, term=6))
        assert got == type(got)(6, 9, 0)

    def test_7_what_the_log_has_already_is_kept(self) -> None:
        member = Member(terms=(4,) * 12)
        assert member.hear("b", self.part(0, b"x", is_last=True)) == [Appended(5, 9)]
        assert (len(member.terms()), member.machine.log.commit) == (12, 9)

    def test_7_a_snapshot_stands_for_what_was_applied(self) -> None:
        member = Member(terms=(1, 1, 1))
        member.hear("b", append(1, 3, 1, commit=2))
        member.step(r.Compact(2, b"two"))
        assert member.machine.log.snapshot == Snapshot(2, 1, THREE, b"two")
        with pytest.raises(AssertionError):
            member.step(r.Compact(3, b"three"))


class TestMembership:
    def test_4_3_both_groups_must_agree(self) -> None:
        joint = Config(("c", "d", "e"), ("a", "b", "c"))
        reached = {"a": 9, "b": 9, "c": 5, "d": 7, "e": 1}
        assert agreed(joint, reached.__getitem__) == 5
        assert outcome(joint, {"a": True, "b": True}) is None
        assert outcome(joint, {"a": True, "b": True, "d": True, "e": True}) is True
        assert outcome(joint, {"a": True, "b": True, "d": False, "e": False}) is False

    @pytest.mark.parametrize(("count", "needed"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
    def test_5_2_a_majority_is_more_than_half(self, count: int, needed: int) -> None:
        voters = tuple("abcde"[:count])
        for votes in range(count + 1):
            expected = True if votes >= needed else None
            assert outcome(Config(voters), dict.fromkeys(voters[:votes], True)) is expected
            assert agreed(Config(voters), lambda voter: int(voter in voters[:votes])) == int(votes >= needed)  # noqa: B023

    def test_4_1_a_membership_counts_from_when_it_is_in_the_log_until_it_is_cut_off(self) -> None:
        member = Member()
        changed = Config(("a", "b"), ("a", "b", "c"))
        member.hear("b", Append(1, 0, 0, [LogEntry(1, 1, encode_config(changed), CONFIG)], 0))
        assert member.machine.config == changed
        member.hear("c", append(2, 0, 0, 2))
        assert member.machine.config == THREE
        assert [members.config for members in member.found(r.Members)] == [changed, THREE]

    def test_4_2_1_a_learner_is_not_counted(self) -> None:
        member = Member(Config(("a", "b", "c"), learners=("d", "e"))).lead()
        member.hear("d", Appended(1, 1))
        member.hear("e", Appended(1, 1))
        assert member.machine.log.commit == 0

    def test_4_1_the_first_change_of_a_term_waits_for_its_first_entry(self) -> None:
        """The flaw of single-server changes that was found later, and its cure."""
        member = Member().lead()
        assert r.Refused(1, r.Refusal.CHANGING) in member.step(r.Change(1, ("a", "b"), (), {}))
        member.hear("b", Appended(1, 1))
        assert r.Proposed(2, 2, 1) in member.step(r.Change(2, ("a", "b"), (), {}))


class TestReads:
    def test_6_4_a_read_waits_for_an_entry_of_the_term_and_a_majority_asked_after_it_came(self) -> None:
        member = Member(terms=(1,)).lead()
        member.step(r.Read(1))
        member.hear("b", Appended(2, 1))
        assert member.found(r.Readable) == []
        asked = [m for m in member.hear("b", Appended(2, 2)) if isinstance(m, Append)]
        assert asked
        assert member.found(r.Readable) == []
        member.hear("b", Appended(2, 2, round=asked[-1].round))
        assert member.found(r.Readable) == [r.Readable(1, 2)]

    def test_6_4_an_answer_to_an_older_question_does_not_count(self) -> None:
        member = Member().lead()
        member.hear("b", Appended(1, 1))
        member.step(r.Read(1))
        member.hear("b", Appended(1, 1, round=1))
        member.step(r.Read(2))
        member.hear("c", Appended(1, 1, round=1))
        assert [readable.key for readable in member.found(r.Readable)] == [1]

    def test_6_4_who_leads_no_more_answers_no_read(self) -> None:
        member = Member().lead()
        member.step(r.Read(1))
        member.hear("c", Appended(2, 0, is_refused=True))
        assert r.Refused(1, r.Refusal.NOT_LEADER) in member.effects


class TestHandingOver:
    def test_3_10_the_target_campaigns_at_once_and_says_so(self) -> None:
        member = Member(ballot=Ballot(1))
        member.hear("b", append(1, 0, 0))
        assert member.hear("b", CampaignNow(1)) == [AskVote(2, 0, 0, is_forced=True)] * 2
        voter = Member(ballot=Ballot(1))
        voter.hear("b", append(1, 0, 0))
        assert voter.hear("c", AskVote(2, 0, 0, is_forced=True)) == [Vote(2, True)]

    def test_3_10_an_old_leaders_word_is_no_reason(self) -> None:
        member = Member(ballot=Ballot(3))
        assert member.hear("b", CampaignNow(2)) == []


@pytest.mark.parametrize("wrong", [{"election_s": 0.1}, {"heartbeat_s": 0.0}, {"heartbeat_s": 0.3}, {"most_messages": 0}])
def test_9_2_times_that_contradict_each_other_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadSettings):
        Raft("a", 0.0, lambda: 0.5, r.Timing(**wrong))
