"""Streams of parts that are read here: where each comes from, what has arrived, and for how much there is room.

A reader learns from an offer which node runs the attempt (its submitter gets one), or asks the leader. What is missing is asked
for again: when a number is left out, when the connection stood again, when nothing came for a while. A node answers that; if it
does not, the next attempt may be somewhere else by now.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

from comity.bus.base import Bus, Link, to
from comity.bus.outbox import Outbox
from comity.client.timers import Alarm, Timers
from comity.errors import ComityError, Indefinite
from comity.model.ids import ProcessId, TaskId
from comity.model.parts import FOR_MS, KEPT_BYTES, WINDOW, Break, NoParts, Part, PartsEnd, PartsOffered, ReadParts

RENEW_S = 2.0
OFFERS_KEPT = 1024
FIRST_LOOK_S = 0.1
"""So long an offer may be on its way before the leader is asked instead."""
QUIET_MAX = 2
"""Periods of ``RENEW_S`` without a word: in the second of them it was asked for one."""
LOOK_S, LOOK_MAX_S = 1.0, 15.0
"""How soon it is asked again; twice as long each time, for a task may wait in a queue, or for an answer, for days."""


class Reading:
    """One reader's stream. ``received``: the number of the last part of this attempt that has arrived; ``taken``: of the last
    one that was given out; ``untold``: bytes given out since the node was told; ``has_begun``: something of it, or of an attempt
    before, was seen; ``is_nowhere``: nobody has parts, as far as is known; ``last``: the epoch of the task's last attempt, once
    it has ended; ``quiet``: periods without a word from its node; ``queue``: what is to be given out, with its number (0: of
    an attempt before)."""

    __slots__ = (
        "attempt", "epoch", "granted", "has_begun", "is_asking", "is_nowhere", "last", "look_at", "looking", "node",
        "pause_s", "queue", "quiet", "received", "ref", "taken", "task", "total", "untold", "waiter",
    )  # fmt: skip

    def __init__(self, ref: int, task: TaskId) -> None:
        self.ref = ref
        self.task = task
        self.node = ProcessId("")
        self.epoch = self.total = self.last = -1
        self.attempt = self.received = self.taken = self.granted = self.untold = self.quiet = 0
        self.queue: deque[tuple[int, bytes | Break]] = deque()
        self.has_begun = self.is_asking = self.is_nowhere = False
        self.look_at = 0.0
        self.pause_s = LOOK_S
        self.looking: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[None] | None = None

    @property
    def has_attempt(self) -> bool:
        """All parts of its attempt have arrived."""
        return 0 <= self.total <= self.received

    @property
    def is_complete(self) -> bool:
        """So they have, and no later attempt is known."""
        return self.has_attempt and self.epoch >= self.last

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Readings:
    """All of this process. ``ask`` gives a task's status."""

    def __init__(
        self, bus: Bus, outbox: Outbox, timers: Timers, rng: Random, ask: Callable[[TaskId], Awaitable[dict[str, Any]]]
    ) -> None:
        self._outbox = outbox
        self._timers = timers
        self._rng = rng
        self._ask = ask
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Reading] = {}
        self._of_task: dict[TaskId, list[Reading]] = {}
        self._offers: OrderedDict[TaskId, tuple[ProcessId, PartsOffered]] = OrderedDict()
        self._alarm: Alarm | None = None
        bus.on_unreachable(self._on_unreachable)
        bus.on_state(self._on_link)

    def open(self, task: TaskId) -> Reading:
        reading = Reading(self._rng.getrandbits(53), task)
        self._open[reading.ref] = reading
        self._of_task.setdefault(task, []).append(reading)
        offer = self._offers.get(task)
        if offer is not None:
            self._attach(reading, offer[0], offer[1].epoch, offer[1].attempt)
        self._look_soon(reading)
        if self._alarm is None:
            self._alarm = self._timers.after(RENEW_S, self._tick)
        return reading

    def _look_soon(self, reading: Reading) -> None:
        """If no offer comes meanwhile."""
        reading.look_at = max(reading.look_at, self._loop.time() + FIRST_LOOK_S)
        self._timers.at(reading.look_at, lambda: self.look(reading))

    def close(self, reading: Reading) -> None:
        del self._open[reading.ref]
        others = self._of_task[reading.task]
        others.remove(reading)
        if not others:
            del self._of_task[reading.task]
        if reading.looking is not None:
            reading.looking.cancel()
        if reading.node:
            self._outbox.post(to(reading.node), ReadParts(reading.ref, reading.task, reading.epoch, 0, 0, 0, 0))

    def give(self, reading: Reading) -> bytes | Break:
        """The next part, as JSON. There must be one."""
        number, part = reading.queue.popleft()
        reading.taken = max(reading.taken, number)
        reading.untold += len(part) if isinstance(part, bytes) else 0
        if reading.granted - reading.taken <= WINDOW // 2 or reading.untold >= KEPT_BYTES // 4:
            self._read(reading)
        return part

    async def news(self, reading: Reading, within_s: float) -> None:
        """Wait until there may be something to ``give``."""
        reading.waiter = self._loop.create_future()
        alarm = self._timers.after(within_s, reading.wake)
        try:
            await reading.waiter
        finally:
            alarm.cancel()

    def look(self, reading: Reading) -> None:
        """Ask the leader where its attempt runs, or the next one, unless that is known or was asked a moment ago."""
        now = self._loop.time()
        is_current = not reading.has_attempt and reading.epoch >= reading.last
        is_known = reading.node and is_current and reading.quiet < QUIET_MAX
        if not is_known and reading.looking is None and now >= reading.look_at and reading.ref in self._open:
            reading.look_at = now + reading.pause_s
            reading.pause_s = min(reading.pause_s * 2, LOOK_MAX_S)
            reading.looking = self._loop.create_task(self._look(reading))

    def ended(self, reading: Reading, epoch: int) -> None:
        """Its task has ended, with the attempt of that epoch: see that the parts of that one come. Who was told before that they
        are nowhere may have asked too early."""
        is_news, reading.last = reading.last < 0, epoch
        if not reading.is_complete:
            if is_news:
                reading.is_nowhere, reading.look_at = False, 0.0
                self._read(reading)  # the last that its node said may be lost
            self.look(reading)

    def _hurry(self, reading: Reading) -> None:
        """What is to be asked may have changed."""
        reading.pause_s = LOOK_S
        reading.look_at = min(reading.look_at, self._loop.time() + LOOK_S)

    async def _look(self, reading: Reading) -> None:
        try:
            view = await self._ask(reading.task)
        except ComityError as error:
            reading.is_nowhere = not isinstance(error, Indefinite)
        else:
            if view["node"] and reading.ref in self._open:
                self._attach(reading, ProcessId(view["node"]), view["epoch"], max(1, len(view["attempts"])))
        finally:
            reading.looking = None
            reading.wake()

    # What arrives

    def on_offered(self, item: PartsOffered, sender: ProcessId) -> None:
        known = self._offers.get(item.task)
        if known is None or known[1].epoch < item.epoch:
            self._offers[item.task] = (sender, item)
            if len(self._offers) > OFFERS_KEPT:
                self._offers.popitem(last=False)
        for reading in self._of_task.get(item.task, []):
            self._attach(reading, sender, item.epoch, item.attempt)

    def _attach(self, reading: Reading, node: ProcessId, epoch: int, attempt: int) -> None:
        if epoch < reading.epoch or (epoch == reading.epoch and reading.node):
            return
        if epoch > reading.epoch:
            reading.queue = deque((0, part) for _, part in reading.queue)
            if reading.has_begun:
                if reading.queue and reading.queue[-1][1] == Break(reading.attempt):
                    reading.queue.pop()  # nothing came of that one
                reading.queue.append((0, Break(attempt)))
            reading.epoch, reading.attempt, reading.total = epoch, attempt, -1
            reading.received = reading.taken = reading.granted = 0
            self._hurry(reading)
        reading.node, reading.is_nowhere, reading.quiet = node, False, 0
        self._read(reading, again=True)
        reading.wake()

    def _read(self, reading: Reading, *, again: bool = False) -> None:
        if reading.node:
            reading.granted = max(reading.granted, reading.taken + WINDOW)
            reading.untold = 0
            has = (reading.taken, reading.received, reading.granted)
            self._outbox.post(to(reading.node), ReadParts(reading.ref, reading.task, reading.epoch, *has, FOR_MS, again))

    def _of(self, ref: int, epoch: int, sender: ProcessId) -> Reading | None:
        reading = self._open.get(ref)
        if reading is None or reading.node != sender or reading.epoch != epoch:
            return None
        reading.quiet = 0
        return reading

    def on_part(self, item: Part, sender: ProcessId) -> None:
        reading = self._of(item.ref, item.epoch, sender)
        if reading is None or item.number <= reading.received or item.number > reading.granted:
            return
        if item.number > reading.received + 1:
            self._ask_again(reading)
            return
        reading.received = item.number
        reading.is_asking, reading.has_begun = False, True
        reading.queue.append((item.number, item.body))
        reading.wake()

    def _ask_again(self, reading: Reading) -> None:
        if not reading.is_asking:
            reading.is_asking = True
            self._read(reading, again=True)

    def on_end(self, item: PartsEnd, sender: ProcessId) -> None:
        reading = self._of(item.ref, item.epoch, sender)
        if reading is not None:
            reading.total = item.total
            if reading.has_attempt:
                self._look_soon(reading)
                reading.wake()
            else:
                self._ask_again(reading)

    def on_none(self, item: NoParts, sender: ProcessId) -> None:
        reading = self._of(item.ref, item.epoch, sender)
        if reading is None:
            return
        if item.upto < 0:
            self._lost(reading)
        elif item.upto > reading.received:
            reading.queue.append((item.upto, Break(reading.attempt, item.upto - reading.received)))
            reading.received, reading.has_begun = item.upto, True
            self._read(reading)
        reading.wake()

    def _lost(self, reading: Reading) -> None:
        """Its node has nothing of it, or is gone: the next attempt will be somewhere else."""
        reading.node, reading.is_nowhere = ProcessId(""), True
        self._look_soon(reading)
        reading.wake()

    def _on_unreachable(self, address: str) -> None:
        for reading in list(self._open.values()):
            if reading.node and address == to(reading.node):
                self._lost(reading)

    def _on_link(self, link: Link) -> None:
        if link is Link.UP:
            for reading in self._open.values():
                self._hurry(reading)  # an offer may be lost
                self._read(reading, again=True)

    def _tick(self) -> None:
        self._alarm = None
        for reading in list(self._open.values()):
            self._read(reading, again=reading.quiet > 0)
            self.look(reading)
            reading.quiet, reading.is_asking = reading.quiet + 1, False
        if self._open:
            self._alarm = self._timers.after(RENEW_S, self._tick)

    def end(self) -> None:
        """The connection is closed; whoever reads looks up."""
        for reading in self._open.values():
            reading.wake()
