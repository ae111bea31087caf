"""Is a history linearizable: can each operation be given one moment between its call and its return, so that the answers are
those of one copy that did them one after another?

Wing and Gong's search (1993) with Lowe's memory of configurations already tried (2017); histories are split by key first
(P-compositionality, Horn and Kroening 2015). Exponential at worst: keep keys under some 300 operations.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import NamedTuple, Protocol

from comity.sim.history import Operation


class Model(Protocol):
    """What one copy would answer."""

    def start(self) -> Hashable: ...

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        """The state after ``operation`` if one copy in ``state`` could have answered so; None if not. An operation whose
        outcome is unknown must be possible in every state."""
        ...


class Unlinearizable(NamedTuple):
    """``prefix`` is the longest order that was possible, ``stuck`` the operations of which none can come next."""

    key: str
    prefix: list[Operation]
    stuck: list[Operation]

    def __str__(self) -> str:
        lines = [f"no order of the operations on {self.key} explains their answers"]
        lines += ["possible so far:", *(f"  {operation}" for operation in self.prefix)]
        return "\n".join([*lines, "but then none of:", *(f"  {operation}" for operation in self.stuck)])


class _Event:
    """A call or a return in a linked list; taking an operation out takes out both of its events."""

    __slots__ = ("after", "before", "match", "number")

    def __init__(self, number: int, match: _Event | None) -> None:
        self.number = number  # of the operation
        self.match = match  # of a call: its return; of a return: None
        self.before: _Event = self
        self.after: _Event | None = None


def _events(operations: list[Operation]) -> _Event:
    """A head before all events in their order; returns that never came stand at the end."""
    latest = max((op.returned or op.called for op in operations), default=0)
    order: list[tuple[int, _Event]] = []
    for number, operation in enumerate(operations):
        end = _Event(number, None)
        order.append((operation.returned if operation.returned is not None else latest + 1 + number, end))
        order.append((operation.called, _Event(number, end)))
    order.sort(key=lambda pair: pair[0])
    head = _Event(-1, None)
    last = head
    for _, event in order:
        last.after = event
        event.before = last
        last = event
    return head


def _unlink(event: _Event) -> None:
    event.before.after = event.after
    if event.after is not None:
        event.after.before = event.before


def _relink(event: _Event) -> None:
    event.before.after = event
    if event.after is not None:
        event.after.before = event


def check(operations: list[Operation], model: Model, key: str = "") -> Unlinearizable | None:
    """None if ``operations`` (all on one key) are linearizable under ``model``, else where every order gets stuck."""
    head = _events(operations)
    state = model.start()
    done = 0  # bit n: operation n has its moment
    tried: set[tuple[int, Hashable]] = set()
    taken: list[tuple[_Event, Hashable, int]] = []
    best: list[int] = []
    stuck: list[int] = []
    event = head.after
    while head.after is not None:
        if event is not None and event.match is not None:
            following = model.step(state, operations[event.number])
            if following is not None and (done | 1 << event.number, following) not in tried:
                tried.add((done | 1 << event.number, following))
                taken.append((event, state, done))
                state, done = following, done | 1 << event.number
                _unlink(event.match)
                _unlink(event)
                event = head.after
            else:
                event = event.after
            continue
        if len(taken) >= len(best):
            best = [past.number for past, _, _ in taken]
            stuck = _open(head)
        if not taken:
            return Unlinearizable(key, [operations[n] for n in best], [operations[n] for n in stuck])
        event, state, done = taken.pop()
        assert event.match is not None
        _relink(event)
        _relink(event.match)
        event = event.after
    return None


def _open(head: _Event) -> list[int]:
    """Operations that could come next: those called before the first return."""
    numbers = []
    event = head.after
    while event is not None and event.match is not None:
        numbers.append(event.number)
        event = event.after
    return numbers
