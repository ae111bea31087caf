"""Which agent answers a live call, as the leader says, and what it learns when the call ends."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from peers import World

from comity.model import wire
from comity.model.ids import AgentId


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


async def test_who_was_asked_is_asked_no_more_nor_others_on_its_node_if_possible(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    n1, n2 = await world.peer("n1"), await world.peer("n2")
    await n1.join("a", "b", "c", slots=9)
    await n2.join("a", slots=1)

    async def routed(ref: int, *asked: str) -> wire.Routed:
        await client.say(wire.Route(ref, "echo", 5_000, asked=tuple(AgentId(one) for one in asked)))
        return await client.hear(wire.Routed, lambda found: found.ref == ref)

    assert (await routed(1, "n1/a")).agent == "n2/a"
    assert (await routed(2, "n1/a")).agent in ("n1/b", "n1/c"), "there is nobody else"
    assert (await routed(3, "n1/a", "n1/b", "n2/a")).agent == "n1/c"
    assert (await routed(4, "n1/a", "n1/b", "n1/c")).code == "no-agent"
    assert (await routed(5, *["n1/a"] * 1001)).code == "too-large"
    assert (await routed(6, "nonsense")).code == "bad-input"


async def test_live_calls_are_measured_as_their_callers_saw_them(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=4)
    said = [(4.0, True), (8.0, True), (0.0, None), (float("nan"), True), (1e12, True), (9.0, False)]
    for ref, (took_ms, ok) in enumerate(said):
        await client.say(wire.Route(ref, "echo", 5_000))
        await client.hear(wire.Routed, lambda routed, ref=ref: routed.ref == ref)
        await client.say(wire.CallEnded(ref, took_ms, ok))
    told = await client.ask("performance", capability="echo")
    (row,) = told["agents"]
    assert (row["id"], row["p50_ms"], row["p95_ms"], row["samples"]) == ("n1/a", 4.0, 8.0, 3)
    assert row["success"] == pytest.approx(2 / 3, abs=1e-3)
    assert told["capabilities"][0]["per_s"] > 0
    stats = await client.ask("stats")
    assert stats["per_capability"][0]["name"] == "echo"
