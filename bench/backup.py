"""How long a backup takes and how large it is: full, incremental, verified, restored; and what the leader feels of it.

    python bench/backup.py [--finished N] [--open N] [--load N]

A network in processes of its own runs ``--finished`` tasks and takes in ``--open`` more that nobody does (256 bytes of input,
every tenth 5,000). While it is backed up ``--load`` tasks a second are done. ``lag_ms``: the most that the leader's loop was
late in a second: median, 90th percentile and maximum over the seconds without a backup and with one. The machine's load is in it.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from comity import Client
from comity.cli.bench_network import Bench, network

BATCH = 2000
QUIET_S = 15.0


async def comity(bench: Bench, *words: str) -> dict[str, Any]:
    """Type a command; its answer, with how long it took."""
    began = time.perf_counter()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comity", "backup", *words, "-o", "json",
        env=bench._env, cwd=bench.folder, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(process.returncode)
    return {**json.loads(out), "seconds": round(time.perf_counter() - began, 2)}


async def fill(net: Client, finished: int, left: int) -> None:
    for start in range(0, finished, BATCH):
        inputs = [{"text": f"{n:0256}"} for n in range(start, min(start + BATCH, finished))]
        tasks = await net.submit_many("bench.echo", inputs)
        await asyncio.gather(*(task.result() for task in tasks))
    for start in range(0, left, BATCH):
        inputs = [{"text": f"{n:0{5000 if n % 10 == 0 else 256}}"} for n in range(start, min(start + BATCH, left))]
        await net.submit_many("bench.nobody", inputs)


async def load(net: Client, rate: int) -> None:
    """About ``rate`` tasks a second, until canceled."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        tasks = await net.submit_many("bench.echo", [{"text": "load"}] * max(1, rate // 20))
        await tasks[-1].result()
        due += 0.05
        await asyncio.sleep(max(0.0, due - loop.time()))


class Lag:
    """The leader's loop, second by second."""

    def __init__(self, net: Client) -> None:
        self._net = net
        self._worst: list[float] = []
        self._work = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(1)
            self._worst.append((await self._net.stats())["loop_lag"]["max_ms_by_second"][1])

    async def figures(self) -> dict[str, float]:
        self._work.cancel()
        await asyncio.wait([self._work])
        worst = sorted(self._worst) or [0.0]
        return {"seconds": len(worst), "p50": worst[len(worst) // 2], "p90": worst[int(len(worst) * 0.9)], "max": worst[-1]}


def size_mb(folder: Path) -> float:
    return round(sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6, 1)


async def main(finished: int, left: int, rate: int) -> None:
    figures: dict[str, Any] = {"finished": finished, "open": left, "load_per_s": rate}
    async with network(2, 8, slots=64) as bench:
        await fill(bench.net, finished, left)
        while (await bench.net.stats())["tasks"]["completed"]:  # noqa: ASYNC110 - until all are in the archive
            await asyncio.sleep(1)
        work = asyncio.create_task(load(bench.net, rate))
        quiet = Lag(bench.net)
        await asyncio.sleep(QUIET_S)
        figures["lag_ms"] = {"without": await quiet.figures()}
        target, busy = ("--to", "backups"), Lag(bench.net)
        full = await comity(bench, "create", *target)
        again = await comity(bench, "create", *target)
        figures["lag_ms"]["with"] = await busy.figures()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work
        for name, made in (("full", full), ("incremental", again)):
            figures[name] = {"mb": round(made["bytes"] / 1e6, 1), "written_mb": round(made["wrote_bytes"] / 1e6, 1)}
            figures[name] |= {"pieces_written": made["wrote_pieces"], "seconds": made["seconds"], "cpu_s": made["cpu_s"]}
        figures["verify_seconds"] = (await comity(bench, "verify", "--from", "backups"))["seconds"]
        figures["restore_seconds"] = (await comity(bench, "restore", "--from", "backups", "--data", "restored"))["seconds"]
        figures["streams_mb"] = size_mb(bench.folder / "data" / "jetstream")
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--finished", type=int, default=100_000)
    parser.add_argument("--open", type=int, default=10_000)
    parser.add_argument("--load", type=int, default=200)
    given = parser.parse_args()
    uvloop.run(main(given.finished, given.open, given.load))
