"""``comity bench overload``: every agent submits a burst at the same moment, more together than may wait."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Any

import msgspec

from comity.cli.bench_figures import Meter, spread
from comity.cli.bench_network import Bench, peak_bytes
from comity.errors import ComityError, Overloaded, TimedOut

if TYPE_CHECKING:
    from comity.agent import Agent

LIMIT_S = 600.0
"""What has not ended by then hangs."""
TEXT = "x" * 256


class Order(msgspec.Struct):
    """What the agents of a node are told: how many tasks each submits, and how patient it is."""

    size: int
    patience_s: float


class Told(msgspec.Struct):
    """What became of it. ``waits_s`` is how long each burst took to be answered; ``said_s`` the times after which the refused
    were to come again."""

    submitted: int = 0
    accepted: int = 0
    refused: int = 0
    completed: int = 0
    failed: int = 0
    hung: int = 0
    waits_s: list[float] = []
    said_s: list[float] = []


async def burst(agents: list[Agent], order: Order) -> Told:
    """All of ``agents`` at once, in their process."""
    told = Told()
    async with asyncio.TaskGroup() as group:
        for agent in agents:
            group.create_task(_one(agent, order, told))
    return told


async def _one(agent: Agent, order: Order, told: Told) -> None:
    began = perf_counter()
    told.submitted += order.size
    try:
        tasks = await agent.submit_many("bench.echo", [{"text": TEXT}] * order.size, patience_s=order.patience_s or None)
    except Overloaded as error:
        tasks = [agent.task(id_) for id_ in error.details["accepted"]]
        told.said_s.append(error.details["retry_after_s"])
    told.waits_s.append(round(perf_counter() - began, 4))
    told.accepted += len(tasks)
    told.refused += order.size - len(tasks)
    for task in tasks:
        try:
            is_right = await task.result(LIMIT_S) == len(TEXT)
            told.completed += is_right
        except TimedOut:
            told.hung += 1
        except ComityError:
            told.failed += 1


async def measure(bench: Bench, nodes: int, agents: int, order: Order) -> dict[str, Any]:
    await bench.hire(nodes, agents, 8)
    meter = Meter(bench)
    asked = [
        bench.net.request(f"bench-n{number}/bench-0", order, topic="bench.burst", timeout=LIMIT_S) for number in range(nodes)
    ]
    told = msgspec.convert(await asyncio.gather(*asked), list[Told])
    figures = await meter.stop(agents * order.size, "tasks")
    stats = await bench.net.stats()
    sums = {name: sum(getattr(one, name) for one in told) for name in ("submitted", "accepted", "refused", "completed", "hung")}
    said = [seconds for one in told for seconds in one.said_s]
    return {
        **sums,
        "lost": sums["accepted"] - sums["completed"] - sums["hung"],
        "refusals": sum(stats["refused_overload"].values()),
        **spread([seconds for one in told for seconds in one.waits_s], "answered_"),
        "retry_after_s": [min(said), max(said)] if said else [],
        **figures,
        **{f"peak_{part}_mb": round(peak_bytes(processes) / 1e6, 1) for part, processes in bench.parts.items()},
        "peak_rss_mb": bench.peak_rss_mb(),
        "count": agents * order.size,
        "settings": bench.settings | {"burst": order.size, "patience_s": order.patience_s, "limits": stats["limits"]},
    }
