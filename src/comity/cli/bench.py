"""``comity bench``: the real path, measured: a server, a controller and nodes in processes of their own, a client here.

CPU is what *all* these processes used between the first submit and the last result, the server's included, as the operating
system counts it. Durability is printed with every figure, because a figure without it says nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from comity.cli.output import Output
from comity.errors import ServerFailed

if TYPE_CHECKING:
    from comity import Client

READY_S = 30.0
WINDOW = 16_384
"""Tasks in flight at most."""


class Lag:
    """Worst and usual lateness of this process's event loop while it works."""

    def __init__(self) -> None:
        self.samples: list[float] = []
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + 0.005
            await asyncio.sleep(0.005)
            self.samples.append(max(0.0, loop.time() - due))

    def stop(self) -> dict[str, float]:
        self._task.cancel()
        late = sorted(self.samples) or [0.0]
        return {"loop_lag_p99_ms": _ms(_at(late, 0.99)), "loop_lag_max_ms": _ms(late[-1])}


class Bench:
    """A network for one measurement, and the CPU its processes used."""

    def __init__(self, net: Client, processes: list[psutil.Process], settings: dict[str, Any]) -> None:
        self.net = net
        self.settings = settings
        self._processes = processes

    def cpu_s(self) -> float:
        """CPU seconds so far of every process of the network, and of this one."""
        total = 0.0
        for process in self._everyone():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def rss_mb(self) -> float:
        """The largest process's memory now."""
        sizes = [0]
        for process in self._everyone():
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes.append(process.memory_info().rss)
        return round(max(sizes) / 1e6, 1)

    def _everyone(self) -> list[psutil.Process]:
        found = {p.pid: p for p in [psutil.Process(), *self._processes]}
        for process in self._processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                found |= {child.pid: child for child in process.children(recursive=True)}
        return list(found.values())


