"""Index of the archive: which store chunk may hold a finished task. Four bytes a task, so that millions fit in memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from zlib import crc32

import msgspec

from comity.model.ids import TaskId


class Chunk(msgspec.Struct, array_like=True, gc=False):
    """One store object of finished tasks. ``marks``: sorted CRC-32 of their ids, native order, as bytes."""

    key: str
    first: TaskId
    last: TaskId
    count: int
    finished_ms: int
    marks: bytes


def mark(task: TaskId) -> int:
    return crc32(task.encode())


def chunk(key: str, ids: Iterable[TaskId], finished_ms: int) -> Chunk:
    tasks = sorted(ids)
    marks = array("I", sorted(mark(task) for task in tasks))
    return Chunk(key, tasks[0], tasks[-1], len(tasks), finished_ms, marks.tobytes())


def may_hold(held: Chunk, task: TaskId) -> bool:
    """False: certainly not there. True: there, but for one chance in four thousand million per task of the chunk."""
    if not held.first <= task <= held.last:
        return False
    marks = memoryview(held.marks).cast("I")
    wanted = mark(task)
    at = bisect_left(marks, wanted)
    return at < len(marks) and marks[at] == wanted
