"""The store as a JetStream stream. ``OWNER/A/B`` is

    cy.NET.store.OWNER.m.A.B           the manifest: headers, and the content if it fits into one message
    cy.NET.store.OWNER.c.UPLOAD.N      the chunks of a longer content, each with its own digest

The manifest is written last and only if its subject is free (``Nats-Expected-Last-Subject-Sequence``), so a value is there as
a whole or not at all. A subject keeps one message: a value is deleted by publishing a short-lived gravestone over it, which
takes no right but to publish under one's own name; nobody may purge. A ``.`` of a key is ``=`` in a subject.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, NamedTuple

from nats.aio.client import Client

from comity.errors import Conflict, Corrupt, Definite, NotFound, TimedOut
from comity.failpoints import durable
from comity.jetstream import HEADER_ROOM, Cursor, JetStream, Row
from comity.model.codec import DIGEST_SIZE, digest
from comity.model.task import Stored
from comity.store.base import CHUNK, check_key, check_prefix, checked, chunks_of

WINDOW = 8
"""Chunks on their way at once."""
FETCHES = 4
LOOKUPS = 64
"""Windows of chunks, and single messages, asked for at once: 40 MB together. The server cuts a connection for which more than
64 MB wait (``max_pending``), which a reader who is busy with something else would let happen."""
TRIES = 3
"""Servers asked, each time any, where several have a copy: that of one may be damaged."""
BROKEN_KEPT = 1000
PUTS = 8
"""Of one value, while others put the same."""
CHUNK_GRACE_S = 3600.0
"""Chunks outlive their manifest by this, and an upload may take no longer."""

_DIGEST = "Comity-Digest"
_SIZE = "Comity-Size"
_CHUNKS = "Comity-Chunks"
_GONE = "Comity-Gone"
_EXPECT = "Nats-Expected-Last-Subject-Sequence"
_TTL = "Nats-TTL"


def stream_name(network: str) -> str:
    return f"CY_{network}_STORE"


def stream_config(network: str, replicas: int) -> dict[str, Any]:
    return {
        "name": stream_name(network),
        "subjects": [f"cy.{network}.store.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": 1,
        "deny_delete": True,
        "deny_purge": True,
        "allow_direct": True,
        "allow_rollup_hdrs": False,
        "allow_msg_ttl": True,
        "persist_mode": "default",
    }


class _Upload(NamedTuple):
    """A content's chunks: their name, how many, and the sequence of the first."""

    name: str
    chunks: int
    first: int


class _Manifest(NamedTuple):
    """``stored`` None: a gravestone. ``ttl_s`` 0: it has no end."""

    seq: int
    stored: Stored | None
    upload: _Upload | None
    data: bytes
    ttl_s: int = 0


