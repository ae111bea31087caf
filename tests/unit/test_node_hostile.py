"""What a hostile or broken process says to a node harms nobody but itself."""

from __future__ import annotations

import msgspec
import pytest
from node_stage import Caller, Stage, staged_on, until, worker

from comity.bus.base import to
from comity.model import wire
from comity.model.ids import AgentId, TaskId
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)


@staged
async def test_bytes_that_are_no_text_are_counted(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    caller = await Caller.join(stage)
    await caller.bus.send(to("n1"), msgspec.msgpack.encode([[83, "x"]]).replace(b"\xa1x", b"\xa1\xff"))
    await until(lambda: node.malformed == 1)
    leader.assign("work")
    assert await leader.done() == "done"


@pytest.mark.parametrize(
    "changes",
    [
        {"resources": {"cpu": "many"}},
        {"resources": {"cpu": [1]}},
        {"resources": 7},
        {"labels": {"a": 1}},
        {"endpoints": {"a": None}},
        {"tags": "one"},
        {"concurrency": 2**70},
        {"weight": "heavy"},
        {"status": "odd"},
        {"name": "other"},
        {"region": 5},
    ],
)
@staged
async def test_an_agent_cannot_be_changed_into_what_nobody_can_read(stage: Stage, changes: dict[str, object]) -> None:
    node, _ = await stage.started(worker())
    caller = await Caller.join(stage)
    assert (await caller.control("update", agent="a", changes=changes)).code == "bad-input"
    assert (await caller.control("update", agent="a", changes={"tags": ["x"]})).code == ""
    await until(lambda: stage.agents()["n1/a"].tags == ("x",))
    assert node.announcer.failure is None


@staged
async def test_orders_that_cannot_be_read_are_refused(stage: Stage) -> None:
    await stage.started(worker())
    caller = await Caller.join(stage)
    for args in (b'{"agent":"\xff"}', b"[" * 100_000, b'{"agent":1}', b""):
        await caller.bus.send(to("n1"), wire.encode([wire.Control(len(caller.items), "pause", args)]))
        await until(lambda: isinstance(caller.items[-1:], list) and bool(caller.items))
    await until(lambda: len([item for item in caller.items if isinstance(item, wire.Answer)]) == 4)
    assert {item.code for item in caller.items if isinstance(item, wire.Answer)} == {"bad-input"}


@staged
async def test_a_reply_asked_for_at_no_address_is_not_sent(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    caller = await Caller.join(stage)
    await caller.send("n1/a", {}, topic="work", reply_to="no such *.> thing")
    await caller.send("n1/a", {}, topic="work", reply_to="/")
    assert await caller.ask("n1/a", {}, topic="work", remaining_ms=2**62) == ("inform", "done")
    leader.assign("work")
    assert await leader.done() == "done"
    await until(lambda: not node.messages.calls)


@staged
async def test_words_of_a_false_leader_change_nothing(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    leader.assign("work", {"seconds": 5.0})
    run = await leader.next(wire.Began)
    liar = await Caller.join(stage, "liar")
    lies: list[wire.Item] = [
        wire.Stop(run.task, run.epoch, "lie", 0),
        wire.Settled(((run.task, run.epoch),)),
        wire.Evicted(2**63, "lie"),
        wire.Leading(2**62, liar.bus.process, 0),
        wire.BeaconAck(1, 2**62, 1e9, 0),
        leader.run("work", task="t2", term=2**62),
    ]
    await liar.bus.send(to("n1"), wire.encode(lies))
    assert await leader.done() == "done"
    assert node.lease.leader == "k1" and node.lease.term == 1
    assert TaskId("t2") not in node.attempts.running and AgentId("n1/a") in stage.agents()
