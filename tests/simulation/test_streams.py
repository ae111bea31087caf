"""Whatever fails, a stream's parts come in order, each once, and what is missing is said."""

from __future__ import annotations

import gc

import pytest
from streaming import Judge, counters, live

from comity import Break
from comity.sim.checkers import Violation


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(0, 24, 8))
def test_streams_keep_their_promises(first: int) -> None:
    for seed in range(first, first + 8):
        live(seed)
        gc.collect()


def test_the_judge_knows_right_from_wrong() -> None:
    judge = Judge()
    for part in ([1, 1], [1, 2], Break(1, 2), [1, 5], Break(2), [2, 1], [2, 2]):
        judge.take(part)
    assert (judge.parts, judge.breaks) == (5, 2)
    judge.end([2, 2])
    for wrong in ([2, 2], [2, 4], [3, 3], [1, 3]):
        with pytest.raises(Violation):
            judge.take(wrong)
    with pytest.raises(Violation):
        judge.end([2, 3])
    judge.take(Break(3))
    with pytest.raises(Violation, match="attempt 3 was announced"):
        judge.take([4, 1])
    assert [agent.name for agent in counters()] == ["counter"]