class JetStreamStore:
    """One process's door to the stream ``CY_<network>_STORE``. The server's permissions say where it may write."""

    def __init__(self, js: JetStream, network: str) -> None:
        self._js = js
        self._stream = stream_name(network)
        self._root = f"cy.{network}.store"
        self._chunk = min(CHUNK, js.nc.max_payload - HEADER_ROOM)
        self._is_replicated = False
        self._broken: OrderedDict[str, _Upload] = OrderedDict()
        self._fetches = asyncio.Semaphore(FETCHES)
        self._lookups = asyncio.Semaphore(LOOKUPS)

    @classmethod
    async def open(cls, nc: Client, network: str, *, create: bool, replicas: int = 1) -> JetStreamStore:
        """Open the network's store over a connection that stays its owner's. With ``create`` the stream is made if it is missing,
        and chunks of uploads that were never finished are removed.

        Raises NotFound (no such store, and not to be made), BadSettings (the stream is not kept as a store must be),
        AccessDenied, and Indefinite errors.
        """
        js = await JetStream(nc).open()
        store = cls(js, network)
        try:
            info = await js.stream(stream_config(network, replicas), create=create)
            store._is_replicated = info["config"]["num_replicas"] > 1
            if create:
                await store._sweep()
        except BaseException:
            await js.close()
            raise
        return store

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, ttl_s: float | None = None) -> Stored:
        check_key(key)
        chunks = chunks_of(data, self._chunk)
        first, second = await anext(chunks, b""), await anext(chunks, b"")
        if not second:
            stored = Stored(key, len(first), digest(first))
            await self._publish(stored, first, None, ttl_s)
            return stored
        loop = asyncio.get_running_loop()
        start = loop.time()
        there = await self._find(key, leader=True)
        if there is not None and there.ttl_s and ttl_s is not None:
            ttl_s = max(ttl_s, there.ttl_s)  # should it be the same content, our chunks stand for those that are there
        await self._clear(key)
        stored, upload = await self._upload(key, _chain(first, second, chunks), ttl_s)
        if loop.time() - start > CHUNK_GRACE_S:
            raise TimedOut(f"writing {key} took longer than {CHUNK_GRACE_S} s")
        is_ours = False
        try:
            is_ours = await self._publish(stored, b"", upload, ttl_s)
        except Definite:
            await self._bury_chunks(key, upload)
            raise
        if not is_ours:
            await self._bury_chunks(key, upload)
        return stored

    async def get(self, key: str) -> AsyncIterator[bytes]:
        manifest = await self._find(check_key(key))
        if manifest is None or manifest.stored is None:
            raise NotFound(f"nothing is stored as {key}", key=key)
        async with contextlib.aclosing(self._content(key, manifest)) as content:
            async for chunk in checked(manifest.stored, content):
                yield chunk

    async def read(self, key: str) -> bytes:
        return b"".join([chunk async for chunk in self.get(key)])

    async def delete(self, key: str) -> None:
        manifest = await self._find(check_key(key), leader=True)
        if manifest is None or manifest.stored is None:
            return
        await self._bury([self._subject(key)])
        if manifest.upload is not None:
            await self._bury_chunks(key, manifest.upload)

    async def list(self, prefix: str) -> list[Stored]:
        *whole, _ = check_prefix(prefix).split("/")
        filtered = f"{self._subject('/'.join(whole))}.>" if whole else f"{self._root}.*.m.>"
        found = []
        async for row in self._headers(filtered):
            key = self._key(row.subject)
            stored = _parse(key, row.seq, row.headers or {}, b"").stored if key.startswith(prefix) else None
            if stored is not None:
                found.append(stored)
        return sorted(found, key=lambda stored: stored.key)

    async def close(self) -> None:
        await self._js.close()

    # Names

    def _subject(self, key: str) -> str:
        owner, _, rest = key.partition("/")
        tail = f".{rest.replace('.', '=').replace('/', '.')}" if rest else ""
        return f"{self._root}.{owner}.m{tail}"

    def _key(self, subject: str) -> str:
        owner, _, rest = subject[len(self._root) + 1 :].partition(".m.")
        return f"{owner}/{rest.replace('.', '/').replace('=', '.')}"

    def _chunk_subject(self, key: str, upload: str) -> str:
        return f"{self._root}.{key.partition('/')[0]}.c.{upload}"

    # Writing

    async def _publish(self, stored: Stored, data: bytes, upload: _Upload | None, ttl_s: float | None) -> bool:
        """Write the manifest; False if the same content is there already, and for long enough. Raises Conflict if another is.

        The same content is written again if it might end before ``ttl_s`` from now: when it was put no clock of ours can tell, so
        it then lasts as long as the longer of both, from now on. Chunks that it had end by themselves: some may read them yet.
        """
        headers = {_SIZE: str(stored.size), _DIGEST: stored.digest.hex()}
        if upload is not None:
            headers[_CHUNKS] = f"{upload.name} {upload.chunks} {upload.first}"
        expect, lasts_s = 0, ttl_s
        for _ in range(PUTS):
            try:
                headers = {**headers, **_lifetime(lasts_s), _EXPECT: str(expect)}
                with durable("jetstream.value"):
                    await self._js.publish(self._subject(stored.key), data, headers)
                return True
            except Conflict:
                there = await self._find(stored.key, leader=True)
            if there is not None and there.stored is not None:
                if there.stored != stored:
                    break
                if not there.ttl_s:
                    return False
                if lasts_s is not None:  # what came after we did is enough; so is what would outlive our chunks
                    if (expect and there.ttl_s >= lasts_s) or (upload and there.ttl_s > lasts_s):
                        return False
                    lasts_s = max(lasts_s, there.ttl_s)
            expect = there.seq if there is not None else 0
        raise Conflict(f"{stored.key} holds something else already", key=stored.key)

    async def _upload(self, key: str, chunks: AsyncIterator[bytes], ttl_s: float | None) -> tuple[Stored, _Upload]:
        """Write the chunks, several on their way at once, and wait until all are durable."""
        name = secrets.token_hex(8)
        headers = _lifetime(ttl_s + CHUNK_GRACE_S if ttl_s is not None else None)
        mark, size, count, first = hashlib.blake2b(digest_size=DIGEST_SIZE), 0, 0, 0
        flight: deque[asyncio.Task[int]] = deque()
        try:
            async for chunk in chunks:
                mark.update(chunk)
                size += len(chunk)
                subject = f"{self._chunk_subject(key, name)}.{count}"
                count += 1
                publish = self._write(subject, chunk, {**headers, _DIGEST: digest(chunk).hex()})
                if count == 1:  # alone: it tells whether we may write here
                    first = await publish
                    continue
                flight.append(asyncio.create_task(publish))
                if len(flight) >= WINDOW:
                    await flight.popleft()
            while flight:
                await flight.popleft()
        except BaseException:
            for task in flight:
                task.cancel()
            await asyncio.gather(*flight, return_exceptions=True)
            self._broken[key] = _Upload(name, count, first)
            if len(self._broken) > BROKEN_KEPT:
                self._broken.popitem(last=False)
            raise
        return Stored(key, size, mark.digest()), _Upload(name, count, first)

    async def _write(self, subject: str, chunk: bytes, headers: dict[str, str]) -> int:
        with durable("jetstream.chunk"):
            return await self._js.publish(subject, chunk, headers)

    async def _bury(self, subjects: Sequence[str]) -> None:
        """Replace the messages of these subjects by gravestones that soon vanish."""
        for start in range(0, len(subjects), 64):
            graves = (self._js.publish(subject, b"", {_GONE: "1", _TTL: "1s"}) for subject in subjects[start : start + 64])
            with durable("jetstream.bury"):
                await asyncio.gather(*graves)

    async def _bury_chunks(self, key: str, upload: _Upload) -> None:
        await self._bury([f"{self._chunk_subject(key, upload.name)}.{n}" for n in range(upload.chunks)])

    async def _clear(self, key: str) -> None:
        """Remove what an upload left that broke off: whoever tries again and again must not fill the disk."""
        broken = self._broken.get(key)
        if broken is not None:
            await self._bury_chunks(key, broken)
            if self._broken.get(key) is broken:
                del self._broken[key]

    async def _sweep(self) -> None:
        """Remove chunks that no manifest names and that nobody can still be writing."""
        lost: dict[str, dict[str, int]] = {}
        async for row in self._headers(f"{self._root}.*.c.>"):
            if _GONE not in (row.headers or {}):
                lost.setdefault(row.subject.rpartition(".")[0], {})[row.subject] = row.time_ns
        if not lost:
            return
        async for row in self._headers(f"{self._root}.*.m.>"):
            key = self._key(row.subject)
            upload = _parse(key, row.seq, row.headers or {}, b"").upload
            if upload is not None:
                lost.pop(self._chunk_subject(key, upload.name), None)
        horizon = time.time_ns() - int(CHUNK_GRACE_S * 1e9)
        for subjects in lost.values():
            if max(subjects.values()) < horizon:
                await self._bury(list(subjects))

    # Reading

    async def _find(self, key: str, *, leader: bool = False) -> _Manifest | None:
        """The manifest of ``key``: from any replica and, if those asked have none or ``leader`` says so, from the stream's
        leader."""
        async with self._lookups:
            return await self._look_up(key, leader)

    async def _look_up(self, key: str, leader: bool) -> _Manifest | None:
        subject = self._subject(key)
        for _ in range(0 if leader else self._tries):
            msg = await self._js.call(f"$JS.API.DIRECT.GET.{self._stream}.{subject}")
            headers = msg.headers or {}
            if "Nats-Sequence" in headers:
                return _parse(key, int(headers["Nats-Sequence"]), headers, msg.data)
        try:
            message = (await self._js.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject}))["message"]
        except NotFound:
            return None
        lines = base64.b64decode(message.get("hdrs", "")).decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines if ": " in line)
        return _parse(key, message["seq"], headers, base64.b64decode(message.get("data", "")))

    async def _content(self, key: str, manifest: _Manifest) -> AsyncGenerator[bytes, None]:
        upload = manifest.upload
        if upload is None:
            yield manifest.data
            return
        subject = f"{self._chunk_subject(key, upload.name)}."
        at, number = upload.first - 1, 0
        for _ in range(self._tries):
            cursor = Cursor(self._js, self._stream, f"{subject}*", at)
            try:
                while number < upload.chunks:
                    async with self._fetches:
                        rows = await cursor.fetch(min(upload.chunks - number, 2 * WINDOW), wait_s=self._js.timeout_s)
                    begun = number
                    for row in rows:
                        if row.subject != f"{subject}{number}" or not _is_intact(row):
                            break
                        yield row.data
                        at, number = row.seq, number + 1
                    if number == begun or number < begun + len(rows):
                        break
                else:
                    return
            finally:
                await cursor.close()
        there = await self._find(key, leader=True)
        if there is None or there.stored is None:
            raise NotFound(f"{key} was deleted", key=key)

    @property
    def _tries(self) -> int:
        return TRIES if self._is_replicated else 1

    async def _headers(self, filtered: str) -> AsyncIterator[Row]:
        """All messages of some subjects, without their contents."""
        cursor = Cursor(self._js, self._stream, filtered, headers_only=True)
        try:
            while rows := await cursor.fetch(1000):
                for row in rows:
                    yield row
        finally:
            await cursor.close()


