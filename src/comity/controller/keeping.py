"""Keeps what the leader holds bounded: finished tasks go to the archive, the log is cut below snapshots, old archive chunks go.

One piece of work at a time, in the background; each ends in a command, so that replicated state says what is where. Snapshots are
written beside the other work: one takes long where much waits, and what ends meanwhile must leave memory all the same.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import Any, TypeGuard

import msgspec
import structlog

from comity.controller.adopting import MOVED, RECORDED, Adopting
from comity.controller.archive import encode_chunk
from comity.controller.payloads import Payloads, logged_before, records_before
from comity.controller.renewing import Renewing
from comity.controller.snapshot import PAUSE_S, Writing
from comity.core.changes import Change
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import ComityError, Corrupt
from comity.failpoints import durable
from comity.log.base import Log
from comity.model.ids import TaskId, task_time_ms
from comity.model.records import MoveRecord
from comity.model.task import Archived, Command, DropDead, Dropped, Logged, Moved, Payload, SnapshotTaken, Stored, Task
from comity.store.base import Store

ARCHIVE = "network/archive/"
SNAPSHOTS = "network/snapshot/"
DEAD = "network/dead/"
CHUNK_TASKS = 2000
CHUNK_AGE_MS = 30_000
"""Finished tasks leave memory in chunks: when so many have gathered, or the oldest is so old."""
CHUNK_BYTES = 4 * 1024 * 1024
"""Of payloads in a chunk, about: it is written and read as a whole, in the leader's memory."""
CHUNKS_AT_ONCE = 4
SNAPSHOT_BYTES = 256 * 1024 * 1024
SNAPSHOT_COMMANDS = 250_000
"""To apply so many takes a new leader a second or two. After more, where a snapshot holds more than that."""
LOG_BYTES = 4 * 1024 * 1024 * 1024
"""The log is cut below what events and payloads still need, but never kept longer than this many bytes."""
SNAPSHOT_PAUSE_S = 1.0
"""Between two snapshots at least: each adds to the log itself."""
RETRY_S = 1.0
DROPPED_AT_ONCE = 1000

Work = Callable[[], Coroutine[Any, Any, None]]


class Mark(msgspec.Struct, frozen=True):
    """A snapshot, its time, and how much had been written in this term when it was taken."""

    index: int
    commands: int
    bytes: int
    at_ms: int


_log = structlog.get_logger("comity.controller")


