"""Mail at a node: given once and in order, acknowledged until that is settled, and whatever a function does, nothing hangs."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from node_stage import Leader, Stage, staged_on, until

from comity.agent import Agent
from comity.errors import Disconnected, Fenced, TooLarge
from comity.handles import Attempt
from comity.message import Message
from comity.model import wire
from comity.model.ids import AgentId
from comity.model.mail import AT_ONCE, Note
from comity.model.payload import Payload
from comity.model.wire_mail import Deliver, Grouped, InGroups, MailDone, Mailed, MailSettled
from comity.node.node import Node
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore

A = AgentId("n1/a")
staged = staged_on(VirtualLoop)


def mailed(
    number: int, body: Payload = b"1", topic: str = "news", left_ms: int = 60_000, sender: str = "c1", **about: Any
) -> Mailed:
    return Mailed(number, f"m{number}", Note(sender, topic, "inform", body, **about), left_ms)


def deliver(*mails: Mailed, after: int = 0, agent: AgentId = A) -> Deliver:
    return Deliver(agent, after, mails)


def ends(leader: Leader) -> list[int]:
    """Numbers acknowledged so far, each time they were."""
    return [number for done in leader.all(MailDone) for _, numbers in done.taken for number in numbers]


def failures(leader: Leader) -> list[tuple[int, str]]:
    return [(number, code) for done in leader.all(MailDone) for _, number, code, _ in done.failed]


def reader(got: list[Any]) -> Agent:
    agent = Agent("a")

    @agent.on("news")
    async def news(message: Message, body: Any) -> None:
        got.append(body)
        await asyncio.sleep(0.1)

    @agent.on("cancel")
    async def cancel() -> None:
        got.append("cancel")
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    @agent.on("forever")
    async def forever() -> None:
        got.append("forever")
        await asyncio.sleep(1_000_000)

    return agent


@staged
async def test_mail_is_given_once_however_often_it_comes(stage: Stage) -> None:
    got: list[Any] = []
    _, leader = await stage.started(reader(got))
    leader.say("n1", deliver(mailed(1), mailed(2, b"2")), deliver(mailed(1), mailed(2, b"2")))
    await until(lambda: len(ends(leader)) == 2)
    leader.say("n1", deliver(mailed(1), mailed(2, b"2")))
    await asyncio.sleep(5.0)
    assert got == [1, 2] and set(ends(leader)) == {1, 2} and len(ends(leader)) > 2, "acknowledged until that is settled"
    leader.say("n1", MailSettled(((A, (1, 2, 9)),)))
    await asyncio.sleep(0.1)
    leader.forget()
    leader.say("n1", deliver(mailed(1), mailed(2)))
    await asyncio.sleep(5.0)
    assert got == [1, 2] and not ends(leader), "it came late"


@staged
async def test_what_follows_a_lost_batch_waits_for_it(stage: Stage) -> None:
    got: list[Any] = []
    _, leader = await stage.started(reader(got))
    leader.say("n1", deliver(mailed(2, b"2"), after=1))
    await asyncio.sleep(1.0)
    assert got == []
    leader.say("n1", deliver(mailed(1), mailed(2, b"2")), deliver(mailed(3, b"3"), after=2))
    await until(lambda: got == [1, 2, 3])


@staged
async def test_a_hanging_function_holds_up_its_own_sender_only(stage: Stage) -> None:
    got: list[Any] = []
    _, leader = await stage.started(reader(got))
    leader.say("n1", deliver(mailed(1, topic="forever"), mailed(2, left_ms=500), mailed(3, b"3", sender="c2")))
    await until(lambda: ends(leader) == [3])
    await asyncio.sleep(stage.settings.attempt_timeout_s * 3 + 10)
    assert failures(leader)[0] == (1, "TimeoutError") and got == ["forever", 3, "forever", "forever"], "and 2 had expired"


@staged
async def test_a_function_that_cancels_itself_stops_nothing(stage: Stage) -> None:
    got: list[Any] = []
    _, leader = await stage.started(reader(got))
    leader.say("n1", deliver(mailed(1, topic="cancel"), mailed(2, b"2")))
    await until(lambda: got == ["cancel"])
    leader.say("n1", deliver(mailed(2, b"2")))
    await until(lambda: ends(leader) == [2])


@staged
async def test_who_leaves_the_node_leaves_its_mail(stage: Stage) -> None:
    got: list[Any] = []
    agent = reader(got)
    node, leader = await stage.started(agent)
    elsewhere = [deliver(mailed(1), agent=AgentId(id)) for id in ("n1/b", "n2/a")]
    leader.say("n1", deliver(mailed(1), mailed(2)), *elsewhere)
    await until(lambda: got == [1])
    node.remove(agent)
    await asyncio.sleep(1.0)
    assert not ends(leader)
    node.add(agent)
    leader.say("n1", deliver(mailed(1), mailed(2)))
    await until(lambda: ends(leader) == [1, 2])
    await node.stop()
    leader.say("n1", deliver(mailed(3)))
    await asyncio.sleep(1.0)
    assert got == [1, 1, 1]


class Away(MemoryStore):
    """A store that is away until it is ``back``."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.store, "n1")
        self.back = asyncio.Event()

    async def read(self, key: str) -> bytes:
        if not self.back.is_set():
            raise Disconnected("away")
        return await super().read(key)


