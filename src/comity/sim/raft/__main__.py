"""``python -m comity.sim.raft SEED``: live one life of a Raft cluster, or with ``--seeds A-B`` many, and say what came of it."""

from __future__ import annotations

import argparse
import os
import sys

from comity.sim.loop import SimulationError
from comity.sim.raft import many
from comity.sim.raft.world import RaftWorld


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
        return 1 if many.live(given.seeds, given.jobs, _say) else 0
    return 0 if live(given.seed, show=given.trace) else 1


if __name__ == "__main__":
    sys.exit(main())
