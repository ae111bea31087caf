"""Who follows events, and how tasks end: bounded, in slices, and never twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable

import msgspec
import pytest
from peers import Peer, World, until

from comity.bus.base import Address
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.outbox import Outbox
from comity.controller import events, telling
from comity.controller.events import Events, Past
from comity.core.changes import Change
from comity.errors import TimedOut, TooLarge
from comity.model import wire
from comity.model.codec import ROOT_DIGEST, seal
from comity.model.ids import ProcessId, TaskId
from comity.model.task import Barrier, Entry

C1 = ProcessId("c1")
Changes = AsyncGenerator[tuple[int, int, list[Change]], None]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


def change(index: int) -> Change:
    return Change("task.submitted", task_id=TaskId(f"t{index}"))


class Sent(Outbox):
    """Hands over what is posted."""

    def __init__(self, hand: Callable[[wire.Item], None]) -> None:
        super().__init__(MemoryBus(MemoryNetwork(), ProcessId("k1")))
        self.hand = hand

    def post(self, address: Address, item: wire.Item) -> None:
        self.hand(item)


class Told:
    """Events with a past of entries 1 to ``before``, and what its follower was sent."""

    def __init__(self, before: int) -> None:
        self.before = before
        self.reads = 0
        self.most = 0
        self.now = 0.0
        self.at_once = 0
        self.most_at_once = 0
        self.seen: list[tuple[int, str]] = []
        self.events = Events(Sent(self._post), lambda: self.now, self._past)
        self.events.publish(before + 1, 0, [change(before + 1)])

    def _post(self, item: wire.Item) -> None:
        assert isinstance(item, wire.EventNotice)
        self.seen.append((item.index, msgspec.json.decode(item.body)["type"]))
        if not self.at_once:
            asyncio.get_running_loop().call_soon(self._turn)
        self.at_once += 1
        self.most_at_once = max(self.at_once, self.most_at_once)

    def _turn(self) -> None:
        self.at_once = 0

    async def _past(self, after: int, upto: int) -> AsyncGenerator[tuple[int, int, list[Change]], None]:
        self.reads += 1
        self.most = max(self.most, self.reads)
        try:
            for index in range(after + 1, upto + 1):
                await asyncio.sleep(0)
                yield index, 0, [change(index)]
        finally:
            self.reads -= 1

    async def current(self, count: int = 1) -> None:
        await until(lambda: sum(kind == "events.current" for _, kind in self.seen) == count)


async def test_the_past_is_told_in_slices() -> None:
    told = Told(0)
    for index in range(2, 6_001):
        told.events.publish(index, 0, [change(index)] * 3)
    told.events.follow(wire.FollowEvents(1, after=0), C1)
    await told.current()
    assert [index for index, _ in told.seen if index] == [1, *(i for i in range(2, 6_001) for _ in range(3))]
    assert told.most_at_once <= events.TOLD_AT_ONCE + 10


async def test_one_past_is_read_at_a_time_and_none_for_who_stopped() -> None:
    told = Told(50)
    for ref in range(5):
        told.events.follow(wire.FollowEvents(ref, after=0), C1)
    await until(lambda: told.reads == 1)
    told.events.follow(wire.FollowEvents(4, for_ms=0), C1)
    told.events.follow(wire.FollowEvents(3, after=49), C1)
    await told.current(4)
    assert told.most == 1
    assert len(told.seen) == 3 * 52 + 3
    told.events.end()


async def test_a_past_that_cannot_be_reached_for_a_moment_is_told_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that elect a leader read nothing from the log for seconds."""
    monkeypatch.setattr(events, "READ_AGAIN_S", 0.0)
    for failures, gaps in ((events.READS - 1, 0), (events.READS, 1)):
        told, left = Told(50), [failures]
        read = told.events._past

        async def past(after: int, upto: int, read: Past = read, left: list[int] = left) -> Changes:
            async for row in read(after, upto):
                if row[0] == after + 6 and left[0]:
                    left[0] -= 1
                    raise TimedOut("nobody leads")
                yield row

        told.events._past = past
        told.events.follow(wire.FollowEvents(1, after=0), C1)
        await told.current()
        kinds = [kind for _, kind in told.seen]
        assert kinds.count("events.gap") == gaps
        if not gaps:
            assert [index for index, _ in told.seen if index] == list(range(1, 52)), "each once, in order"


async def test_who_cannot_keep_up_is_told_of_a_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "RECENT", 10)
    told = Told(20)
    told.events.follow(wire.FollowEvents(1, after=0), C1)
    index = 21
    while ("events.current" not in {kind for _, kind in told.seen}) and index < 1_000:
        index += 1
        told.events.publish(index, 0, [change(index)])
        await asyncio.sleep(0)
    assert "events.gap" in {kind for _, kind in told.seen}
    indexes = [index for index, _ in told.seen if index]
    assert indexes == sorted(set(indexes)) and indexes[-1] == index


