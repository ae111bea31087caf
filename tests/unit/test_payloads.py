"""Payloads that lie in the log, and what of it can be seen."""

from __future__ import annotations

import pytest

from comity.controller.payloads import Payloads
from comity.errors import Corrupt, Unreachable
from comity.log.base import Item
from comity.log.memory import MemoryLog, MemoryLogState
from comity.model.codec import ROOT_DIGEST, seal
from comity.model.ids import ProcessId, TaskId
from comity.model.payload import Logged
from comity.model.task import Barrier, Entry, Submit, TaskSpec

BIG = b"x" * 2000


class Lagging(MemoryLog):
    """Shows nothing the first time; one of several copies."""

    is_behind = True
    lag_s = 10.0

    async def read(self, after: int, limit: int = 1000) -> list[Item]:
        shown, self.is_behind = not self.is_behind, False
        return await super().read(after, limit) if shown else []


async def test_an_old_view_of_the_log_is_no_damage() -> None:
    log = Lagging(MemoryLogState())
    spec = TaskSpec(TaskId("t1"), "echo", BIG, ProcessId("c1"))
    await log.append(seal(Entry("net", 1, ROOT_DIGEST, 1, [Barrier(), Submit(spec)]))[0], 0)
    payloads = Payloads(log)
    place = Logged(1, 1, len(BIG))
    with pytest.raises(Unreachable, match="entry 1"):
        await payloads.load(place)
    assert await payloads.load(place) == BIG
    with pytest.raises(Corrupt):
        await payloads.load(Logged(1, 0, 7))


async def test_a_hole_in_the_only_copy_is_damage() -> None:
    log = Lagging(MemoryLogState())
    log.lag_s = 0.0
    await log.append(seal(Entry("net", 1, ROOT_DIGEST, 1, [Barrier()]))[0], 0)
    with pytest.raises(Corrupt, match="entry 1"):
        await Payloads(log).load(Logged(1, 1, 7))
