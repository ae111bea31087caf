"""A process that hears no leader goes to each other server once, and no more."""

from __future__ import annotations

from math import inf

import pytest

from comity.bus import straying
from comity.bus.base import Link
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.straying import Straying, moved
from comity.errors import Disconnected
from comity.model.ids import ProcessId


class OneOfThree(MemoryBus):
    """Counts how often it was to go to another server."""

    asked = 0

    @property
    def servers(self) -> int:
        return 3

    def change_server(self) -> None:
        self.asked += 1


async def test_each_other_server_is_tried_once_until_a_leader_was_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(straying, "STRAY_S", 0.0)
    network = MemoryNetwork()
    bus = OneOfThree(network, ProcessId("p"))
    one = Straying(bus)
    for _ in range(5):
        one.look(-inf)
    assert bus.asked == 2
    one.look(one._loop.time())
    one.look(-inf)
    assert bus.asked == 4
    network.disconnect(bus.process)
    assert bus.link is Link.DOWN
    one.look(one._loop.time())
    assert bus.asked == 4


async def test_a_leader_that_was_heard_lately_is_waited_for() -> None:
    bus = OneOfThree(MemoryNetwork(), ProcessId("p"))
    one = Straying(bus)
    one.look(-inf)  # it has just connected
    one._up_at = -inf
    one.look(one._loop.time() - straying.STRAY_S + 1)
    assert bus.asked == 0
    one.look(one._loop.time() - straying.STRAY_S - 1)
    assert bus.asked == 1


async def test_who_is_taken_by_no_other_server_is_told() -> None:
    with pytest.raises(Disconnected, match="no other server takes p"):
        await moved(OneOfThree(MemoryNetwork(), ProcessId("p")), 0.05)
    with pytest.raises(Disconnected):
        await moved(MemoryBus(MemoryNetwork(), ProcessId("p")), 0.05)
