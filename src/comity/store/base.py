"""Door: the store keeps what is large or finished: payloads, snapshots, the archive, backups.

Promises, each held by a test of the conformance suite:

- ``put`` is durable when it returns and visible as a whole or not at all; a key is written once (a second put of other bytes
  under it is Conflict, of the same bytes is fine)
- ``get`` streams chunks and checks size and digest; a mismatch is Corrupt, before the last chunk is given out
- a key put with ``ttl_s`` is gone some time after, never before; put more than once, after the longest
- keys are paths of letters, digits, ``-``, ``_``, ``.`` and ``/``; the first part names the owner, who alone may write there
  (AccessDenied); there are at least two parts
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from typing import Protocol

from comity.errors import AccessDenied, BadInput, Corrupt
from comity.model.codec import DIGEST_SIZE
from comity.model.task import Stored

CHUNK = 256 * 1024
"""Bytes of a chunk, at most."""

_PREFIX = re.compile(r"(?!/|.*(//|\.\.))[A-Za-z0-9._/-]*")
_KEY = re.compile(r"[A-Za-z0-9_-]+(/(?!\.(/|$))[A-Za-z0-9._-]+)+")


def check_key(key: str, owner: str = "") -> str:
    """``key`` if it can be one (an owner and at least one more part, at most 512 characters), else BadInput; AccessDenied if
    ``owner`` is given and the key is not its own."""
    if len(key) > 512 or ".." in key or not _KEY.fullmatch(key):
        raise BadInput(f"store key {key!r} must be parts of letters, digits, '-', '_' and '.', joined by '/'", value=key)
    if owner and not key.startswith(f"{owner}/"):
        raise AccessDenied(f"{owner} may not write {key}: its keys begin with {owner}/", key=key)
    return key


def check_prefix(prefix: str) -> str:
    """``prefix`` if a key may begin with it, else BadInput."""
    if len(prefix) > 512 or not _PREFIX.fullmatch(prefix):
        raise BadInput(f"no store key begins with {prefix!r}", value=prefix)
    return prefix


async def chunks_of(data: bytes | AsyncIterator[bytes], size: int = CHUNK) -> AsyncIterator[bytes]:
    """``data`` in chunks of ``size`` bytes; only the last may be shorter, and none is empty."""
    if isinstance(data, bytes):
        for start in range(0, len(data), size):
            yield data[start : start + size]
        return
    rest = b""
    async for part in data:
        rest += part
        whole = len(rest) - len(rest) % size
        for start in range(0, whole, size):
            yield rest[start : start + size]
        rest = rest[whole:]
    if rest:
        yield rest


async def checked(stored: Stored, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """``chunks`` as they come, the last only once size and digest are right. Raises Corrupt."""
    digest = hashlib.blake2b(digest_size=DIGEST_SIZE)
    size, held = 0, b""
    async for chunk in chunks:
        digest.update(chunk)
        size += len(chunk)
        if size > stored.size:
            break
        if held:
            yield held
        held = chunk
    if size != stored.size or digest.digest() != stored.digest:
        raise Corrupt(f"what is stored as {stored.key} is damaged", key=stored.key)
    if held:
        yield held


class Store(Protocol):
    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, ttl_s: float | None = None) -> Stored:
        """Write; the reference to it. Raises Conflict, TooLarge, Indefinite errors (then put again: it is idempotent)."""
        ...

    def get(self, key: str) -> AsyncIterator[bytes]:
        """The content in chunks. Raises NotFound, Corrupt."""
        ...

    async def read(self, key: str) -> bytes:
        """The content whole. Raises NotFound, Corrupt."""
        ...

    async def delete(self, key: str) -> None:
        """Remove; fine if it is gone already."""
        ...

    async def list(self, prefix: str) -> list[Stored]:
        """What is stored under ``prefix``, sorted by key."""
        ...

    async def close(self) -> None: ...
