"""The store in a bucket of anything that speaks S3.

    values/OWNER/PART/NAME=     content if it is small, then a label: its size and digest, when it expires, the ID of large
                                content, and a checksum of the label
    large/OWNER/PART/NAME=/ID   large content, uploaded in parts
    network                     the id of the network whose store it is

A value is there once its label is: one conditional write, where there was nothing, or instead of the version that was read.
``=`` ends a name because no key has one; some servers have no object whose name is another's folder.

Where S3 cannot promise what other stores do:

- ``delete`` knows no condition. What is over is hidden at once, and taken away an hour later by whoever lists and may write
  there; a value put again under its key in that very moment, and not before, can go with it.
- Who may write where, S3 is to be told (a policy for each user, on ``values/OWNER/`` and ``large/OWNER/``); here only this
  process is held to it.
- An upload that was cut off leaves parts that nobody sees and S3 keeps: a rule of the bucket (AbortIncompleteMultipartUpload)
  removes them.
- ``list`` asks for the label of each value, ``AT_ONCE`` at a time: S3's own lists have no digests.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import struct
import time
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import NamedTuple

from comity.errors import Conflict, Corrupt, Disconnected, ForeignData, NotFound
from comity.failpoints import durable
from comity.model.codec import DIGEST_SIZE
from comity.model.task import Stored
from comity.s3 import Bucket, Found, Row
from comity.store.base import CHUNK, check_key, check_prefix, checked, chunks_of

AT_ONCE = 32
"""Labels asked for at the same time."""
HIDDEN_S = 3600.0
"""How long what is over stays, hidden: time enough for whoever is about to put something in its place."""
_ABANDONED_S = 86_400.0
_PIECE = 16 * CHUNK
_ID_SIZE = 16
_LABEL = struct.Struct(f"<4sQQ{DIGEST_SIZE}s{_ID_SIZE}s")
_MARK = b"COM2"
_LABEL_SIZE = _LABEL.size + 4
_INSIDE = bytes(_ID_SIZE)


class _Label(NamedTuple):
    size: int
    expires_ms: int
    digest: bytes
    large: bytes = _INSIDE
    """The id of the content, if it lies apart."""

    def is_before(self, other: _Label) -> bool:
        """Whether what it stands for goes before what ``other`` stands for."""
        return self.expires_ms != 0 and not 0 < other.expires_ms <= self.expires_ms

    def encode(self) -> bytes:
        body = _LABEL.pack(_MARK, *self)
        return body + zlib.crc32(body).to_bytes(4, "little")


class S3Store:
    """One process's door to ``bucket``. ``owner``: the process, if it may write under its own name only; ``wall``: UTC s."""

    def __init__(self, bucket: Bucket, owner: str = "", wall: Callable[[], float] = time.time) -> None:
        self._bucket = bucket
        self._owner = owner
        self._wall = wall
        self._closed = False

    @classmethod
    async def join(cls, where: str, owner: str = "", *, network_id: str = "") -> S3Store:
        """The store at ``where``, ``s3://BUCKET/PREFIX``. ``network_id``: begin it if need be, for that network, and clear away
        what a crash left half done a day ago; else it must be there. Raises NotFound (it is not, or the bucket), ForeignData
        (another network's), AccessDenied, Unreachable, BadInput and BadSettings."""
        store = cls(Bucket(where, is_waited_for=True), owner)
        found = await store._mark(network_id)
        if network_id and found != network_id:
            raise ForeignData(f"{where} is the store of network {found}, not {network_id}", path=where)
        if network_id:
            await store._sweep()
        return store

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, ttl_s: float | None = None) -> Stored:
        check_key(key, self._owner)
        self._must_be_open()
        chunks = chunks_of(data)
        first = [chunk async for chunk in _at_most(2, chunks)]
        sums = _Sums()
        large, body = _INSIDE, b""
        if len(first) > 1:
            large = secrets.token_bytes(_ID_SIZE)
            with durable("s3.content"):
                await self._bucket.upload(_apart(key, large), sums.of(first, chunks))
        else:
            body = b"".join([chunk async for chunk in sums.of(first, chunks)])
        expires_ms = int((self._wall() + ttl_s) * 1000) + 1 if ttl_s is not None else 0
        label = _Label(sums.size, expires_ms, sums.digest(), large)
        try:
            kept = await self._place(key, label, body)
        except Conflict:
            await self._drop(key, large)
            raise
        if kept != large:
            await self._drop(key, large)
        return Stored(key, label.size, label.digest)

    async def get(self, key: str) -> AsyncIterator[bytes]:
        check_key(key)
        self._must_be_open()
        try:
            found = await self._bucket.get(_value(key))
        except NotFound as error:
            raise NotFound(f"nothing is stored as {key}: {error.message}", key=key) from error
        label = _read_label(key, found)
        if self._is_over(label):
            raise NotFound(f"{key} has expired", key=key)
        chunks = chunks_of(found.data[:-_LABEL_SIZE]) if label.large == _INSIDE else self._pieces(key, label)
        async for chunk in checked(Stored(key, label.size, label.digest), chunks):
            yield chunk

    async def read(self, key: str) -> bytes:
        return b"".join([chunk async for chunk in self.get(key)])

    async def delete(self, key: str) -> None:
        check_key(key, self._owner)
        self._must_be_open()
        try:
            known = await self._label(key)
        except Corrupt:  # its large content, if any, is cleared away as abandoned
            known = _Label(0, 0, b""), ""
        if known is not None:
            await self._remove(key, known[0], "s3.delete")

    async def list(self, prefix: str) -> list[Stored]:
        """As promised; a value whose label is damaged is listed with an empty digest, and reading it is Corrupt."""
        check_prefix(prefix)
        self._must_be_open()
        folder, begins = f"values/{prefix.rpartition('/')[0]}", f"values/{prefix}"
        rows = [row async for row in self._bucket.list(folder, begins=begins) if row.name.endswith("=")]
        found: list[Stored | None] = []
        for start in range(0, len(rows), AT_ONCE):
            found += await asyncio.gather(*map(self._look, rows[start : start + AT_ONCE]))
        return sorted((stored for stored in found if stored is not None), key=lambda stored: stored.key)

    async def close(self) -> None:
        self._closed = True

    def _must_be_open(self) -> None:
        if self._closed:
            raise Disconnected("the store is closed")

    async def _mark(self, network_id: str) -> str:
        """The id of the network whose store it is; ``network_id`` from now on if it was nobody's."""
        if network_id:
            try:
                with durable("s3.mark"):
                    await self._bucket.put("network", network_id.encode())
            except Conflict:
                return (await self._bucket.get("network")).data.decode()
            return network_id
        return (await self._bucket.get("network")).data.decode()

    async def _place(self, key: str, label: _Label, body: bytes) -> bytes:
        """Make what was written visible as ``key``. The id of the content that counts. Raises Conflict."""
        known = None
        while True:  # whenever it is refused, another has written
            try:
                with durable("s3.value"):
                    await self._bucket.put(_value(key), body + label.encode(), instead_of=known[1] if known else "")
            except Conflict:
                known = await self._label(key)
            else:
                if known is not None:
                    await self._drop(key, known[0].large, unless=label.large)
                return label.large
            if known is None or self._is_over(known[0]):
                continue
            there = known[0]
            if (there.size, there.digest) != (label.size, label.digest):
                raise Conflict(f"{key} holds something else already", key=key)
            if not there.is_before(label):
                return there.large
            label = label._replace(large=there.large)  # it lives longer, where readers have it already

    async def _label(self, key: str) -> tuple[_Label, str] | None:
        """The label of ``key``, and the tag of its version; None if there is none. Raises Corrupt."""
        try:
            found = await self._bucket.get(_value(key), last=_LABEL_SIZE)
        except NotFound:
            return None
        except Corrupt as error:
            raise Corrupt(f"what is stored as {key} is damaged: {error.message}", key=key) from error
        return _read_label(key, found), found.tag

    async def _look(self, row: Row) -> Stored | None:
        """What is listed of it, None if it is over or gone. Takes away what is long over, if it may."""
        key = _key(row)
        try:
            known = await self._label(key)
        except Corrupt:
            return Stored(key, max(0, row.size - _LABEL_SIZE), b"")
        if known is None:
            return None
        label = known[0]
        if self._is_over(label, HIDDEN_S) and key.startswith(f"{self._owner}/" if self._owner else ""):
            await self._remove(key, label, "s3.expire")
        return None if self._is_over(label) else Stored(key, label.size, label.digest)

    async def _pieces(self, key: str, label: _Label) -> AsyncIterator[bytes]:
        """Large content, asked for as it is taken: however slow who takes it is, no answer is open meanwhile."""
        for start in range(0, label.size, _PIECE):
            try:
                piece = await self._bucket.part(_apart(key, label.large), start, min(start + _PIECE, label.size))
            except NotFound:
                known = await self._label(key)
                if known is None or known[0].large != label.large:
                    raise NotFound(f"{key} was deleted while it was read", key=key) from None
                raise Corrupt(f"the content of {key} is missing", key=key) from None
            except Corrupt as error:
                raise Corrupt(f"what is stored as {key} is damaged: {error.message}", key=key) from error
            async for chunk in chunks_of(piece):
                yield chunk

    def _is_over(self, label: _Label, since_s: float = 0.0) -> bool:
        return label.expires_ms != 0 and (self._wall() - since_s) * 1000 > label.expires_ms

    async def _remove(self, key: str, label: _Label, write: str) -> None:
        with durable(write):
            await self._bucket.delete(_value(key))
        await self._drop(key, label.large)

    async def _drop(self, key: str, large: bytes, unless: bytes = _INSIDE) -> None:
        if large not in (_INSIDE, unless):
            await self._bucket.delete(_apart(key, large))

    async def _sweep(self) -> None:
        """Remove large content that was never placed under its key, or whose value was deleted by a process that then died."""
        until = self._wall() - _ABANDONED_S
        old = [row async for row in self._bucket.list("large") if row.modified.timestamp() < until]
        if not old:
            return
        keys = {_key(row) async for row in self._bucket.list("values")}
        for row in old:
            key = row.name.removeprefix("large/").rpartition("=")[0]
            if key not in keys:
                await self._bucket.delete(row.name)


