"""Replicated state as pieces that stay the same as long as what is in them does: so a backup writes only what changed.

Tasks lie in the order of their ids, in groups that end where an id's hash says so: one more task changes one group. A payload
that lies in the log has no place in another log, so it is taken out, and state refers to it by the key that it will have in the
store.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import groupby
from typing import TypeVar

import msgspec

from comity.controller.adopting import MOVED
from comity.controller.payloads import carried_by
from comity.controller.snapshot import Writing, frame
from comity.core.archive import mark
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import Corrupt
from comity.model.codec import UNREADABLE, digest
from comity.model.ids import TaskId
from comity.model.task import Logged, Payload, Stored, Task

GROUP = 256
"""Tasks, dead letters, or archive chunks, in a group, about; at most four times as many."""
CHUNKS = 16
SPAN = 64
"""Log entries whose payloads lie in one pack."""
PACK_BYTES = 4 * 1024 * 1024

T = TypeVar("T")
_encode = msgspec.msgpack.Encoder().encode


class Packed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A payload that lay in the log, and its key in a restored network's store."""

    key: str
    data: bytes


_packs = msgspec.msgpack.Decoder(list[Packed])


Place = tuple[int, int]
"""In the log: an entry's index, and a command's ordinal in it."""


class Logging(msgspec.Struct):
    """Payloads of tasks that lie in the log: the key that each will have, and once it was read its reference; ``unread``: those
    that could not be."""

    keys: dict[Place, str]
    stored: dict[Place, Stored] = {}
    unread: dict[Place, str] = {}


def logged(state: Tasks) -> Logging:
    keys: dict[Place, str] = {}
    for task_id, task in state.tasks.items():
        for name, payload in carried_by(task):
            if type(payload) is Logged:
                keys[payload.index, payload.ordinal] = f"{MOVED}{task_id}-{name}-{payload.index}-{payload.ordinal}-{state.term}"
    return Logging(keys)


async def packs(state: Tasks, load: Callable[[Payload], Awaitable[Payload]], found: Logging) -> AsyncIterator[bytes]:
    """What lies in the log, read by ``load``; fills in the rest of ``found``."""
    places = {(p.index, p.ordinal): p for t in state.tasks.values() for _, p in carried_by(t) if type(p) is Logged}
    for _, span in groupby(sorted(places), key=lambda place: place[0] // SPAN):
        pack: list[Packed] = []
        size = 0
        for place in span:
            key = found.keys[place]
            try:
                data = await load(places[place])
            except Corrupt:  # trimmed meanwhile, or damaged
                data = places[place]
            if not isinstance(data, bytes):
                found.unread[place] = key
                found.stored[place] = Stored(key, places[place].size, b"")
                continue
            found.stored[place] = Stored(key, len(data), digest(data))
            if pack and size + len(data) > PACK_BYTES:
                yield _encode(pack)
                pack, size = [], 0
            pack.append(Packed(key, data))
            size += len(data)
        if pack:
            yield _encode(pack)


def unpack(data: bytes, what: str) -> list[Packed]:
    """Raises Corrupt."""
    try:
        return _packs.decode(data)
    except UNREADABLE as error:
        raise Corrupt(f"{what} cannot be read: {error}", place=what) from error


def frames(state: Tasks, ledger: Ledger, found: Logging) -> Iterator[bytes]:
    """Pieces that, joined, are a snapshot as ``controller.snapshot`` reads it."""
    writing = Writing(state, ledger)
    try:
        yield frame(writing.head)
    finally:
        writing.close()
    for chunks in _groups(state.archive, [mark(TaskId(held.key)) for held in state.archive], CHUNKS):
        yield frame(_encode(chunks))
    dead = list(state.dead.letters.values())
    for letters in _groups(dead, [mark(letter.id) for letter in dead], GROUP):
        yield frame(_encode(letters))
    tasks = [state.tasks[task_id] for task_id in sorted(state.tasks)]
    for group in _groups(tasks, [mark(task.spec.id) for task in tasks], GROUP):
        yield frame(_encode([_whole(task, found.stored) for task in group]))
    for part in state.mail.parts():
        for mails in _groups(list(part), [mark(TaskId(mail.id)) for mail in part], GROUP):
            yield frame(_encode(mails))


def _groups(things: list[T], marks: list[int], about: int) -> Iterator[list[T]]:
    group: list[T] = []
    for thing, number in zip(things, marks, strict=True):
        group.append(thing)
        if number % about == 0 or len(group) == 4 * about:
            yield group
            group = []
    if group:
        yield group


def _whole(task: Task, stored: dict[Place, Stored]) -> Task:
    def place(payload: Payload | None) -> Payload | None:
        return stored[payload.index, payload.ordinal] if type(payload) is Logged else payload

    if not any(type(payload) is Logged for _, payload in carried_by(task)):
        return task
    taken, records = place(task.spec.input), task.records
    assert taken is not None
    if records is not None:
        records = msgspec.structs.replace(records, steps=dict(records.steps), questions=dict(records.questions))
        for where, payload in list(records.payloads()):
            records.put(where, place(payload))
    spec = msgspec.structs.replace(task.spec, input=taken)
    return msgspec.structs.replace(task, spec=spec, result=place(task.result), records=records)
