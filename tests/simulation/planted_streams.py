"""Bugs to plant in streams of parts."""

from __future__ import annotations

from typing import Any

import pytest
from planting import plant

from comity.client.readings import Reading, Readings
from comity.model.ids import ProcessId
from comity.model.parts import Part, ReadParts
from comity.node.parts import Outgoing

LIVES = "tests/simulation/test_streams.py::test_streams_keep_their_promises"


@plant(test=LIVES)
def a_part_said_twice_is_given_out_twice(patch: pytest.MonkeyPatch) -> None:
    def lax(self: Readings, item: Part, sender: ProcessId) -> None:
        reading = self._of(item.ref, item.epoch, sender)
        if reading is not None:
            reading.received = max(reading.received, item.number)
            reading.queue.append((item.number, item.body))
            reading.wake()

    patch.setattr(Readings, "on_part", lax)


@plant(test=LIVES)
def a_new_attempt_is_not_announced(patch: pytest.MonkeyPatch) -> None:
    attach = Readings._attach

    def silent(self: Readings, reading: Reading, *about: Any) -> None:
        reading.has_begun = False
        attach(self, reading, *about)

    patch.setattr(Readings, "_attach", silent)


@plant(test=LIVES)
def a_node_forgets_what_it_has_sent(patch: pytest.MonkeyPatch) -> None:
    serve = Outgoing._serve

    def careless(self: Outgoing, reader: Any) -> None:
        serve(self, reader)
        while self._parts and self._made - len(self._parts) < reader.sent:
            self._drop()

    def deaf(self: Readings, *_: Any) -> None:
        """What is kept no longer is not said either."""

    patch.setattr(Outgoing, "_serve", careless)
    patch.setattr(Readings, "on_none", deaf)


@plant(test="tests/unit/test_parts.py::test_a_slow_reader_makes_the_generator_wait")
def nobody_waits_for_a_slow_reader(patch: pytest.MonkeyPatch) -> None:
    async def at_once(self: Outgoing) -> None:
        self._hold_until = 0.0

    patch.setattr(Outgoing, "_wait_for_room", at_once)


@plant(test="tests/unit/test_parts.py::test_what_was_lost_on_the_way_is_sent_again")
def what_was_lost_is_not_sent_again(patch: pytest.MonkeyPatch) -> None:
    read = Outgoing.read

    def once(self: Outgoing, item: ReadParts, process: ProcessId) -> bool:
        return read(self, ReadParts(item.ref, item.task, item.epoch, item.taken, item.after, item.until, item.for_ms), process)

    patch.setattr(Outgoing, "read", once)
