"""Which agent gets which attempt: the capability index.

Candidates are agents whose own status is active, on eligible nodes, with fewer attempts and calls in flight than their
concurrency. The cost of a choice does not grow with the number of agents: agents lie in pools (``core.pools``) kept in order
all the time, one for each capability and strategy in use. Requirements are asked of the pool's first candidates; if ``TRIES``
of them do not meet them, or as many have been asked in vain as it would cost, those agents that do get a pool of their own,
found through the rarest tag, label or kind asked for (rent or buy: never more than twice the cost of knowing beforehand).
Such selective pools are dropped again, the longest unused first, when there are more than ``POOLS`` or their members become more
than ``SHARE`` times the agents: so memory, and the cost of ``take`` and ``give``, stay bounded.

Pure, and not replicated: a new leader fills it anew. Randomness is what it is given.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from heapq import nsmallest
from typing import Any

from comity.core.explaining import Question, explain, serves
from comity.core.hosts import AT_ONCE, Hosts
from comity.core.matching import Found, Matcher, Signature, same_place, signature
from comity.core.pools import Candidate, Pool, first_of
from comity.core.strategies import Fits, Offering, PoolKey, free_of, make_pool, weight_of
from comity.model.capability import AgentRecord, AgentStatus, Requirements, Strategy
from comity.model.capability import strategy as strategy_named
from comity.model.ids import AgentId, ProcessId

TRIES = 32
SHARE = 4
FEW = 4096
"""Members that selective pools may have together in a small network."""
POOLS = 256
_MATCHERS = 1024


class Scheduling:
    """The leader's view of who can take an attempt. ``random`` gives numbers in [0, 1)."""

    def __init__(self, random: Callable[[], float], default: Strategy = Strategy.LEAST_LOADED) -> None:
        self._random = random
        self._default = default
        self._candidates: dict[AgentId, Candidate] = {}
        self._hosts = Hosts()
        self._offerings: dict[str, Offering] = {}
        self._chosen_strategies: dict[str, Strategy] = {}
        self._found: Found[Candidate] = Found()
        self._matchers: dict[tuple[str, Signature], Matcher] = {}
        self._selective: OrderedDict[PoolKey, Pool] = OrderedDict()
        self._selective_members = 0
        self._offers = 0
        self._stale: dict[Candidate, None] = {}  # changed since they were last put in their places
        self._busy: dict[Candidate, None] = {}  # those with something in flight

    # Agents and nodes

    def put_agent(self, agent: AgentRecord) -> None:
        """Insert or update an agent. Its load, and what was measured of it, stay."""
        candidate = self._candidates.get(agent.id)
        if candidate is None:
            candidate = self._candidates[agent.id] = Candidate(agent.id)
        old = candidate.record
        candidate.record = agent
        if old is None:
            self._list(candidate, agent)
        elif not same_place(old, agent):
            names = candidate.names
            self._unlist(candidate, old)
            self._list(candidate, agent)
            self._drop_unoffered(candidate, [name for name in names if name not in candidate.names])
        self._review(candidate)

    def remove_agent(self, agent: AgentId) -> None:
        """The agent is gone. What it still has in flight is remembered, should it come back. Fine if it is unknown."""
        candidate = self._candidates.get(agent)
        if candidate is None or candidate.record is None:
            return
        self._unlist(candidate, candidate.record)
        self._drop_unoffered(candidate, candidate.names)
        candidate.record = candidate.host = None
        candidate.names = ()
        candidate.live = False
        candidate.calls = 0
        self._loaded(candidate)
        self._forget(candidate)

    def set_node(self, node: ProcessId, *, eligible: bool, cpu_free: float = 0.0, memory_free_mb: float = 0.0) -> None:
        """Whether a node's agents may be given work, and its free CPU (cores) and memory (MiB); both 0: as before. A node's
        first thousand agents learn of it at once, the others by ``catch_up``."""
        known = cpu_free > 0.0 or memory_free_mb > 0.0
        for candidate in self._hosts.now(node, eligible, free_of(cpu_free, memory_free_mb) if known else None):
            self._review(candidate)

    def catch_up(self) -> None:
        """Let further agents of nodes that changed learn of it. Before that none is chosen that may not be."""
        for candidate in self._hosts.more():
            self._review(candidate)

    @property
    def is_behind(self) -> bool:
        """Whether there is more to ``catch_up`` with."""
        return self._hosts.is_behind

    def set_strategy(self, capability: str, strategy: Strategy) -> None:
        """How the capability's agents are chosen from now on, unless a call says otherwise. BadInput for an unknown one."""
        self._chosen_strategies[capability] = strategy_named(strategy)

    def bench(self, agent: AgentId, capability: str, why: str) -> None:
        """Keep an agent out of rotation for one capability, or ("") let it in again. Fine if it is unknown."""
        candidate, offering = self._candidates.get(agent), self._offerings.get(capability)
        if candidate is not None and offering is not None and candidate in offering.candidates:
            self._selective_members += offering.bench(candidate, why)

    def benched(self, capability: str | None = None) -> dict[tuple[AgentId, str], str]:
        """Who is out of rotation, and why."""
        offerings = self._offerings.values() if capability is None else [self._offerings[capability]]
        return {(candidate.id, offering.name): why for offering in offerings for candidate, why in offering.benched.items()}

    # Load

    def take(self, agent: AgentId) -> None:
        """One attempt or call more in flight; it may exceed the agent's concurrency, and come before the agent is known."""
        candidate = self._candidates.get(agent)
        if candidate is None:
            candidate = self._candidates[agent] = Candidate(agent)
        candidate.held += 1
        self._loaded(candidate)

    def give(self, agent: AgentId) -> None:
        """One less. ValueError if none was taken."""
        candidate = self._candidates.get(agent)
        if candidate is None or not candidate.held:
            raise ValueError(f"{agent} gave back more than it took")
        candidate.held -= 1
        self._loaded(candidate)
        if candidate.record is None:
            self._forget(candidate)

    def set_calls(self, agent: AgentId, count: int) -> None:
        """Live calls at the agent, as its node counts them. Ignored for an unknown agent: the next beacon says it again."""
        candidate = self._candidates.get(agent)
        if candidate is not None and candidate.record is not None and candidate.calls != count:
            candidate.calls = max(count, 0)
            self._loaded(candidate)

    def clear_load(self) -> None:
        """Nothing is in flight: the leader starts afresh."""
        for candidate in list(self._busy):
            candidate.held = candidate.calls = 0
            self._loaded(candidate)
            self._forget(candidate)

    def _loaded(self, candidate: Candidate) -> None:
        load = candidate.load = candidate.held + candidate.calls
        self._stale[candidate] = None
        if load:
            self._busy[candidate] = None
        else:
            self._busy.pop(candidate, None)

    def _settle(self) -> None:
        """Put those that changed in their places: once each, however often they changed, before anybody looks."""
        for candidate in self._stale:
            candidate.ready = candidate.live and candidate.load < candidate.limit
            for pool in candidate.pools:
                pool.refresh(candidate)
        self._stale.clear()

    def measured(
        self, agent: AgentId, capability: str, latency_ms: float, ok: bool, accuracy: float | None = None, now_ms: int = 0
    ) -> None:
        """An attempt or a call ended, before it is given back. ``accuracy`` in [0, 1] if it was rated at once."""
        candidate, offering = self._candidates.get(agent), self._offerings.get(capability)
        if candidate is None or offering is None or candidate not in offering.candidates:
            return
        fit = offering.fits.measured(candidate, latency_ms, ok, now_ms)
        if accuracy is not None:
            fit.rate(accuracy)
        self._loaded(candidate)

    def rated(self, agent: AgentId, capability: str, accuracy: float) -> None:
        """Someone rated a result of an attempt that was counted before; ``accuracy`` in [0, 1]."""
        candidate, offering = self._candidates.get(agent), self._offerings.get(capability)
        if candidate is None or offering is None or candidate not in offering.candidates:
            return
        offering.fits.make(candidate).rate(accuracy)
        self._loaded(candidate)

    # Choosing

    def choose(
        self,
        capability: str,
        needs: Requirements | None = None,
        strategy: Strategy | None = None,
        avoid: tuple[AgentId, ...] = (),
    ) -> AgentId | None:
        """The agent that shall do it, or None if none can now; takes nothing. BadInput for a strategy or version range that
        cannot be read."""
        offering = self._offerings.get(capability)
        if offering is None:
            return None
        if self._stale:
            self._settle()
        how = strategy or self._chosen_strategies.get(capability) or offering.strategy or self._default
        if needs is not None and needs.sticky:
            how = Strategy.STICKY
        pool = offering.base.get(how)
        if pool is None:
            pool = self._base_pool(offering, how)
        plain = needs is None and not avoid
        while True:
            candidate = pool.pick() if plain else self._choose_among(offering, pool, how, needs, avoid)
            if candidate is None or candidate.host is None or candidate.host.eligible:
                return candidate.id if candidate is not None else None
            self._review(candidate)
            self._settle()

    def _choose_among(
        self, offering: Offering, pool: Pool, how: Strategy, needs: Requirements | None, avoid: tuple[AgentId, ...]
    ) -> Candidate | None:
        hidden = self._hidden(avoid + needs.avoid if needs is not None else avoid)
        if needs is None:
            return pool.pick(hidden)
        if needs.agent:
            return self._this_one(offering, needs, hidden)
        key = signature(needs)
        if not key:
            return pool.pick(hidden, key=needs.sticky)
        full_key = (offering.name, key, how)
        known = offering.pools.get(full_key)
        if known is not None:
            self._selective.move_to_end(full_key)
            return known[1].pick(hidden, key=needs.sticky)
        match = self._matcher(needs, offering, key)
        if match.asked + TRIES < len(self._rarest(offering, needs)):
            found = pool.pick(hidden, match, TRIES, needs.sticky)
            if found is not None:
                return found
        return self._selective_pool(offering, needs, match, full_key).pick(hidden, key=needs.sticky)

    def _hidden(self, agents: tuple[AgentId, ...]) -> Collection[Candidate]:
        """Those to be avoided, each once, in order."""
        if not agents:
            return ()
        return {candidate: None for agent in agents if (candidate := self._candidates.get(agent)) is not None}

    def _this_one(self, offering: Offering, needs: Requirements, hidden: Collection[Candidate]) -> Candidate | None:
        candidate = self._candidates.get(needs.agent)
        if candidate is None or not candidate.ready or candidate in hidden or candidate not in offering.candidates:
            return None
        if candidate in offering.benched:
            return None
        match = self._matcher(needs, offering, signature(needs))
        return candidate if candidate.record is not None and match.meets(candidate.record) else None

    def _matcher(self, needs: Requirements, offering: Offering, key: Signature) -> Matcher:
        match = self._matchers.get((offering.name, key))
        if match is None:
            if len(self._matchers) >= _MATCHERS:
                self._matchers.clear()
            match = self._matchers[offering.name, key] = Matcher(needs, offering.name)
        return match

    def _base_pool(self, offering: Offering, how: Strategy) -> Pool:
        pool = make_pool(how, offering.fits, self._random)
        offering.base[Strategy(how)] = pool
        for candidate in offering.candidates:
            offering.enter(candidate, pool)
        return pool

    def _selective_pool(self, offering: Offering, needs: Requirements, match: Matcher, key: PoolKey) -> Pool:
        pool = make_pool(key[2], offering.fits, self._random)
        match.asked = 0
        for candidate in self._rarest(offering, needs):
            if candidate in offering.candidates and candidate.record is not None and match.meets(candidate.record):
                offering.enter(candidate, pool)
        offering.pools[key] = match, pool
        self._selective[key] = pool
        self._selective_members += len(pool)
        room = max(FEW, SHARE * self._offers)
        while (self._selective_members > room or len(self._selective) > POOLS) and len(self._selective) > 1:
            self._drop_pool(next(iter(self._selective)))
        return pool

    def _drop_pool(self, key: PoolKey) -> None:
        pool = self._selective.pop(key)
        self._selective_members -= len(pool)
        del self._offerings[key[0]].pools[key]
        for candidate in pool.members():
            candidate.pools.remove(pool)

    def _rarest(self, offering: Offering, needs: Requirements) -> Collection[Candidate]:
        return self._found.rarest(needs, offering.candidates)

    def explain(
        self,
        capability: str,
        needs: Requirements | None = None,
        strategy: Strategy | None = None,
        avoid: tuple[AgentId, ...] = (),
    ) -> dict[str, Any]:
        """What ``choose`` would see and answer, as JSON: strategy, candidates (at most 50, eligible ones first, each with agent,
        load, limit, score, eligible, why_not), choice, reason, offered, live. Draws nothing at random. BadInput as ``choose``."""
        self._settle()
        how = strategy_named(strategy) if strategy is not None else self.strategy_of(capability)
        if needs is not None and needs.sticky:
            how = Strategy.STICKY
        hidden = self._hidden(avoid + needs.avoid if needs is not None else avoid)
        offering = self._offerings.get(capability) or Offering(capability)
        key = signature(needs) if needs is not None else ()
        match = self._matcher(needs, offering, key) if needs is not None and key else None
        among: Collection[Candidate] = offering.candidates
        if needs is not None and needs.agent:
            one = self._candidates.get(needs.agent)
            among = [one] if one is not None and one in offering.candidates else []
            pool = make_pool(how, offering.fits, self._random)
            for candidate in among:
                if candidate not in offering.benched:
                    pool.add(candidate)
        else:
            pool = self._ranking(offering, how, needs, match, hidden)
        return {
            "capability": capability,
            "offered": len(offering.candidates),
            "live": offering.live,
            **explain(Question(capability, how, needs, match, hidden, offering.benched), pool, among, offering.fits),
        }

    def _ranking(
        self,
        offering: Offering,
        how: Strategy,
        needs: Requirements | None,
        match: Matcher | None,
        hidden: Collection[Candidate],
    ) -> Pool:
        """The pool whose first acceptable member ``choose`` would take."""
        pool = offering.base.get(how)
        if pool is None:
            known = bool(offering.candidates)
            pool = self._base_pool(offering, how) if known else make_pool(how, offering.fits, self._random)
        if needs is None or match is None:
            return pool
        key = (offering.name, signature(needs), how)
        if key in offering.pools:
            return offering.pools[key][1]
        ask = match.asked + TRIES < len(self._rarest(offering, needs))
        if not offering.candidates or (ask and first_of(pool.ranked(needs.sticky), hidden, match.meets, TRIES) is not None):
            return pool
        return self._selective_pool(offering, needs, match, key)

    # What is known

    def offered(self, capability: str) -> int:
        """How many agents offer it, whatever their status."""
        return len(self._offerings[capability].candidates) if capability in self._offerings else 0

    def live(self, capability: str) -> int:
        """How many of them are active on an eligible node, busy or not."""
        return self._offerings[capability].live if capability in self._offerings else 0

    def serves(self, capability: str, needs: Requirements) -> bool:
        """Whether a live agent that offers it, busy or not, meets ``needs``; True as well if there are too many to ask."""
        offering = self._offerings.get(capability)
        return offering is not None and serves(needs, capability, self._rarest(offering, needs))

    def load(self, agent: AgentId) -> int:
        """Attempts and calls in flight."""
        candidate = self._candidates.get(agent)
        return candidate.load if candidate is not None else 0

    def busiest(self, most: int) -> list[tuple[int, AgentRecord]]:
        """Those with something in flight, and how much: up to ``most`` of them, the most loaded first, then by id."""
        busy = [(candidate.load, candidate.record) for candidate in self._busy if candidate.record is not None]
        return nsmallest(most, busy, key=lambda row: (-row[0], row[1].id))

    def agents(self) -> Iterator[AgentRecord]:
        """All agents, in the order in which they came."""
        return (candidate.record for candidate in self._candidates.values() if candidate.record is not None)

    def record(self, agent: AgentId) -> AgentRecord | None:
        candidate = self._candidates.get(agent)
        return candidate.record if candidate is not None else None

    def eligible_nodes(self) -> list[ProcessId]:
        return [host.id for host in self._hosts if host.eligible]

    def capabilities(self) -> list[str]:
        return sorted(self._offerings)

    def fits(self, capability: str) -> Fits | None:
        """What was measured, and is believed, of those that offer it."""
        offering = self._offerings.get(capability)
        return offering.fits if offering is not None else None

    def strategy_of(self, capability: str) -> Strategy:
        """How its agents are chosen unless a call says otherwise."""
        offering = self._offerings.get(capability)
        stated = offering.strategy if offering is not None else None
        return self._chosen_strategies.get(capability) or stated or self._default

    # Keeping the index

    def _list(self, candidate: Candidate, agent: AgentRecord) -> None:
        self._hosts.enter(candidate, agent.node)
        self._found.add(candidate, agent)
        candidate.names = tuple(dict.fromkeys(offer.name for offer in agent.offers))
        self._offers += len(candidate.names)
        for name in candidate.names:
            offering = self._offerings.get(name)
            if offering is None:
                offering = self._offerings[name] = Offering(name)
            offers = [offer for offer in agent.offers if offer.name == name]
            offering.strategy = next(
                (offer.strategy for offer in offers if offer.strategy is not None), offering.strategy
            )
            declared = next((offer.declared for offer in offers if offer.declared is not None), None)
            offering.fits.declare(candidate, declared, agent.concurrency)
            offering.candidates[candidate] = None
            offering.live += candidate.live
            for pool in offering.base.values():
                offering.enter(candidate, pool)
            for match, pool in offering.pools.values():
                if match.meets(agent) and offering.enter(candidate, pool):
                    self._selective_members += 1

    def _unlist(self, candidate: Candidate, agent: AgentRecord) -> None:
        for name in candidate.names:
            offering = self._offerings[name]
            self._selective_members -= sum(candidate in pool for _, pool in offering.pools.values())
            offering.live -= candidate.live
            del offering.candidates[candidate]
        for pool in candidate.pools:
            pool.discard(candidate)
        candidate.pools.clear()
        self._found.remove(candidate, agent)
        self._hosts.leave(candidate, agent.node)
        self._offers -= len(candidate.names)

    def _drop_unoffered(self, candidate: Candidate, names: Collection[str]) -> None:
        """``candidate`` no longer offers ``names``; forget what only they needed."""
        for name in names:
            offering = self._offerings[name]
            offering.fits.by_agent.pop(candidate, None)
            offering.benched.pop(candidate, None)
            if not offering.candidates:
                for key in offering.pools:
                    del self._selective[key]
                del self._offerings[name]

    def _review(self, candidate: Candidate) -> None:
        """The agent's status, concurrency or node changed."""
        record, host = candidate.record, candidate.host
        assert record is not None and host is not None
        live = host.eligible and record.status is AgentStatus.ACTIVE
        if live is not candidate.live:
            candidate.live = live
            for name in candidate.names:
                self._offerings[name].live += 1 if live else -1
        candidate.limit = max(record.concurrency, 0)
        candidate.free = host.free
        candidate.weight = weight_of(candidate)
        self._loaded(candidate)
        if len(self._stale) >= AT_ONCE:
            self._settle()

    def _forget(self, candidate: Candidate) -> None:
        if candidate.record is None and not candidate.held:
            del self._candidates[candidate.id]

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        self._settle()
        self._hosts.check()
        for candidate in self._candidates.values():
            record = candidate.record
            assert (candidate in self._busy) == (candidate.load > 0)
            assert candidate.held >= 0 and candidate.calls >= 0 and candidate.load == candidate.held + candidate.calls
            assert candidate.ready == (candidate.live and candidate.load < candidate.limit)
            if record is None:
                assert candidate.held and not candidate.live and not candidate.pools and candidate.host is None
            else:
                host = self._hosts[record.node]
                assert candidate.host is host and candidate in host.candidates
                assert host.behind or candidate.live == (host.eligible and record.status is AgentStatus.ACTIVE)
                assert candidate.names == tuple(dict.fromkeys(offer.name for offer in record.offers))
                assert all(candidate in self._offerings[name].candidates for name in candidate.names)
        members = 0
        for name, offering in self._offerings.items():
            offering.check()
            for key, (_, pool) in offering.pools.items():
                assert key[0] == name and self._selective[key] is pool
                members += len(pool)
        assert members == self._selective_members
        assert self._offers == sum(len(offering.candidates) for offering in self._offerings.values())
