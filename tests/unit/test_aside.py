"""Nodes set aside: drained, isolated, resumed; and that it holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec
from node_stage import Stage, staged_on, until
from peers import World
from structlog.testing import capture_logs

from comity.controller.snapshot import Writing, load
from comity.core.changes import Change
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.model import wire
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId
from comity.model.task import (
    Assign,
    Command,
    Complete,
    DrainNode,
    Ending,
    Entry,
    Evict,
    IsolateNode,
    NodeUp,
    ResumeNode,
    Start,
    Submit,
    TaskSpec,
    TaskState,
)
from comity.sim.loop import VirtualLoop

N1 = ProcessId("n1")
ONE, TWO = TaskId("t1"), TaskId("t2")


class Story:
    """A state with one node, and two tasks."""

    def __init__(self) -> None:
        self.state = Tasks(NetworkId("net"))
        self.index = 0
        specs = [TaskSpec(task, "echo", b"{}", ProcessId("c1")) for task in (ONE, TWO)]
        self.do(NodeUp(N1, 1), *(Submit(spec) for spec in specs))

    def do(self, *commands: Command) -> list[Change]:
        self.index += 1
        changes = self.state.apply(Entry("net", 1, b"", self.index * 10, list(commands)), self.index)
        self.state.check()
        return changes

    def kinds(self, *commands: Command) -> list[str]:
        return [change.kind for change in self.do(*commands)]


def assign(task: TaskId, token: int) -> Assign:
    return Assign(task, token, AgentId("n1/a"), N1, 1)


def test_a_draining_node_ends_what_it_runs_and_gets_nothing_new() -> None:
    story = Story()
    story.do(assign(ONE, 1))
    (drained,) = story.do(DrainNode(N1, "a new disk"))
    assert (drained.kind, drained.node, drained.reason) == ("node.draining", N1, "a new disk")
    assert story.kinds(assign(TWO, 2)) == ["assignment.void"], "it was under way to the log when the node was drained"
    assert story.kinds(Complete(ONE, 1, b"1")) == ["task.completed"]
    assert story.kinds(DrainNode(N1, "again")) == [], "it drains already"
    assert story.state.aside[N1].reason == "a new disk" and story.state.aside[N1].since_ms == 30


def test_what_an_isolated_node_runs_moves_at_once_and_is_fenced() -> None:
    story = Story()
    story.do(assign(ONE, 1), Start(ONE, 1), assign(TWO, 2))
    assert story.kinds(IsolateNode(N1, "it lies")) == ["node.isolated", "task.requeued", "task.requeued"]
    task = story.state.tasks[ONE]
    assert task.state is TaskState.WAITING and task.past[-1].ending is Ending.MOVED and not task.retries_used
    assert story.kinds(Complete(ONE, 1, b"1")) == ["report.rejected"]
    assert story.kinds(assign(ONE, 3)) == ["assignment.void"]
    (resumed,) = story.do(ResumeNode(N1))
    assert (resumed.kind, resumed.reason) == ("node.resumed", "it was isolated")
    assert story.kinds(assign(ONE, 4)) == ["task.assigned"]


def test_it_holds_over_the_nodes_restart_until_it_is_resumed() -> None:
    story = Story()
    story.do(DrainNode(N1))
    assert story.kinds(IsolateNode(N1)) == ["node.isolated"], "draining was not enough"
    story.do(Evict(N1, 1, "gone"))
    story.do(NodeUp(N1, 2))
    assert story.kinds(Assign(ONE, 1, AgentId("n1/a"), N1, 2)) == ["assignment.void"]
    assert story.kinds(ResumeNode(N1), ResumeNode(N1)) == ["node.resumed"]
    assert story.kinds(Assign(ONE, 2, AgentId("n1/a"), N1, 2)) == ["task.assigned"]


async def test_a_snapshot_remembers_it() -> None:
    story = Story()
    story.do(DrainNode(N1, "why"))
    data = b"".join([frame async for frame in Writing(story.state, Ledger("net")).frames()])

    async def chunks() -> AsyncIterator[bytes]:
        yield data

    state, _ = await load(chunks(), NetworkId("net"))
    assert msgspec.to_builtins(state.aside) == msgspec.to_builtins(story.state.aside) != {}


async def test_the_leader_obeys_and_its_successor_too() -> None:
    world = World()
    first = await world.controller("k1")
    client, one, two = await world.peer("c1"), await world.peer("n1"), await world.peer("n2")
    await one.join("a")
    task = await client.submit()
    run = await one.hear(wire.Run)
    await one.say(wire.Began(task, run.epoch))
    told = await client.ask("drain-node", id="n1", reason="a new disk")
    assert (told["state"], told["attempts"]) == ("draining", 1)
    later = await client.submit()
    await two.join("a")
    assert (await two.hear(wire.Run)).task == later
    (row,) = [row for row in (await client.ask("nodes"))["nodes"] if row["id"] == "n1"]
    assert (row["state"], row["reason"]) == ("draining", "a new disk") and row["aside"]["since_ms"] > 0
    told = await client.ask("isolate-node", id="n1")
    assert (told["state"], told["attempts"]) == ("isolated", 0)
    assert (await one.hear(wire.Stop)).epoch == run.epoch
    moved = await two.hear(wire.Run)
    assert moved.task == task and moved.epoch > run.epoch
    await first.stop()
    second = await world.controller("k2")
    world.running = [second]
    await client.submit()
    assert (await client.ask("stats"))["nodes"]["isolated"] == 1
    await two.kill()
    await client.submit()
    assert not [item for item in one.items if isinstance(item, wire.Run)]
    assert (await client.ask("resume-node", id="n1"))["state"] == "alive"
    await one.hear(wire.Run)
    await second.stop()


async def test_draining_can_be_waited_for() -> None:
    world = World(drain_timeout_s=0.2)
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    task = await client.submit()
    run = await node.hear(wire.Run)
    told = await client.ask("drain-node", id="n1", wait=True)
    assert told["attempts"] == 1, "the time was over"
    waiting = asyncio.create_task(client.ask("drain-node", id="n1", wait=True, timeout_s=5))
    await node.say(wire.Done(task, run.epoch, b"1", 1))
    assert (await waiting)["attempts"] == 0
    assert await client.ask("drain-node", id="nobody") == "unknown-node"
    await node.kill()
    await client.submit()
    rows = (await client.ask("nodes"))["nodes"]
    while rows[0]["state"] != "gone":
        rows = (await client.ask("nodes"))["nodes"]
    assert rows[0]["aside"]["state"] == "draining" and rows[0]["incarnation"] is None
    await controller.stop()


async def test_the_node_is_told() -> None:
    world = World()
    controller = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a")
    await client.ask("drain-node", id="n1")
    await node.hear(wire.BeaconAck, lambda ack: ack.aside == "draining")
    await client.ask("resume-node", id="n1")
    await node.hear(wire.BeaconAck, lambda ack: ack.aside == "")
    await controller.stop()


@staged_on(VirtualLoop)
async def test_a_node_says_that_it_was_set_aside(stage: Stage) -> None:
    node, leader = await stage.started()
    leader.is_mute = True
    with capture_logs() as logs:
        for aside in ("draining", "draining", "isolated", ""):
            leader.forget()
            beacon = await leader.next(wire.Beacon)
            leader.say("n1", wire.BeaconAck(beacon.seq, 1, 3.0, 1_700_000_000_000, True, aside))
            await until(lambda aside=aside: node.lease.aside == aside)  # type: ignore[misc]
    assert [log["event"] for log in logs] == ["set aside: draining", "set aside: isolated", "no longer set aside"]
