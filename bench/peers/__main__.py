"""The same tasks on Comity and on systems one would otherwise use, in the same run.

    make bench-peers
    python -m bench.peers [--count N] [--rounds N] [--only KEY ...] [--write PAGE] [-o json]

Rounds are interleaved: each measures every system, so that a machine that is busy for a while is busy for all. The table has
the machine's pace beside every figure. What cannot be measured here is left out, and the table says what would change that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.peers.measure import Load, measure, missing
from bench.peers.processes import Failed
from bench.peers.systems import SYSTEMS, System
from bench.peers.table import over_rounds, tables, write_into


def options(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=5000, help="tasks at once")
    parser.add_argument("--sequential", type=int, default=500, help="tasks one after the other")
    parser.add_argument("--payload", type=int, default=256, help="bytes of each task")
    parser.add_argument("--workers", type=int, default=2, help="worker processes, or nodes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=[system.key for system in SYSTEMS], help="measure these alone")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the tables into this page, between its marks")
    parser.add_argument("-o", "--output", choices=["table", "json"], default="table")
    return parser.parse_args(words)


async def run(systems: list[System], load: Load, rounds: int) -> dict[str, Any]:
    """Measure them all, and report."""
    here = asyncio.current_task()
    assert here is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, here.cancel)  # end what was started before we end
    states: list[dict[str, Any]] = [
        {
            "key": system.key, "name": system.name, "settings": system.settings, "accepted": system.accepted,
            "killed": system.killed, "power_cut": system.power_cut, "versions": [], "rounds": [], "failed": False,
            "problem": f"not measured: {todo}" if (todo := missing(system)) else None,
        }
        for system in systems
    ]  # fmt: skip
    for number in range(rounds):
        for system, state in zip(systems, states, strict=True):
            if state["problem"] is None:
                print(f"round {number + 1} of {rounds}: {system.name}", file=sys.stderr)
                try:
                    figures, state["versions"] = await measure(system, load)
                    state["rounds"].append(figures)
                except Failed as error:
                    state |= {"failed": True, "problem": f"failed: {error}"}
    for state in states:
        state["figures"] = over_rounds(state["rounds"])
    machine = f"{os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"
    return {"settings": {**asdict(load), "rounds": rounds, "machine": machine}, "systems": states}


def main() -> None:
    asked = options(sys.argv[1:])
    load = Load(asked.count, asked.sequential, asked.payload, asked.workers)
    report = asyncio.run(run([one for one in SYSTEMS if not asked.only or one.key in asked.only], load, asked.rounds))
    print(json.dumps(report, indent=2) if asked.output == "json" else tables(report))
    if asked.write:
        write_into(asked.write, tables(report))
    sys.exit(any(system["failed"] for system in report["systems"]))


if __name__ == "__main__":
    main()
