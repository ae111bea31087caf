"""Where backups lie: a folder, or a bucket of anything that speaks S3. Names are paths; each holds bytes that are written whole
and once.

    manifests/NAME.json     one a backup, written last: a backup is there as a whole or not at all
    pieces/AB/ABCD...       what backups are made of, by digest; equal pieces are there once, whosesoever they are
    restores/ID.json        networks restored from here, and their generation
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypeVar

from comity.errors import BadInput, Conflict, NotFound, Unreachable

T = TypeVar("T")


class Target(Protocol):
    async def put(self, name: str, data: bytes) -> None:
        """Write, durably and whole. Raises Conflict if it is there and no piece, NotFound (no such bucket), AccessDenied,
        Unreachable."""
        ...

    async def get(self, name: str) -> bytes:
        """Raises NotFound, AccessDenied, Unreachable."""
        ...

    async def list(self, folder: str) -> dict[str, int]:
        """Names in ``folder`` (its last part with a slash), at any depth, and their sizes in bytes."""
        ...


def open_target(where: str, *, create: bool = False) -> Target:
    """``s3://BUCKET/PREFIX``, or a folder; ``create``: make the folder if it is missing. Raises NotFound, BadInput,
    BadSettings."""
    if where.startswith("s3://"):
        from comity.backup.s3 import S3Target

        return S3Target(where)
    if "://" in where:
        raise BadInput(f"backups go to a folder or to s3://BUCKET/PREFIX, not to {where}", value=where)
    root = Path(where).expanduser()
    if not create and not root.is_dir():
        raise NotFound(f"there is no folder {root}", path=str(root))
    return FolderTarget(root)


class FolderTarget:
    """A folder of this machine. Files are for their owner's eyes only: payloads may be anything."""

    def __init__(self, root: Path) -> None:
        self._root = root

    async def put(self, name: str, data: bytes) -> None:
        await _do(self._put, name, data)

    async def get(self, name: str) -> bytes:
        return await _do(self._get, name)

    async def list(self, folder: str) -> dict[str, int]:
        return await _do(self._list, folder)

    def _put(self, name: str, data: bytes) -> None:
        path = self._root / name
        missing = [parent for parent in path.parents if not parent.exists()]
        for parent in reversed(missing):
            parent.mkdir(mode=0o700, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if name.startswith("pieces/"):
                os.replace(part, path)
            else:
                os.link(part, path)
        except FileExistsError:
            raise Conflict(f"{path} is there already", path=str(path)) from None
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
        for parent in {path.parent, *(made.parent for made in missing)}:
            _sync(parent)

    def _get(self, name: str) -> bytes:
        path = self._root / name
        try:
            return path.read_bytes()
        except FileNotFoundError:
            raise NotFound(f"there is no {path}", path=str(path)) from None

    def _list(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for at, _, files in os.walk(self._root / folder):
            for file in files:
                if not file.startswith("."):  # one being written, or left by a crash
                    path = Path(at, file)
                    found[path.relative_to(self._root).as_posix()] = path.stat().st_size
        return found


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


async def _do(work: Callable[..., T], *args: Any) -> T:
    try:
        return await asyncio.to_thread(work, *args)
    except OSError as error:
        raise Unreachable(f"the backup's folder: {error.strerror}", path=str(error.filename)) from error
