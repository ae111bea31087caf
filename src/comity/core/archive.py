"""Index of the archive: which store chunk holds a finished task. Eight bytes a task, so that millions fit in memory."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import msgspec

from comity.model.ids import TaskId
from comity.model.task import Archived


class Chunk(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One store object of finished tasks. ``marks``: sorted 64-bit hashes of their ids, native order, as bytes; ``keys``:
    those of its tasks that have one. ``reach``: no id in this chunk, or in any before it, is higher."""

    key: str
    first: TaskId
    last: TaskId
    count: int
    finished_ms: int
    marks: bytes
    reach: TaskId
    keys: dict[str, TaskId]


def mark(task: TaskId) -> int:
    return int.from_bytes(blake2b(task.encode(), digest_size=8).digest(), "little")


def chunk(said: Archived, ids: Sequence[TaskId], keys: dict[str, TaskId], before: Chunk | None) -> Chunk:
    """The chunk that ``said`` tells of, of those ``ids``; ``before`` is the chunk before it."""
    tasks = sorted(ids)
    marks = array("Q", sorted(mark(task) for task in tasks))
    reach = max(tasks[-1], before.reach) if before is not None else tasks[-1]
    return Chunk(said.key, tasks[0], tasks[-1], len(tasks), said.finished_ms, marks.tobytes(), reach, keys)


def _holds(held: Chunk, task: TaskId) -> bool:
    marks = memoryview(held.marks).cast("Q")
    wanted = mark(task)
    at = bisect_left(marks, wanted)
    return at < len(marks) and marks[at] == wanted


def holding(archive: Sequence[Chunk], task: TaskId) -> Iterator[Chunk]:
    """Chunks that hold ``task``, newest first. Wrong once in 10^19 for each task of a chunk; of a task that was just made it
    takes no longer than there are chunks since."""
    for held in reversed(archive):
        if held.reach < task:
            return
        if held.first <= task <= held.last and _holds(held, task):
            yield held
