"""A process dies at each durable write of the programs, just before and just after it, and comes back. Every promise is
kept."""

from __future__ import annotations

import pytest

from comity import failpoints
from comity.failpoints import SIMULATED
from comity.sim import World

LIMITS = {
    "snapshot_every": 10, "keep_finished": 20, "keep_dead": 1, "dedup_window_s": 9.0, "retries": 3, "max_waiting": 1000,
}  # fmt: skip
LIVES = 10


@pytest.mark.timeout(120)
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("write", SIMULATED)
def test_a_process_may_die_at_any_write(write: str, when: str) -> None:
    point = f"{write}.{when}"
    for seed in range(LIVES):
        world = World(
            seed, controllers=2, nodes=2, clients=2, torture_s=8.0, faults={"crash": 1.0, "deaf": 0.5}, settings=LIMITS
        )
        world.faults.doomed = point, 0
        world.run()
        if any(event.what == "crash" and event.detail.endswith(f" at {point}") for event in world.trace.events):
            return
    pytest.fail(f"in {LIVES} lives no process came to {point}")


@pytest.mark.timeout(120)
def test_a_process_may_die_at_its_writes_again_and_again() -> None:
    for seed in range(5):
        report = World(seed, faults={"crash at a write": 1.0}, settings=LIMITS).run()
        assert set(report.faults) <= {"crash at a write"}


def test_a_life_watches_writes_only_while_it_lasts() -> None:
    World(1, torture_s=0.0, faults={}).run()
    seen: list[str] = []
    with failpoints.watched(seen.append):
        World(1, controllers=1, torture_s=1.0, faults={}).run()
    assert "term.append.before" in seen
    count = len(seen)
    with failpoints.durable("log.append"):
        assert len(seen) == count
