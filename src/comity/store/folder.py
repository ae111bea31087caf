"""The store as files of one folder.

    values/OWNER/PART/NAME=     content, then a label: its size and digest, when it expires, and a checksum of the label
    coming/                     what is being written
    network                     the id of the network whose store it is, where several machines share the folder

A file is written aside, fsynced and moved to its name if that is free; then its folder is fsynced. ``=`` ends a file's name
because no key has one, so a key may be the start of another.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import hashlib
import os
import struct
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from comity.errors import AccessDenied, BadSettings, Conflict, Corrupt, Disconnected, ForeignData, NotFound, Unreachable
from comity.failpoints import durable
from comity.model.codec import DIGEST_SIZE
from comity.model.task import Stored
from comity.store.base import CHUNK, check_key, check_prefix, checked, chunks_of

_LABEL = struct.Struct(f"<4sQQ{DIGEST_SIZE}s")
_MARK = b"COM1"
_LABEL_SIZE = _LABEL.size + 4
_ABANDONED_S = 86_400.0
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)

T = TypeVar("T")


class _Label(NamedTuple):
    size: int
    expires_ms: int
    digest: bytes

    def is_before(self, other: _Label) -> bool:
        """Whether what it stands for goes before what ``other`` stands for."""
        return self.expires_ms != 0 and not 0 < other.expires_ms <= self.expires_ms

    def encode(self) -> bytes:
        body = _LABEL.pack(_MARK, self.size, self.expires_ms, self.digest)
        return body + zlib.crc32(body).to_bytes(4, "little")


class FolderStore:
    """One process's door to a folder. ``owner``: the process, if it may write under its own name only; ``wall``: UTC seconds."""

    def __init__(self, root: Path, owner: str = "", wall: Callable[[], float] = time.time) -> None:
        self._values = root / "values"
        self._coming = root / "coming"
        self._owner = owner
        self._wall = wall
        self._closed = False

    @classmethod
    async def open(cls, root: Path, owner: str = "", wall: Callable[[], float] = time.time) -> FolderStore:
        """Open the folder, or make it; removes what a crash left half written a day ago. Raises Unreachable."""
        store = cls(root, owner, wall)
        await store._do(store._prepare)
        return store

    @classmethod
    async def join(cls, root: Path, owner: str = "", *, network_id: str = "") -> FolderStore:
        """Open a folder that several machines share. ``network_id``: make it if need be, for that network; else it must be there.
        Raises BadSettings (it is not, or is no network's), ForeignData (another network's), Unreachable."""
        store = cls(root, owner)
        mark = root / "network"
        if not network_id and not await store._do(mark.exists):
            said = f"{root} is not here, or no network's store: it must be the folder that the controllers have, shared"
            raise BadSettings(said, setting="doors", value=str(root))
        await store._do(store._prepare)
        found = await store._do(store._mark, mark, network_id) if network_id else ""
        if found != network_id:
            raise ForeignData(f"{root} is the store of network {found}, not {network_id}", path=str(root))
        return store

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, ttl_s: float | None = None) -> Stored:
        check_key(key, self._owner)
        digest, size = hashlib.blake2b(digest_size=DIGEST_SIZE), 0
        file = await self._do(self._begin)
        try:
            async for chunk in chunks_of(data, 4 * CHUNK):
                digest.update(chunk)
                size += len(chunk)
                await self._do(file.write, chunk)
            expires_ms = int((self._wall() + ttl_s) * 1000) + 1 if ttl_s is not None else 0
            label = _Label(size, expires_ms, digest.digest())
            await self._do(self._finish, file, label, key)
        finally:
            await asyncio.to_thread(_discard, file)
        return Stored(key, size, label.digest)

    async def get(self, key: str) -> AsyncIterator[bytes]:
        check_key(key)
        file, label = await self._do(self._look_up, key)
        try:
            async for chunk in checked(Stored(key, label.size, label.digest), self._content(file, label.size)):
                yield chunk
        finally:
            file.close()

    async def read(self, key: str) -> bytes:
        return b"".join([chunk async for chunk in self.get(key)])

    async def delete(self, key: str) -> None:
        await self._do(self._remove, self._path(check_key(key, self._owner)))

    async def list(self, prefix: str) -> list[Stored]:
        """As promised; a file whose label is damaged is listed with an empty digest, and reading it is Corrupt."""
        found = await self._do(self._scan, check_prefix(prefix))
        return sorted(found, key=lambda stored: stored.key)

    async def close(self) -> None:
        self._closed = True

    async def _do(self, work: Callable[..., T], *args: Any) -> T:
        """Run blocking ``work`` in a thread."""
        if self._closed:
            raise Disconnected("the store is closed")
        try:
            return await asyncio.to_thread(work, *args)
        except OSError as error:
            kind = AccessDenied if error.errno in _FORBIDDEN else Unreachable
            raise kind(f"the store's folder: {error.strerror}", path=str(error.filename)) from error

    def _path(self, key: str) -> Path:
        return self._values / f"{key}="

    def _prepare(self) -> None:
        for folder in (self._values, self._coming):
            folder.mkdir(parents=True, exist_ok=True)
        for file in self._coming.iterdir():
            with contextlib.suppress(FileNotFoundError):  # another process has just finished it
                if self._wall() - file.stat().st_mtime > _ABANDONED_S:
                    file.unlink()

    def _mark(self, mark: Path, network_id: str) -> str:
        """Leave the network's id, unless one is there; that which then is."""
        file = self._begin()
        try:
            file.write(network_id.encode())
            file.flush()
            os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError), durable("folder.mark"):
                os.link(file.name, mark)
            _sync_folder(mark.parent)
        finally:
            _discard(file)
        return mark.read_text()

    def _begin(self) -> BinaryIO:
        handle, path = tempfile.mkstemp(dir=self._coming)
        os.close(handle)
        return open(path, "wb")

    def _finish(self, file: BinaryIO, label: _Label, key: str) -> None:
        """Make what was written durable, and visible as ``key``."""
        with durable("folder.write"):
            file.write(label.encode())
            file.flush()
            os.fsync(file.fileno())
        path = self._path(key)
        _make_folder(path.parent, self._values)
        with _locked(self._values):
            there = self._label_of(path)
            if there is not None and (there.size, there.digest) != (label.size, label.digest):
                raise Conflict(f"{key} holds something else already", key=key)
            if there is None or there.is_before(label):
                with durable("folder.place"):
                    os.replace(file.name, path)
        _sync_folder(path.parent)

    def _look_up(self, key: str) -> tuple[BinaryIO, _Label]:
        try:
            file = self._path(key).open("rb")
        except FileNotFoundError:
            raise NotFound(f"nothing is stored as {key}", key=key) from None
        try:
            label = _read_label(file)
            if self._is_over(label):
                raise NotFound(f"{key} has expired", key=key)
            file.seek(0)
        except BaseException as error:
            file.close()
            if isinstance(error, Corrupt):
                raise Corrupt(f"what is stored as {key} is damaged: {error.message}", key=key) from error
            raise
        return file, label

    async def _content(self, file: BinaryIO, size: int) -> AsyncIterator[bytes]:
        while size > 0:
            chunk = await self._do(file.read, min(CHUNK, size))
            size -= len(chunk) or size
            yield chunk

    def _label_of(self, path: Path) -> _Label | None:
        """The label of the value at ``path``, None if it is over or gone. Raises Corrupt."""
        try:
            with path.open("rb") as file:
                label = _read_label(file)
        except FileNotFoundError:
            return None
        return None if self._is_over(label) else label

    def _is_over(self, label: _Label) -> bool:
        return label.expires_ms != 0 and self._wall() * 1000 > label.expires_ms

    def _scan(self, prefix: str) -> Sequence[Stored]:
        found = []
        for path in (self._values / prefix.rpartition("/")[0]).rglob("*="):
            key = path.relative_to(self._values).as_posix()[:-1]
            if not key.startswith(prefix):
                continue
            try:
                label = self._label_of(path)
            except Corrupt:
                with contextlib.suppress(FileNotFoundError):  # it goes in this moment
                    found.append(Stored(key, max(0, path.stat().st_size - _LABEL_SIZE), b""))
                continue
            if label is not None:
                found.append(Stored(key, label.size, label.digest))
            else:
                self._expire(path)
        return found

    def _expire(self, path: Path) -> None:
        with _locked(self._values):
            if self._label_of(path) is None:
                with durable("folder.expire"):
                    path.unlink(missing_ok=True)

    def _remove(self, path: Path) -> None:
        with _locked(self._values), durable("folder.delete"):
            path.unlink(missing_ok=True)
        if path.parent.exists():
            _sync_folder(path.parent)


def _read_label(file: BinaryIO) -> _Label:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - _LABEL_SIZE))
    data = file.read(_LABEL_SIZE)
    body, check = data[:-4], data[-4:]
    if len(data) < _LABEL_SIZE or zlib.crc32(body).to_bytes(4, "little") != check or body[:4] != _MARK:
        raise Corrupt("its label is torn or altered")
    _, size, expires_ms, digest = _LABEL.unpack(body)
    if end - _LABEL_SIZE != size:
        raise Corrupt(f"it has {end - _LABEL_SIZE} bytes, not {size}")
    return _Label(size, expires_ms, digest)


def _make_folder(folder: Path, root: Path) -> None:
    """Make ``folder`` below ``root``, durably."""
    missing = [folder]
    while missing[-1] != root:
        missing.append(missing[-1].parent)
    for path in reversed(missing[:-1]):
        if not path.exists():
            path.mkdir(exist_ok=True)
            _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Alone in ``folder``, over all processes: what is over may be taken away only while nobody puts a new value there."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _discard(file: BinaryIO) -> None:
    file.close()
    Path(file.name).unlink(missing_ok=True)
