"""Replicated state as bytes and back. Writing stalls nobody: tasks are encoded in slices, and one that changes before its turn
is encoded just before it does (copy on write), so that the whole is the state after exactly one entry.

Format: length-prefixed MessagePack frames; the first is a ``Head``, then come lists of the archive's chunks, then of dead
letters, then of tasks, then of mail: letters, dead ones, and what is known to have arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec

from comity.core.archive import Chunk
from comity.core.changes import Aside, NodeLease, Totals
from comity.core.dead import Dead
from comity.core.ledger import Ledger, LedgerState
from comity.core.mail import MailHead
from comity.core.tasks import Tasks
from comity.errors import Corrupt, ForeignData
from comity.model.capability import Strategy
from comity.model.codec import UNREADABLE
from comity.model.ids import NetworkId, ProcessId
from comity.model.mail import DeadMail, Letter
from comity.model.task import Restored, Schedule, SnapshotTaken, Task, TaskState

FORMAT = 2
SLICE = 400
CHUNKS = 64
"""Tasks, and chunks of the archive, encoded without giving way; about a millisecond."""
PAUSE_S = 0.002
"""After each slice of tasks: the server that writes them to disk has submits to write, too."""


class Head(msgspec.Struct, array_like=True):
    """Everything but the tasks, the archive's chunks and the dead letters, of which it has the number, and what can be derived
    from them."""

    format: int
    ledger: LedgerState
    leader: ProcessId
    generation: int
    last_epoch: int
    tasks: int
    chunks: int
    nodes: dict[ProcessId, tuple[int, int]]
    snapshots: list[SnapshotTaken]
    totals: Totals
    strategies: dict[str, Strategy]
    ended: dict[ProcessId, int] = {}
    schedules: dict[str, Schedule] = {}
    dead: int = 0
    aside: dict[ProcessId, Aside] = {}
    origin: Restored | None = None
    mail: MailHead = msgspec.field(default_factory=MailHead)


_encode = msgspec.msgpack.Encoder().encode
_head = msgspec.msgpack.Decoder(Head)
_chunks = msgspec.msgpack.Decoder(list[Chunk])
_dead = msgspec.msgpack.Decoder(list[Dead])
_tasks = msgspec.msgpack.Decoder(list[Task])
_letters = msgspec.msgpack.Decoder(list[Letter])
_dead_mail = msgspec.msgpack.Decoder(list[DeadMail])


def frame(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


class Writing:
    """A snapshot of ``state`` after entry ``ledger.index``, being written. One at a time per state."""

    def __init__(self, state: Tasks, ledger: Ledger) -> None:
        if state.before_change is not None:
            raise AssertionError("one snapshot at a time")
        self.index = ledger.index
        self.digest = ledger.digest
        self.time_ms = ledger.time_ms
        self._state = state
        self._archive = list(state.archive)
        self._dead = list(state.dead.letters.values())
        self._left = dict(state.tasks)
        self._mail: tuple[list[Any], ...] = state.mail.parts()
        self._saved: list[Task | bytes] = []
        nodes = {node: (lease.incarnation, lease.since_ms) for node, lease in state.nodes.items()}
        head = Head(
            FORMAT, ledger.state(), state.leader, state.generation, state.last_epoch, len(self._left),
            len(self._archive), nodes, state.snapshots, state.totals, state.strategies, state.ended,
            state.schedules, len(self._dead),
            state.aside, state.origin, state.mail.head(),
        )  # fmt: skip
        self.head = _encode(head)
        state.before_change = self._save

    def _save(self, task: Task) -> None:
        if self._left.pop(task.spec.id, None) is not None:
            self._saved.append(_encode(task))

    async def frames(self) -> AsyncIterator[bytes]:
        """The bytes, in frames; gives way to others between them."""
        try:
            yield frame(self.head)
            for at in range(0, len(self._archive), CHUNKS):
                yield frame(_encode(self._archive[at : at + CHUNKS]))
                await asyncio.sleep(0)
            for at in range(0, len(self._dead), SLICE):
                yield frame(_encode(self._dead[at : at + SLICE]))
                await asyncio.sleep(0)
            while self._left or self._saved:
                saved, self._saved = self._saved, []
                if saved:
                    yield frame(_array(saved))
                batch: list[Task] = []
                while self._left and len(batch) < SLICE:
                    batch.append(self._left.popitem()[1])
                if batch:
                    yield frame(_encode(batch))
                await asyncio.sleep(PAUSE_S)
            for kind in self._mail:
                for at in range(0, len(kind), SLICE):
                    yield frame(_encode(kind[at : at + SLICE]))
                    await asyncio.sleep(0)
        finally:
            self.close()

    def close(self) -> None:
        """Stop watching the state, whether or not all was written."""
        if self._state.before_change == self._save:
            self._state.before_change = None
        self._left.clear()


def _array(encoded: list[Task | bytes]) -> bytes:
    parts = [part if isinstance(part, bytes) else _encode(part) for part in encoded]
    return b"\xdd" + len(parts).to_bytes(4, "big") + b"".join(parts)


async def load(chunks: AsyncIterator[bytes], network: NetworkId) -> tuple[Tasks, Ledger]:
    """State and ledger from a snapshot's bytes. Raises Corrupt, or ForeignData for another network or a newer format."""
    head: Head | None = None
    tasks: list[Task] = []
    archive: list[Chunk] = []
    dead: list[Dead] = []
    letters: list[Letter] = []
    dead_mail: list[DeadMail] = []
    known: list[Letter] = []
    try:
        async for frame in _frames(chunks):
            if head is None:
                head = _head.decode(frame)
                if head.format != FORMAT or head.ledger.network != network:
                    said = "a snapshot of another network, or of another version"
                    raise ForeignData(said, network=head.ledger.network)
            elif len(archive) < head.chunks:
                archive += _chunks.decode(frame)
            elif len(dead) < head.dead:
                dead += _dead.decode(frame)
            elif len(tasks) < head.tasks:
                tasks += _tasks.decode(frame)
            elif len(letters) < head.mail.letters:
                letters += _letters.decode(frame)
            elif len(dead_mail) < head.mail.dead:
                dead_mail += _dead_mail.decode(frame)
            else:
                known += _letters.decode(frame)
    except UNREADABLE as error:
        raise Corrupt(f"a snapshot cannot be read: {error}") from error
    if head is None or (head.tasks, head.chunks, head.dead) != (len(tasks), len(archive), len(dead)):
        raise Corrupt("a snapshot is incomplete")
    if (head.mail.letters, head.mail.dead, head.mail.known) != (len(letters), len(dead_mail), len(known)):
        raise Corrupt("a snapshot is incomplete: mail is missing")
    state = _restore(head, archive, tasks, network)
    for letter in dead:
        state.dead.put(letter)
    state.mail.restore(head.mail, letters, dead_mail, known)
    return state, Ledger.restore(head.ledger)


