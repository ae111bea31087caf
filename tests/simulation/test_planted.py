"""The judges are judged: planted bugs must be found. The quick ones here; all of them by ``make mutants`` or ``-m planted``."""

from __future__ import annotations

import pytest
from mutants import LIVES, hunt
from planted import PLANTED, Planted

QUICK: tuple[str, ...] = ()
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
