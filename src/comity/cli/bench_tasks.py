"""``comity bench tasks``: durable tasks, from submit to result."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import Any

from comity.cli.bench_figures import Meter, at_a_time, spread
from comity.cli.bench_network import WARM, Bench, rss_bytes

BATCH = 256
WINDOW = 64
"""Batches in flight at most."""
_ENVELOPE = len('{"text":""}')


class Work:
    """``count`` tasks of ``payload`` bytes each; ``wrong`` counts results that are not what they should be."""

    def __init__(self, bench: Bench, count: int, payload: int) -> None:
        self.bench = bench
        self.count = count
        self.wrong = 0
        self._text = "x" * max(0, payload - _ENVELOPE)

    async def one(self) -> None:
        """One task, submitted on its own and awaited."""
        task = await self.bench.net.submit("bench.echo", {"text": self._text})
        self.wrong += await task.result() != len(self._text)

    async def in_batches(self, window: int) -> list[float]:
        """All of them, submitted ``BATCH`` at a time, ``window`` batches in flight; how long each took."""
        latencies: list[float] = []
        room = asyncio.Semaphore(window)

        async def batch(size: int) -> None:
            sent = perf_counter()
            for task in await self.bench.net.submit_many("bench.echo", [{"text": self._text}] * size):
                self.wrong += await task.result() != len(self._text)
                latencies.append(perf_counter() - sent)
            room.release()

        async with asyncio.TaskGroup() as batches:
            for start in range(0, self.count, BATCH):
                await room.acquire()
                batches.create_task(batch(min(BATCH, self.count - start)))
                await asyncio.sleep(0)  # one batch is encoded in a turn of the loop
        return latencies

    async def waiting(self, nodes: int, agents: int) -> dict[str, Any]:
        """All are accepted before anybody offers what they ask for; then nodes come and do them."""
        bench = self.bench
        inputs = [{"text": self._text}] * self.count
        before, meter = rss_bytes(bench.parts["controller"]), Meter(bench)
        tasks = await bench.net.submit_many("bench.echo", inputs)
        accepted = await meter.stop(self.count, "submits")
        held = rss_bytes(bench.parts["controller"]) - before
        await bench.hire(nodes, agents, BATCH)
        meter = Meter(bench)
        for task in tasks:
            self.wrong += await task.result() != len(self._text)
        done = await meter.stop(self.count, "tasks")
        lag = {key: max(accepted[key], done[key]) for key in done if "lag" in key}
        return {
            **done, **lag, "submits_per_s": accepted["submits_per_s"], "cpu_us_per_submit": accepted["cpu_us_per_task"],
            "bytes_per_task": round(held / self.count),
        }  # fmt: skip

    async def ending(self, figures: dict[str, Any], warmed: int = WARM) -> dict[str, Any]:
        """``figures`` with what every run tells beside its own."""
        totals = (await self.bench.net.stats())["totals"]
        return {
            **figures,
            "start_s": round(self.bench.start_s, 3),
            "peak_rss_mb": self.bench.peak_rss_mb(),
            "lost": self.count - totals["completed"] + warmed + 1 + self.wrong,
            "duplicated": max(0, totals["completed"] - self.count - warmed - 1),
            "count": self.count,
            "settings": self.bench.settings,
        }


async def throughput(bench: Bench, count: int, payload: int, callers: int, window: int) -> dict[str, Any]:
    """All at once: in batches, or each on its own by so many ``callers``."""
    work = Work(bench, count, payload)
    meter = Meter(bench)
    latencies = await (at_a_time(count, callers, work.one) if callers else work.in_batches(window))
    figures = await meter.stop(count, "tasks")
    return await work.ending({**figures, **spread(latencies)})


async def one_by_one(bench: Bench, count: int, payload: int) -> dict[str, Any]:
    """Idle latency: one at a time."""
    work = Work(bench, count, payload)
    meter = Meter(bench)
    latencies = await at_a_time(count, 1, work.one)
    figures = await meter.stop(count, "tasks")
    return await work.ending({**figures, **spread(latencies)})


async def waiting(bench: Bench, count: int, payload: int, nodes: int, agents: int) -> dict[str, Any]:
    """Tasks that wait for a capability nobody offers yet."""
    work = Work(bench, count, payload)
    return await work.ending(await work.waiting(nodes, agents), warmed=0)
