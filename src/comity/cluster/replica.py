"""One server's own copy of the log, read from the files in which the server keeps it: so damage is known before the server itself
notices, or serves it, and also while it does not run.

    msgs/N.blk   record after record, the oldest block first
    record       length (bit 31: with headers), sequence, time, subject's length; subject, headers, message; checksum

A record's message is a sealed entry, so its digest tells of flipped bits; an entry between others that is not there is a gap:
nobody may delete one; the subject is known, and so is what the headers say. Of each record the time and the server's own checksum
(HighwayHash, which is slow in Python) remain, sixteen bytes in which a flipped bit is not seen here: only the server can tell.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from comity.model.codec import is_intact

_HEAD = struct.Struct("<IQQH")
_LENGTH = struct.Struct("<I")
_CHECKSUM = 8
_HAS_HEADERS = 1 << 31
_NO_ENTRY = 3 << 62
"""Bits of the sequence of what was deleted, and of marks that something was."""
RECORD_MAX = 32 * 1024 * 1024
SLICE = 64 * 1024
"""Bytes looked at without giving way: a millisecond at most."""

Pace = Callable[[int], Awaitable[None]]


class Flaw(NamedTuple):
    """The first entry that is damaged or missing, where, and what was found."""

    entry: int
    place: str
    reason: str


class Copy(NamedTuple):
    """``last``: the last entry that is there, before any flaw. ``torn``: where something begins that is not wholly there, as
    after a power cut, or while it is written."""

    last: int
    flaw: Flaw | None = None
    torn: str = ""


class _Record(NamedTuple):
    size: int
    entry: int
    subject: memoryview
    headers: memoryview
    message: memoryview


async def look(folder: Path, first: int, pace: Pace) -> Copy:
    """Look through the copy in ``folder``, of which entries before ``first`` do not matter (0: it begins with whatever comes
    first). ``pace`` is told how many bytes were looked at, and waits if need be. Raises FileNotFoundError (trimmed meanwhile)."""
    last = max(0, first - 1)
    subject = f"cy.{folder.name.removeprefix('CY_').removesuffix('_LOG')}.log".encode()
    blocks = await asyncio.to_thread(_blocks, folder)
    for path in blocks:
        try:
            data = memoryview(await asyncio.to_thread(path.read_bytes))
        except FileNotFoundError:  # trimmed meanwhile
            raise
        except OSError as error:
            return Copy(last, Flaw(last + 1, path.name, f"it cannot be read: {error.strerror}"))
        at = paced = 0
        while at < len(data):
            where = f"{path.name} byte {at}"
            record = _record(data, at)
            if record is None:
                if path == blocks[-1]:
                    return Copy(last, torn=where)
                return Copy(last, Flaw(last + 1, where, "what is there is no entry"))
            at += record.size
            if not record.entry & _NO_ENTRY and record.entry > last:
                if record.entry > last + 1 and (first or last):
                    return Copy(last, Flaw(last + 1, where, f"entry {record.entry} follows entry {last}"))
                if not is_intact(record.message):
                    return Copy(last, Flaw(record.entry, where, "it fails its checksum"))
                if record.subject != subject or _is_flipped(record.headers, record.entry):
                    return Copy(last, Flaw(record.entry, where, "its subject or headers are not what was written"))
                last = record.entry
            if at - paced >= SLICE:
                await pace(at - paced)
                paced = at
        await pace(at - paced)
    return Copy(last)


def _is_flipped(headers: memoryview, entry: int) -> bool:
    """Whether ``headers`` are those of an entry but for a byte or two. (Another server might write others altogether.)"""
    expected = b"NATS/1.0\r\nNats-Expected-Last-Sequence: %d\r\n\r\n" % (entry - 1)
    if headers == expected or len(headers) != len(expected):
        return False
    return sum(one != other for one, other in zip(headers, expected, strict=True)) <= 2


def _blocks(folder: Path) -> list[Path]:
    return sorted(folder.glob("msgs/*.blk"), key=lambda path: (len(path.name), path.name))


def _record(data: memoryview, at: int) -> _Record | None:
    """The record at ``at``; None if there is no whole one."""
    if at + _HEAD.size > len(data):
        return None
    length, index, _, subject = _HEAD.unpack_from(data, at)
    size = length & ~_HAS_HEADERS
    begins, ends = at + _HEAD.size + subject, at + size - _CHECKSUM
    named, headers = data[at + _HEAD.size : begins], data[:0]
    if length & _HAS_HEADERS:
        if begins + _LENGTH.size > len(data):
            return None
        after = begins + _LENGTH.size + _LENGTH.unpack_from(data, begins)[0]
        headers, begins = data[begins + _LENGTH.size : after], after
    if size > RECORD_MAX or begins > ends or at + size > len(data):
        return None
    return _Record(size, index, named, headers, data[begins:ends])
