"""A node from its joining to its leaving: what it announces, how it says that it lives, how it lets go."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from node_stage import LIMIT_S, Caller, Stage, Watched, staged_on, until, worker

from comity.agent import Agent
from comity.bus.base import to
from comity.errors import AccessDenied, Conflict, ShuttingDown, TimedOut, UnknownAgent, Unreachable
from comity.model import published, wire
from comity.model.capability import AgentStatus, NodeRecord, Resources
from comity.model.ids import ProcessId
from comity.node.announce import CHUNK, NODE_TTL_S
from comity.registry.memory import MemoryRegistry
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)


# Joining


@staged
async def test_agents_are_announced_once_they_can_be_reached(stage: Stage) -> None:
    watched = Watched(stage)
    agent = worker(tags={"x", "b"}, labels={"team": "red"}, kind="llm", version="2.1", concurrency=3, weight=0.5, zone="z1")
    agent.update(resources={"cpu": 4.0, "gpu": 1})
    about = NodeRecord(id=ProcessId(""), incarnation=0, host="h", pid=7, region="eu", zone="z0")
    node, _ = await stage.started(agent, worker("b"), registry=watched, about=about)
    kinds = [key.split("/")[0] for key in watched.puts]
    assert kinds == ["schemas", "agents", "nodes"] and not watched.unheard, "schemas once, the node last"
    record = stage.agents()["n1/a"]
    assert record.tags == ("b", "x") and record.labels == {"team": "red"} and record.kind == "llm" and record.version == "2.1"
    assert record.concurrency == 3 and record.weight == 0.5 and record.region == "eu" and record.zone == "z1"
    assert record.resources == Resources(cpu=4.0, gpu=1) and record.node == "n1" and record.status == "active"
    assert record.registered_at == int(stage.wall() * 1000) // 1000 * 1000 or record.registered_at > 0
    (offer,) = record.offers
    capability = published.decode_capability(stage.registry.records[f"schemas/n1/{offer.schema}"].value)
    assert capability.name == "work" and capability.description == "Do some work."
    assert capability.input_schema["properties"]["seconds"] == {"type": "number", "default": 0.0}
    shown = stage.record()
    assert shown is not None and (shown.host, shown.pid, shown.incarnation) == ("h", 7, node.incarnation)
    assert stage.agents()["n1/b"].zone == "z0"


@staged
async def test_beacons_say_how_it_is(stage: Stage) -> None:
    node, leader = await stage.started(worker(), worker("b"))
    leader.assign("work", {"seconds": 3.0})
    await leader.next(wire.Began)
    leader.forget()
    before = asyncio.get_running_loop().time()
    for _ in range(4):
        beacon = await leader.next(wire.Beacon)
    assert asyncio.get_running_loop().time() - before == pytest.approx(4 * stage.settings.beacon_s, abs=stage.settings.beacon_s)
    assert (beacon.running, beacon.agents, beacon.cpu, beacon.memory_mb) == (1, 2, 0.25, 100.0)
    assert (beacon.host_cpu_free, beacon.host_memory_free_mb, beacon.draining, beacon.calls) == (1.5, 1000.0, False, {})
    assert beacon.incarnation == node.incarnation and beacon.lag_s < 0.01
    assert len({item.seq for item in leader.all(wire.Beacon)}) == len(leader.all(wire.Beacon))


@staged
async def test_an_unknown_node_announces_itself_again(stage: Stage) -> None:
    leader = await stage.leader()
    leader.knows = False
    node = stage.node("n1", [worker()])
    await node.start()
    with pytest.raises(TimedOut):
        await node.ready(2.0)
    stage.registry.remove("agents/n1/0")
    stage.registry.remove("nodes/n1")
    await until(lambda: "n1/a" in stage.agents() and stage.record() is not None)
    leader.knows = True
    await node.ready(2.0)


@staged
async def test_what_the_registry_has_lost_is_there_again_at_the_next_renewal(stage: Stage) -> None:
    """As when an operator revokes leases, or restores an older state: nobody tells the node."""
    await stage.started(worker())
    await asyncio.sleep(NODE_TTL_S)  # what it looks at after its start is over
    before = {key: record.value for key, record in stage.registry.records.items()}
    assert len(before) == 3
    for key in before:
        stage.registry.remove(key)
    async with asyncio.timeout(NODE_TTL_S / 2):
        await until(lambda: {key: record.value for key, record in stage.registry.records.items()} == before)


@staged
async def test_what_a_former_life_left_is_cleared_away(stage: Stage) -> None:
    registry = MemoryRegistry(stage.registry)
    await registry.put("agents/n1/7", published.encode_agents([]))
    await registry.put("schemas/n1/0123", b"{}")
    await registry.put("agents/n10/0", b"another's")
    await stage.started(worker())
    left = sorted(key for key in stage.registry.records if not key.startswith("schemas/"))
    assert left == ["agents/n1/0", "agents/n10/0", "nodes/n1"]
    assert "schemas/n1/0123" not in stage.registry.records


@staged
async def test_a_registry_that_does_not_answer_keeps_a_node_from_starting(stage: Stage) -> None:
    watched = Watched(stage)
    watched.failing = AccessDenied("not yours")
    node = stage.node("n1", [worker()], registry=watched)
    with pytest.raises(AccessDenied):
        await node.start(2.0)
    await node.stop()


@staged
async def test_a_node_without_a_leader_or_a_registry_says_so_in_time(stage: Stage) -> None:
    node = stage.node("n1", [worker()])
    await node.start()
    with pytest.raises(TimedOut, match="no leader took node n1 in within 4 s"):
        await node.ready(4)
    watched = Watched(stage)

    async def never(key: str) -> None:
        await asyncio.sleep(1000)

    watched.get = never  # type: ignore[method-assign, assignment]
    slow = stage.node("n2", [], registry=watched)
    with pytest.raises(TimedOut, match="the registry did not answer within 3 s"):
        await slow.start(3)


@staged
async def test_a_fault_in_announcing_stops_the_node_and_says_so(stage: Stage) -> None:
    watched = Watched(stage)
    agent = worker()
    node, _ = await stage.started(agent, registry=watched)
    watched.failing = fault = ZeroDivisionError("in the registry's client")
    agent.update(tags={"new"})
    async with asyncio.timeout(LIMIT_S):
        await node.failed.wait()
    assert node.failure is fault
    never = stage.node("n2", [worker("b")], registry=watched)
    with pytest.raises(ZeroDivisionError):
        await never.start()


@staged
async def test_announcing_outlives_a_failing_registry(stage: Stage) -> None:
    watched = Watched(stage)
    agent = worker()
    node, _ = await stage.started(agent, registry=watched)
    watched.failing = Unreachable("away")
    agent.update(status="paused")
    await asyncio.sleep(3)
    assert not node.announcer.announced.is_set() and node.announcer.failure is watched.failing
    watched.failing = None
    await node.announcer.announced.wait()
    assert stage.agents()["n1/a"].status == "paused"


@staged
async def test_the_record_is_renewed_while_the_node_lives(stage: Stage) -> None:
    await stage.started(worker())
    for _ in range(6):
        await asyncio.sleep(25)
        assert stage.record() is not None
    await asyncio.sleep(2 * 3600)
    assert "n1/a" in stage.agents() and any(key.startswith("schemas/n1/") for key in stage.registry.records)


# Agents of a running node


@staged
async def test_ten_thousand_agents_and_only_what_changed_is_written(stage: Stage) -> None:
    async def work(n: int) -> int:
        return n

    agents = [Agent(f"a{i}") for i in range(10_000)]
    for agent in agents:
        agent.capability(work)
    watched = Watched(stage)
    node, leader = await stage.started(*agents, registry=watched)
    chunks = [key for key in watched.puts if key.startswith("agents/")]
    assert len(chunks) == len(set(chunks)) == 10_000 // CHUNK
    assert sum(key.startswith("schemas/") for key in watched.puts) == 1
    watched.puts.clear()
    for agent in agents[:CHUNK]:
        agent.update(tags={"new"})
    await node.announcer.announced.wait()
    assert watched.puts == ["agents/n1/0"]
    assert stage.agents()["n1/a3"].tags == ("new",)
    leader.say("n1", leader.run("work", 5, agent="n1/a9999"))
    assert await leader.done() == 5
    assert len(asyncio.all_tasks()) < 10


@staged
async def test_agents_join_change_and_leave_a_running_node(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    late = worker("late")
    node.add(late)
    with pytest.raises(Conflict):
        node.add(worker("late"))
    with pytest.raises(Conflict):
        stage.node("n2", [late])
    await node.announcer.announced.wait()
    assert "n1/late" in stage.agents() and late.id == "n1/late"

    @late.capability
    async def more() -> str:
        return "more"

    late.update(tags={"t"}, labels={"k": "v"}, concurrency=2, endpoints={"web": "http://x"}, resources={"cpu": 2})
    await node.announcer.announced.wait()
    record = stage.agents()["n1/late"]
    assert [offer.name for offer in record.offers] == ["work", "more"] and record.endpoints == {"web": "http://x"}
    leader.say("n1", leader.run("more", agent="n1/late"))
    assert await leader.done() == "more"
    late.withdraw("more")
    await node.announcer.announced.wait()
    assert [offer.name for offer in stage.agents()["n1/late"].offers] == ["work"]

    leader.say("n1", leader.run("work", {"seconds": 100}, agent="n1/late", task="t2"))
    await leader.next(wire.Began)
    node.remove("n1/late")
    assert "has left" in (await leader.next(wire.Declined)).reason
    await node.announcer.announced.wait()
    assert "n1/late" not in stage.agents() and late.id is None
    for unknown in ("late", "n2/a"):
        with pytest.raises(UnknownAgent):
            node.remove(unknown)
    with pytest.raises(ShuttingDown):
        await late.submit("work")
    late.update(status="paused")  # nobody is told


@staged
async def test_a_chunk_that_grows_too_large_is_split_and_an_empty_one_removed(stage: Stage) -> None:
    big = {f"label{i}": "x" * 1000 for i in range(60)}
    agents = [Agent(f"a{i}", labels=big) for i in range(20)]
    node, _ = await stage.started(*agents)
    chunks = [record for key, record in stage.registry.records.items() if key.startswith("agents/")]
    assert len(chunks) > 1 and all(len(record.value) < 600_000 for record in chunks)
    assert len(stage.agents()) == 20
    for agent in agents:
        node.remove(agent)
    await node.announcer.announced.wait()
    assert not any(key.startswith("agents/") for key in stage.registry.records)


# Orders from outside


@staged
async def test_a_node_can_be_told_what_to_do(stage: Stage) -> None:
    node, leader = await stage.started(worker(), worker("b"))
    caller = await Caller.join(stage)

    async def told(what: str, **args: Any) -> Any:
        answer = await caller.control(what, **args)
        return answer.code or msgspec.json.decode(answer.body)

    assert await told("pause", agent="n1/a") == {"agent": "n1/a", "status": "paused"}
    await node.announcer.announced.wait()
    assert stage.agents()["n1/a"].status == AgentStatus.PAUSED
    assert (await told("resume", agent="a"))["status"] == "active"
    assert await told("update", agent="a", changes={"tags": ["q"], "weight": 2}) == {"agent": "n1/a", "status": "active"}
    assert node.find("a").tags == ("q",)
    assert await told("update", agent="a", changes={"tags": 5}) == "bad-input"
    assert await told("update", agent="a", changes={"nothing": 5}) == "bad-input"
    assert await told("pause", agent="x") == "unknown-agent"
    assert await told("pause", agent="n2/a") == "unknown-agent"
    assert await told("dance", agent="a") == "not-found"
    assert await told("pause", agnet="a") == "bad-input"
    assert (await told("remove", agent="b"))["status"] == "left"
    assert [agent.name for agent in node.agents] == ["a"]
    assert await told("drain", timeout_s=1.0) == {"node": "n1", "draining": True}
    leader.assign("work")
    assert "draining" in (await leader.next(wire.Declined)).reason
    await caller.bus.send(to("n1"), wire.encode([wire.Ping(77)]))
    await until(lambda: wire.Pong(77) in caller.items)


@staged
async def test_an_evicted_node_stops_and_comes_back_as_a_new_life(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    leader.assign("work")
    done = await leader.next(wire.Done)
    leader.assign("work", {"seconds": 100}, task="t2")
    await leader.next(wire.Began)
    first = node.incarnation
    leader.forget()
    leader.say("n1", wire.Evicted(first - 1, "long ago"))
    await asyncio.sleep(0.1)
    assert node.attempts.running
    leader.knows = False
    leader.say("n1", wire.Evicted(first, "silent"))
    beacon = await leader.next(wire.Beacon)
    assert beacon.incarnation > first and beacon.running == 0 and not node.attempts.running
    leader.assign("work", task="t3", incarnation=first)
    assert "started anew" in (await leader.next(wire.Declined)).reason
    leader.knows = True
    await node.ready()
    shown = stage.record()
    assert shown is not None and shown.incarnation == node.incarnation
    leader.assign("work", task="t4", incarnation=node.incarnation)
    assert await leader.done() == "done"
    assert done.task not in {item.task for item in leader.all(wire.Done)}, "what the old life reported is not repeated"


@staged
async def test_an_old_acknowledgement_does_not_renew_the_lease_of_a_new_life(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    leader.is_mute = True
    leader.forget()
    beacon = await leader.next(wire.Beacon)
    leader.say("n1", wire.Evicted(node.incarnation, "silent"), wire.BeaconAck(beacon.seq, 1, 3.0, 0))
    await asyncio.sleep(0.1)
    assert not node.lease.may_begin(asyncio.get_running_loop().time())


@staged
async def test_an_acknowledgement_of_an_old_term_does_not_count(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    leader.is_mute = True
    new = await stage.leader("k2", term=5)
    await until(lambda: node.lease.leader == "k2")
    new.is_mute = True
    leader.forget()
    beacon = await leader.next(wire.Beacon)
    contact_at = node.lease.contact_at
    leader.say("n1", wire.BeaconAck(beacon.seq, 1, 3.0, 0))
    await asyncio.sleep(0.1)
    assert node.lease.contact_at == contact_at and node.lease.leader == "k2" and node.lease.term == 5


@staged
async def test_after_a_broken_connection_everything_is_said_again(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    leader.assign("work", {"seconds": 1.0})
    leader.assign("work", {"seconds": 50.0}, task="t2", timeout_s=100.0)
    await leader.next(wire.Began)
    await leader.next(wire.Began)
    stage.network.disconnect(ProcessId("n1"))
    await asyncio.sleep(2)
    assert not leader.all(wire.Done)
    leader.forget()
    stage.network.reconnect(ProcessId("n1"))
    before = asyncio.get_running_loop().time()
    assert (await leader.next(wire.Done)).task == "t1"
    assert (await leader.next(wire.Began)).task == "t2"
    assert (await leader.next(wire.Beacon)).was_away
    assert asyncio.get_running_loop().time() - before < 0.05
    await asyncio.sleep(2)
    assert not leader.all(wire.Beacon)[-1].was_away, "said until it is acknowledged"
    assert node.outbox.dropped


@staged
async def test_what_found_no_leader_is_said_again_as_soon_as_one_is_there(stage: Stage) -> None:
    """The server was away, and the node is back before the leader."""
    node, leader = await stage.started(worker())
    leader.assign("work", {"seconds": 1.0})
    await leader.next(wire.Began)
    stage.network.disconnect(ProcessId("k1"))
    await asyncio.sleep(3)
    assert node.attempts.unsettled and not leader.all(wire.Done)
    leader.forget()
    stage.network.reconnect(ProcessId("k1"))
    before = asyncio.get_running_loop().time()
    await leader.next(wire.Done)
    assert asyncio.get_running_loop().time() - before < stage.settings.beacon_s + 0.05


@staged
async def test_a_node_that_finds_no_leader_asks_often_at_first(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    gone = asyncio.get_running_loop().time()
    stage.network.disconnect(ProcessId("k1"))
    await asyncio.sleep(10)
    asked = [at - gone for at in node.lease._sent.values() if at > gone]
    assert len([at for at in asked if at < 1.0]) >= 4
    assert len(asked) <= 2 * 10 / stage.settings.beacon_s + 3, "and then not much more often than it beacons"
    stage.network.reconnect(ProcessId("k1"))
    leader.forget()
    await leader.next(wire.Beacon)
