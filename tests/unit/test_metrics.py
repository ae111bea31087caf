"""``/metrics`` says what the controller knows."""

from __future__ import annotations

import asyncio
import re
import urllib.request
from pathlib import Path

from peers import World
from prometheus_client.parser import text_string_to_metric_families as parse

from comity.model import wire
from comity.model.task import TaskFailure
from comity.web.metrics import MetricsServer, registry

ROOT = Path(__file__).resolve().parents[2]


def scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, by its name and labels."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as response:
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


async def exposed() -> set[str]:
    """The names of all samples that a leader can show."""
    controller = await World().controller()
    try:
        families = list(registry(controller.stats).collect())
    finally:
        await controller.stop()
    return {family.name + {"counter": "_total", "info": "_info"}.get(family.type, "") for family in families}


async def test_alerts_name_metrics_that_exist_and_leave_none_unwatched() -> None:
    rules = (ROOT / "docs" / "alerts.yml").read_text()
    expressions = re.findall(r"^ +expr: (.+)$", rules, re.MULTILINE)
    named = {name for expression in expressions for name in re.findall(r"comity_\w+", expression)}
    known = await exposed()
    assert named <= known
    unwatched = {
        "comity_term", "comity_tasks", "comity_node_attempts", "comity_agent_load", "comity_replayed_total",
    }  # fmt: skip
    assert known - named == unwatched, "these only show what goes on; any other metric needs an alert"
    parts = re.split(r"^ +- alert: ", rules, flags=re.MULTILINE)[1:]
    assert len(parts) == len(expressions) > 20
    for part in parts:
        assert all(re.search(rf"^ +{key}: ?.", part, re.MULTILINE) for key in ("expr", "labels", "summary", "action")), part
        assert re.search(r"severity: (info|warning|critical)", part), part


async def test_operations_explain_every_metric() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    told = set(re.findall(r"`(comity_\w+)`", text))
    assert told == await exposed()


async def test_what_is_wrong_is_counted() -> None:
    world = World(max_waiting=1, breaker_failures=1)
    controller = await world.controller()
    controller.measure = lambda: {"disk_free_bytes": 5, "open_files_limit": 6}
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    await client.submit(retries=0)
    run = await node.hear(wire.Run)
    await node.say(wire.Failed(run.task, run.epoch, TaskFailure("KeyError")))
    await client.hear(wire.Ended)
    await client.submit()
    await client.say(wire.SubmitTask(client.spec()))
    await client.hear(wire.Refused)
    await node.say(wire.Done(run.task, run.epoch, b"1", 1))
    await node.hear(wire.Settled)
    await client.ask("isolate-node", id="n1")
    server = MetricsServer(controller.stats, 0)
    try:
        found = await asyncio.to_thread(scrape, server.port)
    finally:
        await server.stop()
        await controller.stop()
    for kind in ("node.joined", "leader.elected", "report.rejected", "submit.refused", "agent.broken", "node.isolated"):
        assert found["comity_events_total", (("type", kind),)] == 1, kind
    assert found["comity_overload_refusals_total", (("limit", "tasks"),)] == 1
    assert found["comity_waiting", (("what", "bytes"),)] == 7
    assert found["comity_waiting_limit", (("what", "tasks"),)] == 1
    assert found["comity_breakers", (("state", "open"),)] == 1
    assert found["comity_nodes", (("state", "isolated"),)] == 1
    assert found["comity_elections_total", ()] == 1
    assert found["comity_controller_disk_free_bytes", ()] == 5
