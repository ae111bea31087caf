"""A stream of parts: what a capability that is an async generator yields, on its way to whoever reads it.

Parts are counted from 1 in each attempt. A reader says up to which number it has given them out (``taken``), up to which they
have arrived (``after``), and up to which it has room (``until``). The node sends no more than that, keeps what is not taken, and
makes the generator wait once it keeps enough. Everything a reader says may be said twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from comity.model.ids import TaskId
from comity.model.item import Item

T = TypeVar("T")

PART_LIMIT = 256 * 1024
"""Bytes of one part as JSON."""
KEPT_PARTS = 256
KEPT_BYTES = 1024 * 1024
"""What a node keeps of one stream for readers that are slow or away for a moment."""
WINDOW = 64
"""Parts that a reader has room for beyond what it gave out."""
FOR_MS = 15_000
"""A reader that says nothing for so long is gone."""


@dataclass(frozen=True, slots=True)
class Final(Generic[T]):
    """The last thing a streaming capability yields: ``value`` is the task's result. ``AsyncIterator[str | Final[Report]]``."""

    value: T


@dataclass(frozen=True, slots=True)
class Break:
    """Stands between two parts of a stream. ``missed`` 0: the attempt before was lost or failed, and what follows is attempt
    number ``attempt``, from its beginning. Otherwise at least so many parts of this attempt are not to be had any more."""

    attempt: int
    missed: int = 0


class PartsOffered(Item, frozen=True, tag=130):
    """A node to a task's submitter: this attempt, the task's ``attempt``-th, streams its parts; read them."""

    task: TaskId
    epoch: int
    attempt: int


class ReadParts(Item, frozen=True, tag=131):
    """To the node that runs the attempt: I need parts up to ``taken`` no longer, have those up to ``after``, and room for those
    up to ``until``. ``again``: send once more what came after ``after``. ``for_ms`` 0: I read no longer."""

    ref: int
    task: TaskId
    epoch: int
    taken: int
    after: int
    until: int
    for_ms: int = FOR_MS
    again: bool = False


class Part(Item, frozen=True, tag=132):
    """``body`` is JSON."""

    ref: int
    epoch: int
    number: int
    body: bytes


class PartsEnd(Item, frozen=True, tag=133):
    """The attempt is over, however it ended; it had so many parts."""

    ref: int
    epoch: int
    total: int


class NoParts(Item, frozen=True, tag=134):
    """Parts up to number ``upto`` are kept no longer; -1: here is no such stream at all."""

    ref: int
    epoch: int
    upto: int = -1
