"""A member's write-ahead log: a folder of segments, what they hold is in ``records``. One process has it at a time.

    folder/lock                          held while it is open
    folder/0000000000000001.wal          segments, each named after the number of its first frame
    folder/next                          the next segment, before it has its name

What is written is on the disk (fdatasync) before ``save`` returns. A segment goes once a snapshot stands for all its entries.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

from comity.errors import AlreadyRunning, DiskFull, ForeignData, Unreachable
from comity.failpoints import durable
from comity.model.raft import Ballot, LogEntry, Snapshot
from comity.raft.records import Head, Record, Recovered, Torn, frame, recover

SEGMENT_SIZE = 16 << 20


class Wal:
    """Made by ``open``. After any error but DiskFull it can no more be used: what the disk has then is not known."""

    def __init__(self, folder: Path, cluster: str, member: str, segment_size: int) -> None:
        self.folder = folder
        self.cluster = cluster
        self.member = member
        self.ballot = Ballot()
        self.snapshot = Snapshot()
        self.entries: list[LogEntry] = []
        """What was found; the caller takes it over."""
        self.torn: Torn | None = None
        """What was cut off the end when it was opened."""
        self._segment_size = segment_size
        self._segments: list[tuple[str, int]] = []  # name, and the highest index of its entries
        self._number = 0
        self._size = 0
        self._lock = self._file = -1

    @classmethod
    def open(
        cls, folder: Path, cluster: str, member: str, founding: Snapshot | None = None, *, segment_size: int = SEGMENT_SIZE
    ) -> Wal:
        """Open the log, or make it, beginning with the snapshot ``founding``. Raises AlreadyRunning, ForeignData (it is another
        cluster's, or another member's), Corrupt (with ``path`` and ``offset``), DiskFull, Unreachable (no folder for us)."""
        wal = cls(folder, cluster, member, segment_size)
        try:
            _make_folder(folder)
            wal._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(wal._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            names = sorted(path.name for path in folder.glob("*.wal"))
            if names:
                wal._take(recover((str(folder / name), (folder / name).read_bytes()) for name in names), names)
            else:
                wal.snapshot = founding or Snapshot()
                wal._begin_segment()
        except BlockingIOError as error:
            wal.close()
            raise AlreadyRunning(f"another process has {folder} open", path=str(folder)) from error
        except OSError as error:
            wal.close()
            raise wal._trouble("open", error) from error
        except BaseException:
            wal.close()
            raise
        return wal

    def _trouble(self, doing: str, error: OSError) -> DiskFull | Unreachable:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(f"no room is left in {self.folder}", path=str(self.folder))
        return Unreachable(f"cannot {doing} {self.folder}: {error.strerror}", path=str(self.folder))

    def _take(self, found: Recovered, names: list[str]) -> None:
        if (found.cluster, found.member) != (self.cluster, self.member):
            whose = f"member {found.member!r} of cluster {found.cluster!r}"
            raise ForeignData(
                f"{self.folder} belongs to {whose}, not to {self.member!r} of {self.cluster!r}",
                path=str(self.folder), cluster=found.cluster, member=found.member,
            )  # fmt: skip
        self.ballot, self.snapshot, self.entries, self.torn = found.ballot, found.snapshot, found.entries, found.torn
        self._segments = [(name, found.last[str(self.folder / name)]) for name in names]
        self._number, self._size = found.number, found.good
        self._file = os.open(self.folder / names[-1], os.O_RDWR | os.O_CLOEXEC)
        if found.torn is not None:
            with durable("raft.cut"):
                os.ftruncate(self._file, found.good)
                os.fsync(self._file)
        os.lseek(self._file, self._size, os.SEEK_SET)

    def save(self, records: Sequence[Record]) -> None:
        """Have it on the disk. Raises DiskFull: then nothing was written, and it may be tried again."""
        data = frame(self._number + 1, records)
        with durable("raft.save"):
            self._write(data)
        self._number += 1
        self._size += len(data)
        name, last = self._segments[-1]
        for record in records:
            self.ballot = record.ballot or self.ballot
            self.snapshot = record.snapshot or self.snapshot
            last = max(last, record.entries[-1].index if record.entries else 0)
        self._segments[-1] = name, last
        if self._size >= self._segment_size:
            try:
                self._begin_segment()
            except DiskFull:  # this one can be longer, or the next write tells
                pass
        if any(record.snapshot is not None for record in records):
            self._drop()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._file, left) :]
        except OSError as error:
            trouble = self._trouble("write", error)
            if isinstance(trouble, DiskFull):
                os.ftruncate(self._file, self._size)
                os.lseek(self._file, self._size, os.SEEK_SET)
            raise trouble from error
        try:
            os.fdatasync(self._file)
        except OSError as error:  # what the disk has now nobody knows: to ask it again may say that all is well
            raise Unreachable(f"the disk does not keep {self.folder}: {error.strerror}", path=str(self.folder)) from error

    def _begin_segment(self) -> None:
        data = frame(self._number + 1, Head(self.cluster, self.member, self.ballot, self.snapshot))
        coming, name = self.folder / "next", f"{self._number + 1:016x}.wal"
        try:
            file = os.open(coming, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._trouble("write", error) from error
        try:
            with durable("raft.segment"):
                if os.write(file, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file)
                coming.rename(self.folder / name)
                _sync(self.folder)
        except OSError as error:
            os.close(file)
            raise self._trouble("write", error) from error
        except BaseException:
            os.close(file)
            raise
        if self._file >= 0:
            os.close(self._file)
        self._file, self._size = file, len(data)
        self._number += 1
        self._segments.append((name, 0))

    def _drop(self) -> None:
        """Remove segments whose entries the snapshot, which stands in a later one, has all."""
        while len(self._segments) > 1 and self._segments[0][1] <= self.snapshot.index:
            with durable("raft.drop"):
                (self.folder / self._segments[0][0]).unlink(missing_ok=True)
                _sync(self.folder)
            del self._segments[0]

    def close(self) -> None:
        for file in (self._file, self._lock):
            if file >= 0:
                os.close(file)
        self._file = self._lock = -1


def _make_folder(folder: Path) -> None:
    """Make it, durably: a member whose folder is gone after a power cut has forgotten how it voted."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in missing:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
