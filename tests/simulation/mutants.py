"""``make mutants``: plant every bug that there is, one at a time, and show what finds it. Exit code 1 if one is not found."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]

import planted as _planted  # noqa: E402, F401  each adds its own
import planted_above as _planted_above  # noqa: E402, F401
import planted_streams as _planted_streams  # noqa: E402, F401
import planted_talk as _planted_talk  # noqa: E402, F401
from planting import PLANTED, Planted  # noqa: E402

from comity.sim import World  # noqa: E402
from comity.sim.loop import SimulationError  # noqa: E402

LIVES = 200
"""Lives in which a planted bug must show."""


class Caught(NamedTuple):
    """``by`` says who found the bug ("": nobody), ``said`` how, ``lives`` after how many lives."""

    name: str
    by: str
    said: str
    lives: int
    seconds: float


def hunt(planted: Planted) -> Caught:
    """Plant it, and look for it."""
    began = time.perf_counter()
    with pytest.MonkeyPatch.context() as patch:
        planted.plant(patch)
        by, said, lives = _test(planted.test) if planted.test else _live(planted)
    return Caught(planted.name, by, said, lives, time.perf_counter() - began)


def _live(planted: Planted) -> tuple[str, str, int]:
    for seed in range(LIVES):
        try:
            World(seed, **planted.world).run()
        except SimulationError as found:
            if isinstance(found.__cause__, AttributeError | NameError | TypeError):
                return "", f"the planted bug does not fit the programs any more: {found.__cause__}", seed + 1
            return type(found).__name__, str(found).splitlines()[0], seed + 1
        finally:
            gc.collect()
    return "", "", LIVES


def _test(node: str) -> tuple[str, str, int]:
    os.chdir(HERE.parents[1])
    with contextlib.redirect_stdout(io.StringIO()):
        code = pytest.main([node, "-q", "-x"])
    return ("test", node.rpartition("::")[2], 0) if code == pytest.ExitCode.TESTS_FAILED else ("", f"pytest: {code!r}", 0)


def _hunt(name: str) -> Caught:
    return hunt(next(planted for planted in PLANTED if planted.name == name))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="mutants.py", description=__doc__)
    parser.add_argument("names", nargs="*", help="which bugs (default: all)")
    names = parser.parse_args(arguments).names or [planted.name for planted in PLANTED]
    context = multiprocessing.get_context("spawn")
    began = time.perf_counter()
    escaped = 0
    print(f"{'planted bug':50}{'caught by':12}{'lives':>6}{'s':>8}  how")
    with ProcessPoolExecutor(os.cpu_count(), mp_context=context, max_tasks_per_child=1) as pool:
        for hunted in as_completed([pool.submit(_hunt, name) for name in names]):
            caught = hunted.result()
            escaped += not caught.by
            lives = caught.lives or "-"
            print(f"{caught.name:50}{caught.by or 'NOBODY':12}{lives:>6}{caught.seconds:>8.1f}  {caught.said[:90]}", flush=True)
    print(f"{len(names) - escaped} of {len(names)} planted bugs were found, in {time.perf_counter() - began:.0f} s")
    return 1 if escaped else 0


if __name__ == "__main__":
    sys.exit(main())
