"""Door: the registry says who is here and what they can do. Keys are paths of two parts or more (``nodes/NODE``,
``agents/NODE/3``, ``schemas/NODE/HASH``), values bytes; the second part names the owner, who alone may write there, beside
the controllers. Its expiry is a hint for discovery, never a decision.

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

from comity.errors import BadInput
from comity.model.ids import check_token


def split(key: str) -> list[str]:
    """The parts of a key, or BadInput."""
    parts = key.split("/")
    if len(parts) < 2:
        raise BadInput(f"{key!r} is not a registry key: it needs a kind and an owner, as in nodes/NODE", value=key)
    return [check_token(part, "part of a registry key") for part in parts]


def check_prefix(prefix: str) -> str:
    """``prefix`` if a key may start with it, or BadInput."""
    for part in prefix.split("/")[:-1]:
        check_token(part, "part of a registry key")
    return prefix


class Record(msgspec.Struct, frozen=True):
    key: str
    value: bytes
    revision: int


class Change(msgspec.Struct, frozen=True):
    """``value`` None: the key is gone, as of ``revision``."""

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
        """Records whose key starts with ``prefix`` (any string), sorted by key, and the revision they are complete as of."""
        ...

    def watch(self, prefix: str) -> AsyncIterator[Changes]:
        """First a list of all records under ``prefix`` as changes (maybe empty), then every change, batched as they come.
        Survives reconnects and silent servers; ends only with ``aclose``, or with the door."""
        ...

    async def close(self) -> None: ...
