"""A pool for ``sticky``: the same key goes to the same agent while that is ready; when an agent comes or goes, only its own keys
move.

Multi-probe consistent hashing (Appleton & O'Reilly 2015, arXiv:1505.00062): every ready agent has one point on a ring of 2^64, a
key has ``PROBES`` points, and whichever agent follows one of these most closely has the key. With 21 probes the busiest agent
has about 5 % more keys than the mean. Rendezvous hashing moves as few keys, but has to ask every agent; this asks ``PROBES``.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Collection, Iterator
from hashlib import blake2b
from heapq import heapify, heapreplace

from comity.core.pools import Candidate, Match, first_of

PROBES = 21
_RING = (1 << 64) - 1
_FEW = 32
"""So many new points are put in their places one by one; more of them by sorting."""


class Ring:
    """``_points`` are those of the ready members, in order, but for the ``_late`` ones, which have yet to be put there."""

    __slots__ = ("_late", "_owners", "_places", "_points", "_random")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._places: dict[Candidate, int] = {}
        self._owners: dict[int, Candidate] = {}
        self._points: list[int] = []
        self._late: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._places

    def add(self, candidate: Candidate) -> None:
        point = int.from_bytes(blake2b(candidate.id.encode(), digest_size=8).digest())
        while point in self._owners:  # once in 2^32 agents
            point = (point + 1) & _RING
        self._places[candidate] = point
        self.refresh(candidate)

    def discard(self, candidate: Candidate) -> None:
        if candidate in self._places:
            self._leave(self._places.pop(candidate))

    def refresh(self, candidate: Candidate) -> None:
        point = self._places[candidate]
        if not candidate.ready:
            self._leave(point)
        elif point not in self._owners:
            self._owners[point] = candidate
            self._late[point] = None

    def _leave(self, point: int) -> None:
        if self._owners.pop(point, None) is None:
            return
        if point in self._late:
            del self._late[point]
        else:
            del self._points[bisect_left(self._points, point)]

    def _settle(self) -> None:
        if len(self._late) > _FEW:
            self._points += self._late
            self._points.sort()
        else:
            for point in self._late:
                insort(self._points, point)
        self._late.clear()

    def pick(
        self, hidden: Collection[Candidate] = (), match: Match | None = None, tries: int = 0, key: str = ""
    ) -> Candidate | None:
        self._settle()
        if not self._points:
            return None
        if not key:  # any: where the ring is entered is drawn
            start = int(self._random() * len(self._points))
            return first_of(self._around(start), hidden, match, tries)
        return first_of(self._nearest(key), hidden, match, tries)

    def _around(self, start: int) -> Iterator[Candidate]:
        points = self._points
        for at in range(start - len(points), start):
            yield self._owners[points[at]]

    def _nearest(self, key: str) -> Iterator[Candidate]:
        """All that are ready, the owner of ``key`` first, then who would own it without those before."""
        points, count = self._points, len(self._points)
        nearest = []
        for probe in _probes(key):
            at = bisect_left(points, probe) % count
            nearest.append(((points[at] - probe) & _RING, at, probe))
        first = min(nearest)
        yield self._owners[points[first[1]]]
        told = {first[1]}
        heapify(nearest)
        while len(told) < count:
            _, at, probe = nearest[0]
            if at not in told:
                told.add(at)
                yield self._owners[points[at]]
            after = (at + 1) % count
            heapreplace(nearest, ((points[after] - probe) & _RING, after, probe))

    def ranked(self, key: str = "") -> Iterator[Candidate]:
        self._settle()
        return self._nearest(key) if key and self._points else self._around(0)

    def members(self) -> Iterator[Candidate]:
        return iter(self._places)

    def check(self) -> None:
        assert self._points == sorted(self._points) and not self._late.keys() & set(self._points)
        assert self._owners.keys() == {*self._points, *self._late}
        for candidate, point in self._places.items():
            assert candidate.ready == (self._owners.get(point) is candidate), f"{candidate} was not refreshed"


def _probes(key: str) -> list[int]:
    """The points of a key, by double hashing."""
    digest = blake2b(key.encode(), digest_size=16).digest()
    first, step = int.from_bytes(digest[:8]), int.from_bytes(digest[8:]) | 1
    return [(first + i * step) & _RING for i in range(PROBES)]
