"""How a node lets go: of a slot while it waits, of its work when it drains, of everything when it leaves."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from node_stage import Leader, Stage, Watched, staged_on, until, worker

from comity.agent import Agent
from comity.bus.base import to
from comity.errors import Disconnected, ShuttingDown
from comity.handles import Attempt
from comity.model import wire
from comity.model.ids import ProcessId
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)


@staged
async def test_a_parent_that_awaits_a_child_holds_no_slot(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def parent(attempt: Attempt) -> int:
        children = await attempt.submit_many("child", [1, 2])
        return sum(await asyncio.gather(*(child.result() for child in children)))

    _, leader = await stage.started(agent)
    answers = Answers(leader)
    leader.assign("parent", epoch=7, remaining_ms=20_000, trace="tr")
    await until(lambda: len(answers.submitted) == 2)
    for spec in answers.submitted:
        assert (spec.parent, spec.parent_epoch, spec.submitter, spec.trace) == ("t1", 7, "n1", "tr")
        assert 19_000 < spec.deadline_ms <= 20_000
    slot = await leader.next(wire.Slot)
    assert (slot.task, slot.epoch, slot.held) == ("t1", 7, False)
    leader.term = 2  # a new leader is told which slots are not held
    leader.tell_all(wire.Leading(2, ProcessId("k1"), 0))
    assert not (await leader.next(wire.Slot)).held
    for spec, result in zip(answers.submitted, (b"10", b"20"), strict=True):
        leader.say("n1", wire.Ended(spec.id, "completed", result))  # type: ignore[arg-type]
    assert (await leader.next(wire.Slot)).held
    assert await leader.done() == 30
    assert len(leader.all(wire.Slot)) == 3


class Answers:
    """Plays the part of the leader that clients talk to."""

    def __init__(self, leader: Leader) -> None:
        self.submitted: list[Any] = []
        self._leader = leader
        take = leader.bus.subscribe("topic/leader", self.receive)
        self._work = asyncio.get_running_loop().create_task(take)  # type: ignore[arg-type]

    def receive(self, delivery: Any) -> None:
        leader = self._leader
        for item in wire.decode(delivery.data):
            if isinstance(item, wire.Ask):
                now_ms = int(leader.stage.wall() * 1000)
                hello = {"network_id": "net", "term": leader.term, "leader": "k1", "now_ms": now_ms}
                leader.say(delivery.sender, wire.Answer(item.ref, "", msgspec.json.encode(hello)))
            elif isinstance(item, wire.SubmitTask):
                self.submitted.append(item.spec)
                leader.say(delivery.sender, wire.Accepted(((item.spec.id, item.spec.id),)))


@staged
async def test_a_draining_node_finishes_what_it_can_and_hands_back_the_rest(stage: Stage) -> None:
    node, leader = await stage.started(worker())
    leader.assign("work", {"seconds": 3.0})
    leader.assign("work", {"seconds": 1000.0}, task="t2", timeout_s=2000.0)
    await leader.next(wire.Began)
    await leader.next(wire.Began)
    leader.forget()
    drained = asyncio.create_task(node.drain(10.0))
    assert (await leader.next(wire.Beacon)).draining
    leader.assign("work", task="t3")
    declined = await leader.next(wire.Declined)
    assert declined.task == "t3" and "draining" in declined.reason
    leader.say("n1", wire.Settled((("t3", 1),)))  # type: ignore[arg-type]
    assert (await leader.next(wire.Done)).task == "t1"
    leader.say("n1", wire.Settled((("t1", 1),)))  # type: ignore[arg-type]
    shown = stage.record()
    assert shown is not None and shown.draining
    assert not drained.done()
    handed_back = await leader.next(wire.Declined)
    assert handed_back.task == "t2"
    leader.say("n1", wire.Settled((("t2", 1),)))  # type: ignore[arg-type]
    await drained
    assert not node.attempts.running and not leader.all(wire.Leaving)
    await node.stop()
    await until(lambda: bool(leader.all(wire.Leaving)))
    assert leader.all(wire.Leaving)[-1].incarnation == node.incarnation
    assert not stage.registry.records


@staged
async def test_stopping_leaves_nothing_behind(stage: Stage) -> None:
    agent = worker()
    node, leader = await stage.started(agent)
    leader.assign("work", {"seconds": 1000.0})
    await leader.next(wire.Began)

    async def settle_soon() -> None:
        declined = await leader.next(wire.Declined)
        leader.say("n1", wire.Settled(((declined.task, declined.epoch),)))

    settled = asyncio.create_task(settle_soon())
    before = asyncio.get_running_loop().time()
    await node.stop()
    await settled
    assert asyncio.get_running_loop().time() - before < 0.5
    assert not stage.registry.records and agent.id is None
    await node.stop()
    with pytest.raises(ShuttingDown):
        node.add(worker("z"))
    await asyncio.sleep(10)
    count = len(leader.all(wire.Beacon))
    leader.assign("work", task="t2")
    await asyncio.sleep(10)
    assert len(leader.all(wire.Beacon)) == count and not stage.network._members(to("n1"))
    other = stage.node("n2", [agent])  # it may be hosted again
    await other.start()
    assert agent.id == "n2/a"


@staged
async def test_a_stubborn_function_does_not_keep_a_node_from_leaving(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def stubborn() -> None:
        for _ in range(100):
            try:
                await asyncio.sleep(1000)
            except asyncio.CancelledError:
                continue

    node, leader = await stage.started(agent)
    leader.assign("stubborn", timeout_s=1e6)
    await leader.next(wire.Began)
    before = asyncio.get_running_loop().time()
    await node.stop()
    assert asyncio.get_running_loop().time() - before < 20


@staged
async def test_a_node_without_connection_can_leave(stage: Stage) -> None:
    watched = Watched(stage)
    node, _ = await stage.started(worker(), registry=watched)
    stage.network.disconnect(ProcessId("n1"))

    async def fail(key: str, **_: Any) -> None:
        raise Disconnected("gone")

    watched.delete = fail  # type: ignore[method-assign]
    async with asyncio.timeout(30):
        await node.stop()
