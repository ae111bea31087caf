"""Waiting tasks of one capability, in queues by what they demand, and which of these are worth a look."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Any, Generic, TypeVar

from comity.model.capability import Requirements, Strategy
from comity.model.ids import AgentId, TaskId

T = TypeVar("T", bound=tuple[Any, ...])

LOOKS = 256
"""Demands looked at in one go, and dead entries dropped: a few milliseconds."""
FEW = 1024
SWEPT = 4

Key = tuple[str, bytes, Strategy | None, tuple[AgentId, ...]]
"""What makes a demand: capability, requirements as bytes, strategy, agents to avoid."""
Entry = tuple[int, TaskId]
"""A waiting task: rank and id."""


class Heap(Generic[T]):
    """A priority queue whose dead items do not pile up, and are never cleared away all at once. ``alive`` says whether an item
    still matters; one that does not never will.

    When it has grown to twice what was alive, it is swept, a few items with each push: items go from the end of the ``old`` heap
    (what is left of it is a heap still) to the new one if they are alive. It may hold three times what is alive, and ``FEW``."""

    __slots__ = ("_alive", "_limit", "_new", "_old")

    def __init__(self, alive: Callable[[T], bool]) -> None:
        self._alive = alive
        self._new: list[T] = []
        self._old: list[T] = []
        self._limit = FEW

    def __len__(self) -> int:
        return len(self._new) + len(self._old)

    def __iter__(self) -> Iterator[T]:
        yield from self._new
        yield from self._old

    def push(self, item: T) -> None:
        heappush(self._new, item)
        if len(self._new) > self._limit and not self._old:
            self._old, self._new = self._new, self._old
        if self._old:
            self._sweep()

    def _sweep(self) -> None:
        for _ in range(min(SWEPT, len(self._old))):
            item = self._old.pop()
            if self._alive(item):
                heappush(self._new, item)
        if not self._old:
            self._limit = FEW + 2 * len(self._new)

    def lowest(self) -> T | None:
        """The first item, dead or alive; None if there is none."""
        if self._old and (not self._new or self._old[0] < self._new[0]):
            return self._old[0]
        return self._new[0] if self._new else None

    def pop(self) -> T:
        """Take the first item out."""
        from_old = bool(self._old) and (not self._new or self._old[0] < self._new[0])
        return heappop(self._old if from_old else self._new)

    def first(self) -> T | None:
        """The first that is alive; dead ones before it are dropped, but no more than ``LOOKS``: then None, though it is not
        empty."""
        for _ in range(LOOKS):
            item = self.lowest()
            if item is None or self._alive(item):
                return item
            self.pop()
        return None


class Demand:
    """Waiting tasks that ask for the same."""

    __slots__ = ("avoid", "capability", "heap", "key", "needs", "strategy")

    def __init__(self, key: Key, needs: Requirements | None, alive: Callable[[Entry], bool]) -> None:
        self.key = key
        self.capability, _, self.strategy, self.avoid = key
        self.needs = needs
        self.heap: Heap[Entry] = Heap(alive)


class Waiting:
    """The demands on one capability. Those that name one agent are found by it: no other agent's slot concerns them."""

    __slots__ = ("_all", "_dirty", "_named", "_open", "demands")

    def __init__(self) -> None:
        self.demands: dict[Key, Demand] = {}
        self._open: dict[Key, None] = {}
        self._named: dict[AgentId, dict[Key, None]] = {}
        self._dirty: dict[Key, None] = {}
        self._all = False

    def add(self, demand: Demand) -> None:
        self.demands[demand.key] = demand
        self._group(demand)[demand.key] = None

    def remove(self, demand: Demand) -> None:
        del self.demands[demand.key]
        self._dirty.pop(demand.key, None)
        group = self._group(demand)
        del group[demand.key]
        if not group and demand.needs is not None:
            self._named.pop(demand.needs.agent, None)

    def _group(self, demand: Demand) -> dict[Key, None]:
        agent = demand.needs.agent if demand.needs is not None else ""
        return self._named.setdefault(AgentId(agent), {}) if agent else self._open

    def look_at(self, demand: Demand) -> None:
        self._dirty[demand.key] = None

    def freed(self, agent: AgentId) -> None:
        """It may take more than before."""
        self._all = True
        self._dirty.update(self._named.get(agent, {}))

    def wake(self) -> None:
        """Any agent may."""
        self._all = True
        for keys in self._named.values():
            self._dirty.update(keys)

    @property
    def is_dirty(self) -> bool:
        return bool(self._dirty) or (self._all and bool(self._open))

    def take(self, most: int) -> list[Demand]:
        """Up to ``most`` demands that are worth a look, no longer marked so."""
        if self._all and len(self._dirty) < LOOKS:  # once in so many looks, for it takes time
            self._dirty.update(self._open)
            self._all = False
        keys = []
        for key in self._dirty:
            keys.append(key)
            if len(keys) == most:
                break
        for key in keys:
            del self._dirty[key]
        return [self.demands[key] for key in keys]
