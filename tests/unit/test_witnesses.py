"""Who still sees a node that the leader does not hear."""

from __future__ import annotations

import msgspec
from node_stage import Caller, Stage, staged_on
from peers import Peer, World, virtually

from comity.bus.base import to
from comity.model import wire
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)


async def told(client: Peer, kind: str) -> dict[str, object]:
    notice = await client.hear(wire.EventNotice, lambda n: msgspec.json.decode(n.body)["type"] == kind)
    event: dict[str, object] = msgspec.json.decode(notice.body)
    return event


async def say(witness: Peer, order: wire.Control, body: bytes) -> None:
    await witness.bus.send(to("k1"), wire.encode([wire.Answer(order.ref, "", body)]))


@virtually(lease_s=3.0, beacon_s=0.1)
async def test_a_node_that_others_see_is_cut_off_not_dead(world: World) -> None:
    await world.controller()
    client = await world.peer("c1")
    nodes = [await world.peer(f"n{number}") for number in range(1, 5)]
    for node in nodes:
        await node.join("a")
    await client.say(wire.FollowEvents(1))
    nodes[2].silence()
    orders = [await nodes[i].hear(wire.Control, lambda c: c.what == "probe") for i in (0, 1, 3)]
    assert {msgspec.json.decode(order.args)["node"] for order in orders} == {"n3"}
    await say(nodes[0], orders[0], b'{"seen":true}')
    await say(nodes[1], orders[1], b'{"seen":false}')
    await say(nodes[1], orders[1], b"no JSON")
    await say(client, orders[2], b'{"seen":true}')
    event = await told(client, "partition.suspected")  # n4 says nothing: it is not waited for long
    assert event["reason"] == "n3: seen by n1, not by the leader (k1), nor by n2"
    assert (event["node"], event["seen_by"], event["unseen_by"], event["silent"]) == ("n3", ["n1"], ["n2"], ["n4"])
    counts = (await client.ask("stats"))["events"]
    assert counts["partition.suspected"] == counts["node.suspect"] == 1


@virtually(lease_s=3.0, beacon_s=0.1)
async def test_nobody_sees_a_dead_one(world: World) -> None:
    controller = await world.controller()
    client, one, two = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await one.join("a")
    await two.join("a")
    await client.say(wire.FollowEvents(1))
    two.silence()
    order = await one.hear(wire.Control)
    await say(one, order, b'{"seen":false}')
    assert (await told(client, "node.unseen"))["reason"] == "n2: not seen by n1 either"
    one.silence()
    await told(client, "node.suspect")  # nobody is left to be asked
    assert not controller.leading or not controller.leading.witnesses._rounds


@staged
async def test_a_node_looks_when_its_leader_asks(stage: Stage) -> None:
    _, leader = await stage.started(name="n1")
    await stage.node("n2").start()
    for ref, node in ((7, "n2"), (8, "gone")):
        leader.say("n1", wire.Control(ref, "probe", msgspec.json.encode({"node": node})))
    answers = [await leader.next(wire.Answer) for _ in range(2)]
    assert {answer.ref: msgspec.json.decode(answer.body)["seen"] for answer in answers} == {7: True, 8: False}
    caller = await Caller.join(stage)
    assert (await caller.control("probe", node="n2")).code != "", "only the leader may ask"
    leader.say("n1", wire.Control(9, "probe", b"{}"))
    assert (await leader.next(wire.Answer)).code == "bad-input"


@staged
async def test_a_node_that_hangs_is_not_seen(stage: Stage) -> None:
    node, leader = await stage.started(name="n1")
    await Caller.join(stage, "mute")
    leader.say("n1", wire.Control(1, "probe", b'{"node":"mute"}'))
    answer = await leader.next(wire.Answer)
    said = msgspec.json.decode(answer.body)
    assert said["seen"] is False and said["after_s"] >= 1.0
    leader.say("n1", wire.Control(2, "probe", b'{"node":"mute"}'), wire.Ping(3))
    await leader.next(wire.Pong)
    await node.stop()
    assert not node._probing._open


@staged
async def test_a_beacon_carries_the_nodes_clock(stage: Stage) -> None:
    _, leader = await stage.started(name="n1")
    beacon = await leader.next(wire.Beacon)
    assert abs(beacon.wall_ms - stage.wall() * 1000) < 1000
    record = stage.record()
    assert record is not None and (record.beacon_s, record.orphan_s) == (0.5, 60.0)


@virtually()
async def test_clocks_are_measured(world: World) -> None:
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    for late_ms in (800, 20):  # a beacon that was long on its way tells less
        beacon = node.beacon(99, 1)
        wall_ms = int(world.now() * 1000) + 5000 - late_ms
        await node.say(msgspec.structs.replace(beacon, wall_ms=wall_ms))
    (row,) = (await client.ask("nodes"))["nodes"]
    assert 4.9 < row["clock_ahead_s"] <= 5.0
    assert (await client.ask("hello", version="9.9"))["term"] == 1
    stats = await client.ask("stats")
    assert stats["client_versions"] == ["9.9"] and stats["settings"]["lease_s"] == 3.0
    assert stats["controller"]["process"] == "k1"