class _Sums:
    """Size and digest of what passes."""

    def __init__(self) -> None:
        self.size = 0
        self._digest = hashlib.blake2b(digest_size=DIGEST_SIZE)

    async def of(self, first: Sequence[bytes], rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        for chunk in first:
            yield self._counted(chunk)
        async for chunk in rest:
            yield self._counted(chunk)

    def _counted(self, chunk: bytes) -> bytes:
        self.size += len(chunk)
        self._digest.update(chunk)
        return chunk

    def digest(self) -> bytes:
        return self._digest.digest()


async def _at_most(count: int, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The first ``count`` of ``chunks``, which stay open."""
    while count > 0 and (chunk := await anext(chunks, b"")):
        count -= 1
        yield chunk


def _value(key: str) -> str:
    return f"values/{key}="


def _apart(key: str, large: bytes) -> str:
    return f"large/{key}=/{large.hex()}"


def _key(row: Row) -> str:
    return row.name.removeprefix("values/")[:-1]


def _read_label(key: str, found: Found) -> _Label:
    """The label at the end of ``found``. Raises Corrupt."""
    data = found.data[-_LABEL_SIZE:]
    body, check = data[:-4], data[-4:]
    if len(data) < _LABEL_SIZE or zlib.crc32(body).to_bytes(4, "little") != check or body[:4] != _MARK:
        raise Corrupt(f"what is stored as {key} is damaged: its label is torn or altered", key=key)
    label = _Label(*_LABEL.unpack(body)[1:])
    if found.size - _LABEL_SIZE != (label.size if label.large == _INSIDE else 0):
        raise Corrupt(f"what is stored as {key} is damaged: it has {found.size - _LABEL_SIZE} bytes", key=key)
    return label