class Keeping:
    """Runs while its leader leads. ``propose`` takes commands; ``barrier`` calls back once those before are effective."""

    def __init__(
        self,
        state: Tasks,
        ledger: Ledger,
        log: Log,
        store: Store,
        payloads: Payloads,
        *,
        propose: Callable[[Command], None],
        barrier: Callable[[Callable[[], None]], None],
        now_ms: Callable[[], int],
        snapshot_every: int,
        keep_finished: int,
        keep_finished_ms: int,
        window_ms: int,
        keep_dead: int,
        keep_dead_ms: int,
    ) -> None:
        self._state = state
        self._ledger = ledger
        self._log = log
        self._store = store
        self._payloads = payloads
        self._propose = propose
        self._barrier = barrier
        self._now_ms = now_ms
        self._snapshot_every = snapshot_every
        self._keep = keep_finished
        self._keep_ms = keep_finished_ms
        self._window_ms = window_ms
        self._keep_dead = keep_dead
        self._keep_dead_ms = keep_dead_ms
        self._work: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._doomed: deque[str] = deque()
        self._marks: deque[Mark] = deque(
            Mark(taken.index, taken.index - ledger.index, 0, taken.time_ms) for taken in state.snapshots
        )  # since one of an earlier term at least as many commands were written as entries
        self._is_swept = False
        self._trim_to = 0
        self._retry_at = 0.0
        self._snapshot_after = 0.0
        self._written = self._before = (0, 0)  # commands and bytes in this term; and when the last snapshot was begun
        self._adopting = Adopting(state, store, ledger, propose)
        self._renewing = Renewing(state, store, propose, keep_finished_ms, max(keep_finished_ms, keep_dead_ms))
        self.snapshot_wanted = False

    def end(self) -> None:
        for work in (self._work, self._writing):
            if work is not None:
                work.cancel()

    def kept(self, changes: list[Change]) -> None:
        """Take note of what an entry changed."""
        for change in changes:
            mine = change.kind == "record.dropped" and change.reason.startswith(MOVED)
            if mine or change.kind in ("archive.dropped", "snapshot.dropped", "dead.emptied", "mail.dropped"):
                self._doomed.append(change.reason)
            elif change.kind in RECORDED and change.task is not None:
                self._adopting.look(change.task)
            elif change.kind == "task.submitted" and change.task is not None:
                self._renewing.look(change.task)
            elif change.kind == "snapshot.taken":
                taken = self._state.snapshots[-1]
                self._marks.append(Mark(taken.index, *self._written, taken.time_ms))

    def look(self, commands: int, bytes_written: int) -> None:
        """Start whatever is due; called a few times a second with what was appended in this term."""
        self._written = (commands, bytes_written)
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            return
        if _is_idle(self._writing) and self._snapshot_due(loop.time()):
            self._writing = loop.create_task(self._guarded(self._snapshot))
        if _is_idle(self._work) and self._due() is not None:
            self._work = loop.create_task(self._guarded(self._all_due))

    def _snapshot_due(self, now: float) -> bool:
        state = self._state
        last = state.snapshots[-1].index if state.snapshots else 0
        commands, size = (now - before for now, before in zip(self._written, self._before, strict=True))
        many = max(SNAPSHOT_COMMANDS, len(state.tasks) + state.archived // 4)
        grown = self._ledger.index - last >= self._snapshot_every or size >= SNAPSHOT_BYTES or commands >= many
        is_due = ((grown and now >= self._snapshot_after) or self.snapshot_wanted) and self._ledger.index > last
        return is_due and self._is_swept

    def _due(self) -> Work | None:
        if not self._is_swept:
            return self._sweep
        if self._doomed:
            return self._delete
        if self._may_trim_to() > self._trim_to:
            return self._trim
        if self._archive_due():
            return self._archive
        if self._stale_chunks():
            return self._drop
        if self._stale_dead():
            return self._drop_dead
        if self._adopting.is_due(self._now_ms()):
            return self._adopt
        if self._renewing.is_due(self._now_ms()):
            return self._renew
        return None

    async def _all_due(self) -> None:
        """One piece of work after the other, as long as there is some."""
        while (work := self._due()) is not None:
            await work()

    async def _guarded(self, work: Work) -> None:
        try:
            await work()
        except ComityError as error:
            self._retry_at = asyncio.get_running_loop().time() + RETRY_S
            _log.warning("housekeeping will be tried again", code=error.code, error=error.message)

    async def _effective(self) -> None:
        done = asyncio.Event()
        self._barrier(done.set)
        await done.wait()

    # The archive

    def _archive_due(self) -> bool:
        finished = self._state.finished
        if len(finished) >= CHUNK_TASKS:
            return True
        if not finished:
            return False
        oldest = self._state.tasks[next(iter(finished))]
        return oldest.finished_at <= self._now_ms() - CHUNK_AGE_MS

    async def _archive(self) -> None:
        """Some chunks at a time: each waits for the store's disk."""
        chunks = self._next_chunks()
        stored = await asyncio.gather(*(self._store_chunk(ids) for ids in chunks))
        for archived, moved in stored:
            with durable("archive.commit"):  # one after the other: to apply one takes some milliseconds
                self._propose(archived)
                await self._effective()
            self._doomed.extend(moved)
            if archived.dead_key and archived.dead_key not in self._state.dead.objects:  # replayed or dropped meanwhile
                self._doomed.append(archived.dead_key)

    def _next_chunks(self) -> list[list[TaskId]]:
        """The oldest finished tasks, in chunks: one, and more that would be full."""
        chunks: list[list[TaskId]] = [[]]
        size = 0
        for task_id in islice(self._state.finished, CHUNKS_AT_ONCE * CHUNK_TASKS):
            task = self._state.tasks[task_id]
            its = _size(task.spec.input) + _size(task.result)
            if chunks[-1] and (size + its > CHUNK_BYTES or len(chunks[-1]) == CHUNK_TASKS):
                if len(chunks) == CHUNKS_AT_ONCE:
                    return chunks
                chunks.append([])
                size = 0
            chunks[-1].append(task_id)
            size += its
        return chunks if len(chunks) == 1 or len(chunks[-1]) == CHUNK_TASKS else chunks[:-1]

    async def _store_chunk(self, ids: list[TaskId]) -> tuple[Archived, list[str]]:
        """Write one; what makes it count, and the keys of what it holds now itself."""
        tasks = [self._state.tasks[task_id] for task_id in sorted(ids)]
        moved = [payload.key for task in tasks for payload in (task.spec.input, task.result) if _is_moved(payload)]
        whole = [await self._whole(task) for task in tasks]
        finished_ms = max(task.finished_at for task in tasks)
        key = f"{ARCHIVE}{ids[0]}-{self._ledger.index}-{self._state.term}"
        with durable("archive.put"):
            await self._store.put(key, encode_chunk(whole))
        dead = [task for task in whole if task.spec.id in self._state.dead.letters]
        dead_key = f"{DEAD}{ids[0]}-{self._ledger.index}-{self._state.term}" if dead else ""
        if dead:
            with durable("dead.put"):
                await self._store.put(dead_key, encode_chunk(dead))
        return Archived(key, tuple(ids), finished_ms, dead_key), moved

    async def _whole(self, task: Task) -> Task:
        """``task`` with its payloads in place, but for those that others stored."""
        spec = msgspec.structs.replace(task.spec, input=await self._payload(task.spec.input))
        result = await self._payload(task.result) if task.result is not None else None
        return msgspec.structs.replace(task, spec=spec, result=result)

    async def _payload(self, payload: Payload) -> Payload:
        return await self._store.read(payload.key) if _is_moved(payload) else await self._payloads.load(payload)

    def _stale_chunks(self) -> list[str]:
        """Chunks too many or too old; never one with a task whose submit, if repeated, would not be refused as too old."""
        over = self._state.archived - self._keep
        now_ms = self._now_ms()
        stale = []
        for chunk in self._state.archive[:16]:
            if chunk.finished_ms >= now_ms - self._keep_ms and over < chunk.count:
                break
            if task_time_ms(chunk.last) >= now_ms - self._window_ms:
                break
            stale.append(chunk.key)
            over -= chunk.count
        return stale

    async def _drop(self) -> None:
        with durable("archive.drop"):
            self._propose(Dropped(tuple(self._stale_chunks())))
            await self._effective()

    def _stale_dead(self) -> list[TaskId]:
        """Dead letters too many or too old."""
        letters = self._state.dead.letters
        over, before_ms = len(letters) - self._keep_dead, self._now_ms() - self._keep_dead_ms
        stale: list[TaskId] = []
        for letter in letters.values():
            if (len(stale) >= max(0, over) and letter.failed_ms >= before_ms) or len(stale) == DROPPED_AT_ONCE:
                break
            stale.append(letter.id)
        return stale

    async def _drop_dead(self) -> None:
        with durable("dead.drop"):
            self._propose(DropDead(tuple(self._stale_dead())))
            await self._effective()

    async def _sweep(self) -> None:
        """Doom what leaders before stored and did not come to tell of, or to delete. They cannot any more."""
        state = self._state
        held_keys = [held.key for held in state.archive]
        known = dict.fromkeys([*held_keys, *(taken.key for taken in state.snapshots), *state.dead.objects])
        for task in list(state.tasks.values()):
            known.update((payload.key, None) for payload in (task.spec.input, task.result) if _is_moved(payload))
            known.update(dict.fromkeys(_moved_records(task)))
        for prefix in (ARCHIVE, SNAPSHOTS, MOVED, DEAD):
            for stored in await self._store.list(prefix):
                if stored.key not in known and int(stored.key.rpartition("-")[2]) < state.term:
                    self._doomed.append(stored.key)
        self._adopting.begin()
        self._renewing.begin()
        self._is_swept = True

    async def _adopt(self) -> None:
        if await self._adopting.adopt(self._now_ms()):
            await self._effective()

    async def _renew(self) -> None:
        if await self._renewing.renew(self._now_ms()):
            await self._effective()

    async def _delete(self) -> None:
        while self._doomed:
            with durable("store.clear"):
                await self._store.delete(self._doomed[0])
            self._doomed.popleft()

    # Snapshots

    async def _snapshot(self) -> None:
        self._before = self._written
        self.snapshot_wanted = False
        self._snapshot_after = asyncio.get_running_loop().time() + SNAPSHOT_PAUSE_S
        writing = Writing(self._state, self._ledger)
        key = f"{SNAPSHOTS}{writing.index:016d}-{self._state.term}"
        try:
            with durable("snapshot.put"):
                stored = await self._store.put(key, writing.frames())
        finally:
            writing.close()
        with durable("snapshot.check"):
            await self._verify(stored)
        with durable("snapshot.commit"):
            self._propose(SnapshotTaken(writing.index, key, writing.digest, writing.time_ms))
            await self._effective()

    async def _verify(self, stored: Stored) -> None:
        """Read it back: only a snapshot that can be read counts. The store checks size and digest."""
        size = 0
        async for chunk in self._store.get(stored.key):
            size += len(chunk)
            await asyncio.sleep(PAUSE_S)
        if size != stored.size:
            raise Corrupt(f"snapshot {stored.key} reads back as {size} of {stored.size} bytes")

    def _may_trim_to(self) -> int:
        """Up to which entry nobody needs the log: it lies below the older of the two snapshots kept, and its events are past
        their retention (or the log has grown too long)."""
        if len(self._state.snapshots) < 2:
            return 0
        commands, written = self._written
        upto = 0
        for mark in self._marks:
            old = commands - mark.commands >= self._keep or mark.at_ms <= self._now_ms() - self._keep_ms
            if mark.index > self._state.snapshots[0].index or not (old or written - mark.bytes >= LOG_BYTES):
                break
            upto = mark.index
        return upto

    async def _trim(self) -> None:
        """Cut the log; payloads that lie below go to the store first."""
        upto = self._may_trim_to()
        places = await logged_before(self._state, upto)
        for task_id, is_result, place in places:
            payload = await self._payloads.load(place)
            if isinstance(payload, bytes):
                name = "result" if is_result else "input"
                key = f"{MOVED}{task_id}-{name}-{place.index}-{self._state.term}"
                with durable("payload.put"):
                    stored = await self._store.put(key, payload)
                self._propose(Moved(TaskId(task_id), stored, is_result))
        records = await records_before(self._state, upto)
        for owner, where, place in records:
            payload = await self._payloads.load(place)
            if isinstance(payload, bytes):
                name = f"{where.kind}-{place.index}-{place.ordinal}"
                with durable("record.put"):
                    stored = await self._store.put(f"{MOVED}{owner}-{name}-{self._state.term}", payload)
                self._propose(MoveRecord(owner, where.kind, where.name, place, stored))
        if places or records:
            with durable("payload.commit"):
                await self._effective()
        with durable("log.trim"):
            await self._log.trim(upto)
        self._trim_to = upto
        while self._marks and self._marks[0].index <= upto:
            self._marks.popleft()


def _is_idle(work: asyncio.Task[None] | None) -> bool:
    return work is None or work.done()


def _is_moved(payload: Payload | None) -> TypeGuard[Stored]:
    """Whether it lay in the log once: then it is ours to delete."""
    return type(payload) is Stored and payload.key.startswith(MOVED)


def _moved_records(task: Task) -> list[str]:
    """The keys of a task's records that are the network's own."""
    payloads = task.records.payloads() if task.records is not None else ()
    return [payload.key for _, payload in payloads if _is_moved(payload)]


def _size(payload: Payload | None) -> int:
    """Bytes it takes in a chunk of the archive."""
    if type(payload) is Logged or _is_moved(payload):
        return payload.size
    return len(payload) if type(payload) is bytes else 0


async def newest_snapshot(store: Store, upto: int | None = None) -> list[str]:
    """Keys of the snapshots there are, newest first; with ``upto`` only those of that entry or before."""
    keys = [stored.key for stored in reversed(await store.list(SNAPSHOTS))]
    return keys if upto is None else [key for key in keys if int(key.removeprefix(SNAPSHOTS).split("-")[0]) <= upto]
