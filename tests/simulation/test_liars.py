"""Lives with a process in them that says what is not so: every promise is kept to the others."""

from __future__ import annotations

import gc
from random import Random

import pytest

from comity.bus.base import LEADER
from comity.core.tasks import Tasks
from comity.errors import InvalidInput
from comity.model import wire
from comity.model.ids import NetworkId, ProcessId
from comity.sim.liar import Liar
from comity.sim.world import World


@pytest.mark.timeout(120)
@pytest.mark.parametrize("first", range(5000, 5020, 10))
def test_every_promise_is_kept_to_the_others(first: int) -> None:
    for seed in range(first, first + 10):
        World(seed, liars=1).run()
        gc.collect()


def test_a_liar_says_all_kinds_of_things() -> None:
    liar = Liar(ProcessId("x1"), Tasks(NetworkId("net")), [ProcessId("c1"), ProcessId("n1")], Random(1))
    said: dict[str, None] = {}
    unreadable = 0
    for _ in range(2_000):
        address, data = liar.lie()
        try:
            said.update(dict.fromkeys(type(item).__name__ for item in wire.decode(data)))
        except InvalidInput:
            unreadable += 1
        assert address == LEADER or address.startswith(("to/", "topic/"))
    assert unreadable and {"Leading", "Done", "Slot", "Beacon", "SubmitTask", "Route", "Run", "Ended", "Message"} <= set(said)
