"""A chaos run: servers and controllers, four nodes, constant load, a seeded nemesis; then the verdict and a report.

    python tests/chaos/run.py [--stack nats|classic|etcd|consul] [--minutes N] [--seed N] [--every SECONDS] [--longest SECONDS]
        [--report FOLDER] [--only KIND]...

Ends with 0 if nothing is wrong. What a seed fixes is the order and the kind of faults, not how processes interleave.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]  # where the servers for tests are

from availability import figures  # noqa: E402
from foreign import STACKS, Foreign  # noqa: E402
from isolation import end_with_starter, enter, folder, is_inside  # noqa: E402
from links import Links  # noqa: E402
from load import Load, read_ledger  # noqa: E402
from nemesis import Nemesis  # noqa: E402
from players import Company  # noqa: E402
from report import Run, write  # noqa: E402
from verdict import LEAST_PER_S, judge  # noqa: E402

import comity  # noqa: E402
from comity import Client  # noqa: E402
from comity.config import Settings  # noqa: E402
from comity.errors import Indefinite  # noqa: E402

SETTLE_S = 90.0
READ_S = 120.0
DISK_MB = 1024


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", choices=["nats", *STACKS], default="nats", help="what the network runs on")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long there is load")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--every", type=float, default=20.0, help="seconds from fault to fault")
    parser.add_argument("--longest", type=float, help="seconds that a pause or a cut lasts at most (30; servers of others: 10)")
    parser.add_argument("--report", type=Path, default=Path("chaos-report"), help="the folder for the report; made anew")
    parser.add_argument("--only", action="append", metavar="KIND", help="these faults, in this order")
    asked = parser.parse_args()
    asked.longest = asked.longest or (10.0 if asked.stack in STACKS else 30.0)
    return asked


async def live(asked: argparse.Namespace, place: Path) -> Run:
    """One run, in the folder ``place``."""
    end_with_starter()
    chance = random.Random(asked.seed)
    links = _links()
    company = _company(asked, place, links)
    run = Run(asked.stack, asked.seed, asked.every, asked.longest)
    try:
        await company.form()
        async with AsyncExitStack() as stack:
            clients = [await _client(stack, place) for _ in range(2)]
            load = Load(clients, random.Random(asked.seed + 2))
            stack.push_async_callback(load.settle, 0.0)  # who still asks when the run breaks off would ask for ever
            stack.push_async_callback(load.stop)
            nemesis = Nemesis(company, chance, load.now, asked.longest)
            run.skipped = nemesis.skipped
            await load.reaches(100, 60.0)
            try:
                await nemesis.run(asked.every, asked.minutes * 60 - asked.every / 2, asked.only)
                await nemesis.rest(asked.minutes * 60 - load.now())
            finally:
                run.seconds = await load.stop()
                run.faults = nemesis.faults
            print(f"{load.now():7.1f} s  no more load; waiting for what is open", flush=True)
            run.jobs = load.jobs
            left = await load.settle(SETTLE_S)
            run.problems += [f"{left} jobs did not end within {SETTLE_S:g} s of the last fault"] if left else []
            events, totals = await past(await _client(stack, place), {job.task for job in load.jobs if job.task})
            run.problems += judge(load.jobs, load.history, read_ledger(company.crew.ledger), events, totals)
            run.figures = figures(load.jobs, load.calls, [(fault.kind, fault.began) for fault in run.faults], run.seconds)
            if run.figures.per_s < LEAST_PER_S:
                run.problems.append(f"{run.figures.per_s:.0f} calls/s, and a run counts from {LEAST_PER_S:.0f}")
    except (Exception, pytest.fail.Exception) as error:
        run.problems.append(f"the run broke off: {error!r}")
    run.problems += await company.stop()
    run.problems += [f"left running: {name}" for name in _left()]
    return run


def _company(asked: argparse.Namespace, place: Path, links: Links | None) -> Company | Foreign:
    chance = random.Random(asked.seed + 1)
    if asked.stack in STACKS:
        return Foreign(place, chance, links, STACKS[asked.stack])
    return Company(place, chance, links, mounts=is_inside(), disk_mb=DISK_MB)


def _links() -> Links | None:
    if not is_inside():
        return None
    try:
        return Links("abc")
    except OSError as error:
        print(f"no partitions: {error}", flush=True)
        return None


async def _client(stack: AsyncExitStack, place: Path) -> Client:
    loaded = Settings.load({"data_dir": place / "hub"}, env={}, cwd=place)
    return await stack.enter_async_context(comity.connect(settings=loaded))


async def past(net: Client, tasks: set[str]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """All events so far, and the totals, once every one of ``tasks`` has ended or there was time enough."""
    until = time.monotonic() + READ_S
    while True:
        try:
            events = [event async for event in net.events(follow=False)]
            totals = (await net.stats())["totals"]
            ended = {event["task"] for event in events if event["type"] in ("task.completed", "task.failed", "task.canceled")}
            if tasks <= ended or time.monotonic() > until:
                return events, totals
        except Indefinite:
            if time.monotonic() > until:
                raise


def _left() -> list[str]:
    """What still runs of what we started: in a world of our own that is everybody else."""
    own = psutil.Process()
    others = psutil.process_iter() if is_inside() else own.children(recursive=True)
    found = []
    for process in others:
        try:
            if process.pid != own.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline())[:120] or process.name())
                process.kill()
        except psutil.NoSuchProcess:
            continue
    return found


def main() -> int:
    asked = arguments()
    own = folder()
    if own is None:
        return enter([str(Path(__file__).resolve()), *sys.argv[1:]])
    report = asked.report.resolve()
    print(f"{asked.stack}, seed {asked.seed}, {asked.minutes:g} minutes, a fault every {asked.every:g} s", flush=True)
    try:
        run = uvloop.run(live(asked, own))
    except pytest.skip.Exception as error:
        print(error, flush=True)  # a server that is missing, and where to get it
        return 2
    shutil.rmtree(report, ignore_errors=True)
    write(run, report)
    keep(own, report, run)
    print((report / "summary.txt").read_text(), flush=True)
    print(f"report: {os.path.relpath(report)}/report.md", flush=True)
    return 1 if run.problems else 0


def keep(place: Path, report: Path, run: Run) -> None:
    """What it takes to look into it: what processes said, and, if something is wrong, what servers said and callers saw."""
    for path in sorted(place.glob("*.err")):
        shutil.copy(path, report / path.name)
    with (report / "jobs.jsonl").open("w") as file:
        for job in run.jobs:
            file.write(json.dumps({name: getattr(job, name) for name in job.__struct_fields__}) + "\n")
    if run.problems:
        shutil.copy(place / "runs.txt", report)
        for path in [*place.glob("etcd/*.log"), *place.glob("consul/*.log"), *place.glob("raft/*.log"), *place.glob("nats.log")]:
            shutil.copy(path, report)
        for path in place.glob("disk-*/data/server.log"):
            shutil.copy(path, report / f"{path.parent.parent.name}-server.log")


if __name__ == "__main__":
    sys.exit(main())
