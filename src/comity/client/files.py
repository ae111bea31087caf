"""What is too large for a message travels through the store: bodies without anybody noticing, files by a reference.

A key holds the digest of its content, so what a process sends twice it stores once. It is kept at least as long as was asked for
and at most twice as long: within that time, a second sender of the same content shares the first one's copy.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

import msgspec

from comity.client.terms import FOREVER, Terms
from comity.errors import BadInput, Conflict, InvalidInput, NotFound, TooLarge
from comity.failpoints import durable
from comity.model.codec import DIGEST_SIZE, UNREADABLE, digest
from comity.model.envelope import Envelope
from comity.model.files import BODY_LIMIT, REFERENCE, FileRef
from comity.model.ids import ProcessId, TaskId
from comity.model.limits import check_seconds
from comity.model.payload import LOG_LIMIT, Stored
from comity.patience import in_time, patiently
from comity.store.base import Store

if TYPE_CHECKING:
    from comity.client.client import Client
    from comity.client.exchange import Exchange

JSON = "application/json"
BODY_S = 3600.0
FILE_S = 86_400.0
READ_BYTES = 1024 * 1024
REMEMBERED = 256

T = TypeVar("T")


def is_large(data: bytes) -> bool:
    """Whether a body has to go by the store. Raises TooLarge if it cannot even so."""
    if len(data) > BODY_LIMIT:
        raise TooLarge(f"a message of {len(data)} bytes: pass a FileRef of put_file", limit=BODY_LIMIT)
    return len(data) > LOG_LIMIT


class Moved:
    """``farthest``: how many bytes of a content any try has moved."""

    def __init__(self) -> None:
        self.farthest = 0

    async def counting(self, content: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        size = 0
        async for chunk in content:
            yield chunk
            size += len(chunk)
            self.farthest = max(self.farthest, size)


class Depot:
    """A process's large things in the store. ``wall`` gives seconds since 1970. The store may be away for ``patience_s``, unless
    that is ``hopeless``."""

    def __init__(
        self, store: Store, process: ProcessId, wall: Callable[[], float], patience_s: float,
        hopeless: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self._store = store
        self._process = process
        self._wall = wall
        self._patience_s = patience_s
        self._hopeless = hopeless
        self._known: OrderedDict[str, Stored] = OrderedDict()

    def _key(self, kind: str, mark: bytes, ttl_s: float) -> str:
        return f"{self._process}/{kind}/{mark.hex()}/{round(ttl_s)}-{int(self._wall() // ttl_s)}"

    async def _put(self, write: str, key: str, data: bytes | AsyncIterator[bytes], ttl_s: float) -> Stored:
        with durable(write):
            return await self._store.put(key, data, ttl_s=ttl_s)

    async def _patiently(self, work: Callable[[], Awaitable[T]], progress: Callable[[], object] = lambda: None) -> T:
        """Do what may be done twice."""
        return await patiently(work, self._patience_s, hopeless=self._hopeless, progress=progress)

    # Bodies of messages

    async def carried(self, data: bytes, within_s: float | None = None) -> tuple[bytes, str]:
        """``data``, JSON, as the body of an envelope, and its content type. Raises TooLarge, and Indefinite errors if it is not
        stored within ``within_s`` seconds."""
        if not is_large(data):
            return data, JSON
        key = self._key("bodies", digest(data), BODY_S)
        stored = self._known.get(key)
        if stored is None:
            work = partial(self._put, "body.put", key, data, BODY_S * 2)
            if within_s is None:
                stored = await self._patiently(work)
            else:
                until, late = asyncio.get_running_loop().time() + within_s, f"not stored within {within_s:g} s"
                about = f"a body of {len(data)} bytes was {late}"
                stored = await in_time(work, until, hopeless=self._hopeless, late=about)
            self._known[key] = stored
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        return msgspec.msgpack.encode(stored), REFERENCE

    async def fetched(self, envelope: Envelope) -> Envelope:
        """``envelope`` with its body in place of a reference. Raises InvalidInput for a reference to what is not its sender's,
        TooLarge, NotFound, Corrupt, Indefinite errors."""
        if envelope.content_type != REFERENCE:
            return envelope
        try:
            stored = msgspec.msgpack.decode(envelope.body, type=Stored)
        except UNREADABLE as error:
            raise InvalidInput(f"the body is no reference: {error}") from error
        if not stored.key.startswith(f"{envelope.sender.partition('/')[0]}/"):
            raise InvalidInput(f"the body refers to {stored.key}, which is not its sender's", key=stored.key)
        if stored.size > BODY_LIMIT:
            raise TooLarge(f"a message of {stored.size} bytes", limit=BODY_LIMIT)
        body = await self._patiently(lambda: self._store.read(stored.key))
        if digest(body) != stored.digest:
            raise InvalidInput(f"the body refers to something else than what is stored as {stored.key}", key=stored.key)
        return msgspec.structs.replace(envelope, body=body, content_type=JSON)

    # Files

    async def put(self, path: Path, ttl_s: float) -> FileRef:
        size, mark = await asyncio.to_thread(_measured, path)
        key = self._key("files", mark, ttl_s)
        stored = next(iter(await self._patiently(lambda: self._store.list(key))), None)
        if stored is None:
            moved = Moved()
            write = lambda: self._put("file.put", key, moved.counting(_read(path)), ttl_s * 2)  # noqa: E731
            stored = await self._patiently(write, lambda: moved.farthest)
        if stored.digest != mark:
            await self._store.delete(key)
            raise Conflict(f"{path} changed while it was read", path=str(path))
        return FileRef(path.name, size, mark.hex(), key)

    async def get(self, ref: FileRef, path: Path) -> None:
        part = path.with_name(f".{path.name}.{ref.digest[:12]}.part")
        moved = Moved()
        try:
            await self._patiently(lambda: self._write(ref, part, moved), lambda: moved.farthest)
            with durable("file.take"):
                await asyncio.to_thread(os.replace, part, path)
        finally:
            with suppress(FileNotFoundError):
                part.unlink()

    async def _write(self, ref: FileRef, part: Path, moved: Moved) -> None:
        mark, waiting = hashlib.blake2b(digest_size=DIGEST_SIZE), bytearray()
        with await asyncio.to_thread(part.open, "wb") as file:
            async for chunk in moved.counting(self._store.get(ref.key)):
                waiting += chunk
                if len(waiting) >= READ_BYTES:
                    await asyncio.to_thread(_append, file, waiting, mark)
                    waiting = bytearray()
            await asyncio.to_thread(_append, file, waiting, mark)
        if mark.hexdigest() != ref.digest:
            raise InvalidInput(f"what is stored as {ref.key} is not what {ref.name} refers to", key=ref.key)


def _measured(path: Path) -> tuple[int, bytes]:
    mark = hashlib.blake2b(digest_size=DIGEST_SIZE)
    size = 0
    with path.open("rb") as file:
        while data := file.read(READ_BYTES):
            mark.update(data)
            size += len(data)
    return size, mark.digest()


async def _read(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while data := await asyncio.to_thread(file.read, READ_BYTES):
            yield data


def _append(file: BinaryIO, data: bytearray, mark: hashlib.blake2b) -> None:
    mark.update(data)
    file.write(data)


async def put_file(self: Client, path: str | os.PathLike[str], *, ttl_s: float = FILE_S) -> FileRef:
    """Store a file, whatever its size, and give what stands for it: pass that on, in an input, a result or a message. It is read
    twice, in small pieces, and stored once however often it is put. Kept for ``ttl_s`` seconds at least, and at most twice as
    long. Raises NotFound, BadInput (it cannot be read), Conflict (it changed meanwhile), Indefinite errors."""
    self._exchange.check_open()
    try:
        return await self._exchange.depot.put(Path(path), check_seconds(ttl_s, "ttl_s"))
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else BadInput
        raise kind(f"cannot read {os.fspath(path)}: {error.strerror}", path=os.fspath(path)) from error


async def get_file(self: Client, ref: FileRef | dict[str, Any], path: str | os.PathLike[str]) -> Path:
    """Write the file that ``ref`` stands for to ``path`` (in a folder: under its own name), whole or not at all; where it is.
    Raises NotFound (expired), Corrupt, BadInput (it cannot be written), Indefinite errors."""
    self._exchange.check_open()
    try:
        known = msgspec.convert(ref, FileRef)
        bytes.fromhex(known.digest)
    except (msgspec.ValidationError, ValueError) as error:
        raise BadInput(f"not a reference to a file: {error}") from error
    target = Path(path)
    try:
        if await asyncio.to_thread(target.is_dir):
            target /= Path(known.name).name or "file"
        await self._exchange.depot.get(known, target)
    except OSError as error:
        raise BadInput(f"cannot write {target}: {error.strerror}", path=str(target)) from error
    return target


async def stored_input(exchange: Exchange, task: TaskId, payload: bytes, agreed: Terms, until: float) -> Stored:
    """Put an input that is too large for the log into the store, for as long as its task may want it. Raises Indefinite errors
    ``until`` it is late (loop time)."""
    settings, now = exchange.settings, exchange.loop.time()
    waits_s = agreed.deadline - now if agreed.deadline < FOREVER else settings.keep_finished_s + max(0.0, agreed.start - now)
    ttl_s = max(settings.keep_finished_s, settings.keep_dead_s) + waits_s

    async def put() -> Stored:
        with durable("input.put"):
            return await exchange.store.put(f"{exchange.bus.process}/inputs/{task}", payload, ttl_s=ttl_s)

    return await exchange.timely(put, min(until, agreed.deadline))
