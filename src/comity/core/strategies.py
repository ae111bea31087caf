"""The strategies: what makes one agent come before another.

``least_loaded`` ranks by attempts and calls in flight, ``round_robin`` not at all, ``weighted_random`` draws by the agent's
set weight or its node's free CPU and memory; for ``power_of_two`` see ``core.pairs``, for ``sticky`` ``core.ring``. ``best_fit``
scores what is known of the agent at the requested capability as a weighted product of ratios (Bridgman 1922; Triantaphyllou
2000, section 2.2.2):

    score = success^2 x accuracy^2 x throughput^0.5 x free^0.5 x idle / latency

Ratios of such scores do not depend on the units or the range of any figure, so none needs a scale that would shift with the
population. ``idle`` is the free share of the agent's own concurrency, ``free`` its node's free CPU and memory.

Measured figures are means that start from a prior worth ``PRIOR`` samples and forget beyond ``WINDOW`` samples. The prior
is what the agent declared; failing that, what the capability's other agents do (empirical Bayes). An agent about which
nothing is known stands where the others' mean stands, so it is tried before those that are slower than usual.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from math import inf, isnan, log2
from operator import attrgetter

from comity.core.matching import Matcher, Signature
from comity.core.pairs import Pairs
from comity.core.performance import OF_AGENT, OF_CAPABILITY, Tally
from comity.core.pools import HEAVIEST, LIGHTEST, OUT, Candidate, Match, Pool, Queues, Urn, first_of
from comity.core.ring import Ring
from comity.model.capability import Performance, Strategy, strategy

PRIOR = 4.0
WINDOW = 64.0
STEPS = 8
"""Levels per doubling of a score: scores within 9 % of one another count as equal and go in rotation."""
_TOP = 48.0
_REFERENCE_WINDOW = 256.0
_LEAST, _MOST = 1e-3, 1e9
_LOG_1000 = log2(1000.0)


def free_of(cpu: float, memory_mb: float) -> float:
    """log2 of the geometric mean of free CPU (cores) and memory (GiB), to the nearest quarter, so that a small change changes
    nothing. Nothing free counts as a thousandth."""
    product = _bounded(cpu, _LEAST) * _bounded(memory_mb / 1024.0, _LEAST)
    return round(2.0 * log2(product)) / 4.0


def weight_of(candidate: Candidate) -> float:
    """The agent's set weight, else its node's free CPU and memory: one core and one GiB weigh 1."""
    stated = candidate.record.weight if candidate.record is not None else 0.0
    return min(max(stated if stated > 0.0 else 2.0**candidate.free, LIGHTEST), HEAVIEST)


def _bounded(value: float, otherwise: float) -> float:
    """A figure from outside within reason; ``otherwise`` if it is not a positive number."""
    return min(max(value, _LEAST), _MOST) if value > 0.0 else otherwise


def _share(value: float, otherwise: float) -> float:
    """A share from outside, held between 0 and 1; ``otherwise`` if it is not a number."""
    return min(max(value, 0.0), 1.0) if not isnan(value) else otherwise


class Reference:
    """What the agents that offer a capability do on average (log2 of ms and of tasks/s)."""

    __slots__ = ("latency", "samples", "throughput")

    def __init__(self) -> None:
        self.latency = 0.0
        self.throughput = 0.0
        self.samples = 0.0

    def add(self, latency: float, throughput: float) -> None:
        if self.samples < _REFERENCE_WINDOW:
            self.samples += 1.0
        self.latency += (latency - self.latency) / self.samples
        self.throughput += (throughput - self.throughput) / self.samples

    def speed(self) -> float:
        return 0.5 * self.throughput - self.latency


class Fit:
    """How well one agent does one capability. Latency and throughput are log2 of ms and tasks/s, and geometric means; they
    count once ``samples`` > 0. ``quality`` is what ``weigh`` last found; None when figures changed since."""

    __slots__ = ("accuracy", "latency", "outcomes", "quality", "ratings", "samples", "success", "tally", "throughput")

    def __init__(self, declared: Performance | None, concurrency: int) -> None:
        self.samples = 0.0
        self.latency = 0.0
        self.throughput = 0.0
        self.success = 1.0
        self.accuracy = 0.5
        self.outcomes = PRIOR
        self.ratings = PRIOR
        self.quality: float | None = None
        self.tally: Tally | None = None
        if declared is not None:
            self._declare(declared, max(concurrency, 1))

    def _declare(self, declared: Performance, concurrency: int) -> None:
        """A missing one of latency and throughput follows from the other (Little 1961: concurrency = rate x latency)."""
        latency, throughput = declared.latency_ms, declared.throughput
        if latency > 0.0 or throughput > 0.0:
            latency = latency if latency > 0.0 else 1000.0 * concurrency / throughput
            throughput = throughput if throughput > 0.0 else 1000.0 * concurrency / latency
            self.samples = PRIOR
            self.latency = log2(_bounded(latency, 1.0))
            self.throughput = log2(_bounded(throughput, 1.0))
        self.success = _share(declared.success, 1.0)
        if 0.0 < declared.accuracy <= 1.0:
            self.accuracy = declared.accuracy

    @property
    def known(self) -> bool:
        return self.samples > 0.0

    def measure(self, latency_ms: float, ok: bool, load: int, reference: Reference) -> None:
        """An attempt ended. Throughput is the agent's rate by Little's law: ``load`` in flight, each for ``latency_ms``."""
        if self.outcomes < WINDOW:
            self.outcomes += 1.0
        self.success += (ok - self.success) / self.outcomes
        self.quality = None
        if not ok:
            return
        latency = log2(latency_ms) if _LEAST < latency_ms < _MOST else log2(_bounded(latency_ms, _LEAST))
        throughput = _LOG_1000 - latency + (log2(load) if load > 1 else 0.0)
        if not self.samples and reference.samples:
            self.samples, self.latency, self.throughput = PRIOR, reference.latency, reference.throughput
        if self.samples < WINDOW:
            self.samples += 1.0
        self.latency += (latency - self.latency) / self.samples
        self.throughput += (throughput - self.throughput) / self.samples
        reference.add(latency, throughput)

    def rate(self, accuracy: float) -> None:
        self.ratings = min(self.ratings + 1.0, WINDOW)
        self.accuracy += (_share(accuracy, self.accuracy) - self.accuracy) / self.ratings
        self.quality = None

    def weigh(self) -> float:
        """The score's logarithm without what depends on load and node; of an unknown speed, without speed."""
        if self.quality is None:
            certain = 2.0 * log2(max(self.success, 0.01) * max(self.accuracy, 0.01))
            self.quality = certain + 0.5 * self.throughput - self.latency if self.samples else certain
        return self.quality

    def figures(self) -> dict[str, float | None]:
        """What is believed of the agent, in plain units; None if unknown."""
        return {
            "latency_ms": round(2.0**self.latency, 3) if self.samples else None,
            "throughput": round(2.0**self.throughput, 3) if self.samples else None,
            "success": round(self.success, 4),
            "accuracy": round(self.accuracy, 4),
            "samples": round(self.outcomes - PRIOR),
        }


