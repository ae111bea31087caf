"""One server's own copy of a stream, read from the files in which the server keeps it: so damage is known before the server
itself notices, or serves it, and of the log also while it does not run.

    msgs/N.blk   record after record, the oldest block first
    record       length (bit 31: with headers), sequence, time, subject's length; subject, headers, message; checksum

``look``: the log. A record's message is a sealed entry, so its digest tells of flipped bits; an entry between others that is not
there is a gap: nobody may delete one; the subject is known, and so is what the headers say. Of each record the time and the
server's own checksum (HighwayHash, which is slow in Python) remain, sixteen bytes in which a flipped bit is not seen here: only
the server can tell.

``compare``: the registry and the store. They keep the last message of a subject, and some end by themselves, so they have gaps by
nature: a copy is whole if it has, as it was written, what another server has.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from comity.model.codec import digest, is_intact

_HEAD = struct.Struct("<IQQH")
_LENGTH = struct.Struct("<I")
_CHECKSUM = 8
_HAS_HEADERS = 1 << 31
_NO_ENTRY = 3 << 62
"""Bits of the sequence of what was deleted, and of marks that something was."""
RECORD_MAX = 32 * 1024 * 1024
ENDS_S = 60.0
"""A message whose time is over, or will be so soon, may be gone."""
FAR = 1 << 20
"""No entry is so far beyond those that another server has."""
SLICE = 64 * 1024
"""Bytes looked at without giving way: a millisecond at most."""

CHECKSUM, OTHER = "it fails its checksum", "its subject or headers are not what was written"

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


class Listed(NamedTuple):
    """A message as another server has it. ``headers``: those that matter; ``digest`` of what it holds, if that is known;
    ``ends_at``: when it vanishes by itself, seconds since 1970."""

    subject: bytes
    time_ns: int
    headers: dict[str, str]
    digest: bytes | None
    ends_at: float = float("inf")


class _Record(NamedTuple):
    size: int
    entry: int
    time_ns: int
    subject: memoryview
    headers: memoryview
    message: memoryview


class _At(NamedTuple):
    """``record`` None: none can be read from there to the end of its block. ``is_end``: that is the copy's end."""

    where: str
    record: _Record | None
    reason: str = ""
    is_end: bool = False


async def look(folder: Path, first: int, pace: Pace) -> Copy:
    """Look through the log's copy in ``folder``, of which entries before ``first`` do not matter (0: it begins with whatever
    comes first). ``pace`` is told how many bytes were looked at, and waits if need be. Raises FileNotFoundError (trimmed
    meanwhile)."""
    last = max(0, first - 1)
    subject = f"cy.{folder.name.removeprefix('CY_').removesuffix('_LOG')}.log".encode()
    async for where, record, reason, is_end in _walk(folder, pace):
        if record is None:
            return Copy(last, torn=where) if is_end else Copy(last, Flaw(last + 1, where, reason))
        if record.entry & _NO_ENTRY or record.entry <= last:
            continue
        if record.entry > last + 1 and (first or last):
            return Copy(last, Flaw(last + 1, where, f"entry {record.entry} follows entry {last}"))
        if not is_intact(record.message):
            return Copy(last, Flaw(record.entry, where, CHECKSUM))
        if record.subject != subject or _is_flipped(record.headers, record.entry):
            return Copy(last, Flaw(record.entry, where, OTHER))
        last = record.entry
    return Copy(last)


async def compare(folder: Path, listed: Mapping[int, Listed], now: float, pace: Pace) -> Copy:
    """Look through the copy in ``folder`` for what another server has: ``listed``, by entry. As ``look``."""
    upto, last = max(listed, default=0), 0
    intact: set[int] = set()
    newer: list[tuple[int, bytes]] = []
    odd: dict[int, tuple[str, str]] = {}
    torn: list[tuple[str, str]] = []
    async for where, record, reason, _ in _walk(folder, pace):
        if record is None:
            torn.append((where, reason))
        elif not record.entry & _NO_ENTRY and record.entry <= upto + FAR:
            while newer and newer[-1][0] >= record.entry:  # entries lie in order: it was none
                newer.pop()
            if record.entry > upto:
                newer.append((record.entry, bytes(record.subject)))
                continue
            last = max(last, record.entry)
            if record.entry in listed:
                if fault := _difference(record, listed[record.entry]):
                    odd[record.entry] = where, fault
                else:
                    intact.add(record.entry)
    replaced = {subject for _, subject in newer}
    last = newer[-1][0] if newer else last
    for entry in sorted(listed.keys() - intact):
        told = listed[entry]
        if entry <= last and told.ends_at > now + ENDS_S and told.subject not in replaced:
            place, reason = odd.get(entry) or (torn[0] if torn else ("its blocks", "it is not there"))
            return Copy(last, Flaw(entry, place, reason))
    return Copy(last, torn=torn[0][0] if torn else "")


def _difference(record: _Record, told: Listed) -> str:
    if told.digest is not None and digest(record.message) != told.digest:
        return CHECKSUM
    lines = bytes(record.headers).decode(errors="replace").split("\r\n")
    headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    as_told = all(headers.get(name) == value for name, value in told.headers.items())
    return "" if as_told and record.subject == told.subject and record.time_ns == told.time_ns else OTHER


async def _walk(folder: Path, pace: Pace) -> AsyncIterator[_At]:
    blocks = await asyncio.to_thread(_blocks, folder)
    for path in blocks:
        try:
            data = memoryview(await asyncio.to_thread(path.read_bytes))
        except FileNotFoundError:  # trimmed meanwhile
            raise
        except OSError as error:
            yield _At(path.name, None, f"it cannot be read: {error.strerror}")
            continue
        at = paced = 0
        while at < len(data):
            where = f"{path.name} byte {at}"
            record = _record(data, at)
            if record is None:
                yield _At(where, None, "what is there is no entry", path == blocks[-1])
                break
            at += record.size
            yield _At(where, record)
            if at - paced >= SLICE:
                await pace(at - paced)
                paced = at
        await pace(at - paced)


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
    length, index, time_ns, subject = _HEAD.unpack_from(data, at)
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
    return _Record(size, index, time_ns, named, headers, data[begins:ends])
