"""Group commit: the leader's way into the log.

Commands that wait are packed into one entry, entries are appended without waiting for those before (``DEPTH`` in flight), and
an entry is applied only once it and all its predecessors are durable. Nothing is ever rolled back: what is in flight has
changed nothing yet. Any refusal or time-out breaks the pipeline: then nobody knows what became of the entries in flight
until the log was read to its tail and a new term entry appended (``controller.Controller`` does that).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import msgspec

from comity.core.ledger import Ledger
from comity.errors import Disconnected
from comity.failpoints import durable
from comity.log.base import Log
from comity.model.codec import seal
from comity.model.task import Command, Entry

DEPTH = 4
ENTRY_BYTES = 512 * 1024
COMMANDS_MAX = 768
"""Commands in one entry: bounds the time that building, applying and replaying one takes, a few milliseconds each. No more than
one entry is built, and one applied, in a turn of the loop: others have their turn in between."""
ASSIGN_BYTES = 320
"""Of an assignment, or of what time calls for, at most."""
_encode = msgspec.msgpack.Encoder().encode


class EntryClock:
    """Entry time: the leader's wall clock, but it never runs backwards, and where the wall clock is elsewhere it gets there at
    half or at twice its pace (and gains no more than one second an entry). A step of the machine's clock so becomes a drift:
    whatever waits for a moment waits half as long, or twice as long, at worst."""

    def __init__(self, wall: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last_ms = 0.0
        self._last_at = monotonic()

    def start(self, last_ms: int, jump: bool, since: float | None = None) -> None:
        """Go on from ``last_ms``, which was entry time at ``since`` (monotonic; now if not given); ``jump``: an operator confirms
        whatever the wall clock says now."""
        now, wall_ms = self._monotonic(), self._wall() * 1000
        jumps = jump or not last_ms
        self._last_ms = max(last_ms, wall_ms) if jumps else last_ms
        self._last_at = now if jumps or since is None else since

    def _now(self) -> float:
        moved_ms = (self._monotonic() - self._last_at) * 1000
        soonest = self._last_ms + moved_ms + min(moved_ms, 1000.0)
        return min(max(self._wall() * 1000, self._last_ms + moved_ms / 2), soonest)

    def now_ms(self) -> int:
        """Entry time now; reading it moves nothing."""
        return int(self._now())

    def stamp(self) -> int:
        """Entry time for the next entry."""
        self._last_ms, self._last_at = self._now(), self._monotonic()
        return int(self._last_ms)


class Flight(NamedTuple):
    entry: Entry
    digest: bytes
    size: int
    append: asyncio.Task[int]


class Pipeline:
    """Entries under way. ``fill(budget)`` gives the next entry's commands, about ``budget`` bytes (empty: nothing waits);
    ``effective(index, entry)`` is called for each entry in order, once it counts; ``broken(error)`` once, after which the
    pipeline is done for; an error that is no ComityError is a fault of ours, and the state must not be used again.

    Invariants: entries in flight are consecutive, each the parent of the next; ``ledger`` holds the last applied one.
    """

    def __init__(
        self,
        log: Log,
        ledger: Ledger,
        clock: EntryClock,
        fill: Callable[[int], list[Command]],
        effective: Callable[[int, Entry], None],
        broken: Callable[[Exception], None],
    ) -> None:
        self.ledger = ledger
        self.term = ledger.term
        self.bytes = 0
        self.commands = 0
        self.landed = 0
        """Entries that the log has acknowledged."""
        self.landed_at = asyncio.get_running_loop().time()
        """When (loop time) the log last showed that we lead."""
        self._log = log
        self._clock = clock
        self._fill = fill
        self._effective = effective
        self._broken = broken
        self._flights: deque[Flight] = deque()
        self._index = ledger.index
        self._digest = ledger.digest
        self._woken = False
        self._landing = False
        self.is_broken = False
        self._stalled_since: float | None = None

    @property
    def is_full(self) -> bool:
        """No entry can be sent before one in flight has landed."""
        return len(self._flights) >= DEPTH

    def stalled_since(self) -> float | None:
        """When (loop time) the oldest entry in flight was sent; None if there is none."""
        return self._stalled_since

    def wake(self) -> None:
        """Something may wait: look at the end of this turn of the loop."""
        if not self._woken and not self.is_broken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._pump)

    def _pump(self) -> None:
        self._woken = False
        if self.is_broken or self.is_full:
            return
        try:
            commands = self._fill(min(ENTRY_BYTES, self._log.entry_limit) - 1024)
            if commands:
                self._append(commands)
                self.wake()
        except Exception as fault:
            self._break(fault)

    def _append(self, commands: list[Command]) -> None:
        entry = Entry(self.ledger.network, self.term, self._digest, self._clock.stamp(), commands)
        data, digest = seal(entry)
        loop = asyncio.get_running_loop()
        append = loop.create_task(self._write(data, self._index))
        self._flights.append(Flight(entry, digest, len(data), append))
        append.add_done_callback(self._landed)
        if self._stalled_since is None:
            self._stalled_since = loop.time()
        self._index += 1
        self._digest = digest

    async def _write(self, data: bytes, after: int) -> int:
        with durable("log.append"):
            return await self._log.append(data, after)

    def _landed(self, _: asyncio.Task[int]) -> None:
        if not self._landing:
            self._land()

    def _land(self) -> None:
        """Take in the oldest entry in flight, if its append has ended; the next one in another turn."""
        self._landing = False
        if self.is_broken or not self._flights or not self._flights[0].append.done():
            return
        flight = self._flights[0]
        if flight.append.cancelled():
            self._break(Disconnected("the append was given up"))
            return
        refused = flight.append.exception()
        if refused is not None:
            self._break(refused if isinstance(refused, Exception) else Disconnected(str(refused)))
            return
        self._flights.popleft()
        self.landed += 1
        loop = asyncio.get_running_loop()
        self.landed_at = loop.time()
        self._stalled_since = self.landed_at if self._flights else None
        if self._flights:
            self._landing = True
            loop.call_soon(self._land)
        self._count(flight)
        self.wake()

    def _count(self, flight: Flight) -> None:
        """It counts: have it applied."""
        self.bytes += flight.size
        self.commands += len(flight.entry.commands)
        index = self.ledger.accept(flight.entry, flight.digest)
        if index != flight.append.result():
            self._break(AssertionError(f"the log put entry {index} at {flight.append.result()}"))
            return
        try:
            self._effective(index, flight.entry)
        except Exception as fault:
            self._break(fault)

    def _break(self, error: Exception) -> None:
        self.is_broken = True
        self._broken(error)

    async def settle(self) -> None:
        """Wait until no append of this pipeline is under way, whatever became of it. Call it on a broken one."""
        self.is_broken = True
        pending = [flight.append for flight in self._flights]
        if pending:
            await asyncio.wait(pending)
            for append in pending:
                if not append.cancelled():
                    append.exception()  # seen: its fate is read from the log

    def cancel(self) -> None:
        """Give up on everything in flight (the process stops)."""
        self.is_broken = True
        for flight in self._flights:
            flight.append.cancel()


def weight(command: Command) -> int:
    """How many bytes a command adds to an entry."""
    return len(_encode(command))