@contextlib.asynccontextmanager
async def network(nodes: int, agents: int, slots: int) -> AsyncIterator[Bench]:
    """An embedded network in processes of its own on a fresh directory, gone afterwards."""
    import comity

    folder = Path(tempfile.mkdtemp(prefix="comity-bench-"))
    data = folder / "data"
    env = os.environ | {
        "COMITY_DATA_DIR": str(data),
        "COMITY_CONFIG": str(folder / "config"),
        "COMITY_BENCH_AGENTS": str(max(1, agents // nodes)),
        "COMITY_BENCH_SLOTS": str(slots),
    }
    started: list[asyncio.subprocess.Process] = []
    try:
        up = await _spawn(env, folder / "up.log", "up", "--port", "0", "--http-port", "0", "-o", "json")
        started.append(up)
        facts = await _first_line(folder / "up.log", up)
        started += [
            await _spawn(env, folder / f"n{i}.log", "run", "comity.cli.bench_agents", "--name", f"bench-n{i}", "-o", "json")
            for i in range(nodes)
        ]
        settings = {"nodes": nodes, "agents": max(1, agents // nodes) * nodes, "slots": slots, "durability": facts["durability"]}
        os.environ["COMITY_CONFIG"] = env["COMITY_CONFIG"]
        context = json.loads((data / "context.json").read_text())
        async with comity.connect(facts["url"], credentials=Path(context["credentials"])) as net:
            await _until_offered(net, settings["agents"])
            yield Bench(net, [psutil.Process(p.pid) for p in started], settings)
    finally:
        for process in reversed(started):
            if process.returncode is None:
                process.terminate()
                try:
                    await asyncio.wait_for(process.wait(), 10)
                except TimeoutError:
                    process.kill()
                    await process.wait()
        shutil.rmtree(folder)


async def _spawn(env: dict[str, str], log: Path, *words: str) -> asyncio.subprocess.Process:
    with log.open("wb") as out:
        return await asyncio.create_subprocess_exec(
            sys.executable, "-m", "comity", *words, env=env, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out
        )


async def _first_line(path: Path, process: asyncio.subprocess.Process) -> dict[str, Any]:
    """The JSON facts that ``comity up`` prints once it is ready."""
    deadline = time.monotonic() + READY_S
    while process.returncode is None and time.monotonic() < deadline:
        for line in path.read_text().splitlines():
            if line.startswith('{"url"'):
                facts: dict[str, Any] = json.loads(line)
                return facts
        await asyncio.sleep(0.02)  # another process's output cannot be awaited
    raise ServerFailed(f"the network to measure did not start: {path.read_text()[-500:]}")


async def _until_offered(net: Client, agents: int) -> None:
    async with asyncio.timeout(READY_S):
        while len(await net.discover("bench.echo")) < agents:
            await asyncio.sleep(0.02)  # registration is awaited agent by agent elsewhere; here all are needed
    await asyncio.gather(*[task.result() for task in await net.submit_many("bench.echo", [{"text": "warm"}] * 512)])


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def spread(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    return {"p50_ms": _ms(_at(ordered, 0.5)), "p99_ms": _ms(_at(ordered, 0.99)), "max_ms": _ms(ordered[-1])}


async def tasks(bench: Bench, count: int, payload: int) -> dict[str, Any]:
    """Throughput: ``count`` tasks, submitted in batches, each result awaited."""
    text = {"text": "x" * max(0, payload - 11)}
    loop = asyncio.get_running_loop()
    latencies: list[float] = []
    results: list[int] = []
    lag = Lag()
    cpu, began = bench.cpu_s(), loop.time()
    window = asyncio.Semaphore(WINDOW // 256)

    async def batch(size: int) -> None:
        async with window:
            sent = loop.time()
            for task in await bench.net.submit_many("bench.echo", [text] * size):
                results.append(await task.result())
                latencies.append(loop.time() - sent)

    await asyncio.gather(*(batch(min(256, count - start)) for start in range(0, count, 256)))
    took, used = loop.time() - began, bench.cpu_s() - cpu
    wrong = sum(result != len(text["text"]) for result in results)
    stats = await bench.net.stats()
    return {
        "tasks_per_s": round(count / took),
        "cpu_us_per_task": round(used / count * 1e6, 1),
        **spread(latencies),
        **lag.stop(),
        "peak_rss_mb": bench.rss_mb(),
        "count": count,
        "lost": count - len(results) + wrong,
        "duplicated": max(0, stats["totals"]["completed"] - count - 512),
        "settings": {**bench.settings, "payload": payload, "mode": "batched"},
    }


async def one_by_one(bench: Bench, count: int, call: Callable[[], Awaitable[object]]) -> dict[str, Any]:
    """Idle latency: one at a time."""
    loop = asyncio.get_running_loop()
    latencies = []
    cpu = bench.cpu_s()
    for _ in range(count):
        sent = loop.time()
        await call()
        latencies.append(loop.time() - sent)
    used = bench.cpu_s() - cpu
    return {**spread(latencies), "cpu_us_per_task": round(used / count * 1e6, 1), "count": count}


async def bench_tasks(output: Output, *, count: int, payload: int, nodes: int, agents: int, sequential: bool) -> None:
    async with network(nodes, agents, 256) as bench:
        if sequential:
            text = {"text": "x" * max(0, payload - 11)}

            async def call() -> object:
                return await (await bench.net.submit("bench.echo", text)).result()

            figures = await one_by_one(bench, count, call)
            figures["settings"] = {**bench.settings, "payload": payload, "mode": "sequential"}
        else:
            figures = await tasks(bench, count, payload)
    _print(output, "durable tasks", figures)


async def bench_messages(output: Output, *, count: int, payload: int, in_flight: int, sequential: bool) -> None:
    """Live request/reply between this process and an agent in another."""
    async with network(1, 1, 1024) as bench:
        agent = (await bench.net.discover("bench.echo"))[0].id
        body = "x" * payload
        loop = asyncio.get_running_loop()

        async def call() -> object:
            return await bench.net.request(agent, body, topic="bench.ping")

        if sequential:
            figures = await one_by_one(bench, count, call)
            figures["settings"] = {**bench.settings, "payload": payload, "mode": "sequential"}
        else:
            lag = Lag()
            left = count
            latencies: list[float] = []

            async def caller() -> None:
                nonlocal left
                while left > 0:
                    left -= 1
                    sent = loop.time()
                    await call()
                    latencies.append(loop.time() - sent)

            cpu, began = bench.cpu_s(), loop.time()
            await asyncio.gather(*(caller() for _ in range(in_flight)))
            took, used = loop.time() - began, bench.cpu_s() - cpu
            figures = {
                "messages_per_s": round(count / took),
                "cpu_us_per_task": round(used / count * 1e6, 1),
                **spread(latencies),
                **lag.stop(),
                "count": count,
                "lost": count - len(latencies),
                "settings": {**bench.settings, "payload": payload, "mode": f"{in_flight} in flight"},
            }
    _print(output, "live request/reply", figures)


def _print(output: Output, title: str, figures: dict[str, Any]) -> None:
    if output.as_json:
        output.show(figures)
        return
    settings = figures.pop("settings")
    said = ", ".join(f"{key} {value}" for key, value in settings.items())
    output.console.print(f"[bold]{title}[/]  [dim]{said}[/]")
    output.table(("", ""), [(key, f"{value:,}") for key, value in figures.items()], "")
