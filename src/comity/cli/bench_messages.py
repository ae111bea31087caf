"""``comity bench messages``: live messages between this process and agents in others."""

from __future__ import annotations

import asyncio
from collections import deque
from time import perf_counter
from typing import TYPE_CHECKING, Any

from comity.cli.bench_figures import Meter, at_a_time, spread
from comity.cli.bench_network import Bench
from comity.cli.bench_raw import beside, compared, cost_of
from comity.model.ids import AgentId

if TYPE_CHECKING:
    from comity import Client

PART = 512
AHEAD = 16
"""One-way messages are counted by their receiver after every ``PART``; so many parts may be under way."""


async def requests(bench: Bench, count: int, payload: int, in_flight: int) -> dict[str, Any]:
    """Requests to one agent, each with its reply; then in turn with those of the raw library."""
    net, body = bench.net, "x" * (payload - 2)
    agent = await _anyone(bench)
    wrong = 0

    async def call() -> None:
        nonlocal wrong
        wrong += await net.request(agent, body, topic="bench.ping") != body

    meter = Meter(bench)
    latencies = await at_a_time(count, in_flight, call)
    figures = {**await meter.stop(count, "messages"), **spread(latencies)}
    async with beside(bench) as raw:
        figures |= await compared(
            lambda part: cost_of(call, part, in_flight), lambda part: raw.request(part, payload, in_flight), count
        )
    return _ending(bench, figures, count, wrong)


async def one_way(bench: Bench, count: int, payload: int) -> dict[str, Any]:
    """Messages to one agent that nobody answers; then in turn with those of the raw library."""
    net = bench.net
    agent = await _anyone(bench)
    before = await net.request(agent, topic="bench.count")
    meter = Meter(bench)
    await _told(net, agent, count, payload)
    figures = await meter.stop(count, "messages")
    lost = count - (await net.request(agent, topic="bench.count") - before)
    async with beside(bench) as raw:
        figures |= await compared(
            lambda part: _told(net, agent, part, payload), lambda part: raw.one_way(part, payload, PART, AHEAD), count
        )
    return _ending(bench, figures, count, lost)


async def _told(net: Client, agent: AgentId, count: int, payload: int) -> float:
    """The seconds that one of ``count`` messages took; their receiver counts them."""
    counted: deque[asyncio.Task[int]] = deque()
    body, began = "x" * (payload - 2), perf_counter()
    for start in range(0, count, PART):
        for _ in range(min(PART, count - start)):
            await net.send(agent, body, topic="bench.tell")
        counted.append(asyncio.create_task(net.request(agent, topic="bench.count")))
        await asyncio.sleep(0)
        if len(counted) > AHEAD:
            await counted.popleft()
    await asyncio.gather(*counted)
    return (perf_counter() - began) / count


async def broadcasts(bench: Bench, count: int, payload: int) -> dict[str, Any]:
    """Messages to every agent; a message is one delivery. Each round ends when every agent has heard it."""
    net, body = bench.net, "x" * (payload - 2)
    agents = await net.discover("bench.echo")
    one_of_each = list({agent.node: agent.id for agent in agents}.values())

    async def heard() -> int:
        """Of each node's agents together: its process counts."""
        return sum(await asyncio.gather(*(net.request(agent, topic="bench.count") for agent in one_of_each)))

    rounds = max(1, count // len(agents))
    expected = await heard()
    latencies: list[float] = []
    lost = 0
    meter = Meter(bench)
    for _ in range(rounds):
        sent = perf_counter()
        await net.broadcast(body, topic="bench.tell")
        expected += len(agents)
        missing = expected - await heard()
        latencies.append(perf_counter() - sent)
        lost += missing
        expected -= missing
    figures = await meter.stop(rounds * len(agents), "messages")
    return _ending(bench, {**figures, **spread(latencies), "broadcasts": rounds}, rounds * len(agents), lost)


async def _anyone(bench: Bench) -> AgentId:
    return (await bench.net.discover("bench.echo"))[0].id


def _ending(bench: Bench, figures: dict[str, Any], count: int, lost: int) -> dict[str, Any]:
    return {**figures, "peak_rss_mb": bench.peak_rss_mb(), "lost": lost, "count": count, "settings": bench.settings}
