"""Door: the store keeps what is large or finished: payloads, snapshots, the archive, backups.

Promises, each held by a test of the conformance suite:

- ``put`` is durable when it returns and visible as a whole or not at all; a key is written once (a second put of other bytes
  under it is Conflict, of the same bytes is fine)
- ``get`` streams chunks and checks size and digest; a mismatch is Corrupt, before the last chunk is given out
- a key put with ``ttl_s`` is gone some time after, never before
- keys are paths of letters, digits, ``-``, ``_``, ``.`` and ``/``; the first part names the owner, who alone may write there
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from comity.model.task import Stored


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
