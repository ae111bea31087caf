"""``comity bench messages --durable``: mail that is on disk before its sender is told, from this process to agents in others."""

from __future__ import annotations

import asyncio
from itertools import cycle
from time import perf_counter
from typing import Any

from comity.cli.bench_figures import Meter, at_a_time, spread
from comity.cli.bench_network import Bench

WAIT_S = 60.0
LOOK_S = 0.02


async def durable(bench: Bench, count: int, payload: int, in_flight: int) -> dict[str, Any]:
    """``count`` mails, ``in_flight`` at a time, to each agent in turn. The latency is until the sender is told that its mail is
    durable; ``arrived_per_s`` counts until every function has returned."""
    net, body = bench.net, "x" * (payload - 2)
    agents = await net.discover("bench.echo")
    one_of_each = list({agent.node: agent.id for agent in agents}.values())
    turn = cycle([agent.id for agent in agents])

    async def heard() -> int:
        return sum(await asyncio.gather(*(net.request(agent, topic="bench.count") for agent in one_of_each)))

    async def call() -> None:
        await net.send(next(turn), body, topic="bench.tell", durable=True)

    await at_a_time(min(count, 256), 16, call)  # so that every process has done it once
    before = await _all_taken(bench, heard)
    meter, began = Meter(bench), perf_counter()
    latencies = await at_a_time(count, in_flight, call)
    figures = await meter.stop(count, "messages")
    missing = before + count - await _all_taken(bench, heard)
    took = perf_counter() - began
    return {
        **figures, **spread(latencies), "arrived_per_s": round(count / took), "peak_rss_mb": bench.peak_rss_mb(),
        "lost": max(0, missing), "twice": max(0, -missing), "count": count, "settings": bench.settings,
    }  # fmt: skip


async def _all_taken(bench: Bench, heard: Any) -> int:
    """How many were heard, once no mail waits any more."""
    until = perf_counter() + WAIT_S
    while perf_counter() < until and (await bench.net.stats())["mail"]["waiting"]:  # noqa: ASYNC110 - only the leader knows
        await asyncio.sleep(LOOK_S)
    return int(await heard())
