"""What a controller needs may be away for a moment when it begins: a group of servers that has no leader just then."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from peers import World
from structlog.testing import capture_logs

from comity.controller import patience
from comity.controller.patience import patiently
from comity.errors import Corrupt, Unreachable
from comity.log.base import Item
from comity.log.memory import MemoryLog, MemoryLogState


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


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


async def test_a_controller_begins_although_the_log_has_no_leader_for_a_moment(world: World) -> None:
    first = await world.controller("k1")
    peer = await world.peer("c1")
    task = await peer.submit()
    await first.stop()
    log = Leaderless(world.log)
    await world.controller("k2", log=log)
    assert log.refused == 2
    assert await peer.state(task) == "submitted"


async def test_it_gives_up_once_nothing_comes_of_it_for_long_enough() -> None:
    tries = 0

    async def away() -> None:
        nonlocal tries
        tries += 1
        raise Unreachable("nobody serves it")

    with pytest.raises(Unreachable, match="nobody serves it"):
        await patiently(away, 0.5)
    assert tries > 2
    tries = 0
    with pytest.raises(Unreachable):
        await patiently(away, 0.0)
    assert tries == 1


async def test_whoever_gets_on_is_not_given_up() -> None:
    tries = 0

    async def slow() -> int:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise Unreachable("nobody serves it")
        return tries

    assert await patiently(slow, 0.1, lambda: tries) == 4


async def test_other_errors_end_it_at_once() -> None:
    async def damaged() -> None:
        raise Corrupt("log entry 1 cannot be read")

    with pytest.raises(Corrupt):
        await patiently(damaged, 60.0)


async def test_long_waiting_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def away() -> None:
        raise Unreachable("nobody serves it")

    with capture_logs() as said, pytest.raises(Unreachable):
        await patiently(away, 0.5)
    assert said == []
    monkeypatch.setattr(patience, "QUIET_S", 0.0)
    with capture_logs() as said, pytest.raises(Unreachable):
        await patiently(away, 0.5)
    assert [(line["event"], line["code"]) for line in said] == [("cannot begin yet; trying again", "unreachable")]
