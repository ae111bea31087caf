"""The same seed lives the same life, on any machine and whatever PYTHONHASHSEED: else no violation could be found again."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from comity.sim import World

PROGRAM = """
import gc
from comity.sim import World
for seed in (1, 2, 3, 5, 8):
    print(World(seed).run().hash)
"""


def lives(hash_seed: str) -> list[str]:
    """Trace hashes of a few lives, lived by a process of their own."""
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=150, check=True
    )
    return done.stdout.split()


@pytest.mark.timeout(320)
def test_lives_do_not_depend_on_the_hash_seed_or_on_the_process() -> None:
    first = lives("1")
    assert len(set(first)) == 5, "each seed has a life of its own"
    assert lives("4711") == first


@pytest.mark.parametrize("seed", [4, 6])
def test_a_life_repeats_in_the_same_process(seed: int) -> None:
    first, second = World(seed).run(), World(seed).run()
    assert first == second
