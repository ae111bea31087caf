"""Many lives of a Raft cluster at once, on all processors."""

from __future__ import annotations

import gc
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import NamedTuple

from comity.sim.loop import SimulationError
from comity.sim.raft.world import RaftWorld, Report

PART = 20


class Lived(NamedTuple):
    """``broken`` is the promise that it broke, if any."""

    seed: int
    broken: str
    report: Report | None


def one(seed: int) -> Lived:
    try:
        return Lived(seed, "", RaftWorld(seed).run())
    except SimulationError as error:
        return Lived(seed, f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}", None)


def _part(seeds: range) -> list[Lived]:
    lives = []
    for seed in seeds:
        lives.append(one(seed))
        gc.collect()
    return lives


def live(seeds: range, jobs: int, say: Callable[[str], None]) -> int:
    """How many of them broke a promise."""
    began, bad, done = time.monotonic(), 0, 0
    faults: Counter[str] = Counter()
    totals: Counter[str] = Counter()
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        parts = [pool.submit(_part, seeds[at : at + PART]) for at in range(0, len(seeds), PART)]
        for part in as_completed(parts):
            for lived in part.result():
                done += 1
                if lived.report is None:
                    bad += 1
                    say(f"seed {lived.seed}: {lived.broken}")
                else:
                    faults.update(lived.report.faults)
                    totals.update(appended=lived.report.appended, operations=lived.report.operations, terms=lived.report.terms)
                if done % 500 == 0:
                    say(f"{done} of {len(seeds)} lives, {bad} broke a promise, {time.monotonic() - began:.0f} s")
    took = time.monotonic() - began
    say(f"{done} lives in {took:.0f} s ({done / took:.1f} a second), {bad} broke a promise")
    say(", ".join(f"{count} {what}" for what, count in totals.items()))
    say(", ".join(f"{count} {what}" for what, count in sorted(faults.items())))
    return bad
