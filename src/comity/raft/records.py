"""What a write-ahead log's files hold, and what can be made of them after a crash. No I/O: the simulated disk reads with it, too.

    segment = frame*         the first frame holds a Head, each other one what one fsync wrote: a list of Records
    frame   = header payload
    header  = "CR" length(4) number(8) checksum of the payload(4) checksum of the header(4), little-endian

Frames are numbered through all segments. A frame is written only after the one before it is on the disk. So what is broken at the
end of the last segment, with nothing intact behind it, may be a write that a crash cut short (torn): its end is missing, or
sectors of it are still zero. It was never acknowledged, and is cut. Everything else that is broken was damaged later, and is
refused: with it may go what was acknowledged. (etcd tells the two apart in the same way.) No byte of a payload is written as it
is, but exchanged for another, so that a caller's zeros are not taken for sectors that were never written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

import msgspec

from comity.errors import Corrupt, ForeignData
from comity.model.raft import Ballot, LogEntry, Snapshot

MAGIC = b"CR"
SECTOR = 512
_HEADER = struct.Struct("<2sIQI")
_CHECKSUM = struct.Struct("<I")
HEADER_SIZE = _HEADER.size + _CHECKSUM.size
_EXCHANGED = bytes(byte ^ 0x5A for byte in range(256))


class Record(msgspec.Struct, array_like=True, frozen=True):
    """What changed, as in ``core.raft_events.Save``."""

    ballot: Ballot | None
    entries: list[LogEntry]
    snapshot: Snapshot | None


class Head(msgspec.Struct, array_like=True, frozen=True):
    """Begins a segment, so that those before it may go: whose log it is, and what is not in entries."""

    cluster: str
    member: str
    ballot: Ballot
    snapshot: Snapshot


class Torn(NamedTuple):
    """What was cut off the end: from where, how much."""

    name: str
    offset: int
    size: int


_encode = msgspec.msgpack.Encoder().encode
_decode_head = msgspec.msgpack.Decoder(Head).decode
_decode_records = msgspec.msgpack.Decoder(list[Record]).decode


def frame(number: int, value: Head | Sequence[Record]) -> bytes:
    payload = _encode(value).translate(_EXCHANGED)
    header = _HEADER.pack(MAGIC, len(payload), number, crc32(payload))
    return header + _CHECKSUM.pack(crc32(header)) + payload


class _Header(NamedTuple):
    length: int
    number: int
    checksum: int


def _header(data: bytes, offset: int) -> _Header | None:
    """None if there is none, or it is damaged."""
    header = data[offset : offset + _HEADER.size]
    mark = data[offset + _HEADER.size : offset + HEADER_SIZE]
    if len(mark) < _CHECKSUM.size or header[:2] != MAGIC or _CHECKSUM.unpack(mark)[0] != crc32(header):
        return None
    return _Header(*_HEADER.unpack(header)[1:])


def _payload(data: bytes, offset: int, header: _Header) -> bytes | None:
    start = offset + HEADER_SIZE
    payload = data[start : start + header.length]
    return payload if len(payload) == header.length and crc32(payload) == header.checksum else None


def _is_torn(data: bytes, offset: int) -> bool:
    """Whether what is broken at ``offset`` can be a write that a crash cut short."""
    header = _header(data, offset)
    size = HEADER_SIZE + (header.length if header is not None else 0)
    is_short = offset + size > len(data)
    return (is_short or _has_zeros(data, offset, size)) and not _goes_on(data, offset + 1)


def _has_zeros(data: bytes, offset: int, length: int) -> bool:
    """Whether the part that lies in one of the disk's sectors is all zero."""
    end = min(offset + length, len(data))
    starts = [offset, *range(offset - offset % SECTOR + SECTOR, end, SECTOR)]
    return any(not any(data[start:stop]) for start, stop in zip(starts, [*starts[1:], end], strict=True))


