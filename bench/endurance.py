"""What many tasks leave behind: memory, disk, the time a restart takes, and what submits feel while a snapshot is made.

    python bench/endurance.py [--finished N] [--waiting N] [--open N] [--minutes M]

A network in processes of its own (one server, two nodes) runs ``--finished`` tasks as fast as it can (and goes on for at least
``--minutes``), and results are read of some. It takes in ``--open`` tasks that nobody does, server and controller are stopped and
started again: ``restart_s`` until a submit is accepted. Then it takes in more until ``--waiting`` wait: ``submit_ms`` of single
submits while snapshots of these are made, one after the other. ``evicted``: nodes given up on, none of which was to be blamed.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import random
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

from comity.cli.bench_figures import spread
from comity.cli.bench_network import Bench, network, rss_bytes

BATCH = 256
WINDOW = 64
TEXT = "x" * 245
KEPT = 2000
"""Tasks of which the results are read in the end."""
PROBE_S = 0.004
SNAPSHOTS = 3
FILL = 5000


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def size_mb(folder: Path) -> int:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6)


class Endurance:
    """One run on ``bench``."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.figures: dict[str, Any] = {}
        self.kept: list[str] = []
        self.wrong = 0

    async def finish(self, count: int, seconds: float) -> None:
        """Run ``count`` tasks, and more until ``seconds`` have passed. Memory is looked at ten times on the way."""
        began, done, room = perf_counter(), 0, asyncio.Semaphore(WINDOW)
        keep_each = max(1, count // KEPT)
        memory: list[int] = []

        async def batch(first: int) -> None:
            for number, task in enumerate(await self.bench.net.submit_many("bench.echo", [{"text": TEXT}] * BATCH), first):
                self.wrong += await task.result() != len(TEXT)
                if number % keep_each == 0:
                    self.kept.append(task.id)
            room.release()

        async with asyncio.TaskGroup() as batches:
            while done < count or perf_counter() - began < seconds:
                await room.acquire()
                batches.create_task(batch(done))
                done += BATCH
                await asyncio.sleep(0)
                if done * 10 // count > len(memory):
                    memory.append(self._controller_mb())
                    say(f"{done:,} tasks, {perf_counter() - began:.0f} s, controller {memory[-1]} MB")
        took = perf_counter() - began
        self.figures |= {"finished": done, "seconds": round(took), "tasks_per_s": round(done / took), "controller_mb": memory}
        self.figures["disk_mb"] = size_mb(self.bench.ups[0].data)

    async def fill(self, count: int) -> None:
        """``count`` tasks that nobody does."""
        began = perf_counter()
        for start in range(0, count, FILL):
            await self.bench.net.submit_many("bench.nobody", [{"text": TEXT}] * min(FILL, count - start))
        say(f"{count:,} more wait after {perf_counter() - began:.0f} s, controller {self._controller_mb()} MB")

    async def snapshots(self) -> None:
        """Submits while what waits is written to snapshots."""
        self.figures |= {"waiting": await self._waiting(), "controller_with_waiting_mb": self._controller_mb()}
        probes: list[tuple[float, float]] = []
        probing = asyncio.create_task(self._probe(probes))
        async with asyncio.timeout(600):
            taken = await self._taken(SNAPSHOTS + 1)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        during = [took for at, took in probes if taken[0] < at <= taken[-1]]
        spans = [round(after - before, 2) for before, after in itertools.pairwise(taken)]
        self.figures["submit_ms"] = spread(during)
        self.figures |= {"submits": len(during), "seconds_for_each_snapshot": spans}
        self.figures["loop_lag_max_ms"] = (await self.bench.net.stats())["loop_lag"]["max_ms"]

    async def _probe(self, probes: list[tuple[float, float]]) -> None:
        while True:
            began = perf_counter()
            await self.bench.net.submit("bench.nobody", {"text": TEXT})
            probes.append((perf_counter(), perf_counter() - began))
            await asyncio.sleep(PROBE_S)

    async def _taken(self, count: int) -> list[float]:
        """When the next ``count`` snapshots were complete. One follows the other, a second later at the earliest."""
        taken: list[float] = []
        known = None
        while True:
            newest = (await self.bench.net.stats())["snapshot"]
            if known not in (None, newest):
                taken.append(perf_counter())
                say(f"a snapshot at entry {newest:,}")
            known = newest
            if len(taken) == count:
                return taken
            await asyncio.sleep(0.2)

    async def restart(self) -> None:
        """Stop server and controller, start them on what they left, and see how long until a submit is accepted."""
        net = self.bench.net
        self.figures["open_at_restart"] = await self._waiting()
        self.bench._env["COMITY_SNAPSHOT_EVERY"] = "200"
        up = self.bench.ups[0]
        up.process.terminate()
        await up.ended()
        began = perf_counter()
        starting = asyncio.create_task(self.bench.again(0))
        await net.submit("bench.nobody", {"text": TEXT}, patience_s=60)
        self.figures["restart_s"] = round(perf_counter() - began, 2)
        await starting
        say(f"accepted after {self.figures['restart_s']} s")

    async def read(self) -> None:
        """Results from the archive."""
        random.shuffle(self.kept)
        took = []
        for task in self.kept[:KEPT]:
            began = perf_counter()
            self.wrong += await self.bench.net.task(task).result() != len(TEXT)
            took.append(perf_counter() - began)
        self.figures["kept_result_ms"] = spread(took)
        self.figures["wrong"] = self.wrong

    async def evicted(self) -> None:
        """Count, before the leader that counts goes."""
        before = self.figures.get("evicted", 0)
        self.figures["evicted"] = before + (await self.bench.net.stats())["events"].get("node.evicted", 0)

    async def _waiting(self) -> int:
        return int((await self.bench.net.stats())["waiting"]["tasks"])

    def _controller_mb(self) -> int:
        return round(rss_bytes(self.bench.parts["controller"]) / 1e6)


async def main(finished: int, waiting: int, left: int, minutes: float) -> None:
    limits = {"max_waiting": waiting + 1_000_000, "max_waiting_bytes": 1 << 40, "submit_timeout_s": 60}
    limits["keep_finished"] = 1_000_000 + 5 * finished  # all results of the hour are to be read
    async with network(2, 8, slots=BATCH, **limits) as bench:
        run = Endurance(bench)
        await run.finish(finished, minutes * 60)
        await run.read()
        await run.fill(left)
        await run.evicted()
        await run.restart()
        if waiting > left:
            await run.fill(waiting - left)
            await run.snapshots()
        await run.evicted()
    print(json.dumps(run.figures, indent=2))


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=1_000_000)
    parser.add_argument("--waiting", type=int, default=1_000_000)
    parser.add_argument("--open", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=0.0)
    given = parser.parse_args()
    uvloop.run(main(given.finished, given.waiting, given.open, given.minutes))
