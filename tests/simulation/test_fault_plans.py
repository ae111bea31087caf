"""The faults of a life: all of the list, planned ahead, each its own, and what they do to messages and servers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import Any

import pytest

from comity.errors import BadInput, Disconnected, Unreachable
from comity.sim import World
from comity.sim.faults import Faults
from comity.sim.links import Links, Odds, Trace
from comity.sim.loop import Process, VirtualLoop

KINDS = {
    "pause", "lag", "crash", "power cut", "crash at a write", "partition", "one-way cut", "deaf", "server cut off", "disconnect",
    "outage", "loss", "duplicates", "disorder", "slow", "bad writes", "server crash", "slow server", "slow disk", "full disk",
    "stale reads", "stall", "split", "clock",
}  # fmt: skip


def world(seed: int = 1, **options: Any) -> World:
    made = World(seed, **options)
    made.loop.close()
    return made


def test_no_fault_of_the_list_is_missing() -> None:
    assert set(world(faults={}).faults._kinds) == KINDS


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_each_fault_strikes_by_itself(kind: str) -> None:
    report = World(2, faults={kind: 1.0}, torture_s=5.0, settings={"retries": 3}).run()
    assert list(report.faults) == [kind]


def test_an_unknown_fault_is_refused_by_name() -> None:
    pair = Pair()
    with pytest.raises(BadInput, match="no fault is called 'meteor'; one of: pause"):
        Faults(pair.links, [], "1", weights={"meteor": 1.0}, torture_s=1.0)
    pair.loop.close()


def test_a_fault_that_is_left_out_changes_no_other() -> None:
    whole = world(seed=7, faults={"partition": 1.0, "clock": 1.0}, torture_s=10.0)
    some = [strike.number for strike in whole.faults.plan][::2]
    part = world(seed=7, faults={"partition": 1.0, "clock": 1.0}, torture_s=10.0, only=some)
    assert part.faults.plan == [strike for strike in whole.faults.plan if strike.number in some]

    def told(only: list[int] | None) -> list[tuple[float, str, Any]]:
        life = World(7, faults={"partition": 1.0, "clock": 1.0}, torture_s=10.0, only=only)
        life.run()
        return [(event.at, event.what, event.detail) for event in life.trace.events if event.what.startswith("fault: ")]

    assert Counter(told(some)) <= Counter(told(None))
    assert len(told(some)) == len(some)


class Pair:
    """Two processes and what lies between them."""

    def __init__(self, seed: int = 1) -> None:
        self.loop = VirtualLoop()
        self.links = Links(self.loop, Random(seed), Trace(self.loop))
        self.a, self.b = self.loop.process("a"), self.loop.process("b")
        self.links.processes |= {"a": self.a, "b": self.b}
        self.heard: list[int] = []

    def say(self, count: int) -> None:
        for number in range(count):
            self.links.carry("a", "b", lambda n=number: self.heard.append(n))  # type: ignore[arg-type]

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.loop.run_until_complete(work)
        self.loop.bury()
        self.loop.close()

    def write(self, process: Process, action: Callable[[], Awaitable[int]]) -> Coroutine[Any, Any, int]:
        return self.links.call(process, "log", action, is_write=True, what="write")


async def one() -> int:
    return 1


def test_messages_keep_their_order_until_they_are_made_to_leave_it() -> None:
    async def work() -> None:
        pair.say(50)
        await asyncio.sleep(1)
        assert pair.heard == list(range(50))
        pair.links.astray = 0.5
        pair.say(50)
        await asyncio.sleep(1)
        late = pair.heard[50:]
        assert sorted(late) == list(range(50)) != late

    pair = Pair()
    pair.run(work())


def test_a_message_may_arrive_twice() -> None:
    async def work() -> None:
        pair.links.twice = 0.5
        pair.say(50)
        await asyncio.sleep(5)
        counts = Counter(pair.heard)
        assert set(counts.values()) == {1, 2}
        assert pair.links.has_doubled

    pair = Pair()
    pair.run(work())


def test_a_server_that_crashes_tears_what_it_was_writing() -> None:
    done: list[str] = []

    async def write() -> int:
        done.append("write")
        return 1

    async def work() -> None:
        writing = asyncio.ensure_future(pair.write(pair.a, write))
        await asyncio.sleep(0)
        pair.links.crash("log")
        with pytest.raises(Disconnected):
            await writing
        with pytest.raises(Unreachable, match="log is down"):
            await pair.write(pair.a, write)
        pair.links.restart("log")
        await asyncio.sleep(5)
        assert done == []
        assert await pair.write(pair.a, write) == 1

    pair = Pair()
    pair.run(work())


def test_a_full_disk_refuses_writes_and_nothing_else() -> None:
    async def work() -> None:
        pair.links.odds["log"] = Odds(full=1.0)
        with pytest.raises(Unreachable, match="no room"):
            await pair.write(pair.a, one)
        assert await pair.links.call(pair.a, "log", one, is_write=False, what="") == 1

    pair = Pair()
    pair.run(work())


def test_a_slow_disk_writes_one_after_the_other() -> None:
    async def work() -> None:
        pair.links.odds["log"] = Odds(disk_s=0.1)
        began = pair.loop.time()
        await asyncio.gather(*(pair.write(process, one) for process in (pair.a, pair.b) for _ in range(5)))
        assert 1.0 <= pair.loop.time() - began < 1.1

    pair = Pair()
    pair.run(work())
