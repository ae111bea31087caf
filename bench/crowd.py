"""A hundred nodes: how long until all have joined, how long until work runs elsewhere when thirty are killed in the same second,
and whether anything is lost while nodes come and go under load.

    python bench/crowd.py [--nodes N] [--agents N] [--kill N] [--churn S]

All on this machine, each node a process of its own. ``joined_s``: from the first process's start until every node was ready.
``moved_s``: from the first kill until the last attempt of the killed nodes was reported to run on another. Then, for ``--churn``
seconds, a node is started every second or two and another one killed or stopped, while tasks are submitted all the time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
from time import perf_counter
from typing import Any

import psutil

from comity.cli.bench_figures import spread
from comity.cli.bench_network import Bench, network
from comity.cli.bench_recovery import Watch

SLOTS = 2
LOAD = 50
"""Tasks that are submitted together."""


class Load:
    """Tasks all the time; how long each took, and which results were wrong."""

    def __init__(self, bench: Bench) -> None:
        self.took: list[float] = []
        self.wrong = 0
        self._net = bench.net
        self._over = False
        self._work = asyncio.create_task(self._run())

    async def _run(self) -> None:
        while not self._over:
            began = perf_counter()
            for task in await self._net.submit_many("bench.echo", [{"text": "load"}] * LOAD):
                self.wrong += await task.result(60) != len("load")
                self.took.append(perf_counter() - began)
            await asyncio.sleep(0.1)

    async def end(self, name: str) -> dict[str, Any]:
        self._over = True
        await self._work
        return {f"{name}_tasks": len(self.took), f"{name}_wrong": self.wrong, **spread(self.took, f"{name}_")}


async def kill_many(bench: Bench, nodes: dict[str, psutil.Process], count: int) -> dict[str, Any]:
    """Attempts on every node; ``count`` nodes are killed at once."""
    watch, load = Watch(bench.net), Load(bench)
    attempts = 10 * len(nodes)
    given = await bench.net.submit_many("bench.hold", range(attempts), retries=9)
    ids = {task.id for task in given}
    await watch.until(lambda: len(ids & watch.where.keys()) == attempts, "that every task began")
    held = watch.held(ids)
    victims = random.sample(sorted(held), count)
    before = {task: epoch for victim in victims for task, epoch in held[victim].items()}
    began = perf_counter()
    for victim in victims:
        nodes.pop(victim).kill()
    killed_s = perf_counter() - began
    await watch.until(lambda: all(watch.where[task].epoch > epoch for task, epoch in before.items()), "that all was moved")
    figures = {
        "killed": count, "killed_within_s": round(killed_s, 3), "moved": len(before),
        "moved_s": round(max(watch.where[task].at for task in before) - began, 3),
        "evicted_s": round(max(watch.evicted[victim] for victim in victims) - began, 3),
    }  # fmt: skip
    await bench.net.broadcast(topic="bench.enough")
    results = [await task.result(60) for task in given]
    await watch.until(lambda: len(ids & watch.ended.keys()) == attempts, "that every task ended")
    figures |= {"lost": sum(result != number for number, result in enumerate(results))}
    figures |= {"duplicated": sum(watch.ended[task] - 1 for task in ids)}
    await watch.stop()
    return figures | await load.end("meanwhile")


async def come_and_go(bench: Bench, nodes: dict[str, psutil.Process], seconds: float) -> dict[str, Any]:
    """Nodes start, stop and die under load."""
    load, came, stopped, killed = Load(bench), 0, 0, 0
    until = perf_counter() + seconds
    while perf_counter() < until:
        (process,), (agent, *_) = await bench.hire(1, 20, SLOTS)
        nodes[agent.partition("/")[0]] = process
        came += 1
        gone = nodes.pop(random.choice(sorted(nodes)))
        if random.random() < 0.5:
            gone.kill()
            killed += 1
        else:
            gone.terminate()
            stopped += 1
        await asyncio.sleep(0.5)
    return {"came": came, "stopped": stopped, "went_by_kill": killed, **await load.end("churn")}


async def main(nodes: int, agents: int, kill: int, churn: float) -> None:
    async with network(0, 0, slots=SLOTS) as bench:
        began = perf_counter()
        processes, ids = await bench.hire(nodes, agents, SLOTS)
        figures: dict[str, Any] = {"nodes": nodes, "agents": agents, "joined_s": round(perf_counter() - began, 1)}
        stats = await bench.net.stats()
        figures["alive"], figures["active"] = stats["nodes"]["alive"], stats["agents"].get("active", 0)
        names = list(dict.fromkeys(agent.partition("/")[0] for agent in ids))
        living = dict(zip(names, processes, strict=True))
        figures |= await kill_many(bench, living, kill)
        if churn:
            figures |= await come_and_go(bench, living, churn)
        stats = await bench.net.stats()
        figures["controller_lag_max_ms"] = stats["loop_lag"]["max_ms"]
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=100)
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--kill", type=int, default=30)
    parser.add_argument("--churn", type=float, default=60.0)
    given = parser.parse_args()
    uvloop.run(main(given.nodes, given.agents, given.kill, given.churn))