async def ledger_of(chunks: AsyncIterator[bytes]) -> Ledger:
    """The ledger of a snapshot, from its beginning. Raises Corrupt."""
    async for found in _frames(chunks):
        try:
            return Ledger.restore(_head.decode(found).ledger)
        except UNREADABLE as error:
            raise Corrupt(f"a snapshot cannot be read: {error}") from error
    raise Corrupt("a snapshot is empty")


async def _frames(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    buffer = bytearray()
    async for chunk in chunks:
        buffer += chunk
        while len(buffer) >= 4:
            size = int.from_bytes(buffer[:4], "big")
            if len(buffer) < 4 + size:
                break
            yield bytes(buffer[4 : 4 + size])
            del buffer[: 4 + size]
    if buffer:
        raise Corrupt("a snapshot ends in mid-frame")


def _restore(head: Head, archive: list[Chunk], tasks: list[Task], network: NetworkId) -> Tasks:
    state = Tasks(network)
    state.term, state.leader, state.generation = head.ledger.term, head.leader, head.generation
    state.last_epoch, state.time_ms = head.last_epoch, head.ledger.time_ms
    state.archive, state.snapshots, state.totals = archive, head.snapshots, head.totals
    state.strategies, state.ended = head.strategies, head.ended
    state.schedules, state.aside, state.origin = head.schedules, head.aside, head.origin
    for chunk in archive:
        state.archived += chunk.count
        state.keys.update(chunk.keys)
    state.nodes = {node: NodeLease(incarnation, since) for node, (incarnation, since) in head.nodes.items()}
    for task in sorted(tasks, key=lambda task: (task.created_at, task.spec.id)):
        task_id = task.spec.id
        state.tasks[task_id] = task
        if task.spec.key:
            state.keys[task.spec.key] = task_id
        state.counts[task.state] += 1
        if task.state in (TaskState.SUBMITTED, TaskState.WAITING):
            state.backlog.add(task.spec)
        if task.attempt is not None:
            state.nodes[task.attempt.node].attempts[task_id] = None
        if task.spec.parent is not None and not task.is_terminal:
            state.children.setdefault(task.spec.parent, {})[task_id] = None
    for task in sorted((t for t in tasks if t.is_terminal), key=lambda t: (t.finished_at, t.spec.id)):
        state.finished[task.spec.id] = None
    return state
