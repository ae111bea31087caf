"""What counts as an agent's load, and when it is given back: attempts, routed calls, and calls that nodes tell of."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import pytest
from peers import Peer, World, until, virtually

from comity.controller.controller import Controller
from comity.controller.numbers import loads
from comity.model import published, wire
from comity.model.capability import NodeRecord
from comity.model.ids import AgentId

A = AgentId("n1/a")


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


def load(controller: Controller) -> int:
    return controller.scheduling.load(A)


async def beat(node: Peer, seq: int, calls: int, incarnation: int = 1) -> None:
    """A beacon that tells of so many live calls at agent a."""
    beacon = msgspec.structs.replace(node.beacon(seq, incarnation), calls={A: calls} if calls else {})
    await node.say(beacon)
    await node.hear(wire.BeaconAck, lambda ack: ack.seq == seq)


async def test_a_routed_call_counts_once_also_when_its_node_tells_of_it(world: World) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=3)
    node.silence()
    await client.say(wire.Route(1, "echo", 60_000), wire.Route(2, "echo", 60_000))
    await client.hear(wire.Routed, lambda routed: routed.ref == 2)
    await beat(node, 1000, 1)
    assert load(controller) == 2, "one has not arrived yet"
    await beat(node, 1001, 3)
    assert load(controller) == 3, "two routed, and one made directly"
    await client.say(wire.CallEnded(1), wire.CallEnded(2))
    await until(lambda: load(controller) == 1)
    await beat(node, 1002, 0)
    assert load(controller) == 0


async def test_calls_of_a_former_life_are_forgotten(world: World) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=1)
    node.silence()
    await beat(node, 1000, 1)
    assert load(controller) == 1
    await beat(node, 1001, 0, incarnation=2)
    await until(lambda: controller.state.nodes[node.name].incarnation == 2)
    await beat(node, 1002, 0, incarnation=2)
    assert load(controller) == 0
    await client.submit()
    assert (await node.hear(wire.Run)).agent == A


async def test_calls_of_a_caller_to_whom_nobody_listens_any_more_are_given_back() -> None:
    """Where the bus cannot see departures, an answer that reached nobody tells."""
    world = World()
    world.network.sees_departures = False
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=1)
    await client.say(wire.Route(1, "echo", 600_000))
    await client.hear(wire.Routed)
    await client.say(wire.FollowEvents(1, for_ms=60_000))
    world.network.disconnect(client.name)
    other = await world.peer("c2")
    await other.submit("x")
    await until(lambda: load(controller) == 0)
    await controller.stop()


async def test_what_is_known_of_nodes_goes_with_their_lease(world: World) -> None:
    controller = await world.controller()
    for name in ("n1", "n2", "n3"):
        node = await world.peer(name)
        await node.join("a")
        node.silence()
        await node.say(wire.Leaving(1))
    await until(lambda: not controller.state.nodes)
    assert controller.leading is not None
    liveness = controller.leading.liveness
    assert not liveness.beacons and not liveness.states and not liveness._calls


async def test_a_node_that_is_back_already_is_not_cleared_away(world: World) -> None:
    controller = await world.controller()
    node = await world.peer("n1")
    await node.join("a")
    node.silence()
    await node.registry.put("nodes/n1", published.encode_node(NodeRecord(id=node.name, incarnation=2)))
    await until(lambda: controller.census.nodes[node.name].incarnation == 2)
    await node.say(wire.Leaving(1))
    await until(lambda: not controller.state.nodes)
    await until(lambda: controller.leading is not None and not controller.leading._beside)
    assert list(world.registry.records) == ["nodes/n1", "agents/n1/0"]


async def test_a_node_that_lost_its_lease_under_another_leader_gets_no_work(world: World) -> None:
    """Else its agents are chosen again and again, and every assignment is void."""
    first = await world.controller("k1")
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    node.silence()
    records = dict(world.registry.records)
    second = await world.controller("k2")
    await until(lambda: first.leading is None)
    await node.say(wire.Leaving(1))
    await until(lambda: not second.state.nodes and not world.registry.records)
    for key, record in records.items():
        await node.registry.put(key, record.value)
    await second.stop()
    await until(lambda: first.led.is_set())
    await client.submit()
    assert first.scheduling.offered("echo") == 1 and first.scheduling.live("echo") == 0


async def test_the_busiest_agents_are_listed_first_and_no_more_than_fit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join(*(f"a{i}" for i in range(6)), slots=9)
    node.silence()
    busy = {AgentId("n1/a4"): 3, AgentId("n1/a1"): 7, AgentId("n1/a2"): 3}
    await node.say(msgspec.structs.replace(node.beacon(1000, 1), calls=busy))
    rows = (await client.ask("agents"))["agents"]
    assert [(row["id"], row["load"]) for row in rows] == [
        ("n1/a1", 7), ("n1/a2", 3), ("n1/a4", 3), ("n1/a0", 0), ("n1/a3", 0), ("n1/a5", 0),
    ]  # fmt: skip
    assert controller.leading is not None
    few = loads(controller.leading.leader, controller.census, 2)
    assert [row["id"] for row in few] == ["n1/a1", "n1/a2"]
    stats = await client.ask("stats")
    assert stats["agents"] == {"active": 6} and stats["per_node"][0]["agents"] == 6
    await node.registry.delete("agents/n1/0")
    await until(lambda: not controller.census.agents)
    assert (await client.ask("stats"))["agents"] == {}


@virtually()
async def test_the_age_of_the_oldest_waiting_task_is_known_over_a_restart(world: World) -> None:
    first = await world.controller("k1")
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    await client.submit()
    await node.hear(wire.Run)
    waiting = await client.submit("x")
    await client.submit("x")
    await first.stop()
    world.wall += 100
    second = await world.controller("k2")
    age = (await client.ask("stats"))["oldest_waiting_s"]
    assert age == pytest.approx((second.state.time_ms - second.state.tasks[waiting].created_at) / 1000, abs=1.0)
    assert age >= 99