async def test_nobody_follows_without_end_or_number() -> None:
    told = Told(0)
    for ref in range(events.FOLLOWED_AT_ONCE):
        told.events.follow(wire.FollowEvents(ref, for_ms=2**60), C1)
    with pytest.raises(TooLarge):
        told.events.follow(wire.FollowEvents(-1), C1)
    told.events.follow(wire.FollowEvents(1), ProcessId("c2"))
    told.now = 1000.0
    told.events.publish(2, 0, [])
    assert not told.events._followers


async def test_an_entry_that_does_not_count_leaves_no_gap_in_the_past(world: World) -> None:
    controller = await world.controller()
    client = await world.peer("c1")
    await client.submit("x")
    stale, _ = seal(Entry("net", 0, ROOT_DIGEST, 1, [Barrier()]))
    world.log.entries.append(stale)
    await client.say(wire.SubmitTask(client.spec("x")))
    await client.hear(wire.Leading, lambda item: item.term == 2)
    await asyncio.wait_for(controller.led.wait(), 20)
    await client.say(wire.FollowEvents(1, after=0))
    await client.hear(wire.EventNotice, lambda notice: notice.body == wire.CURRENT)
    kinds = [msgspec.json.decode(item.body)["type"] for item in client.items if isinstance(item, wire.EventNotice)]
    assert kinds == ["leader.elected", "task.submitted", "leader.elected"]


async def test_followers_of_one_task_are_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "FOLLOWERS_MAX", 3)
    await world.controller()
    client = await world.peer("c1")
    task = await client.submit("x")
    others = [await world.peer(f"o{i}") for i in range(5)]
    for other in others:
        await other.say(wire.FollowTask((task,)))
    await client.say(wire.CancelTask(1, task))
    await client.hear(wire.Ended)
    await client.ask("barrier")

    def was_told(peer: Peer) -> bool:
        return any(isinstance(item, wire.Ended) for item in peer.items)

    assert [was_told(other) for other in others] == [False, False, True, True, True]


async def test_a_node_of_many_attempts_is_settled_in_messages_that_fit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(telling, "PAIRS_MAX", 3)
    await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=10)
    tasks = [await client.submit() for _ in range(10)]
    runs = [await node.hear(wire.Run) for _ in tasks]
    await node.say(*(wire.Done(run.task, run.epoch, b"1", 1) for run in runs))
    settled: list[TaskId] = []
    while len(settled) < 10:
        item = await node.hear(wire.Settled)
        assert len(item.reports) <= 3
        settled += [task for task, _ in item.reports]
    assert sorted(settled) == sorted(tasks)


async def test_who_comes_a_moment_later_is_told_what_is_no_entry_too() -> None:
    """What belongs to a task (progress, log lines) is not kept; nor is anything told that came before what was asked for."""
    told = Told(0)
    told.events.live({"type": "early"})
    told.events.publish(2, 0, [change(2)])
    told.events.live({"type": "late"})
    told.events.live({"type": "progress"}, TaskId("t2"))
    told.events.follow(wire.FollowEvents(1, after=2), C1)
    told.events.live({"type": "meanwhile"})
    await told.current()
    assert told.seen == [(wire.AGAIN, "late"), (wire.AGAIN, "meanwhile"), (0, "events.current")]
    told.seen.clear()
    told.events.follow(wire.FollowEvents(2, after=0), C1)
    await told.current()
    assert [kind for index, kind in told.seen if index == wire.AGAIN] == ["early", "late", "meanwhile"]
    told.seen.clear()
    told.events.follow(wire.FollowEvents(3, after=0, task=TaskId("t2")), C1)
    await told.current()
    assert all(index != wire.AGAIN for index, _ in told.seen)


async def test_a_followers_notices_are_counted_and_the_count_is_said_again() -> None:
    sent: list[wire.EventNotice] = []
    told = Told(0)
    told.events = Events(Sent(lambda item: sent.append(item)), lambda: 0.0, told._past)  # type: ignore[arg-type]
    told.events.publish(1, 0, [change(1)] * 2)
    told.events.follow(wire.FollowEvents(1, after=0), C1)
    told.events.follow(wire.FollowEvents(1, after=-1), C1)  # it is being told the past: no word on the count yet
    await until(lambda: len(sent) == 3)
    told.events.follow(wire.FollowEvents(2, after=-1), C1)
    told.events.publish(2, 0, [change(2)])
    told.events.follow(wire.FollowEvents(1, after=-1), C1)
    assert [(item.ref, item.index, item.number) for item in sent] == [
        (1, 1, 1), (1, 1, 2), (1, 0, 3), (1, 2, 4), (2, 2, 1), (1, 0, 5),
    ]  # fmt: skip
