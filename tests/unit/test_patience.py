"""What a controller needs may be away for a moment when it begins: a group of servers that has no leader just then."""

from __future__ import annotations

import asyncio

import pytest
import structlog
from peers import World, a_while, virtually
from structlog.testing import capture_logs

from comity.cli.network import while_it_runs
from comity.errors import Corrupt, ServerFailed, TimedOut, Unreachable
from comity.log.base import Item
from comity.log.memory import MemoryLog, MemoryLogState
from comity.patience import Unready, in_time, patiently


class Leaderless(MemoryLog):
    """Some reads come to no end, whatever came before."""

    def __init__(self, state: MemoryLogState) -> None:
        super().__init__(state)
        self.refused = self.asked = 0

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        self.asked += 1
        if self.asked in (1, 3):
            self.refused += 1
            raise Unreachable("JetStream: JetStream system temporarily unavailable")
        return await super().read(after, limit)


@virtually()
async def test_a_controller_begins_although_the_log_has_no_leader_for_a_moment(world: World) -> None:
    first = await world.controller("k1")
    peer = await world.peer("c1")
    task = await peer.submit()
    await first.stop()
    log = Leaderless(world.log)
    await world.controller("k2", log=log)
    assert log.refused == 2
    assert await peer.state(task) == "submitted"


class Trying:
    """Fails so many times; then it gives how often it was tried."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.tries = 0

    async def __call__(self) -> int:
        self.tries += 1
        if self.tries <= self.failures:
            raise Unreachable(f"nobody serves it ({self.tries})")
        return self.tries


@virtually()
async def test_it_gives_up_once_nothing_comes_of_it_for_long_enough() -> None:
    work = Trying(1000)
    with pytest.raises(Unreachable, match="nobody serves it"):
        await patiently(work, 2.0)
    assert work.tries > 2
    at_once = Trying(1000)
    with pytest.raises(Unreachable):
        await patiently(at_once, 0.0)
    assert at_once.tries == 1


@virtually()
async def test_whoever_gets_on_is_not_given_up() -> None:
    work = Trying(3)
    assert await patiently(work, 0.1, progress=lambda: work.tries) == 4


@virtually()
async def test_time_that_went_well_does_not_count() -> None:
    work = Trying(1)

    async def slow_at_first() -> int:
        if work.tries == 0:
            await a_while(1.5)
        return await work()

    assert await patiently(slow_at_first, 1.2) == 2


@virtually()
async def test_nobody_waits_for_what_cannot_come() -> None:
    work = Trying(1000)
    with pytest.raises(Unreachable):
        await patiently(work, hopeless=lambda: work.tries == 2)
    assert work.tries == 2


@virtually()
async def test_other_errors_end_it_at_once() -> None:
    async def damaged() -> None:
        raise Corrupt("log entry 1 cannot be read")

    with pytest.raises(Corrupt):
        await patiently(damaged)


@virtually()
async def test_in_time_ends_with_the_last_error_or_says_that_it_was_under_way() -> None:
    now = asyncio.get_running_loop().time
    work = Trying(2)
    assert await in_time(work, now() + 10.0) == 3
    began = now()
    with pytest.raises(Unreachable, match="nobody serves it"):
        await in_time(Trying(1000), now() + 0.5)
    assert now() - began < 2.0
    with pytest.raises(TimedOut):
        await in_time(asyncio.Event().wait, now() + 0.1)


@virtually()
async def test_what_a_start_waits_for_is_told_after_a_while_and_not_often() -> None:
    unready, error = Unready(structlog.get_logger("test")), Unreachable("nobody serves it")
    with capture_logs() as said:
        for waited_s in (0.0, 1.9, 2.1, 2.3, 12.0):
            unready(error, waited_s)
        assert [(line["event"], line["code"]) for line in said] == [("cannot begin yet; trying again", "unreachable")]
        unready(error, 12.2)
        assert len(said) == 2
        for waited_s in (0.0, 1.9, 2.1):  # it got on meanwhile
            unready(error, waited_s)
        assert len(said) == 3


async def test_a_start_that_stops_its_server_says_why() -> None:
    stopped = asyncio.Event()

    async def start() -> None:
        stopped.set()
        await a_while(0.01)
        raise Corrupt("log entry 1 cannot be read")

    with pytest.raises(Corrupt):
        await while_it_runs(stopped.wait, start())


async def test_a_start_ends_when_its_server_is_gone_for_good() -> None:
    async def wait() -> None:
        raise ServerFailed("it ended five times")

    ended = asyncio.Event()

    async def start() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    with pytest.raises(ServerFailed, match="five times"):
        await while_it_runs(wait, start())
    assert ended.is_set()
