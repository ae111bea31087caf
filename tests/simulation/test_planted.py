"""The judges are judged: planted bugs must be found. The quick ones here; all of them by ``make mutants`` or ``-m planted``."""

from __future__ import annotations

import pytest
from mutants import LIVES, hunt
from planting import PLANTED, Planted

QUICK = (
    "old_leaders_entries_count", "a_snapshot_forgets_the_chain", "a_write_is_acknowledged_before_it_is_durable",
    "a_refused_entry_is_applied", "a_follower_skips_an_entry", "epochs_start_again_with_each_leader",
    "a_repeated_submit_is_a_new_task", "keys_are_forgotten", "a_completion_is_applied_twice", "a_requeued_task_is_forgotten",
    "the_time_to_start_counts_from_the_submit", "load_is_never_given_back", "a_submit_is_accepted_before_the_log_has_it",
    "a_result_is_told_before_the_log_has_it", "a_result_is_mixed_up", "an_acknowledgement_counts_as_completion",
    "an_append_of_unknown_fate_counts_as_failed", "leases_go_by_the_wall_clock",
)  # fmt: skip
IDS = [planted.name for planted in PLANTED]


def found(planted: Planted) -> None:
    caught = hunt(planted)
    assert caught.by, f"{LIVES} lives with this bug, and nobody noticed"
    print(f"{caught.by}: {caught.said}")


def test_there_are_enough_of_them_and_each_is_another_one() -> None:
    assert len(PLANTED) >= 20
    assert len(set(IDS)) == len(IDS)
    assert set(QUICK) <= set(IDS)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_found(name: str) -> None:
    found(next(planted for planted in PLANTED if planted.name == name))


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.planted
@pytest.mark.parametrize("planted", [planted for planted in PLANTED if not planted.test], ids=lambda planted: planted.name)
def test_a_planted_bug_is_found_by_and_by(planted: Planted) -> None:
    found(planted)
