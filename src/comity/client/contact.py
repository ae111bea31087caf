"""Contact with the leader: who it is, what time it has, and whether it answers.

    seeking ──(the leader answers "hello")──▶ in touch
       ▲                                         │  nobody listens, the link broke, silence, or another one leads
       └─────────────────────────────────────────┘

While seeking, nothing but "hello" is sent; when it is answered, everybody with something unanswered repeats it. A
process is taken for the leader only for answering a secret number, which was sent where only controllers listen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec

from comity.bus.base import LEADER, Bus, Link
from comity.bus.outbox import Outbox
from comity.bus.straying import Straying
from comity.client.timers import Alarm, Timers
from comity.errors import ComityError, ForeignData
from comity.model.ids import ProcessId
from comity.model.version import installed
from comity.model.wire import Answer, Ask, Item, Leading

FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0
HELLOS_KEPT = 8
TIMELY_S = 60.0
"""How long leader time is known once it was told: then clocks may have gone apart, and entry time may run at another pace."""


_HELLO = msgspec.json.encode({"version": installed()})


class Hello(msgspec.Struct):
    """What a leader says of itself."""

    network_id: str
    term: int
    leader: ProcessId
    now_ms: int
    lease_s: float = 0.0
    durability: Any = None
    dedup_window_s: float = 0.0


class Contact:
    """See the module. ``is_up``: in touch. ``fail`` is told if another network answers where ours was.
    ``strays``: it goes to another server where nobody leads. Invariant: ``term`` never falls."""

    def __init__(
        self, bus: Bus, outbox: Outbox, timers: Timers, rng: Random, fail: Callable[[ComityError], None], *, strays: bool = True
    ) -> None:
        self._bus = bus
        self._outbox = outbox
        self._timers = timers
        self._rng = rng
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._straying = Straying(bus) if strays else None
        self._lost_at = self._loop.time()
        self.is_up = False
        self.leader = ProcessId("")
        self.term = -1
        self.hello: Hello | None = None
        self._ahead_ms = 0.0  # leader time minus the loop's time
        self._told_at = float("-inf")
        self._renewed: list[Callable[[bool], None]] = []
        self._waiting: list[asyncio.Future[None]] = []
        self._asked: dict[int, float] = {}  # hello's number -> when it was sent
        self._retry: Alarm | None = None
        self._pause_s = FIRST_RETRY_S
        self._all_lost = True
        self._ended: ComityError | None = None
        bus.on_state(self._on_link)
        bus.on_unreachable(self._on_unreachable)

    def on_renewed(self, call: Callable[[bool], None]) -> None:
        """``call(lost)`` whenever contact is made: ``lost`` says that what was sent before may have reached nobody."""
        self._renewed.append(call)

    def now_ms(self) -> int:
        """Leader time."""
        return int(self._loop.time() * 1000 + self._ahead_ms)

    def set_time(self, now_ms: int) -> None:
        """The leader's clock read ``now_ms`` a moment ago."""
        self._told_at = self._loop.time()
        self._ahead_ms = now_ms - self._told_at * 1000

    @property
    def is_timely(self) -> bool:
        """Whether leader time was told lately: ids are made from it."""
        return self._loop.time() - self._told_at < TIMELY_S

    def post(self, item: Item) -> None:
        self._outbox.post(LEADER, item)

    async def made(self) -> None:
        """Wait until in touch. Raises what ended the connection."""
        while not self.is_up:
            if self._ended is not None:
                raise self._ended
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(waiter)
            self.seek()
            await waiter

    def seek(self, *, lost: bool = False) -> None:
        """Make sure of the leader. ``lost``: what was sent before may have reached nobody."""
        self._all_lost = self._all_lost or lost
        if self._retry is None and self._ended is None:
            self._lost_at = self._loop.time() if self.is_up else self._lost_at
            self.is_up = False
            self._pause_s = FIRST_RETRY_S
            self._ask()

    def _ask(self) -> None:
        if self._straying is not None:
            self._straying.look(self._lost_at)
        number = self._rng.getrandbits(53)
        while len(self._asked) >= HELLOS_KEPT:
            del self._asked[next(iter(self._asked))]
        self._asked[number] = self._loop.time()
        self.post(Ask(number, "hello", _HELLO))
        self._retry = self._timers.after(self._pause_s * (0.75 + self._rng.random() / 2), self._ask)
        self._pause_s = min(self._pause_s * 2, LAST_RETRY_S)

    def _hurry(self, *, lost: bool) -> None:
        """Ask now, rather than when the next repetition is due."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.seek(lost=lost)

    def on_answer(self, item: Answer, sender: ProcessId) -> bool:
        """Whether ``item`` answers a hello. Two may answer one: a deposed leader and its successor."""
        asked_at = self._asked.get(item.ref)
        if asked_at is None:
            return False
        if not item.code:
            hello = msgspec.json.decode(item.body, type=Hello)
            if self.hello is not None and self.hello.network_id != hello.network_id:  # whatever its term
                message = f"network {hello.network_id} now answers in place of {self.hello.network_id}"
                self._fail(ForeignData(message, leader=sender))
            elif hello.term > self.term or (hello.term == self.term and not self.is_up):
                self._make(hello, sender, asked_at)
        return True

    def _make(self, hello: Hello, sender: ProcessId, asked_at: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        lost = self._all_lost or sender != self.leader or hello.term != self.term
        self.hello, self.leader, self.term = hello, sender, hello.term
        self.set_time(hello.now_ms + round((self._loop.time() - asked_at) * 500))
        self.is_up, self._all_lost = True, False
        for call in self._renewed:
            call(lost)
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def is_leader(self, sender: ProcessId) -> bool:
        """Whether ``sender`` is the leader we know. If not, find out who is: it may be a new one."""
        if sender == self.leader:
            return True
        self.seek()
        return False

    def on_leading(self, item: Leading, sender: ProcessId) -> None:
        """Somebody says that it leads: ask, for anybody can say so."""
        if item.term > self.term or (item.term == self.term and sender != self.leader):
            self._hurry(lost=False)

    def _on_link(self, link: Link) -> None:
        if link is Link.UP:
            self._hurry(lost=True)
        else:
            self.seek(lost=True)

    def _on_unreachable(self, address: str) -> None:
        if address == LEADER:
            self.seek(lost=True)

    def end(self, error: ComityError) -> None:
        """Seek no more: whoever waits for contact gets ``error``."""
        self._ended = error
        self.is_up = False
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_exception(error)
