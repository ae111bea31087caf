"""What clients asked, what they were told, and in which order: the material the checkers judge."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import msgspec

from comity.errors import ComityError, Indefinite

T = TypeVar("T")


class Operation(msgspec.Struct):
    """One call. ``called`` and ``returned`` are places in one order of all calls and returns, ``began_s`` and ``ended_s``
    virtual time. ``returned`` stays None if the outcome was never learnt (an indefinite error, or the client died): it may
    have taken effect at any time since, or never. ``answer`` is what came back, ``error`` the code of a definite error."""

    client: str
    kind: str
    key: str
    argument: Any
    called: int
    began_s: float
    returned: int | None = None
    ended_s: float | None = None
    answer: Any = None
    error: str = ""

    @property
    def is_known(self) -> bool:
        return self.returned is not None

    def __str__(self) -> str:
        outcome = f"-> {self.error or self.answer!r}" if self.is_known else f"-> ? {self.error}"
        end = f"{self.ended_s:.3f}" if self.ended_s is not None else "..."
        return f"[{self.began_s:.3f} .. {end}] {self.client} {self.kind} {self.key} {self.argument or ''} {outcome}"


class History:
    """All operations of one life, in the order in which they were called."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._order = itertools.count(1)

    def call(self, client: str, kind: str, key: str, argument: Any = None, *, now: float = 0.0) -> Operation:
        """A client asks."""
        operation = Operation(client, kind, key, argument, next(self._order), now)
        self.operations.append(operation)
        return operation

    def returns(self, operation: Operation, answer: Any = None, *, error: str = "", now: float = 0.0) -> None:
        """It is told, for certain: ``answer``, or the definite ``error``."""
        operation.returned = next(self._order)
        operation.ended_s = now
        operation.answer = answer
        operation.error = error

    def unknown(self, operation: Operation, error: str, *, now: float = 0.0) -> None:
        """The call ended, but nobody can say whether it took effect."""
        operation.ended_s = now
        operation.error = error

    async def record(
        self, client: str, kind: str, key: str, awaited: Awaitable[T], *, argument: Any = None,
        answer: Callable[[T], Any] = lambda value: value,
    ) -> T:  # fmt: skip
        """Await ``awaited`` as an operation; ``answer`` makes of its value what the history keeps."""
        loop = asyncio.get_running_loop()
        operation = self.call(client, kind, key, argument, now=loop.time())
        try:
            value = await awaited
        except Indefinite as error:
            self.unknown(operation, error.code, now=loop.time())
            raise
        except ComityError as error:
            self.returns(operation, error=error.code, now=loop.time())
            raise
        self.returns(operation, answer(value), now=loop.time())
        return value

    def by_key(self) -> dict[str, list[Operation]]:
        """The operations on each key. What is linearizable key by key is linearizable as a whole (P-compositionality)."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            found.setdefault(operation.key, []).append(operation)
        return found
