"""Ordered sets of agents from which one is taken in constant time, however many there are.

A ``Queues`` holds its members in first-in, first-out queues, one per level; the lowest level comes first, and whoever was
chosen goes to the back of its queue. What a level means (attempts in flight, a score, nothing) is a function given at
construction. Which levels are occupied is one integer, a bit per level, so the lowest is found by arithmetic, not by a
search. A ``Urn`` draws at random by weight, exactly: members of similar weight (same power of two) share a class; a class is
drawn by its upper bound, a member of it uniformly, and kept with probability weight / bound, which is at least one half.

Every member has a level, also while it cannot take work (``OUT``); ``refresh`` after a change of the candidate puts it in
its place. Membership is decided outside. Iteration is by insertion order throughout, so the same events give the same choices.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import Protocol

from comity.model.capability import AgentRecord
from comity.model.ids import AgentId, ProcessId

OUT = -1
"""Level of a member that cannot take work now."""
LEVELS = 4096
"""Levels of a ``Queues``; those beyond the last share it."""

Match = Callable[[AgentRecord], bool]


class Host:
    """A node as scheduling sees it. ``free`` is log2 of its free CPU and memory (0.0: one core and one GiB). ``behind`` are those
    of its agents that have yet to learn what it is now."""

    __slots__ = ("behind", "candidates", "eligible", "free", "id")

    def __init__(self, node: ProcessId) -> None:
        self.id = node
        self.eligible = False
        self.free = 0.0
        self.candidates: dict[Candidate, None] = {}
        self.behind: list[Candidate] = []


class Candidate:
    """An agent as scheduling sees it. Invariants: ``load = held + calls``; ``live`` while the agent is active on an eligible
    node; ``ready`` while it is live and ``load < limit``. ``record`` is None between a ``take`` and the agent's announcement.
    ``names`` are the capabilities it offers; ``weight`` is what ``weighted_random`` draws by, between LIGHTEST and HEAVIEST;
    ``free`` is its node's, as it last learned."""

    __slots__ = (
        "calls", "free", "held", "host", "id", "limit", "live", "load", "names", "pools", "ready", "record", "weight",
    )  # fmt: skip

    def __init__(self, agent: AgentId) -> None:
        self.id = agent
        self.record: AgentRecord | None = None
        self.host: Host | None = None
        self.names: tuple[str, ...] = ()
        self.limit = 0
        self.free = 0.0
        self.weight = 1.0
        self.held = 0
        self.calls = 0
        self.load = 0
        self.live = False
        self.ready = False
        self.pools: list[Pool] = []

    def __repr__(self) -> str:
        return f"Candidate({self.id!r}, load={self.load}, limit={self.limit}, live={self.live})"


class Pool(Protocol):
    """What choosing needs of an ordered set of candidates."""

    def __len__(self) -> int: ...

    def __contains__(self, candidate: Candidate) -> bool: ...

    def add(self, candidate: Candidate) -> None: ...

    def discard(self, candidate: Candidate) -> None: ...

    def refresh(self, candidate: Candidate) -> None:
        """Put a member where it belongs now."""
        ...

    def pick(
        self, hidden: Collection[Candidate] = (), match: Match | None = None, tries: int = 0, key: str = ""
    ) -> Candidate | None:
        """The next one that is ready, not hidden and accepted by ``match``, which is asked at most ``tries`` times. A ``Ring``
        goes by ``key``."""
        ...

    def ranked(self, key: str = "") -> Iterator[Candidate]:
        """Those that are ready, best first (an ``Urn``: heavier classes first; ``Pairs``: in no order). Do not change the pool
        meanwhile."""
        ...

    def members(self) -> Iterator[Candidate]: ...

    def check(self) -> None: ...


class Queues:
    """First-in, first-out queues by level; see the module's text. ``level`` is called for ready candidates only."""

    __slots__ = ("_level", "_levels", "_occupied", "_queues")

    def __init__(self, level: Callable[[Candidate], int]) -> None:
        self._level = level
        self._levels: dict[Candidate, int] = {}
        self._queues: dict[int, OrderedDict[Candidate, None]] = {}
        self._occupied = 0

    def __len__(self) -> int:
        return len(self._levels)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._levels

    def add(self, candidate: Candidate) -> None:
        self._levels[candidate] = OUT
        self.refresh(candidate)

    def discard(self, candidate: Candidate) -> None:
        old = self._levels.pop(candidate, OUT)
        if old != OUT:
            self._leave(candidate, old)

    def refresh(self, candidate: Candidate) -> None:
        self.place(candidate, self._level(candidate) if candidate.ready else OUT)

    def place(self, candidate: Candidate, level: int) -> None:
        """Put it at the back of ``level``'s queue, unless it stands there already."""
        if level >= LEVELS:
            level = LEVELS - 1
        old = self._levels.get(candidate, OUT)
        if level == old:
            return
        if old != OUT:
            self._leave(candidate, old)
        if level != OUT:
            queue = self._queues.get(level)
            if queue is None:
                queue = self._queues[level] = OrderedDict()
            if not queue:
                self._occupied |= 1 << level
            queue[candidate] = None
        self._levels[candidate] = level

    def _leave(self, candidate: Candidate, level: int) -> None:
        queue = self._queues[level]
        del queue[candidate]
        if not queue:
            self._occupied ^= 1 << level

    def lowest(self) -> int:
        """The lowest occupied level, or OUT."""
        return (self._occupied & -self._occupied).bit_length() - 1

    def pick(
        self, hidden: Collection[Candidate] = (), match: Match | None = None, tries: int = 0, key: str = ""
    ) -> Candidate | None:
        if not hidden and match is None:
            occupied = self._occupied
            if not occupied:
                return None
            queue = self._queues[(occupied & -occupied).bit_length() - 1]
            first = next(iter(queue))
            queue.move_to_end(first)
            return first
        found = first_of(self.ranked(), hidden, match, tries)
        if found is not None:
            self.rotate(found)
        return found

    def rotate(self, candidate: Candidate) -> None:
        self._queues[self._levels[candidate]].move_to_end(candidate)

    def ranked(self, key: str = "") -> Iterator[Candidate]:
        occupied = self._occupied
        while occupied:
            lowest = occupied & -occupied
            yield from self._queues[lowest.bit_length() - 1]
            occupied ^= lowest

    def level_of(self, candidate: Candidate) -> int:
        return self._levels[candidate]

    def members(self) -> Iterator[Candidate]:
        return iter(self._levels)

    def check(self) -> None:
        occupied = 0
        for level, queue in self._queues.items():
            occupied |= bool(queue) << level
            assert all(self._levels[candidate] == level for candidate in queue), "a candidate stands in a foreign queue"
        assert occupied == self._occupied, "the occupied levels are miscounted"
        for candidate, level in self._levels.items():
            now = min(self._level(candidate), LEVELS - 1) if candidate.ready else OUT
            assert level == now, f"{candidate} was not refreshed: {level}, not {now}"
            assert level == OUT or candidate in self._queues[level]


