"""``python -m comity.sim.raft SEED``: live one life of a Raft cluster, or with ``--seeds A-B`` many, and say what came of it."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import sys
import time
from collections import Counter
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


def many(seeds: range, jobs: int) -> int:
    """How many lives broke a promise."""
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
                    _say(f"seed {lived.seed}: {lived.broken}")
                else:
                    faults.update(lived.report.faults)
                    totals.update(appended=lived.report.appended, operations=lived.report.operations, terms=lived.report.terms)
                if done % 500 == 0:
                    _say(f"{done} of {len(seeds)} lives, {bad} broke a promise, {time.monotonic() - began:.0f} s")
    took = time.monotonic() - began
    _say(f"{done} lives in {took:.0f} s ({done / took:.1f} a second), {bad} broke a promise")
    _say(", ".join(f"{count} {what}" for what, count in totals.items()))
    _say(", ".join(f"{count} {what}" for what, count in sorted(faults.items())))
    return bad


def live(seed: int, *, show: bool) -> bool:
    """Live one life and print it; whether all promises were kept."""
    world = RaftWorld(seed)
    world.is_traced = show
    try:
        report = world.run()
    except SimulationError as error:
        _say("\n".join(world.trace))
        _say(f"seed {seed}: {type(error).__name__} at {world.loop.time():.3f} s: {error}")
        _say(f"live it again with: python -m comity.sim.raft {seed} --trace")
        return False
    _say("\n".join(world.trace))
    _say(f"seed {seed}: {report.lived_s:.1f} s lived, {report.appended} entries in {report.terms} terms, every promise kept")
    _say("faults: " + (", ".join(f"{count} {what}" for what, count in sorted(report.faults.items())) or "none"))
    return True


def _say(line: str) -> None:
    if line:
        print(line, flush=True)


def _seeds(text: str) -> range:
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if a life broke a promise."""
    parser = argparse.ArgumentParser(prog="python -m comity.sim.raft", description="Live simulated lives of the built-in Raft.")
    parser.add_argument("seed", type=int, nargs="?", default=0, help="which life")
    parser.add_argument("--seeds", type=_seeds, metavar="A-B", help="live these")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="with --seeds: so many at a time")
    parser.add_argument("--trace", action="store_true", help="show everything that happens")
    given = parser.parse_args(arguments)
    if given.seeds is not None:
        return 1 if many(given.seeds, given.jobs) else 0
    return 0 if live(given.seed, show=given.trace) else 1


if __name__ == "__main__":
    sys.exit(main())
