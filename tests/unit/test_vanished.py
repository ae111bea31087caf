"""Agents in the registry whose node is not here: they count for nothing, and do not stay."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from peers import World, until

from comity.controller import vanished
from comity.model import published
from comity.model.capability import AgentRecord, NodeRecord
from comity.model.ids import AgentId, NodeId, ProcessId
from comity.registry.memory import MemoryRegistry


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


async def announce(world: World, node: str) -> None:
    """The agents of a node that sends no beacon."""
    agent = AgentRecord(id=AgentId(f"{node}/a"), name="a", node=NodeId(ProcessId(node)))
    await MemoryRegistry(world.registry).put(f"agents/{node}/0", published.encode_agents([agent]))


async def test_agents_of_nodes_without_a_lease_are_not_counted(world: World) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", "b")
    await announce(world, "ghost")
    await until(lambda: len(controller.census.agents) == 3)
    stats = await client.ask("stats")
    assert stats["agents"] == {"active": 2}
    assert [row["id"] for row in stats["per_agent"]] == ["n1/a", "n1/b"]
    assert [row["id"] for row in (await client.ask("agents"))["agents"]] == ["n1/a", "n1/b"]


async def test_agents_of_a_node_that_never_came_are_removed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vanished, "LOOK_S", 0.05)
    monkeypatch.setattr(vanished, "GRACE_S", 0.2)
    await announce(world, "ghost")
    await announce(world, "coming")
    record = NodeRecord(id=NodeId(ProcessId("coming")), incarnation=1)
    await MemoryRegistry(world.registry).put("nodes/coming", published.encode_node(record))
    controller = await world.controller()
    node = await world.peer("n1")
    await node.join("a")
    await until(lambda: "agents/ghost/0" not in world.registry.records)
    await until(lambda: "ghost" not in controller.census.counts)
    assert {"agents/coming/0", "nodes/coming", "agents/n1/0"} <= set(world.registry.records)
