"""What lies between the processes of a simulated world, and between them and the servers: how long things take, what is cut,
what gets lost. Faults change the public fields; the doors of ``doors`` send everything through here.

Places are named: a process by its id, the servers behind the doors ``bus``, ``log``, ``registry`` and ``store``. A cut is
directed; one between two processes hides them from each other while both still reach the bus.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
from collections.abc import Awaitable, Callable
from functools import partial
from random import Random
from typing import Any, NamedTuple, TypeVar

from comity.errors import ComityError, Disconnected, TimedOut, Unreachable
from comity.model.ids import ProcessId
from comity.sim.loop import Process, VirtualLoop

K = TypeVar("K")
T = TypeVar("T")

CALL_TIMEOUT_S = 2.0
"""How long a client of a server waits for its answer."""
ASTRAY_S = 0.1
TWICE_S = 3.0
"""How much later a message that left its order, or the copy of one, arrives at most."""


class Event(NamedTuple):
    """One line of a life's trace. ``detail`` is text, or the bytes of a bus message."""

    at: float
    who: str
    what: str
    detail: str | bytes = ""


class Trace:
    """All that happened, in order. Two runs of one seed must write the same."""

    def __init__(self, loop: VirtualLoop) -> None:
        self.events: list[Event] = []
        self.is_kept = True
        self._loop = loop

    def __call__(self, who: str, what: str, detail: str | bytes = "") -> None:
        if self.is_kept:
            self.events.append(Event(self._loop.time(), who, what, detail))


class Fate(enum.StrEnum):
    """What becomes of a write: the caller of all but the first sees a time-out or a broken connection."""

    DONE = "done"
    NEVER = "never"
    LOST = "answer lost"
    LATE = "late"


class Odds(NamedTuple):
    """How likely each bad fate of a write is, and how far the server lags: ``stale_s`` for what it reads, ``slow_s`` for what
    it does, ``disk_s`` for each write, one after the other. ``full``: the share of writes that it refuses for want of room."""

    never: float = 0.0
    lost: float = 0.0
    late: float = 0.0
    slow_s: float = 0.0
    stale_s: float = 0.0
    disk_s: float = 0.0
    full: float = 0.0