def _is_intact(row: Row) -> bool:
    """Whether a chunk is there, and what was written; others than we may write none of its own digest."""
    headers = row.headers or {}
    return _GONE not in headers and headers.get(_DIGEST) in (None, digest(row.data).hex())


def _lifetime(ttl_s: float | None) -> dict[str, str]:
    """The header that ends a message, never early: the server counts whole seconds."""
    return {_TTL: f"{max(1, math.ceil(ttl_s))}s"} if ttl_s is not None else {}


def _parse(key: str, seq: int, headers: dict[str, str], data: bytes) -> _Manifest:
    if _GONE in headers:
        return _Manifest(seq, None, None, b"")
    try:
        stored = Stored(key, int(headers[_SIZE]), bytes.fromhex(headers[_DIGEST]))
        ttl_s = int(headers.get(_TTL, "0s").removesuffix("s"))
        upload = None
        if _CHUNKS in headers:
            name, chunks, first = headers[_CHUNKS].split()
            upload = _Upload(name, int(chunks), int(first))
    except (KeyError, ValueError) as error:
        raise Corrupt(f"the manifest of {key} is damaged", key=key) from error
    return _Manifest(seq, stored, upload, data, ttl_s)


async def _chain(first: bytes, second: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    yield second
    async for chunk in rest:
        yield chunk