async def away(stage: Stage, got: list[Any]) -> tuple[Node, Leader, Away, Payload]:
    """And a large body that is in it."""
    node, leader = await stage.started(reader(got))
    node.mail._store = store = Away(stage)
    return node, leader, store, await store.put("n1/mail/x", b'"large"')


@staged
async def test_a_body_in_the_store_is_fetched_patiently_and_holds_up_its_own_sender_only(stage: Stage) -> None:
    got: list[Any] = []
    _, leader, store, kept = await away(stage, got)
    a_day_ms = 86_400_000
    leader.say("n1", deliver(mailed(1, kept, left_ms=a_day_ms), mailed(2, b"2", left_ms=a_day_ms), mailed(3, b"3", sender="c2")))
    await until(lambda: ends(leader) == [3])
    await asyncio.sleep(stage.settings.attempt_timeout_s * 2)
    assert got == [3] and set(ends(leader)) == {3} and not failures(leader), "no function failed, nor took too long"
    store.back.set()
    await until(lambda: {1, 2} <= set(ends(leader)))
    assert got == [3, "large", 2] and not failures(leader)


@staged
async def test_a_mail_whose_body_could_not_be_read_in_its_time_is_left_to_the_leader(stage: Stage) -> None:
    got: list[Any] = []
    _, leader, store, kept = await away(stage, got)
    leader.say("n1", deliver(mailed(1, kept, left_ms=20_000), mailed(2, b"2")))
    await asyncio.sleep(19.0)
    assert not got
    await until(lambda: ends(leader) == [2])
    store.back.set()
    await asyncio.sleep(5.0)
    assert got == [2] and not failures(leader) and set(ends(leader)) == {2}


@staged
async def test_nobody_waits_for_a_body_that_is_gone(stage: Stage) -> None:
    got: list[Any] = []
    _, leader, store, kept = await away(stage, got)
    store.back.set()
    await store.delete("n1/mail/x")
    leader.say("n1", deliver(mailed(1, kept), mailed(2, b"2")))
    await until(lambda: ends(leader) == [2])
    (_, _, code, message), *_ = [failed for done in leader.all(MailDone) for failed in done.failed]
    assert (code, message) == ("not-found", "its body is not in the store: nothing is stored as n1/mail/x")


@staged
async def test_a_node_that_stops_waits_for_no_body(stage: Stage) -> None:
    got: list[Any] = []
    node, leader, store, kept = await away(stage, got)
    leader.say("n1", deliver(mailed(1, kept)))
    await asyncio.sleep(1.0)
    work = list(node.mail._work.values())
    await node.stop()
    assert work and all(task.cancelled() for task in work)
    store.back.set()
    await asyncio.sleep(1.0)
    assert not got and not ends(leader) and not failures(leader), "it is given again in the next life"


@staged
async def test_groups_are_told_until_the_leader_has_them(stage: Stage) -> None:
    agent = reader([])
    agent.join("ops")
    _, leader = await stage.started(agent)
    await until(lambda: len(leader.all(InGroups)) >= 2)
    assert leader.all(InGroups)[-1].changes == ((A, "ops", True),)
    agent.leave("ops")
    leader.say("n1", Grouped(((A, "ops", True),)))
    await asyncio.sleep(0.1)
    leader.forget()
    await until(lambda: bool(leader.all(InGroups)))
    assert leader.all(InGroups)[-1].changes == ((A, "ops", False),), "what was settled is no longer wanted"
    leader.say("n1", Grouped(((A, "ops", False),)))
    await asyncio.sleep(0.1)
    leader.forget()
    await asyncio.sleep(5.0)
    assert not leader.all(InGroups)


@staged
async def test_an_attempt_sends_with_its_records_only(stage: Stage) -> None:
    agent = Agent("a")
    seen: list[Any] = []

    @agent.capability
    async def work(attempt: Attempt) -> int:
        for _ in range(2):
            await attempt.send("n1/b", 1, durable=True)
        await attempt.step("one", one)
        await attempt.send("n1/b", "x" * 2000, durable=True)
        await attempt.checkpoint({})
        await attempt.send("n1/b", 2, durable=True)
        with pytest.raises(TooLarge):
            for _ in range(AT_ONCE):
                await attempt.send("n1/b", 3, durable=True)
        seen.append(attempt)
        return 1

    async def one() -> int:
        return 1

    _, leader = await stage.started(agent)
    leader.assign("work", {})
    step = await leader.next(wire.StepDone)
    assert len(step.mail) == 2 and step.mail[0].to == "n1/b" and step.mail[0].note.sender == "n1/a"
    leader.say("n1", wire.Recorded(step.task, step.epoch, "step", "one"))
    saved = await leader.next(wire.Checkpointed)
    assert len(saved.mail) == 1 and not isinstance(saved.mail[0].note.body, bytes)
    leader.say("n1", wire.Recorded(step.task, step.epoch, "checkpoint", "1"))
    done = await leader.next(wire.Done)
    assert len(done.mail) == AT_ONCE
    leader.say("n1", wire.Settled(((done.task, done.epoch),)))
    with pytest.raises(Fenced):
        await seen[0].send("n1/b", "too late", durable=True)