class Links:
    """See the module. ``latency_s`` bounds one way of every hop; ``drop`` is the share of bus messages that vanish, ``twice`` of
    those that arrive again later, ``astray`` of those that leave their order; ``slow_s`` is added to every hop from or to a
    place."""

    def __init__(self, loop: VirtualLoop, random: Random, trace: Trace) -> None:
        self.loop = loop
        self.random = random
        self.trace = trace
        self.latency_s = (0.0002, 0.002)
        self.drop = 0.0
        self.twice = 0.0
        self.has_doubled = False
        """Whether the bus ever delivered anything twice, which it promises not to do."""
        self.astray = 0.0
        self.slow_s: dict[str, float] = {}
        self.odds: dict[str, Odds] = {}
        self.processes: dict[str, Process] = {}
        """The newest process of each name."""
        self.late = 0
        """Writes that their callers have given up, and that will be done."""
        self.healed = asyncio.Event()
        self._cuts: dict[tuple[str, str], int] = {}
        self._lanes: dict[tuple[str, str, str], float] = {}
        self._held: dict[tuple[str, str], list[Callable[[], None]]] = {}
        self._down: dict[str, int] = {}
        self._lives: dict[str, int] = {}  # of a server: how often it crashed
        self._asked: dict[str, dict[asyncio.Future[Any], Process]] = {}  # by server, who waits for which answer
        self.on_append: list[Callable[[str], None]] = []
        """Told of the writer of each entry."""
        self._nobody = contextvars.Context()

    # What is cut

    def cut(self, source: str, target: str) -> None:
        """Nothing gets from ``source`` to ``target`` until as many ``mend`` as ``cut``."""
        _count(self._cuts, (source, target), 1)

    def mend(self, source: str, target: str) -> None:
        _count(self._cuts, (source, target), -1)
        self._look_again()

    def _look_again(self) -> None:
        self.healed.set()
        self.healed.clear()

    def is_open(self, source: str, target: str) -> bool:
        return (source, target) not in self._cuts and source not in self._down and target not in self._down

    def crash(self, server: str) -> None:
        """The server dies: what it was asked and had not done is never done, a write in its midst is torn and thrown away when it
        is back, and who waits for an answer hears that the connection broke. As many ``restart`` as ``crash`` bring it back."""
        _count(self._down, server, 1)
        self._lives[server] = self._lives.get(server, 0) + 1
        for answer, process in self._asked.pop(server, {}).items():
            error, when = Disconnected(f"the connection to {server} broke"), self.random.uniform(*self.latency_s)
            self.loop.call_later(when, self._give_up, answer, error, context=process.context.copy())

    def restart(self, server: str) -> None:
        _count(self._down, server, -1)
        self._look_again()

    async def until_open(self, source: str, target: str) -> None:
        while not self.is_open(source, target):
            await self.healed.wait()

    # How long it takes

    def delay(self, source: str, target: str) -> float:
        """Seconds of one way."""
        least, most = self.latency_s
        return self.random.uniform(least, most) + self.slow_s.get(source, 0.0) + self.slow_s.get(target, 0.0)

    def arrival(self, source: str, target: str, lane: str, delay: float) -> float:
        """When what is sent now arrives; never before what was sent earlier in the same lane."""
        key = (source, target, lane)
        when = max(self.loop.time() + delay, self._lanes.get(key, 0.0))
        self._lanes[key] = when
        return when

    def hold(self, source: str, place: str) -> None:
        """Keep what ``source`` asks of the server from now on, until ``release``."""
        self._held.setdefault((source, place), [])

    def release(self, source: str, place: str) -> None:
        for start in self._held.pop((source, place), []):
            self.loop.call_at(self.arrival(source, place, "call", 0.0), start, context=self._nobody.copy())

    def callers(self, place: str) -> list[str]:
        """Who called the server there so far."""
        return [source for source, target, lane in self._lanes if target == place and lane == "call"]

    # Messages

    def carry(self, sender: ProcessId, receiver: ProcessId, deliver: Callable[[], None]) -> None:
        """The fate of a bus message (``MemoryNetwork.carry``): it arrives in order, in the receiver's process, or never."""
        process = self.processes.get(receiver)
        if process is None:
            return
        if (sender, receiver) in self._cuts or (self.drop and self.random.random() < self.drop):
            self.trace(sender, "lost", receiver)
            return
        if self.astray and self.random.random() < self.astray:
            when = self.loop.time() + self.delay(sender, receiver) + self.random.uniform(0.0, ASTRAY_S)
        else:
            when = self.arrival(sender, receiver, "bus", self.delay(sender, receiver))
        self.loop.call_at(when, deliver, context=process.context.copy())
        if self.twice and self.random.random() < self.twice:
            self.has_doubled = True
            self.loop.call_at(when + self.random.uniform(0.0, TWICE_S), deliver, context=process.context.copy())

    # Calls of a server

    async def call(
        self, process: Process, place: str, action: Callable[[], Awaitable[T]], *, is_write: bool, what: str
    ) -> T:
        """Have the server at ``place`` do ``action``, and bring the answer back to ``process``.

        Raises what ``action`` raises (a definite answer), or TimedOut or Disconnected when no answer comes: it may then have
        been done, or not, or be done later.
        """
        loop = self.loop
        answer: asyncio.Future[T] = loop.create_future()
        odds = self.odds.get(place, Odds())
        if place in self._down:
            await asyncio.sleep(self.delay(process.name, place))
            raise Unreachable(f"{place} is down")
        if is_write and odds.full and self.random.random() < odds.full:
            self.trace(process.name, "fate", f"{what}: no room")
            await asyncio.sleep(self.delay(process.name, place) + self.delay(place, process.name))
            raise Unreachable(f"{place} has no room left")
        fate = self._fate(odds) if is_write else Fate.DONE
        if fate is not Fate.DONE:
            self.trace(process.name, "fate", f"{what}: {fate}")
        if fate is not Fate.NEVER and self.is_open(process.name, place):
            if fate is Fate.LATE:  # it comes by a connection that broke: past all that went by the next one
                when = loop.time() + self.random.uniform(0.0, 3 * CALL_TIMEOUT_S)
                self.late += 1
            else:
                slow = self.random.uniform(0.0, odds.slow_s) if odds.slow_s else 0.0
                when = self.arrival(process.name, place, "call", self.delay(process.name, place) + slow)
                if is_write and odds.disk_s:
                    when = max(when, self._lanes.get((place, place, "disk"), 0.0)) + odds.disk_s
                    self._lanes[place, place, "disk"] = self._lanes[process.name, place, "call"] = when
            start = partial(self._start, process.name, place, action, answer, fate, what, self._lives.get(place, 0))
            if (process.name, place) in self._held:
                self._held[process.name, place].append(start)
            else:
                loop.call_at(when, start, context=self._nobody.copy())
        error: ComityError = TimedOut(f"{place} did not answer")
        patience_s = CALL_TIMEOUT_S
        if fate is not Fate.DONE and self.random.random() < 0.5:
            error = Disconnected(f"the connection to {place} broke")
            patience_s *= self.random.random()
        timer = loop.call_later(patience_s, self._give_up, answer, error)
        asked = self._asked.setdefault(place, {})
        asked[answer] = process
        try:
            return await answer
        finally:
            timer.cancel()
            asked.pop(answer, None)

    def _fate(self, odds: Odds) -> Fate:
        if not (odds.never or odds.lost or odds.late):
            return Fate.DONE
        roll = self.random.random()
        for fate, share in ((Fate.NEVER, odds.never), (Fate.LOST, odds.lost), (Fate.LATE, odds.late)):
            if roll < share:
                return fate
            roll -= share
        return Fate.DONE

    def _start(
        self,
        source: str,
        place: str,
        action: Callable[[], Awaitable[T]],
        answer: asyncio.Future[T],
        fate: Fate,
        what: str,
        life: int,
    ) -> None:
        self.late -= fate is Fate.LATE
        if life != self._lives.get(place, 0):
            return
        if what:
            self.trace(source, place, what)
        task = self.loop.create_task(self._serve(source, place, action, answer, fate, life))
        task.set_name(f"{place} serves {source}")

    async def _serve(
        self, source: str, place: str, action: Callable[[], Awaitable[T]], answer: asyncio.Future[T], fate: Fate, life: int
    ) -> None:
        value: Any = None
        failure: Exception | None = None
        try:
            value = await action()
        except Exception as error:
            failure = error
        if fate is not Fate.DONE or not self.is_open(place, source) or life != self._lives.get(place, 0):
            return
        when = self.arrival(place, source, "answer", self.delay(place, source))
        self.loop.call_at(when, _resolve, answer, value, failure)

    @staticmethod
    def _give_up(answer: asyncio.Future[Any], error: ComityError) -> None:
        if not answer.done():
            answer.set_exception(error)


def _count(counts: dict[K, int], key: K, by: int) -> None:
    left = counts.get(key, 0) + by
    if left > 0:
        counts[key] = left
    else:
        counts.pop(key, None)


def _resolve(answer: asyncio.Future[Any], value: Any, failure: Exception | None) -> None:
    if answer.done():
        return
    if failure is not None:
        answer.set_exception(failure)
    else:
        answer.set_result(value)
