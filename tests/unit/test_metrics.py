"""``/metrics`` says what the controller knows."""

from __future__ import annotations

import asyncio
import urllib.request

from peers import World
from prometheus_client.parser import text_string_to_metric_families as parse

from comity.model import wire
from comity.web.metrics import MetricsServer


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as response:
        text = response.read().decode()
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in parse(text) for s in family.samples}


async def test_the_leaders_figures() -> None:
    world = World()
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    await client.submit("nobody")
    run = await node.hear(wire.Run)
    await node.say(wire.Done(task, run.epoch, b"1", 1))
    await client.hear(wire.Ended)
    stats = await client.ask("stats")
    server = MetricsServer(controller.stats, 0)
    try:
        found = await asyncio.to_thread(scrape, server.port)
    finally:
        await server.stop()
        await controller.stop()
    assert found["comity_leader", ()] == 1
    assert found["comity_term", ()] == 1
    assert found["comity_log_head", ()] >= stats["log_head"]
    assert found["comity_submitted_total", ()] == 2
    assert found["comity_completed_total", ()] == 1
    assert found["comity_tasks", (("state", "submitted"),)] == 1
    assert found["comity_nodes", (("state", "alive"),)] == 1
    assert found["comity_agents", (("status", "active"),)] == 1
    assert found["comity_agent_load", (("agent", "n1/a"),)] == 0
    assert found["comity_node_memory_megabytes", (("node", "n1"),)] == 10
    assert ("comity_network_info", (("durability", "unverified"), ("leader", "k1"), ("network", "net"))) in found


async def test_a_standby_says_that_it_is_one() -> None:
    world = World()
    leader = await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    server = MetricsServer(standby.stats, 0)
    try:
        found = await asyncio.to_thread(scrape, server.port)
    finally:
        await server.stop()
        await standby.stop()
        await leader.stop()
    assert found["comity_leader", ()] == 0
    assert ("comity_submitted_total", ()) not in found
