"""A pool for ``power_of_two``: of two ready agents drawn at random, the one with less in flight (Mitzenmacher 2001). Nearly as
even as taking the least loaded of all, and it does not send everybody to the same agent when loads are known late."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

from comity.core.pools import OUT, Candidate, Match


class Pairs:
    """Members that are ready lie in a list without order, so that drawing one takes the same time from any number."""

    __slots__ = ("_places", "_random", "_ready")

    def __init__(self, random: Callable[[], float]) -> None:
        self._random = random
        self._places: dict[Candidate, int] = {}
        self._ready: list[Candidate] = []

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._places

    def add(self, candidate: Candidate) -> None:
        self._places[candidate] = OUT
        self.refresh(candidate)

    def discard(self, candidate: Candidate) -> None:
        if candidate in self._places:
            self._leave(candidate)
            del self._places[candidate]

    def refresh(self, candidate: Candidate) -> None:
        if not candidate.ready:
            self._leave(candidate)
        elif self._places[candidate] == OUT:
            self._places[candidate] = len(self._ready)
            self._ready.append(candidate)

    def _leave(self, candidate: Candidate) -> None:
        place = self._places[candidate]
        if place != OUT:
            last = self._ready.pop()
            if last is not candidate:
                self._ready[place] = last
                self._places[last] = place
            self._places[candidate] = OUT

    def pick(
        self, hidden: Collection[Candidate] = (), match: Match | None = None, tries: int = 0, key: str = ""
    ) -> Candidate | None:
        aside = [candidate for candidate in hidden if self._places.get(candidate, OUT) != OUT]
        for candidate in aside:
            self._leave(candidate)
        found = self._draw() if match is None else self._draw_matching(match, tries)
        for candidate in aside:
            self.refresh(candidate)
        return found

    def _draw(self) -> Candidate | None:
        count = len(self._ready)
        if count < 2:
            return self._ready[0] if count else None
        one = int(self._random() * count)
        other = int(self._random() * (count - 1))
        return _lighter(self._ready[one], self._ready[other + (other >= one)])

    def _draw_matching(self, match: Match, tries: int) -> Candidate | None:
        found: Candidate | None = None
        for _ in range(tries if self._ready else 0):
            candidate = self._ready[int(self._random() * len(self._ready))]
            if candidate is not found and candidate.record is not None and match(candidate.record):
                if found is not None:
                    return _lighter(found, candidate)
                found = candidate
        return found

    def ranked(self, key: str = "") -> Iterator[Candidate]:
        return iter(self._ready)

    def members(self) -> Iterator[Candidate]:
        return iter(self._places)

    def check(self) -> None:
        assert len(self._ready) == sum(place != OUT for place in self._places.values())
        for candidate, place in self._places.items():
            assert candidate.ready == (place != OUT), f"{candidate} was not refreshed"
            assert place == OUT or self._ready[place] is candidate


def _lighter(one: Candidate, other: Candidate) -> Candidate:
    return other if other.load < one.load else one
