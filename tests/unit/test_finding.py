"""Agents in an order, and the catalogue: the watched copy together with what the leader measured."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from peers import virtually
from stand_in import Ground, StandInLeader, ground, until

from comity.client import Client
from comity.errors import BadInput, Disconnected, InvalidInput, UnknownCapability
from comity.model import wire
from comity.model.capability import AgentStatus, Capability

SCHEMA = {"type": "object", "properties": {"path": {"type": "string"}}, "required": ["path"], "additionalProperties": False}
REVIEW = Capability(name="review", version="1.2", description="Look at a file.", input_schema=SCHEMA, retries=2)

SCHEMA2 = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
NEWER = Capability(name="review", version="1.10", description="Look at a place.", input_schema=SCHEMA2)


def figures(**said: Any) -> dict[str, Any]:
    return {"p50_ms": None, "p95_ms": None, "per_s": None, "success": None, "samples": 0, **said}


async def world(g: Ground) -> tuple[StandInLeader, Client]:
    """Three agents that review, and one that does something else."""
    leader = await g.leader()
    await g.offer("n1", "slow", REVIEW, tags=("x",))
    await g.offer("n2", "fast", REVIEW, tags=("x", "y"))
    await g.offer("n3", "new", NEWER, status=AgentStatus.PAUSED)
    await g.offer("n4", "other", Capability(name="lint"))
    measured = [
        {"id": "n1/slow", "load": 1, "concurrency": 8, **figures(p50_ms=90.0, per_s=9.0, success=1.0, samples=5)},
        {"id": "n2/fast", "load": 3, "concurrency": 8, **figures(p50_ms=2.0, per_s=3.0, success=0.5, samples=5)},
    ]
    whole = {"name": "review", "strategy": "least_loaded", **figures(p50_ms=4.0, samples=10)}
    leader.questions["performance"] = {"capabilities": [whole], "agents": measured}
    leader.questions["agents"] = {"agents": [{"id": "n2/fast", "load": 3}, {"id": "n1/slow", "load": 1}]}
    client = await g.client()
    return leader, client


@virtually()
async def test_agents_come_in_the_order_that_is_asked_for() -> None:
    async with ground() as g:
        leader, client = await world(g)

        async def names(order_by: str, capability: str = "review", **conditions: Any) -> list[str]:
            return [agent.name for agent in await client.discover(capability, order_by=order_by, **conditions)]

        assert await names("id") == ["slow", "fast", "new"]
        assert await names("name") == ["fast", "new", "slow"]
        assert await names("latency") == ["fast", "slow", "new"], "the one not measured comes last"
        assert await names("throughput", "review>=1.2") == ["slow", "fast", "new"]
        assert await names("success", limit=1) == ["slow"]
        assert await names("load", "") == ["new", "other", "slow", "fast"]
        assert await names("latency", tags="y") == ["fast"]
        asked = [item.what for item in leader.all(wire.Ask)]
        assert asked.count("performance") == 1, "what was told a moment ago is not asked again"
        with pytest.raises(BadInput, match="order"):
            await client.discover("review", order_by="beauty")
        with pytest.raises(BadInput, match="which"):
            await client.discover(order_by="latency")
        assert (await client.performance("review>=1"))["n2/fast"]["p50_ms"] == 2.0
        assert client.directory.age_s < 5


async def test_the_catalogue_tells_what_can_be_done() -> None:
    async with ground() as g:
        _, client = await world(g)
        lint, review = await client.capabilities()
        assert (lint["name"], lint["agents"], lint["p50_ms"]) == ("lint", 1, None)
        assert (review["versions"], review["agents"], review["active"]) == (["1.2", "1.10"], 3, 2)
        assert (review["description"], review["p50_ms"], review["strategy"]) == ("Look at a place.", 4.0, "least_loaded")


async def test_one_of_it_is_described_with_a_call_that_works() -> None:
    async with ground() as g:
        _, client = await world(g)
        known = await client.describe("review")
        assert known["input_schema"] == SCHEMA2
        assert known["example"] == {"place": "place"}
        assert [agent["id"] for agent in known["by_agent"]] == ["n1/slow", "n2/fast", "n3/new"]
        assert known["by_agent"][2]["status"] == "paused"
        assert known["limits"] == {}
        await client.submit("review", known["example"])
        with pytest.raises(UnknownCapability):
            await client.describe("nothing")
        await g.registry.delete("nodes/n4")
        await until(lambda: not client.directory.is_offered("lint"))
        with pytest.raises(UnknownCapability):
            await client.describe("lint")


async def test_no_example_is_better_than_one_that_is_refused() -> None:
    async with ground() as g:
        _, client = await world(g)
        odd = {"type": "object", "properties": {"code": {"type": "string", "pattern": "^[A-Z]{7}$"}}, "required": ["code"]}
        await g.offer("n5", "odd", Capability(name="odd", input_schema=odd))
        await client.discover()
        await until(lambda: client.directory.is_offered("odd"))
        assert "example" not in await client.describe("odd")
        with pytest.raises(InvalidInput):
            await client.submit("odd", {"code": "x"})


async def test_a_watch_ends_with_its_client() -> None:
    async with ground() as g:
        _, client = await world(g)
        watching = client.watch()
        first = asyncio.ensure_future(anext(watching))
        await client.discover()
        await until(lambda: len(client.directory._watchers) > 1)
        await g.offer("n9", "late", REVIEW)
        assert (await first).record.id in ("n9", "n9/late")
        assert (await anext(watching)).record.id in ("n9", "n9/late")
        last = asyncio.ensure_future(anext(watching))
        await asyncio.sleep(0)
        await client.close()
        with pytest.raises(Disconnected):
            await last
