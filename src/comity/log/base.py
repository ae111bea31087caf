"""Door: the log gives commands one order.

Promises, each held by a test of the conformance suite:

- ``append(entry, after)`` succeeds only if the log's tail is ``after`` (compare-and-append), and is durable when it returns
- appends of one process reach the log in the order in which they were started, so several may be in flight
- Conflict is definite: this append did not and will not happen. An Indefinite error means unknown: read to the tail to learn
- indexes start at 1 and have no holes; what is read never changes
- ``read`` and ``follow`` give entries in order from an index on; reading below ``first`` is Corrupt (trimmed)
- ``trim(upto)`` removes entries up to and with ``upto``, never the tail's number: appends go on from it
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple, Protocol


class Item(NamedTuple):
    index: int  # type: ignore[assignment]  # hides tuple.index, which an item has no use for
    data: bytes


class Durability(NamedTuple):
    """What is known of the log's promise to survive a power cut: level verified, asserted or unverified, and why."""

    level: str
    reason: str


class Log(Protocol):
    entry_limit: int
    """Bytes of the largest entry."""
    lag_s: float
    """For so long ``read`` and ``bounds`` may not show an entry that was acknowledged: 0 where there is one copy of the log."""

    async def append(self, entry: bytes, after: int) -> int:
        """The index of the entry: ``after`` + 1. Raises Conflict (the tail is elsewhere), TooLarge, or an Indefinite error."""
        ...

    async def bounds(self) -> tuple[int, int]:
        """Index of the first entry kept and of the last (first = last + 1 if empty). A hint: it may be stale at once."""
        ...

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        """Up to ``limit`` entries following ``after``; empty if there are none (as far as this replica knows).
        Raises Corrupt if ``after`` + 1 was trimmed away or an entry between is missing."""
        ...

    def follow(self, after: int) -> AsyncIterator[list[Item]]:
        """Entries after ``after``, then new ones as they come. Survives reconnects; has its own watchdog."""
        ...

    async def trim(self, upto: int) -> None: ...

    async def durability(self) -> Durability: ...

    async def close(self) -> None: ...
