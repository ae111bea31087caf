"""Door: the registry says who is here and what they can do. Keys are paths (``nodes/ID``, ``agents/NODE/3``,
``schemas/HASH``), values bytes. Its expiry is a hint for discovery, never a decision.

Promises, each held by a test of the conformance suite:

- ``put`` with ``expect`` is compare-and-set on the key's revision (0: must not exist), else Conflict
- revisions grow over the whole registry; a key's revision is the one its last change got
- a record put with ``ttl_s`` is gone ``ttl_s`` after its last put, not before, and at most ``lease_granularity_s`` + 1 s later;
  its end shows in watches as a deletion
- ``list`` is complete as of the revision it returns
- ``watch`` from a revision misses nothing and repeats nothing: on a reconnect, a silent server or a compaction it lists again
  and yields the difference; it yields at least the first answer even if nothing ever changes
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec


class Record(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    revision: int


class Change(msgspec.Struct, frozen=True):
    """``value`` None: the key is gone."""

    key: str
    value: bytes | None
    revision: int


Changes = list[Change]
"""Changes that came together, in order."""
Listing = tuple[list[Record], int]
"""Records sorted by key, and the revision they are complete as of."""


class Registry(Protocol):
    lease_granularity_s: float

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        """Write a record; its new revision. Raises Conflict (definite), Indefinite errors when the answer is lost."""
        ...

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        """Remove a record; fine if it is gone already, Conflict if ``expect`` does not match."""
        ...

    async def get(self, key: str) -> Record | None: ...

    async def list(self, prefix: str) -> Listing:
        """Records whose key starts with ``prefix``, sorted by key, and the revision they are complete as of."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[Changes]:
        """First a list of all records under ``prefix`` as changes (maybe empty), then every change, batched as they come.
        Survives reconnects and silent servers; ends only with ``aclose``."""
        ...

    async def close(self) -> None: ...
