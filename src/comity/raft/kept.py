"""What members agree on: a log with compare-and-append, decided when an entry is applied, so by all in the same way.

The entries themselves stay in Raft's log; here is only where each of them is there. Once the first ones are trimmed, Raft's log
may begin behind them, and all that its snapshot must say is the number of the first one kept, and whose the log is.
"""

from __future__ import annotations

import struct
from collections import deque
from itertools import islice

from comity.errors import Conflict, Corrupt
from comity.model.raft import DATA, LogEntry

_HEAD = struct.Struct("<cQ")
_NUMBER = struct.Struct("<Q")
_ADD, _TRIM, _MARK = b"A", b"T", b"M"


def add(data: bytes, after: int) -> bytes:
    """The command: append ``data`` if the tail is ``after``."""
    return _HEAD.pack(_ADD, after) + data


def trim(upto: int) -> bytes:
    return _HEAD.pack(_TRIM, upto)


def claim(mark: bytes) -> bytes:
    """The command: this is whose the log is, if nobody has said so before."""
    return _HEAD.pack(_MARK, 0) + mark


def content(entry: LogEntry) -> bytes:
    """What the caller appended."""
    return entry.data[_HEAD.size :]


class Kept:
    """``first`` and ``last`` as the log's door has them; ``places[n]`` is where Raft's log has entry ``first + n``; ``mark`` says
    whose the log is, once somebody has claimed it. Invariant: what is applied in one order gives one outcome, wherever Raft's log
    begins."""

    def __init__(self, snapshot: bytes = b"") -> None:
        self.first = 1
        self.last = 0
        self.mark = b""
        self.places: deque[int] = deque()
        self.restore(snapshot)

    def restore(self, snapshot: bytes) -> None:
        self.first = _NUMBER.unpack_from(snapshot)[0] if snapshot else 1
        self.mark = snapshot[_NUMBER.size :]
        self.last = self.first - 1
        self.places.clear()

    def apply(self, entry: LogEntry) -> int | Conflict:
        """The tail's number, or why nothing was appended."""
        if entry.kind != DATA:
            return self.last
        kind, number = _HEAD.unpack_from(entry.data)
        if kind == _TRIM:
            while self.places and self.first <= number:
                self.places.popleft()
                self.first += 1
            return self.last
        if kind == _MARK:
            self.mark = self.mark or content(entry)
            return self.last
        if number != self.last:
            return Conflict(f"the log's tail is {self.last}, not {number}", after=number, last=self.last)
        self.last += 1
        self.places.append(entry.index)
        return self.last

    def between(self, after: int, limit: int) -> list[int]:
        """Where the entries following ``after`` are. Raises Corrupt if the first of them was trimmed away."""
        if after + 1 < self.first:
            raise Corrupt(f"log entry {after + 1} was trimmed away; the first is {self.first}", index=after + 1)
        start = after + 1 - self.first
        return list(islice(self.places, start, start + limit))

    def snapshot(self, applied: int) -> tuple[int, bytes]:
        """Up to where Raft's log, applied so far, can be cut away, and what stands for that."""
        return (self.places[0] - 1 if self.places else applied), _NUMBER.pack(self.first) + self.mark
