"""A broken pipeline: lost answers, lost appends, a log somebody else wrote to. Nothing is guessed, nothing counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
from peers import LIMIT_S, World, until

from comity.controller.controller import Controller
from comity.controller.pipeline import EntryClock
from comity.core.ledger import Effective, Ledger
from comity.errors import Corrupt, Disconnected, TimedOut
from comity.log.memory import MemoryLog
from comity.model import wire
from comity.model.codec import ROOT_DIGEST, seal
from comity.model.ids import TaskId
from comity.model.task import Barrier, Command, Entry, Expire

Fault = Callable[[bytes, int], "str | None"]


class FaultyLog(MemoryLog):
    """``fault(entry, after)`` names what goes wrong with an append: "lost" (never arrives), "mute" (arrives, the answer does
    not), "late" (arrives after the caller has given up), or None."""

    fault: Fault = staticmethod(lambda _entry, _after: None)

    async def append(self, entry: bytes, after: int) -> int:
        match self.fault(entry, after):
            case "lost":
                await asyncio.sleep(0)
                raise TimedOut("no answer")
            case "mute":
                await super().append(entry, after)
                raise Disconnected("the connection broke")
            case "late":
                asyncio.get_running_loop().call_later(0.02, self._land, entry, after)
                raise TimedOut("no answer yet")
        return await super().append(entry, after)

    def _land(self, entry: bytes, after: int) -> None:
        if self.state.last == after:
            self.state.entries.append(entry)
            self.state.ring()


async def faulty(world: World, name: str = "k1") -> tuple[Controller, FaultyLog]:
    log = FaultyLog(world.log)
    return await world.controller(name, log=log), log


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


def once(kind: str, at: int) -> Fault:
    """Append number ``at`` from now goes wrong."""
    count = 0

    def fault(_entry: bytes, _after: int) -> str | None:
        nonlocal count
        count += 1
        return kind if count == at else None

    return fault


@pytest.mark.parametrize("kind", ["lost", "mute", "late"])
@pytest.mark.parametrize("at", [1, 2, 3])
async def test_an_append_of_unknown_fate_is_settled_by_reading_on(world: World, kind: str, at: int) -> None:
    controller, log = await faulty(world)
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=100)
    log.fault = once(kind, at)
    specs = [client.spec() for _ in range(5)]
    for spec in specs:
        await client.say(wire.SubmitTask(spec))
        await asyncio.sleep(0)
    await client.hear(wire.Leading, lambda item: item.term >= 2)
    await client.say(*(wire.SubmitTask(spec, again=True) for spec in specs))
    runs: dict[str, wire.Run] = {}
    async with asyncio.timeout(LIMIT_S):
        while set(runs) != {spec.id for spec in specs}:
            run = await node.hear(wire.Run)
            runs[run.task] = run
    await node.say(*(wire.Done(run.task, run.epoch, b"1", 1) for run in runs.values()))
    for spec in specs:
        await client.hear(wire.Ended, lambda ended, task=spec.id: ended.task == task)
    assert controller.state.totals.completed == 5
    assert controller.state.totals.submitted == 5
    controller.state.check()


async def test_every_reader_of_the_log_comes_to_the_same_state(world: World) -> None:
    controller, log = await faulty(world)
    client, node = await world.peer("c1"), await world.peer("n1")
    await node.join("a", slots=100)
    for i, kind in enumerate(["late", "mute", "lost", "late"]):
        log.fault = once(kind, 1)
        await client.say(*(wire.SubmitTask(client.spec()) for _ in range(20)))
        await client.hear(wire.Leading, lambda item, term=i + 2: item.term >= term)
        await asyncio.wait_for(controller.led.wait(), LIMIT_S)
    await client.ask("barrier")
    reader = Ledger("net")
    verdicts = [reader.offer(i, data) for i, data in enumerate(world.log.entries, 1)]
    effective = [verdict for verdict in verdicts if isinstance(verdict, Effective)]
    assert reader.digest == controller.ledger.digest
    assert [verdict.entry.term for verdict in effective] == sorted(verdict.entry.term for verdict in effective)


async def test_a_void_entry_from_an_old_leader_deposes_nobody(world: World) -> None:
    controller, _ = await faulty(world)
    client = await world.peer("c1")
    await client.submit("x")
    stale, _ = seal(Entry("net", 0, ROOT_DIGEST, 1, [Barrier()]))
    world.log.entries.append(stale)
    await client.say(wire.SubmitTask(client.spec("x")))
    await client.hear(wire.Leading, lambda item: item.term == 2)
    assert controller.state.leader == "k1"


async def test_a_damaged_log_stops_a_controller_loudly(world: World) -> None:
    controller, _ = await faulty(world)
    client = await world.peer("c1")
    await client.submit("x")
    damaged = bytearray(world.log.entries[-1])
    damaged[-1] ^= 1
    world.log.entries.append(bytes(damaged))
    await client.say(wire.SubmitTask(client.spec("x")))
    await asyncio.wait_for(controller.failed.wait(), LIMIT_S)
    assert isinstance(controller.failure, Corrupt)
    assert controller.failure.details["index"] == world.log.last


async def test_a_fault_of_ours_stops_a_controller_loudly(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    controller, _ = await faulty(world)
    client = await world.peer("c1")
    monkeypatch.setattr(controller.state, "apply", lambda *_: 1 / 0)
    await client.say(wire.SubmitTask(client.spec("x")))
    await asyncio.wait_for(controller.failed.wait(), LIMIT_S)
    assert isinstance(controller.failure, ZeroDivisionError)


async def test_no_more_entries_are_in_flight_than_may_be(world: World) -> None:
    _, log = await faulty(world)
    client = await world.peer("c1")
    under_way, most = 0, 0
    append = MemoryLog.append

    async def slow(entry: bytes, after: int) -> int:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        index = await append(log, entry, after)
        for _ in range(20):
            await asyncio.sleep(0)
        under_way -= 1
        return index

    log.append = slow  # type: ignore[method-assign]
    specs = [client.spec() for _ in range(200)]
    for spec in specs:
        await client.say(wire.SubmitTask(spec))
        await asyncio.sleep(0)
    accepted = 0
    while accepted < len(specs):
        accepted += len((await client.hear(wire.Accepted)).tasks)
    assert most == 4


class Clocks:
    wall = 1000.0
    monotonic = 50.0


def test_entry_time_follows_the_wall_clock_but_never_jumps() -> None:
    clocks = Clocks()
    clock = EntryClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clock.start(900_000, jump=False)
    assert clock.stamp() == 900_000, "no entry by itself makes time pass"
    clocks.wall, clocks.monotonic = 1000.5, 50.5
    assert clock.stamp() == 901_000, "twice the pace while behind"
    clocks.monotonic = 60.5
    assert clock.now_ms() == 912_000, "but no more than a second an entry"
    clocks.wall = 10.0
    assert clock.stamp() == 906_000, "half the pace while ahead, and never backwards"
    clocks.wall, clocks.monotonic = 908.0, 62.0
    assert clock.stamp() == 908_000, "the wall clock's while that is near"
    clock.start(0, jump=False)
    clocks.wall = 1e9
    clock.start(0, jump=False)
    assert clock.stamp() == int(1e12), "a new log begins now"


@pytest.mark.parametrize("wrong_s", [-86_400.0, 0.0, 86_400.0])
@pytest.mark.parametrize("rate", [1, 7, 5000])
def test_durations_are_right_within_a_factor_of_two_whatever_the_wall_clock_says(rate: int, wrong_s: float) -> None:
    """``rate`` entries a second, for ten seconds."""
    clocks = Clocks()
    clock = EntryClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clock.start(1_000_000, jump=False)
    stamped = 0
    for entry in range(1, 10 * rate + 1):
        clocks.wall, clocks.monotonic = 1000 + wrong_s + entry / rate, 50.0 + entry / rate
        stamped = clock.stamp()
    assert 4_999 <= stamped - 1_000_000 <= 20_000


def test_a_confirmed_jump_goes_to_the_wall_clock_at_once() -> None:
    clocks = Clocks()
    clock = EntryClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clock.start(1, jump=True)
    assert clock.stamp() == 1_000_000


def test_while_the_log_is_ahead_of_the_wall_clock_entry_time_goes_on_at_half_its_pace() -> None:
    clocks = Clocks()
    clock = EntryClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clock.start(2_000_000, jump=False)
    for step in range(1, 2001):
        clocks.wall, clocks.monotonic = 1000 + step, 50.0 + step
        stamped = clock.stamp()
        assert stamped == max(2_000_000 + step * 500, (1000 + step) * 1000)
    clocks.wall, clocks.monotonic = 3001.0, 2051.0
    assert clock.now_ms() == 3_001_000, "caught up"


def test_what_passed_since_the_last_entry_was_read_has_passed() -> None:
    clocks = Clocks()
    clock = EntryClock(lambda: clocks.wall, lambda: clocks.monotonic)
    clocks.wall, clocks.monotonic = 5000.0, 4050.0
    clock.start(1_000_000, jump=False, since=50.0)
    assert clock.stamp() == 5_000_000
    clocks.wall = 1e9
    clock.start(1_000_000, jump=False, since=50.0)
    assert clock.stamp() == 5_001_000, "but no more, and a second, whatever the wall clock says"
    clock.start(1, jump=True, since=50.0)
    assert clock.stamp() == int(1e12), "unless that is confirmed"


async def test_a_barrier_takes_its_turn_however_much_is_proposed(world: World) -> None:
    controller, _ = await faulty(world)
    assert controller.leading is not None
    leader = controller.leading.leader
    for _ in range(10):
        leader.propose(Expire(TaskId("before")))
    leader.barrier(lambda: None)
    leader.barrier(lambda: None)
    written: list[Command] = []
    while not any(isinstance(command, Barrier) for command in written):
        leader.propose(Expire(TaskId("after")))
        written += leader.fill(1)
    assert [command.task for command in written if isinstance(command, Expire)] == ["before"] * 10
    leader.barrier(lambda: None)
    assert sum(isinstance(command, Barrier) for command in leader.fill(100_000)) == 1


async def test_a_refusal_is_said_by_one_leader_only(world: World) -> None:
    """A submit reaches whoever takes itself for the leader; refused here and taken in there, it would be both."""
    first, log = await faulty(world, "k1")
    client = await world.peer("c1")
    assert first.leading is not None
    first.leading.admission.shutting_down = True
    log.fault = lambda _entry, _after: "lost"
    second = await world.controller("k2")
    assert first.led.is_set() and second.led.is_set()
    await client.submit("x")
    await until(lambda: not first.led.is_set())
    assert not any(isinstance(item, wire.Refused) for item in client.items)