def first_of(
    candidates: Iterator[Candidate], hidden: Collection[Candidate], match: Match | None, tries: int
) -> Candidate | None:
    """The first that is not hidden and accepted by ``match``, asked at most ``tries`` times."""
    for candidate in candidates:
        if candidate in hidden:
            continue
        if match is None:
            return candidate
        if candidate.record is not None and match(candidate.record):
            return candidate
        tries -= 1
        if tries <= 0:
            return None
    return None


HEAVIEST = 2.0**16
LIGHTEST = 2.0**-8
"""Weights are held between these: none is zero, and none drowns all others beyond a double's precision."""
_CLASSES = 25
_REJECTIONS = 64
"""Then whoever is drawn is taken, which happens once in 2^64 draws, or to a source of numbers that is stuck."""
_UNITS = 0.5 / LIGHTEST
"""A weight times this is at least half of, and less than, 2^class."""


def _class_of(weight: float) -> int:
    return math.frexp(weight)[1] + 7


class Urn:
    """Draws with probability proportional to ``candidate.weight``; see the module's text."""

    __slots__ = ("_classes", "_occupied", "_places", "_random", "_total")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._places: dict[Candidate, tuple[int, int]] = {}
        self._classes: list[list[Candidate]] = [[] for _ in range(_CLASSES)]
        self._occupied = 0
        self._total = 0

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._places

    def add(self, candidate: Candidate) -> None:
        self._places[candidate] = (OUT, 0)
        self.refresh(candidate)

    def discard(self, candidate: Candidate) -> None:
        old, place = self._places.pop(candidate, (OUT, 0))
        if old != OUT:
            self._leave(old, place)

    def refresh(self, candidate: Candidate) -> None:
        new = _class_of(candidate.weight) if candidate.ready else OUT
        old, place = self._places[candidate]
        if new == old:
            return
        if old != OUT:
            self._leave(old, place)
        if new == OUT:
            self._places[candidate] = (OUT, 0)
        else:
            self._enter(candidate, new)

    def _enter(self, candidate: Candidate, level: int) -> None:
        members = self._classes[level]
        self._places[candidate] = (level, len(members))
        members.append(candidate)
        self._occupied |= 1 << level
        self._total += 1 << level

    def _leave(self, level: int, place: int) -> None:
        members = self._classes[level]
        last = members.pop()
        if place < len(members):
            members[place] = last
            self._places[last] = (level, place)
        if not members:
            self._occupied ^= 1 << level
        self._total -= 1 << level

    def pick(
        self, hidden: Collection[Candidate] = (), match: Match | None = None, tries: int = 0, key: str = ""
    ) -> Candidate | None:
        aside = [candidate for candidate in hidden if self._places.get(candidate, (OUT, 0))[0] != OUT]
        for candidate in aside:
            self._leave(*self._places[candidate])
            self._places[candidate] = (OUT, 0)
        found = self._draw(match, tries)
        for candidate in aside:
            self.refresh(candidate)
        return found

    def _draw(self, match: Match | None, tries: int) -> Candidate | None:
        rejected = 0
        while self._total:
            point = self._random() * self._total
            occupied = self._occupied
            while True:
                level = occupied.bit_length() - 1
                members = self._classes[level]
                span = len(members) << level
                if point < span or occupied == 1 << level:
                    break
                point -= span
                occupied ^= 1 << level
            place = min(int(point) >> level, len(members) - 1)
            candidate = members[place]
            if point - (place << level) >= candidate.weight * _UNITS and rejected < _REJECTIONS:
                rejected += 1
                continue
            if match is None or (candidate.record is not None and match(candidate.record)):
                return candidate
            tries -= 1
            if tries <= 0:
                return None
        return None

    def ranked(self, key: str = "") -> Iterator[Candidate]:
        for members in reversed(self._classes):
            yield from members

    def members(self) -> Iterator[Candidate]:
        return iter(self._places)

    def check(self) -> None:
        assert self._total == sum(len(members) << level for level, members in enumerate(self._classes))
        assert self._occupied == sum(bool(members) << level for level, members in enumerate(self._classes))
        for candidate, (level, place) in self._places.items():
            now = _class_of(candidate.weight) if candidate.ready else OUT
            assert level == now, f"{candidate} was not refreshed: class {level}, not {now}"
            assert level == OUT or self._classes[level][place] is candidate
