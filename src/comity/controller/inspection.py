"""Reads the log and the store again, slowly and all the time, so that damage on disk is known before what is damaged is needed.

A checksum that fails is damage. What is missing may only be so where we looked: a replica lags, or things were trimmed or deleted
a moment ago. So that is damage once several rounds in a row miss it. One copy is looked at, the one that answers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import structlog

from comity.controller.adopting import MOVED
from comity.controller.payloads import carried_by
from comity.controller.snapshot import ledger_of
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import ComityError, Corrupt, ForeignData, NotFound
from comity.log.base import Log
from comity.model.codec import unseal
from comity.model.task import Stored
from comity.store.base import Store

MB = 1_000_000
LOG_ENTRY = "log entry "
"""A place, when the entry's index follows."""
READ_BYTES = MB
"""Of log entries read at once, about."""
READ_MAX = 128
LEAST = 4096
"""Bytes that looking at anything counts for, at least."""
FAULTS = 100
"""Damaged places that a round looks for; then it is over."""
SLICE = 2000
HOLE = 2
LAG = 3
"""Rounds in a row that must miss an entry between others, or what a replica that lags may not have yet."""
HURRY = 3
"""Rounds follow so much faster while something is missed."""
_log = structlog.get_logger("comity.controller")


class Inspection:
    """Looks at what ``state`` and ``ledger`` stand on. ``tell(place, reason)`` is called once for each place found damaged."""

    def __init__(
        self, state: Tasks, ledger: Ledger, log: Log, store: Store, *,
        tell: Callable[[str, str], None], now_ms: Callable[[], int], rate_mb: float, pause_s: float,
    ) -> None:  # fmt: skip
        self.damaged: dict[str, str] = {}
        """By place, why."""
        self._state = state
        self._ledger = ledger
        self._log = log
        self._store = store
        self._tell = tell
        self._now_ms = now_ms
        self._rate_mb = rate_mb
        self._pause_s = pause_s
        self._work: asyncio.Task[None] | None = None
        self._found: dict[str, str] = {}
        self._missed: dict[str, int] = {}  # how many rounds in a row, up to the one before
        self._missing: dict[str, int] = {}
        self._done: dict[str, int] = {"rounds": 0, "ended_at": 0, "entries": 0, "objects": 0, "bytes": 0}
        self._seen = dict.fromkeys(("entries", "objects", "bytes"), 0)

    def figures(self) -> dict[str, Any]:
        """Damage known now, and what the last whole round looked at."""
        places = [{"place": place, "reason": reason} for place, reason in list(self.damaged.items())[:FAULTS]]
        return {"damaged": len(self.damaged), "places": places, **self._done}

    def begin(self) -> None:
        """Round after round, until ``end``."""
        if self._rate_mb > 0:
            self._work = asyncio.get_running_loop().create_task(self._run())

    def end(self) -> None:
        if self._work is not None:
            self._work.cancel()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._pause_s / HURRY if self._missed.keys() - self.damaged.keys() else self._pause_s)
            try:
                await self.round()
            except ComityError as error:  # a door is closed now
                _log.info("the log and the store could not be looked through", code=error.code, error=error.message)

    async def round(self) -> None:
        """Look at everything once. Raises Indefinite errors."""
        self._found, self._missing = {}, {}
        self._seen = dict.fromkeys(self._seen, 0)
        await self._log_entries()
        await self._objects()
        self.damaged, self._missed = self._found, self._missing
        self._done = {"rounds": self._done["rounds"] + 1, "ended_at": self._now_ms(), **self._seen}

    def _fault(self, place: str, reason: str) -> None:
        self._found[place] = reason
        if place not in self.damaged:
            self.damaged[place] = reason
            _log.error("what is stored is damaged", place=place, reason=reason)
            self._tell(place, reason)

    def _miss(self, place: str, reason: str, rounds: int) -> None:
        self._missing[place] = self._missed.get(place, 0) + 1
        if self._missing[place] >= rounds:
            self._fault(place, reason)

    @property
    def _is_enough(self) -> bool:
        return len(self._found) + len(self._missing) >= FAULTS

    async def _pace(self, kind: str, count: int, size: int) -> None:
        self._seen[kind] += count
        self._seen["bytes"] += size
        await asyncio.sleep(max(size, LEAST) / (self._rate_mb * MB))

    # The log

    async def _log_entries(self) -> None:
        head = self._ledger.index
        first, _ = await self._log.bounds()
        at, limit = first - 1, READ_MAX
        chain = await self._chain(first)
        while not self._is_enough:
            try:
                items = await self._log.read(at, limit)
            except Corrupt as error:
                first, _ = await self._log.bounds()
                if at + 1 < first:
                    at, chain = first - 1, None
                    continue
                at = int(error.details.get("index", at + 1))
                chain = None
                self._miss(f"{LOG_ENTRY}{at}", error.message, HOLE)
                continue
            if not items:
                break
            for index, data in items:
                chain = self._judge(chain, index, data)
                at = index
                await asyncio.sleep(0)
            size = sum(len(item.data) for item in items)
            limit = max(2, min(READ_MAX, READ_BYTES * len(items) // max(1, size)))
            await self._pace("entries", len(items), size)
        if at < head and not self._is_enough and (not self._log.lag_s or (await self._log.bounds())[1] < head):
            self._miss("the log's end", f"the log ends at entry {at}, but entry {head} was acknowledged", LAG)
        elif chain is not None and chain.index == self._ledger.index and chain.digest != self._ledger.digest:
            self._fault(f"{LOG_ENTRY}{chain.effective_index}", "it is not the entry that was appended there")

    async def _chain(self, first: int) -> Ledger | None:
        """Where the chain of parents can be taken up: at the log's beginning, or at the older snapshot."""
        if first == 1:
            return Ledger(self._state.network)
        for taken in self._state.snapshots[:1]:
            try:
                return await ledger_of(self._store.get(taken.key))
            except (Corrupt, NotFound):  # told of when the store is looked through
                return None
        return None

    def _judge(self, chain: Ledger | None, index: int, data: bytes) -> Ledger | None:
        """``chain`` after this entry; None if it cannot be followed any further."""
        try:
            if chain is not None and index > chain.index:
                chain.offer(index, data)
            else:
                entry, _ = unseal(data)
                if entry.network != self._state.network:
                    raise ForeignData(f"it belongs to network {entry.network!r}")
        except (Corrupt, ForeignData) as error:
            self._fault(f"{LOG_ENTRY}{index}", error.message)
            return None
        for taken in self._state.snapshots:
            if chain is not None and chain.index == index == taken.index and chain.digest != taken.digest:
                self._fault(f"{LOG_ENTRY}{index}", "it is not the entry that a snapshot was taken after")
        return chain

    # The store

    async def _objects(self) -> None:
        named = {key: None async for key in self._named()}
        listed = await self._store.list("")
        for stored in listed:
            if self._is_enough:
                return
            await self._pace("objects", 1, await self._look_at(stored))
        there = {stored.key for stored in listed}
        lost = [key for key in named if key not in there]
        still = {key: None async for key in self._named()} if lost else {}
        for key in lost:
            if key in still:
                self._miss(key, "the store does not have it, though the network's state names it", LAG)

    async def _look_at(self, stored: Stored) -> int:
        size = 0
        try:
            async for chunk in self._store.get(stored.key):
                size += len(chunk)
        except Corrupt as error:
            self._fault(stored.key, error.message)
        except NotFound:  # deleted or expired since it was listed
            return 0
        return size

    async def _named(self) -> AsyncIterator[str]:
        """Keys of the network's own objects that state names. Gives way to others."""
        state = self._state
        archived, taken = (held.key for held in state.archive), (snapshot.key for snapshot in state.snapshots)
        for key in [*archived, *taken, *state.dead.objects]:
            yield key
        if state.origin is not None:
            yield state.origin.base.key
        for number, task in enumerate(list(state.tasks.values()), 1):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            for _, payload in carried_by(task):
                if type(payload) is Stored and payload.key.startswith(MOVED):
                    yield payload.key