def _goes_on(data: bytes, offset: int) -> bool:
    """Whether an intact frame follows anywhere."""
    while (offset := data.find(MAGIC, offset)) >= 0:
        header = _header(data, offset)
        if header is not None and _payload(data, offset, header) is not None:
            return True
        offset += 1
    return False


class Recovered:
    """What a log's segments hold. ``good``: up to there the last segment can be used; ``torn``: what lies behind it."""

    def __init__(self) -> None:
        self.cluster = self.member = ""
        self.ballot = Ballot()
        self.snapshot = Snapshot()
        self.entries: list[LogEntry] = []
        self.number = -1  # of the last frame
        self.good = 0
        self.torn: Torn | None = None
        self.last: dict[str, int] = {}
        """The highest index of the entries in each segment."""

    def take(self, record: Record, name: str) -> None:
        if record.ballot is not None:
            self.ballot = record.ballot
        if record.snapshot is not None:
            self._begin(record.snapshot)
        if record.entries:
            first = record.entries[0].index
            if self.entries and first > self.entries[-1].index + 1:
                raise Corrupt(f"{name}: entry {first} follows entry {self.entries[-1].index}", path=name)
            if self.entries and first <= self.entries[-1].index:
                del self.entries[max(first - self.entries[0].index, 0) :]
            self.entries += record.entries
            self.last[name] = max(self.last[name], record.entries[-1].index)

    def _begin(self, snapshot: Snapshot) -> None:
        """Entries up to the snapshot go; those behind it stay if they follow from it."""
        if self.entries and self.entries[0].index <= snapshot.index:
            place = snapshot.index - self.entries[0].index
            fits = place < len(self.entries) and self.entries[place].term == snapshot.term
            del self.entries[: place + 1 if fits else None]
        self.snapshot = snapshot

    def finish(self) -> None:
        if self.entries and self.entries[0].index != self.snapshot.index + 1:
            raise Corrupt(f"the log's entries {self.snapshot.index + 1} to {self.entries[0].index - 1} are missing")


def recover(segments: Iterable[tuple[str, bytes]]) -> Recovered:
    """What the segments, oldest first, hold together. Raises Corrupt (with ``path`` and ``offset``) and ForeignData."""
    found = Recovered()
    listed = list(segments)
    for place, (name, data) in enumerate(listed):
        found.last[name] = 0
        is_last = place == len(listed) - 1
        offset = 0
        while offset < len(data):
            header = _header(data, offset)
            payload = _payload(data, offset, header) if header is not None else None
            if header is None or payload is None:
                if offset == 0 and data[:2] != MAGIC and any(data[:HEADER_SIZE]):
                    raise ForeignData(f"{name} is no write-ahead log of Comity's, or is damaged at byte 0", path=name, offset=0)
                if offset == 0 or not is_last or not _is_torn(data, offset):
                    raise Corrupt(f"{name} is damaged at byte {offset}", path=name, offset=offset)
                found.torn = Torn(name, offset, len(data) - offset)
                break
            if found.number >= 0 and header.number != found.number + 1:
                raise Corrupt(f"{name}: write {found.number + 1} is missing at byte {offset}", path=name, offset=offset)
            found.number = header.number
            _take_frame(found, name, offset, payload.translate(_EXCHANGED))
            offset += HEADER_SIZE + header.length
        found.good = offset
    found.finish()
    return found


def _take_frame(found: Recovered, name: str, offset: int, payload: bytes) -> None:
    try:
        if offset == 0:
            head = _decode_head(payload)
            if not found.cluster:
                found.cluster, found.member = head.cluster, head.member
                found.ballot, found.snapshot = head.ballot, head.snapshot
            elif (head.cluster, head.member) != (found.cluster, found.member):
                raise ForeignData(f"{name} belongs to member {head.member!r} of {head.cluster!r}", path=name)
        else:
            for record in _decode_records(payload):
                found.take(record, name)
    except msgspec.MsgspecError as error:
        raise ForeignData(f"{name}: byte {offset} begins a newer or foreign format", path=name, offset=offset) from error
