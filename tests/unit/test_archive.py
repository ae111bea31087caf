"""The index of the archive: sure of what it holds, and quick about what it does not."""

from __future__ import annotations

from collections.abc import Iterator
from zlib import crc32

from comity.core.archive import Chunk, chunk, holding
from comity.model.ids import TaskId, base32
from comity.model.task import Archived


def task(ms: int, number: int = 0) -> TaskId:
    return TaskId("00" + base32(ms, 9) + base32(number, 13))


def chunks(*parts: list[TaskId]) -> list[Chunk]:
    archive: list[Chunk] = []
    for number, ids in enumerate(parts):
        said = Archived(f"c{number}", tuple(ids), number)
        archive.append(chunk(said, ids, {}, archive[-1] if archive else None))
    return archive


def test_every_task_is_found_and_no_other() -> None:
    archive = chunks([task(5), task(1), task(9)], [task(2)], [task(7), task(3)])
    for ms in range(11):
        assert [held.key for held in holding(archive, task(ms))] == {
            1: ["c0"], 2: ["c1"], 3: ["c2"], 5: ["c0"], 7: ["c2"], 9: ["c0"],
        }.get(ms, [])  # fmt: skip


def test_a_task_is_not_taken_for_one_of_the_same_checksum() -> None:
    """A submit that were would be accepted and never done."""
    by_sum: dict[int, TaskId] = {}
    one = other = TaskId("")
    while one == other:
        one = task(5, len(by_sum) * 0x9E3779B97F4A7C15)
        other = by_sum.setdefault(crc32(one.encode()), one)
    archive = chunks([task(4), other, task(6)])
    assert list(holding(archive, other)) == archive
    assert list(holding(archive, one)) == []


class Counting(list[Chunk]):
    looked = 0

    def __reversed__(self) -> Iterator[Chunk]:
        for held in super().__reversed__():
            self.looked += 1
            yield held


def test_a_task_just_made_is_looked_for_in_the_latest_chunks_only() -> None:
    archive = Counting(chunks(*([task(ms), task(ms + 15)] for ms in range(0, 10_000, 10))))
    assert not list(holding(archive, task(9_991)))
    assert archive.looked < 5
    assert [held.key for held in holding(archive, task(500))] == ["c50"]
