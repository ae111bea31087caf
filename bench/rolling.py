"""A rolling restart, or a rolling upgrade: three servers, their controllers and two nodes are stopped and started again, one
after the other, while tasks are submitted all the time.

    python bench/rolling.py [--rounds N] [--old FOLDER]

``--old``: the network starts with the code in FOLDER (the ``src`` of another version), and each process comes back with this one.
``submit_ms``: how long single submits took, the longest of which is the longest stop a client saw; ``task_ms``: until the result.
``stopped_ms``: how long each restart of a server took. Every task must end, once, with its own result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from time import perf_counter
from typing import Any

from comity.cli.bench_figures import spread
from comity.cli.bench_network import Bench, network
from comity.cli.cluster import survey
from comity.contexts import Context
from comity.errors import ComityError

EACH_S = 0.01
LIMIT_S = 60.0


class Load:
    """A submit every ``EACH_S``, whatever became of those before."""

    def __init__(self, bench: Bench) -> None:
        self.submits: list[float] = []
        self.tasks: list[float] = []
        self.wrong = 0
        self.failed: list[str] = []
        self._net = bench.net
        self._over = False
        self._work = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while not self._over:
                group.create_task(self._one())
                await asyncio.sleep(EACH_S)

    async def _one(self) -> None:
        began = perf_counter()
        try:
            task = await self._net.submit("bench.echo", {"text": "rolling"})
            self.submits.append(perf_counter() - began)
            self.wrong += await task.result(LIMIT_S) != len("rolling")
            self.tasks.append(perf_counter() - began)
        except ComityError as error:
            self.failed.append(f"{error.code}: {error.message}")

    async def end(self) -> None:
        self._over = True
        await self._work


async def whole(bench: Bench) -> None:
    """Until the cluster could lose another server. Raises TimeoutError."""
    found = Context.read_local(bench.ups[0].data)
    assert found is not None
    async with asyncio.timeout(LIMIT_S):
        while True:
            if (await survey(found))["survives"]["more"] >= 1:
                return
            await asyncio.sleep(0.2)  # that a replica has caught up cannot be awaited


async def main(rounds: int, old: str) -> None:
    if old:
        os.environ["PYTHONPATH"] = old
    async with network(2, 8, slots=64, servers=3) as bench:
        bench._env.pop("PYTHONPATH", None)
        load, stopped = Load(bench), []
        for _ in range(rounds):
            for number, up in enumerate(bench.ups):
                began = perf_counter()
                up.process.send_signal(signal.SIGTERM)
                await asyncio.wait_for(up.ended(), LIMIT_S)
                await bench.again(number)
                stopped.append(perf_counter() - began)
                await whole(bench)
            for process in list(bench.parts["nodes"]):
                await bench.hire(1, 4, 64)
                process.terminate()
                bench.parts["nodes"].remove(process)
        await load.end()
        totals = (await bench.net.stats())["totals"]
    figures: dict[str, Any] = {
        "restarts": len(stopped), "submits": len(load.submits), "failed": load.failed, "wrong": load.wrong,
        "lost": len(load.submits) - len(load.tasks), "counted": totals["completed"],
        "submit_ms": spread(load.submits), "task_ms": spread(load.tasks), "stopped_ms": spread(stopped),
    }  # fmt: skip
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--old", default="")
    given = parser.parse_args()
    uvloop.run(main(given.rounds, given.old))
