"""The node's side of an attempt's life: told by a leader played with raw items."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from node_stage import Stage, settle, staged_on, until

from comity.agent import Agent
from comity.handles import Attempt
from comity.model import wire
from comity.model.capability import AgentStatus
from comity.model.ids import AgentId
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)


@staged
async def test_a_batch_of_quick_attempts_is_answered_in_one_batch_without_began(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def double(n: int) -> int:
        return 2 * n

    _, leader = await stage.started(agent)
    batches: list[int] = []
    await leader.bus.subscribe("topic/leader", lambda delivery: batches.append(len(wire.decode(delivery.data))))
    leader.say("n1", *(leader.run("double", {"n": i}, task=f"t{i}") for i in range(64)))
    await until(lambda: len({item.task for item in leader.all(wire.Done)}) == 64)
    assert not leader.all(wire.Began)
    assert batches == [64]
    assert sorted({msgspec.json.decode(item.result) for item in leader.all(wire.Done)}) == [2 * i for i in range(64)]
    assert all(item.ran_ms >= 1 for item in leader.all(wire.Done))


@staged
async def test_one_that_fails_at_once_says_how_long_it_ran(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def broken() -> None:
        raise KeyError("x")

    _, leader = await stage.started(agent)
    leader.assign("broken")
    failed = await leader.next(wire.Failed)
    assert (failed.failure.code, failed.ran_ms) == ("KeyError", 1)
    assert not leader.all(wire.Began)


@staged
async def test_an_attempt_that_takes_longer_says_that_it_began(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def slow() -> str:
        await asyncio.sleep(2)
        return "done"

    _, leader = await stage.started(agent)
    leader.assign("slow")
    began = await leader.next(wire.Began)
    assert (began.task, began.epoch) == ("t1", 1) and not leader.all(wire.Done)
    assert await leader.done() == "done"
    assert leader.all(wire.Done)[0].ran_ms == 2000
    assert len(leader.all(wire.Began)) == 1


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"term": 0}, "term 0 is over"),
        ({"incarnation": 5}, "was started anew"),
        ({"agent": AgentId("n1/b")}, "hosts no agent n1/b"),
        ({"capability": "other"}, "does not offer other"),
    ],
)
@staged
async def test_what_cannot_run_here_is_handed_back(stage: Stage, options: dict[str, Any], reason: str) -> None:
    agent = Agent("a")
    ran = []

    @agent.capability
    async def work() -> None:
        ran.append(1)

    _, leader = await stage.started(agent)
    leader.assign(**{"capability": "work", **options})
    declined = await leader.next(wire.Declined)
    assert reason in declined.reason and (declined.task, declined.epoch) == ("t1", 1)
    assert not ran


@pytest.mark.parametrize("status", [AgentStatus.PAUSED, AgentStatus.DRAINING, AgentStatus.UNHEALTHY])
@staged
async def test_only_an_active_agent_runs_attempts(stage: Stage, status: AgentStatus) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> None: ...

    _, leader = await stage.started(agent)
    agent.update(status=status)
    leader.assign("work")
    assert status in (await leader.next(wire.Declined)).reason


@staged
async def test_out_of_contact_nothing_begins_but_what_runs_goes_on(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work(seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "finished"

    _, leader = await stage.started(agent)
    leader.assign("work", {"seconds": 20.0})
    await leader.next(wire.Began)
    leader.is_mute = True
    last_beacon = leader.all(wire.Beacon)[-1]
    assert last_beacon.running == 0
    await asyncio.sleep(stage.settings.lease_s * 0.7)
    leader.assign("work", {"seconds": 0.0}, task="t2")
    leader.say("n1", settle(await leader.next(wire.Done)))
    await asyncio.sleep(stage.settings.lease_s * 0.25)
    leader.assign("work", {"seconds": 0.0}, task="t3")
    assert "holds no lease" in (await leader.next(wire.Declined)).reason
    assert await leader.done() == "finished"
    assert {item.task for item in leader.all(wire.Done)} == {"t1", "t2"}


@staged
async def test_the_lease_counts_from_the_sending_of_the_beacon(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> None: ...

    node, leader = await stage.started(agent)
    loop = asyncio.get_running_loop()
    leader.is_mute = True
    beacon = leader.all(wire.Beacon)[-1]
    leader.forget()
    sent_at = loop.time()
    late = (await leader.next(wire.Beacon)).seq
    assert late != beacon.seq
    beaten_at = loop.time()
    await asyncio.sleep(stage.settings.lease_s * 0.85)
    leader.say("n1", wire.BeaconAck(late, 1, stage.settings.lease_s, 0))
    await asyncio.sleep(stage.settings.lease_s * 0.04)
    assert node.lease.may_begin(loop.time())
    await asyncio.sleep(stage.settings.lease_s * 0.02)
    assert not node.lease.may_begin(loop.time()), "an acknowledgement that came late does not prolong the lease"
    assert beaten_at > sent_at


@staged
async def test_an_orphan_stops_its_attempts(stage: Stage) -> None:
    agent = Agent("a")
    ended: list[str] = []

    @agent.capability
    async def work() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            ended.append("canceled")
            raise

    node, leader = await stage.started(agent)
    leader.assign("work", timeout_s=900.0)
    await leader.next(wire.Began)
    leader.is_mute = True
    await asyncio.sleep(stage.settings.orphan_s - 2)
    assert not ended and node.attempts.running
    await asyncio.sleep(4)
    assert ended == ["canceled"] and not node.attempts.running
    assert "out of contact" in (await leader.next(wire.Declined)).reason


@staged
async def test_a_report_is_repeated_until_it_is_settled(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> int:
        return 1

    node, leader = await stage.started(agent)
    leader.assign("work")
    first = await leader.next(wire.Done)
    assert await leader.next(wire.Done) == first
    assert await leader.next(wire.Done) == first
    leader.say("n1", settle(first))
    await until(lambda: not node.attempts.unsettled)
    leader.forget()
    await asyncio.sleep(20)
    assert not leader.all(wire.Done)
    assert node.attempts.quiet.is_set()


@staged
async def test_a_new_leader_hears_everything_again(stage: Stage) -> None:
    agent = Agent("a")
    free = asyncio.Event()

    @agent.capability
    async def work(wait: bool) -> int:
        if wait:
            await free.wait()
        return 1

    node, old = await stage.started(agent)
    old.assign("work", {"wait": True})
    old.assign("work", {"wait": False}, task="t2")
    await old.next(wire.Done)
    await old.next(wire.Began)
    old.is_mute = True
    new = await stage.leader("k2", term=2)
    new.tell_all(wire.Leading(2, new.bus.process, 0))
    assert (await new.next(wire.Beacon)).running == 1
    assert (await new.next(wire.Done)).task == "t2"
    assert (await new.next(wire.Began)).task == "t1"
    assert node.lease.term == 2 and node.lease.leader == "k2"
    free.set()
    assert (await new.next(wire.Done)).task == "t1"


@staged
async def test_orders_of_a_process_that_acknowledges_no_beacon_are_not_followed(stage: Stage) -> None:
    agent = Agent("a")
    ran: list[str] = []

    @agent.capability
    async def work(name: str) -> None:
        ran.append(name)

    node, leader = await stage.started(agent)
    rogue = await stage.leader("k9", term=9)
    rogue.is_mute = True
    rogue.incarnation = leader.incarnation
    incarnation = node.incarnation
    rogue.assign("work", {"name": "rogue"})
    rogue.say("n1", wire.Evicted(incarnation + 10, "so I say"), wire.BeaconAck(1, 99, 1000.0, 0))
    rogue.tell_all(wire.Leading(99, rogue.bus.process, 0))
    await asyncio.sleep(20)
    assert not ran and node.lease.leader == "k1" and node.incarnation == incarnation
    leader.assign("work", {"name": "leader"})
    await leader.next(wire.Done)
    assert ran == ["leader"]


@staged
async def test_orders_of_a_new_leader_wait_for_its_acknowledgement(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> str:
        return "done"

    _, old = await stage.started(agent)
    old.is_mute = True
    new = await stage.leader("k2", term=2)
    new.incarnation = old.incarnation
    new.assign("work")
    assert await new.done() == "done"


@staged
async def test_an_epoch_is_run_once(stage: Stage) -> None:
    agent = Agent("a")
    ran: list[int] = []
    free = asyncio.Event()

    @agent.capability
    async def work(n: int) -> None:
        ran.append(n)
        await free.wait()

    node, leader = await stage.started(agent)
    leader.assign("work", {"n": 2}, epoch=2)
    await leader.next(wire.Began)
    leader.assign("work", {"n": 2}, epoch=2)
    await leader.next(wire.Began)  # answered again
    leader.assign("work", {"n": 1}, epoch=1)  # from the past
    free.set()
    done = await leader.next(wire.Done)
    leader.assign("work", {"n": 2}, epoch=2)  # the report was lost, so it seems
    assert await leader.next(wire.Done) == done
    leader.say("n1", settle(done))
    await until(lambda: not node.attempts.unsettled)
    leader.forget()
    leader.assign("work", {"n": 2}, epoch=2)
    await asyncio.sleep(1)
    assert ran == [2] and not leader.all(wire.Done)


@staged
async def test_a_higher_epoch_fences_the_one_that_runs(stage: Stage) -> None:
    agent = Agent("a")
    seen: list[tuple[int, bool]] = []

    @agent.capability
    async def work(attempt: Attempt) -> int:
        try:
            await asyncio.sleep(5)
        finally:
            seen.append((attempt.epoch, attempt.is_canceled))
        return attempt.epoch

    _, leader = await stage.started(agent)
    leader.assign("work", epoch=3)
    await leader.next(wire.Began)
    leader.assign("work", epoch=4)
    assert await leader.done() == 4
    assert seen == [(3, True), (4, False)]
    assert {(type(i), i.epoch) for i in leader.got if isinstance(i, wire.Done | wire.Failed | wire.Declined)} == {(wire.Done, 4)}


@staged
async def test_what_is_settled_while_it_runs_is_stopped_silently(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> None:
        await asyncio.sleep(100)

    node, leader = await stage.started(agent)
    leader.assign("work")
    began = await leader.next(wire.Began)
    leader.say("n1", wire.Settled(((began.task, began.epoch),)))
    await until(lambda: not node.attempts.running)
    await asyncio.sleep(10)
    assert not leader.all(wire.Failed) and not leader.all(wire.Declined)
