"""``comity bench recovery --fault stuck``: how long until attempts that are alive but show no progress are moved.

Attempts show progress until their process is told that they stand still; each then shows a last sign, and is silent. The figure
is the time from just before a node was told until the last of its attempts was reported to have begun again, with a higher epoch;
``excess`` is how much longer that took than the progress timeout. A retry's pause is in it.
"""

from __future__ import annotations

import asyncio
import random
from time import perf_counter
from typing import TYPE_CHECKING, Any

from comity.cli.bench_figures import spread
from comity.cli.bench_network import Bench
from comity.cli.bench_recovery import AGENTS, BEACON_S, LIMIT_S, Watch
from comity.model.capability import Retry

if TYPE_CHECKING:
    from comity import Client

TIMEOUT_S = 1.0
"""The attempts' progress timeout."""


async def measure(bench: Bench, count: int, nodes: int, tasks: int) -> dict[str, Any]:
    """``count`` rounds with ``tasks`` attempts on ``nodes`` nodes; the figures. Raises ServerFailed, TimedOut."""
    slots = -(-tasks // (AGENTS * (nodes - 1)))  # all but one node have room for everything
    await bench.hire(nodes, AGENTS * nodes, slots)
    watch = Watch(bench.net)
    try:
        retry = Retry(retries=count, factor=1.0)  # each pauses as a first one does
        given = await bench.net.submit_many("bench.show", range(tasks), retry=retry, progress_timeout_s=TIMEOUT_S)
        ids: set[str] = {task.id for task in given}
        await watch.until(lambda: len(ids & watch.where.keys()) == tasks, "that every task began")
        rounds = [await _round(bench.net, watch, ids) for _ in range(count)]
        await bench.net.broadcast(topic="bench.enough")
        results = await asyncio.gather(*(task.result(LIMIT_S) for task in given), return_exceptions=True)
        await watch.until(lambda: len(ids & watch.ended.keys()) == tasks, "that every task ended")
    finally:
        await watch.stop()
    bench.settings |= {"attempts": tasks, "fault": "stuck", "progress_timeout_s": TIMEOUT_S}
    return {
        **spread([took for took, _ in rounds]),
        **spread([took - TIMEOUT_S for took, _ in rounds], "excess_"),
        "count": count,
        "moved": sum(moved for _, moved in rounds),
        "lost": sum(result != number for number, result in enumerate(results)),
        "duplicated": sum(watch.ended[task] - 1 for task in ids),
        "settings": bench.settings,
    }


async def _round(net: Client, watch: Watch, ids: set[str]) -> tuple[float, int]:
    """Seconds until all attempts of a node ran again, and how many there were."""
    held = watch.held(ids)
    victim = random.choice(sorted(held))
    before = held[victim]
    await asyncio.sleep(random.uniform(0, BEACON_S))  # at any moment between two beacons
    began = perf_counter()
    await net.request(f"{victim}/bench-0", topic="bench.stand-still")
    await watch.until(lambda: all(watch.where[task].epoch > epoch for task, epoch in before.items()), "that all was moved")
    return max(watch.where[task].at for task in before) - began, len(before)
