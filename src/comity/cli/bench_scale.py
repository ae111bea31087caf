"""``comity bench scale``: many agents: how fast they are there, what each takes, how fast they are found and reached."""

from __future__ import annotations

import asyncio
import contextlib
from time import perf_counter
from typing import Any

from comity.cli.bench_figures import Meter, at_a_time, spread
from comity.cli.bench_network import READY_S, Bench, rss_bytes
from comity.model.capability import AgentRecord

LOOKS = 200
CHANGES = 20
IN_FLIGHT = 256
SLOTS = 8


async def measure(bench: Bench, nodes: int, agents: int) -> dict[str, Any]:
    """Start a node with one agent, then ``nodes`` with ``agents`` between them; the difference is what agents take."""
    bare, _ = await bench.hire(1, 1, SLOTS)
    await bench.net.discover("bench.echo")
    before = {part: rss_bytes(bench.parts[part]) for part in ("controller", "client")}
    meter, began = Meter(bench), perf_counter()
    seeing = asyncio.create_task(_all_seen(bench, agents))
    full, ids = await bench.hire(nodes, agents, SLOTS)
    ready_s = perf_counter() - began
    seen = await seeing
    found = [seen[agent] for agent in ids]
    registered_s = perf_counter() - began
    registered = await meter.stop(agents, "agents")
    grown = {part: rss_bytes(bench.parts[part]) - size for part, size in before.items()}
    return {
        "ready_s": round(ready_s, 3),
        "registered_s": round(registered_s, 3),
        **{key: value for key, value in registered.items() if "_us_" not in key},
        "cpu_us_per_agent": registered["cpu_us_per_task"],
        "bytes_per_agent": round((rss_bytes(full) - nodes * rss_bytes(bare)) / agents),
        "controller_bytes_per_agent": round(grown["controller"] / agents),
        "client_bytes_per_agent": round(grown["client"] / agents),
        **await _discovery(bench, found),
        **await _reach(bench, found),
        **await _seen(bench, found, "bench.mark", "change_seen_"),
        **await _seen(bench, found, "bench.join", "join_seen_"),
        "peak_rss_mb": bench.peak_rss_mb(),
        "count": agents,
        "settings": bench.settings,
    }


async def _all_seen(bench: Bench, count: int) -> dict[str, AgentRecord]:
    """The next ``count`` agents that join, once this client has seen every one."""
    seen: dict[str, AgentRecord] = {}
    watching = bench.net.watch()
    async with asyncio.timeout(READY_S), contextlib.aclosing(watching):
        async for what, record in watching:
            if what == "joined" and isinstance(record, AgentRecord):
                seen[record.id] = record
                if len(seen) == count:
                    break
    return seen


async def _discovery(bench: Bench, agents: list[AgentRecord]) -> dict[str, float]:
    """To find one among them all: by its name, and by a tag that it alone has; and twenty that all conditions let through."""
    net = bench.net
    step = max(1, len(agents) // LOOKS)
    by_tag, by_name, best = [], [], []
    for agent in agents[::step][:LOOKS]:
        began = perf_counter()
        found = await net.discover(name=agent.name, node=agent.node)
        by_name.append(perf_counter() - began)
        began = perf_counter()
        tagged = await net.discover("bench.echo", tags=[agent.name])
        by_tag.append(perf_counter() - began)
        began = perf_counter()
        await net.discover("bench.echo>=1", status="active", limit=20)
        best.append(perf_counter() - began)
        assert agent.id in {one.id for one in found} & {one.id for one in tagged}
    return spread(by_name, "discover_name_") | spread(by_tag, "discover_tag_") | spread(best, "discover_20_of_all_")


async def _reach(bench: Bench, agents: list[AgentRecord]) -> dict[str, Any]:
    """One request to each; the agent that answers must be the one that was asked."""
    waiting = iter(agents)
    wrong = 0

    async def ask() -> None:
        nonlocal wrong
        agent = next(waiting)
        wrong += await bench.net.request(agent.id, topic="bench.who") != agent.id

    began = perf_counter()
    latencies = await at_a_time(len(agents), IN_FLIGHT, ask)
    took = perf_counter() - began
    return {"reached_s": round(took, 3), "messages_per_s": round(len(agents) / took), **spread(latencies), "lost": wrong}


async def _seen(bench: Bench, agents: list[AgentRecord], topic: str, prefix: str) -> dict[str, float]:
    """How long until a change that an agent makes to its record is seen here, or an agent that it brings to its node."""
    net = bench.net
    seen: dict[str, asyncio.Future[None]] = {}

    async def watch() -> None:
        async for _, record in net.watch():
            if isinstance(record, AgentRecord):
                waiter = seen.pop(record.name, None) or seen.pop(record.labels.get("mark", ""), None)
                if waiter is not None:
                    waiter.set_result(None)

    watching = asyncio.create_task(watch())
    took = []
    for number, agent in enumerate(agents[:: max(1, len(agents) // CHANGES)][:CHANGES]):
        mark = f"{topic.rpartition('.')[2]}-{number}"
        seen[mark] = asyncio.get_running_loop().create_future()
        waiter, began = seen[mark], perf_counter()
        await net.send(agent.id, mark, topic=topic)
        async with asyncio.timeout(30):
            await waiter
        took.append(perf_counter() - began)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    return spread(took, prefix)
