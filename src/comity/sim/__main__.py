"""``python -m comity.sim SEED``: live one life, or many, and say what came of it."""

from __future__ import annotations

import argparse
import gc
import sys
import time
import traceback

import msgspec

from comity.errors import InvalidInput
from comity.model import wire
from comity.sim import many, scale
from comity.sim.links import Event
from comity.sim.loop import SimulationError
from comity.sim.shrink import shrink_seed
from comity.sim.world import Report, World, trace_hash

_SHOWN = 150


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 1 if a life broke a promise."""
    given = _parser().parse_args(arguments)
    if given.scale is not None:
        scale.measure(scale.sizes(**scale.parse(given.scale)), _say)
        return 0
    if isinstance(given.seeds, range):
        lives = many.live(given.seeds, liars=given.liars, jobs=given.jobs, say=_say)
        return 1 if any(lived.broken for lived in lives) else 0
    if given.shrink:
        return _shrink(given.seed, given.liars)
    until = time.monotonic() + given.minutes * 60 if given.minutes else None
    count = bad = 0
    began = time.monotonic()
    brief = given.seeds > 1 or until is not None
    while (time.monotonic() < until) if until is not None else count < given.seeds:
        bad += not live(given.seed + count, given.liars, given.trace, given.task, brief=brief, only=given.only)
        count += 1
        if bad and not given.keep_going:
            break
        gc.collect()
    if count > 1:
        took = time.monotonic() - began
        print(f"{count} lives in {took:.1f} s ({count / took:.1f} a second), {bad} broke a promise")
    return 1 if bad else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m comity.sim", description="Live simulated lives of a whole network.")
    parser.add_argument("seed", type=int, nargs="?", default=0, help="which life (the first of several)")
    parser.add_argument("--seeds", type=_seeds, default=1, metavar="N or A-B", help="live N lives, or these, on all processors")
    parser.add_argument("--jobs", type=int, default=0, metavar="N", help="with A-B: so many at a time")
    parser.add_argument("--minutes", type=float, metavar="M", help="go on with the next seeds for M minutes")
    parser.add_argument("--trace", action="store_true", help="show everything that happens")
    parser.add_argument("--task", default="", metavar="TEXT", help="with --trace: only lines about what contains TEXT")
    parser.add_argument("--keep-going", action="store_true", help="go on after a violation")
    parser.add_argument("--shrink", action="store_true", help="find the fewest faults with which the life still fails")
    parser.add_argument("--only", type=_numbers, metavar="N,N,...", help="only these faults of the life's plan strike")
    parser.add_argument("--liars", type=int, default=0, metavar="N", help="with N processes that say what is not so")
    parser.add_argument("--scale", nargs="*", metavar="nodes=N", help="how cost grows up to nodes=N agents=N tasks=N")
    return parser


def _seeds(text: str) -> int | range:
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else int(first)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",") if number]


def _say(line: str) -> None:
    print(line, flush=True)


def live(seed: int, liars: int, show: bool, about: str, *, brief: bool, only: list[int] | None = None) -> bool:
    """Live one life and print it; whether all promises were kept."""
    world = World(seed, liars=liars, only=only)
    try:
        report = world.run()
    except SimulationError as error:
        _show(world.trace.events, show, about)
        print(f"seed {seed}: {type(error).__name__} at {world.loop.time():.3f} s")
        print(error)
        cause = error.__cause__
        if cause is not None:
            traceback.print_exception(cause)
        print(f"live it again with: python -m comity.sim {seed} --trace")
        return False
    _show(world.trace.events, show, about)
    if not brief:
        _tell(report)
    return True


def _shrink(seed: int, liars: int) -> int:
    found = shrink_seed(seed, liars=liars, say=_say)
    if found is None:
        print(f"seed {seed}: every promise kept; there is nothing to shrink")
        return 0
    print(f"\nseed {seed}, after {found.lives} lives: {type(found.error).__name__}")
    print(found.error)
    print(f"with {len(found.plan)} faults:")
    for strike in found.plan:
        print(f"  {strike}")
    numbers = ",".join(str(strike.number) for strike in found.plan)
    print(f"live it again with: python -m comity.sim {seed} --only {numbers or ','} --trace")
    return 1


def _tell(report: Report) -> None:
    print(f"seed {report.seed}: {report.lived_s:.1f} s lived, {report.callbacks} callbacks, every promise kept")
    print(f"  tasks     {_counts(report.ends)}")
    print(f"  log       {report.entries} entries, {report.void} of them void, {report.terms} terms")
    print(f"  clients   {report.operations} calls judged")
    print(f"  faults    {_counts(report.faults)}")
    print(f"  trace     {report.hash}")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in counts.items()) or "none"


def _show(events: list[Event], show: bool, about: str) -> None:
    if not show:
        return
    for event in events:
        line = f"{event.at:10.4f} {event.who:6} {event.what:24} {_detail(event.detail)}"
        if about in line:
            print(line if about else line[:_SHOWN])
    print(f"trace {trace_hash(events)}")


def _detail(detail: str | bytes) -> str:
    """A bus message as its items."""
    if isinstance(detail, str):
        return detail
    try:
        return "; ".join(_item(item) for item in wire.decode(detail))
    except InvalidInput:
        return repr(detail)


def _item(item: wire.Item) -> str:
    fields = ", ".join(f"{name}={value}" for name, value in msgspec.structs.asdict(item).items() if value)
    return f"{type(item).__name__}({fields})"


if __name__ == "__main__":
    sys.exit(main())
