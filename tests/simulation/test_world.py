"""Lives of a whole network: those that once broke a promise, some here, and many in processes of their own.

``COMITY_SIM_SEEDS`` says how many (30; 300 in CI). A failing seed is lived again with ``make sim SEED=...``.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from comity.sim.world import World
from conftest import IN_CI

BROKE = [int(line.split()[0]) for line in (Path(__file__).parent / "seeds.txt").read_text().splitlines() if line[:1].isdigit()]
HERE = range(100, 106)
FIRST = 10_000
MANY = int(os.environ.get("COMITY_SIM_SEEDS") or (300 if IN_CI else 30))
PROCESSES = 2


@pytest.mark.parametrize("seed", BROKE)
def test_what_broke_once_stays_whole(seed: int) -> None:
    World(seed).run()


def test_lives_get_something_done() -> None:
    reports = [World(seed).run() for seed in HERE]
    assert all(report.operations for report in reports)
    assert sum(report.ends.get("completed", 0) for report in reports) > 100
    assert sum(report.terms for report in reports) > len(HERE), "leaders changed"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_many_lives() -> None:
    share = MANY // PROCESSES
    env = {key: value for key, value in os.environ.items() if not key.startswith("COV")}
    lives = [
        subprocess.Popen(
            [sys.executable, "-m", "comity.sim", str(FIRST + i * share), "--seeds", str(share)],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for i in range(PROCESSES)
    ]  # fmt: skip
    said = [life.communicate()[0] for life in lives]
    assert [life.returncode for life in lives] == [0] * PROCESSES, "\n".join(text[-3000:] for text in said)
    assert all(f"{share} lives" in text for text in said), said