_UNKNOWN = Fit(None, 1)


class Fits:
    """Everything ``best_fit`` knows about one capability, and what else was measured of it."""

    def __init__(self) -> None:
        self.reference = Reference()
        self.tally = Tally(OF_CAPABILITY)
        self.by_agent: dict[Candidate, Fit] = {}

    def declare(self, candidate: Candidate, declared: Performance | None, concurrency: int) -> None:
        """What the agent says of itself; what was measured stays."""
        old = self.by_agent.get(candidate)
        if old is not None and (old.outcomes > PRIOR or old.ratings > PRIOR):
            return
        if declared is None:
            self.by_agent.pop(candidate, None)
            return
        fit = self.by_agent[candidate] = Fit(declared, concurrency)
        if fit.known and old is None:
            self.reference.add(fit.latency, fit.throughput)

    def of(self, candidate: Candidate) -> Fit:
        return self.by_agent.get(candidate, _UNKNOWN)

    def make(self, candidate: Candidate) -> Fit:
        """The agent's own record, made if there is none."""
        fit = self.by_agent.get(candidate)
        if fit is None:
            fit = self.by_agent[candidate] = Fit(None, candidate.limit)
        return fit

    def measured(self, candidate: Candidate, latency_ms: float, ok: bool, now_ms: int) -> Fit:
        """An attempt or a call ended; it still counts as load."""
        fit = self.make(candidate)
        fit.measure(latency_ms, ok, candidate.load, self.reference)
        if fit.tally is None:
            fit.tally = Tally(OF_AGENT)
        fit.tally.add(latency_ms, ok, now_ms)
        self.tally.add(latency_ms, ok, now_ms)
        return fit

    def octaves(self, candidate: Candidate) -> float:
        """log2 of the candidate's score, but for the speed of one that nobody has measured. Only while it is ready."""
        idle = log2((candidate.limit - candidate.load) / candidate.limit)
        return self.by_agent.get(candidate, _UNKNOWN).weigh() + 0.5 * candidate.free + idle

    def score(self, candidate: Candidate) -> float:
        """The score itself; 0 for an agent that is busy or out."""
        if not candidate.ready:
            return 0.0
        speed = 0.0 if self.of(candidate).known else self.reference.speed()
        return float(2.0 ** (self.octaves(candidate) + speed))


