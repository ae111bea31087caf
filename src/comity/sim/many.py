"""Many lives at once, on all processors: what struck them, and which of them broke a promise."""

from __future__ import annotations

import gc
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

from comity.sim.loop import SimulationError
from comity.sim.world import World

TELL_EVERY = 50
PART = 5
"""Lives that a process is given at once."""


class Lived(NamedTuple):
    """What came of one life; ``broken`` is the promise that it broke, if any."""

    seed: int
    broken: str
    faults: dict[str, int]
    ends: dict[str, int]
    lived_s: float


def one(seed: int, liars: int = 0) -> Lived:
    """Live one life."""
    world = World(seed, liars=liars)
    broken = ""
    try:
        world.run()
    except SimulationError as error:
        broken = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
    report = world.report()
    return Lived(seed, broken, report.faults, report.ends, report.lived_s)


def _part(first: int, count: int, liars: int) -> list[Lived]:
    lives = []
    for seed in range(first, first + count):
        lives.append(one(seed, liars))
        gc.collect()
    return lives


def live(seeds: range, *, liars: int = 0, jobs: int = 0, say: Callable[[str], None]) -> list[Lived]:
    """Live all of ``seeds``, whatever becomes of each, ``jobs`` at a time (default: one a processor)."""
    jobs = jobs or os.cpu_count() or 1
    began, told, bad = time.monotonic(), 0, 0
    lives: list[Lived] = []
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(_part, at, min(PART, seeds.stop - at), liars) for at in range(seeds.start, seeds.stop, PART)]
        for part in as_completed(parts):
            for life in part.result():
                lives.append(life)
                if life.broken:
                    bad += 1
                    say(f"seed {life.seed}: {life.broken}")
            if len(lives) - told >= TELL_EVERY:
                told = len(lives)
                say(f"{told} of {len(seeds)} lives, {bad} broke a promise, {time.monotonic() - began:.0f} s")
    lives.sort(key=lambda life: life.seed)
    table(lives, time.monotonic() - began, jobs, say)
    return lives


def table(lives: list[Lived], took_s: float, jobs: int, say: Callable[[str], None]) -> None:
    """What all of it came to."""
    faults: Counter[str] = Counter()
    ends: Counter[str] = Counter()
    struck: Counter[str] = Counter()
    for life in lives:
        faults.update(life.faults)
        struck.update(life.faults.keys())
        ends.update(life.ends)
    virtual_h = sum(life.lived_s for life in lives) / 3600
    bad = [life for life in lives if life.broken]
    say("")
    say(f"seeds {lives[0].seed} to {lives[-1].seed}: {len(lives)} lives, {virtual_h:.1f} hours of virtual time")
    say(f"lived in {took_s:.0f} s by {jobs} processes ({len(lives) / took_s:.1f} a second)")
    say(f"tasks: {', '.join(f'{count} {end}' for end, count in sorted(ends.items()))}")
    say("")
    say(f"{'fault':20}{'struck':>10}{'in lives':>10}")
    for kind, count in sorted(faults.items()):
        say(f"{kind:20}{count:>10}{struck[kind]:>10}")
    say(f"{'together':20}{sum(faults.values()):>10}{sum(1 for life in lives if life.faults):>10}")
    say("")
    if not bad:
        say("every promise was kept")
        return
    say(f"{len(bad)} lives broke a promise:")
    for life in bad:
        say(f"  {life.seed:6}  {life.broken}")
    say(f"find out what it takes: python -m comity.sim {bad[0].seed} --shrink")
