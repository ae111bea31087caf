"""One system, one round: all tasks at once, then one after the other when all is idle."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from asyncio.subprocess import Process
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from bench.peers import servers
from bench.peers.processes import Failed, Processes
from bench.peers.systems import System
from comity.cli.bench_figures import pace_us, spread
from comity.embedded import find_binary

LIMIT_S = 150.0
"""For one measurement, warming up and all."""
OURS = ("tasks_per_s", "cpu_us_per_task", "lost", "duplicated", "pace_us")
Figures = dict[str, float]


@dataclass(frozen=True)
class Load:
    count: int
    sequential: int
    payload: int
    workers: int


def missing(system: System) -> str | None:
    """What must be done before it can be measured; None if nothing."""
    todo = [server.install for server in system.servers if server.find() is None]
    if not system.ours and not _python(system).exists():
        todo.append("make bench-peers")
    return "; ".join(todo) or None


async def measure(system: System, load: Load) -> tuple[Figures, list[str]]:
    """The figures of one round, and the versions of what ran. Raises Failed."""
    try:
        return await (_comity(system, load) if system.ours else _peer(system, load))
    except TimeoutError:
        raise Failed(f"not done within {LIMIT_S:.0f} s") from None


async def _comity(system: System, load: Load) -> tuple[Figures, list[str]]:
    more = ["--callers", str(system.callers)] if system.callers else []
    all_at_once = await _bench(load, load.count, *more)
    figures = {key: all_at_once[key] for key in OURS}
    if not system.callers:
        idle = await _bench(load, load.sequential, "--sequential")
        figures |= {"p50_ms": idle["p50_ms"], "p99_ms": idle["p99_ms"], "idle_cpu_us_per_task": idle["cpu_us_per_task"]}
        figures |= {key: figures[key] + idle[key] for key in ("lost", "duplicated")}
    durability = f"durability {all_at_once['settings']['durability']}"
    return figures, [f"comity {version('comity')}", _server_version(), durability]


def _server_version() -> str:
    said = subprocess.run([find_binary(), "--version"], capture_output=True, text=True, check=True).stdout
    return said.strip().replace(": v", " ")


async def _bench(load: Load, count: int, *more: str) -> dict[str, Any]:
    words = ("--count", str(count), "--payload", str(load.payload), "--nodes", str(load.workers), "-o", "json")
    async with Processes() as processes:
        process = await processes.start(sys.executable, "-m", "comity", "bench", "tasks", *words, *more)
        said, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
        if process.returncode:
            processes.check()
        figures: dict[str, Any] = json.loads(said)
        return figures


async def _peer(system: System, load: Load) -> tuple[Figures, list[str]]:
    async with Processes() as processes:
        ran = processes.folder / "ran"
        ran.mkdir()
        env, versions = {"BENCH_RAN": str(ran)}, list(system.versions)
        for server in system.servers:
            address, found = await servers.start(server, processes)
            env |= address
            versions.append(f"{server.name} {found}")
        python = str(_python(system))
        for words in system.workers(load.workers):
            await processes.start(python, *words, env=env)
        client = await processes.start(python, "-m", f"bench.peers.{system.key}", env=env)
        warm = await _ask(processes, client, mode="warm", count=0, payload=load.payload, workers=load.workers)
        if warm["workers"] < load.workers:
            raise Failed(f"only {warm['workers']} of {load.workers} workers took tasks")
        return await _both(processes, client, load), versions


async def _both(processes: Processes, client: Process, load: Load) -> Figures:
    pace = [pace_us(), pace_us()]
    busy, busy_cpu_s = await _counted(processes, client, mode="all", count=load.count, payload=load.payload)
    pace += [pace_us(), pace_us()]
    idle, idle_cpu_s = await _counted(processes, client, mode="one", count=load.sequential, payload=load.payload)
    latency = spread(idle["latencies_s"])
    return {
        "tasks_per_s": round(load.count / busy["took_s"]),
        "cpu_us_per_task": round(busy_cpu_s / load.count * 1e6, 1),
        "p50_ms": latency["p50_ms"],
        "p99_ms": latency["p99_ms"],
        "idle_cpu_us_per_task": round(idle_cpu_s / load.sequential * 1e6, 1),
        "lost": busy["lost"] + idle["lost"],
        "duplicated": max(0, busy["ran"] - load.count) + max(0, idle["ran"] - load.sequential),
        "pace_us": round(median(pace), 3),
    }


async def _counted(processes: Processes, client: Process, **order: Any) -> tuple[dict[str, Any], float]:
    before = processes.cpu_s()
    return await _ask(processes, client, **order), processes.cpu_s() - before


async def _ask(processes: Processes, client: Process, **order: Any) -> dict[str, Any]:
    assert client.stdin is not None and client.stdout is not None
    client.stdin.write(json.dumps(order).encode() + b"\n")
    line = await asyncio.wait_for(client.stdout.readline(), LIMIT_S)
    if not line:
        await client.wait()
    processes.check()
    answer: dict[str, Any] = json.loads(line)
    return answer


def _python(system: System) -> Path:
    return Path(sys.prefix) / "peers" / system.key / "bin" / "python"