class Ranked:
    """A pool for ``best_fit``. Ready agents of unknown speed stand in queues of their own, which are set beside the others by
    what the capability's agents do on average at the moment of choosing, so a change of that average moves nobody."""

    __slots__ = ("_fits", "_known", "_unknown")

    def __init__(self, fits: Fits) -> None:
        self._fits = fits
        self._known = Queues(lambda candidate: self._level(candidate) if fits.of(candidate).known else OUT)
        self._unknown = Queues(self._level)

    def _level(self, candidate: Candidate) -> int:
        return max(int((_TOP - self._fits.octaves(candidate)) * STEPS), 0)

    def _behind(self) -> int:
        """Levels by which those of unknown speed stand behind where their queues say."""
        return -round(self._fits.reference.speed() * STEPS)

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, candidate: Candidate) -> bool:
        return candidate in self._known

    def add(self, candidate: Candidate) -> None:
        self._known.add(candidate)
        self.refresh(candidate)

    def discard(self, candidate: Candidate) -> None:
        self._known.discard(candidate)
        self._unknown.discard(candidate)

    def refresh(self, candidate: Candidate) -> None:
        if not candidate.ready:
            self._known.place(candidate, OUT)
            self._unknown.discard(candidate)
        elif self._fits.of(candidate).known:
            self._known.place(candidate, self._level(candidate))
            self._unknown.discard(candidate)
        else:
            self._known.place(candidate, OUT)
            self._unknown.place(candidate, self._level(candidate))

    def pick(
        self, hidden: Collection[Candidate] = (), match: Match | None = None, tries: int = 0, key: str = ""
    ) -> Candidate | None:
        if not hidden and match is None:
            known, unknown = self._known.lowest(), self._unknown.lowest()
            if unknown != OUT and (known == OUT or unknown + self._behind() <= known):
                return self._unknown.pick()
            return self._known.pick()
        found = first_of(self.ranked(), hidden, match, tries)
        if found is not None:
            queues = self._known if self._fits.of(found).known else self._unknown
            queues.rotate(found)
        return found

    def ranked(self, key: str = "") -> Iterator[Candidate]:
        behind = self._behind()
        known, unknown = self._known.ranked(), self._unknown.ranked()
        left, right = next(known, None), next(unknown, None)
        while left is not None or right is not None:
            left_level = self._known.level_of(left) if left is not None else inf
            right_level = self._unknown.level_of(right) + behind if right is not None else inf
            if right is not None and right_level <= left_level:
                yield right
                right = next(unknown, None)
            elif left is not None:
                yield left
                left = next(known, None)

    def members(self) -> Iterator[Candidate]:
        return self._known.members()

    def check(self) -> None:
        self._known.check()
        self._unknown.check()
        for candidate in self._known.members():
            assert (candidate in self._unknown) == (candidate.ready and not self._fits.of(candidate).known)


def make_pool(how: Strategy, fits: Fits, random: Callable[[], float]) -> Pool:
    """An empty pool for strategy ``how``; BadInput for an unknown one."""
    how = strategy(how)
    if how is Strategy.LEAST_LOADED:
        return Queues(attrgetter("load"))
    if how is Strategy.ROUND_ROBIN:
        return Queues(lambda candidate: 0)
    if how is Strategy.WEIGHTED_RANDOM:
        return Urn(random)
    if how is Strategy.POWER_OF_TWO:
        return Pairs(random)
    if how is Strategy.STICKY:
        return Ring(random)
    return Ranked(fits)


PoolKey = tuple[str, Signature, Strategy]
"""What makes a pool of those that meet requirements: capability, requirements, strategy."""


class Offering:
    """One capability: who offers it, how many of them are live, and the pools in use. ``benched``: who is kept out of these,
    and why; it outlives a change of the agent's record."""

    __slots__ = ("base", "benched", "candidates", "fits", "live", "name", "pools", "strategy")

    def __init__(self, name: str) -> None:
        self.name = name
        self.benched: dict[Candidate, str] = {}
        self.candidates: dict[Candidate, None] = {}
        self.live = 0
        self.strategy: Strategy | None = None
        self.fits = Fits()
        self.base: dict[Strategy, Pool] = {}
        self.pools: dict[PoolKey, tuple[Matcher, Pool]] = {}

    def enter(self, candidate: Candidate, pool: Pool) -> bool:
        """Whether it may: a benched one enters no pool."""
        if candidate in self.benched:
            return False
        pool.add(candidate)
        candidate.pools.append(pool)
        return True

    def bench(self, candidate: Candidate, why: str) -> int:
        """Keep one who offers it out of its pools, or ("") let it in again; by how many the members of ``pools`` grew."""
        if not why:
            if self.benched.pop(candidate, None) is None or candidate.record is None:
                return 0
            for pool in self.base.values():
                self.enter(candidate, pool)
            record = candidate.record
            return sum(match.meets(record) and self.enter(candidate, pool) for match, pool in self.pools.values())
        is_new = candidate not in self.benched
        self.benched[candidate] = why
        selective = [pool for _, pool in self.pools.values()]
        mine = [pool for pool in (*self.base.values(), *selective) if is_new and candidate in pool]
        for pool in mine:
            pool.discard(candidate)
            candidate.pools.remove(pool)
        return -sum(pool in mine for pool in selective)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert self.candidates and self.live == sum(candidate.live for candidate in self.candidates)
        assert self.fits.by_agent.keys() <= self.candidates.keys() and self.benched.keys() <= self.candidates.keys()
        inside = [candidate for candidate in self.candidates if candidate not in self.benched]
        for pool in self.base.values():
            assert len(pool) == len(inside) and all(candidate in pool for candidate in inside)
            pool.check()
        for match, pool in self.pools.values():
            meets = [candidate for candidate in inside if candidate.record is not None and match.meets(candidate.record)]
            assert len(meets) == len(pool) and all(candidate in pool for candidate in meets)
            pool.check()
