"""Agents by what they can be found by. Questions are answered from sets of those that have a tag, a label, a capability ..., the
smallest first, so that finding a few among 100,000 takes less than a millisecond or two."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from functools import cache, partial
from typing import Any, TypedDict

from comity.errors import BadInput
from comity.model.capability import AgentRecord, AgentStatus, parse_need, version_in_range
from comity.model.ids import AgentId, node_of
from comity.model.limits import check_amount

__all__ = ["Conditions", "Index", "Wanted"]

Feature = tuple[str, ...]
"""What agents can be found by: ("tag", "gpu"), ("label", "team", "red"), ("name", "reviewer") ..."""
AMOUNTS = {"cpu": "cpu_used", "memory_mb": "memory_used_mb", "gpu": "gpu_used"}
_ORDERS = 256
_MANY = 2000
"""Up to so many are narrowed all at once; more of them one by one, as far as they are asked for."""
_FEW = 32
"""So many new ids are put in their places one by one; more of them by sorting."""


class Conditions(TypedDict, total=False):
    """What agents can be asked for: each has all of ``tags``, one of ``any_tags``, all ``labels``, and free what ``needs`` says
    (``cpu`` cores, ``memory_mb``, ``gpu``)."""

    tags: Iterable[str]
    any_tags: Iterable[str]
    labels: Mapping[str, str] | None
    kind: str
    status: AgentStatus | str | None
    node: str
    region: str
    name: str
    needs: Mapping[str, float] | None


class Wanted:
    """A question, read once: the features to look up, and ``tests`` for the rest. Raises BadInput, TypeError (no such
    condition)."""

    def __init__(self, capability: str, given: Conditions) -> None:
        unknown = [name for name in given if name not in Conditions.__annotations__]
        if unknown:
            raise TypeError(f"discover has no condition {unknown[0]!r}; it has: {', '.join(Conditions.__annotations__)}")
        name, versions = parse_need(capability)
        status = given.get("status")
        if status is not None and status not in set(AgentStatus):
            raise BadInput(f"no status is called {status!r}; one of: {', '.join(AgentStatus)}", status=status)
        self.features: list[Feature] = [("tag", tag) for tag in given.get("tags", ())]
        self.features += [("label", key, value) for key, value in (given.get("labels") or {}).items()]
        words = {"capability": name, **{what: given.get(what, "") for what in ("kind", "region", "node", "name")}}
        self.features += [(what, str(value)) for what, value in words.items() if value]
        self.any_of: list[Feature] = [("tag", tag) for tag in given.get("any_tags", ())]
        self.tests: list[Callable[[AgentRecord], bool]] = []
        if versions:
            in_range = cache(partial(_in_range, wanted=versions))
            self.tests.append(lambda agent: any(o.name == name and in_range(o.version) for o in agent.offers))
        if status is not None:
            self.tests.append(lambda agent: agent.status == status)
        if amounts := _amounts(given.get("needs")):
            self.tests.append(lambda agent: _has_free(agent, amounts))


class Index:
    """Invariant: ``_having`` and ``_orders`` hold what is in ``agents``. ``_orders``: sets asked for lately, sorted."""

    def __init__(self) -> None:
        self.agents: dict[AgentId, AgentRecord] = {}
        self._having: dict[Feature, dict[AgentId, None]] = {}
        self._orders: dict[Feature, Order] = {}

    def put(self, agent: AgentRecord) -> None:
        known, now = self.agents.get(agent.id), _features(agent)
        before = _features(known) if known is not None else {}
        self.agents[agent.id] = agent
        for feature in before:
            if feature not in now:
                self._leave(feature, agent.id)
        for feature in now:
            if feature not in before:
                self._having.setdefault(feature, {})[agent.id] = None
                if feature in self._orders:
                    self._orders[feature].add(agent.id)

    def remove(self, agent: AgentId) -> AgentRecord:
        gone = self.agents.pop(agent)
        for feature in _features(gone):
            self._leave(feature, agent)
        return gone

    def _leave(self, feature: Feature, agent: AgentId) -> None:
        having = self._having[feature]
        del having[agent]
        if feature in self._orders:
            self._orders[feature].discard(agent)
        if not having:
            del self._having[feature]
            self._orders.pop(feature, None)

    def having(self, what: str, value: str) -> list[AgentRecord]:
        """Agents that have a feature, by id."""
        return [self.agents[agent] for agent in sorted(self._having.get((what, value), ()))]

    def is_had(self, what: str, value: str, nodes: Mapping[Any, Any]) -> bool:
        """Whether an agent on ``nodes`` has a feature."""
        return any(node_of(agent) in nodes for agent in self._having.get((what, value), ()))

    def find(self, wanted: Wanted, nodes: Mapping[Any, Any]) -> Iterator[AgentRecord]:
        """Those that are wanted, on ``nodes``, by id. Do not change the index meanwhile."""
        agents = self.agents
        found: Iterator[AgentRecord] = (agents[one] for one in self._candidates(wanted) if node_of(one) in nodes)
        for test in wanted.tests:
            found = filter(test, found)
        return found

    def _candidates(self, wanted: Wanted) -> Iterable[AgentId]:
        """Those that have all the features, and one of any, in order: the smallest set, narrowed by the others."""
        any_of = [self._having.get(feature, {}) for feature in wanted.any_of]
        if not wanted.features and any_of:
            return sorted(set().union(*any_of))
        sets = sorted(((feature, self._having.get(feature, {})) for feature in wanted.features or [_ALL]), key=_size)
        others = [having for _, having in sets[1:]]
        found: Iterable[AgentId]
        if others and len(sets[0][1]) <= _MANY:
            ids: Set[AgentId] = sets[0][1].keys()
            for other in others:
                ids = ids & other.keys()
            found = sorted(ids)
        else:
            found = self._ordered(sets[0][0])
            if others:
                found = (agent for agent in found if all(agent in other for other in others))
        if any_of:
            found = (agent for agent in found if any(agent in other for other in any_of))
        return found

    def _ordered(self, feature: Feature) -> Iterable[AgentId]:
        if feature not in self._having:
            return ()
        order = self._orders.get(feature)
        if order is None:
            if len(self._orders) >= _ORDERS:
                del self._orders[next(iter(self._orders))]
            order = self._orders[feature] = Order(self._having[feature])
        return order.sorted()


class Order:
    """Ids kept sorted."""

    __slots__ = ("_ids", "_late")

    def __init__(self, ids: Iterable[AgentId]) -> None:
        self._ids = sorted(ids)
        self._late: dict[AgentId, None] = {}

    def add(self, agent: AgentId) -> None:
        self._late[agent] = None

    def discard(self, agent: AgentId) -> None:
        if agent in self._late:
            del self._late[agent]
        else:
            del self._ids[bisect_left(self._ids, agent)]

    def sorted(self) -> list[AgentId]:
        if len(self._late) > _FEW:
            self._ids += self._late
            self._ids.sort()
        else:
            for agent in self._late:
                insort(self._ids, agent)
        self._late.clear()
        return self._ids


_ALL: Feature = ("all",)


def _size(pair: tuple[Feature, dict[AgentId, None]]) -> int:
    return len(pair[1])


def _features(agent: AgentRecord) -> dict[Feature, None]:
    found: dict[Feature, None] = {_ALL: None, ("node", node_of(agent.id)): None, ("name", agent.name): None}
    found.update({("capability", offer.name): None for offer in agent.offers})
    found.update({("tag", tag): None for tag in agent.tags})
    found.update({("label", key, value): None for key, value in agent.labels.items()})
    if agent.kind:
        found["kind", agent.kind] = None
    if agent.region:
        found["region", agent.region] = None
    return found


def _in_range(version: str, wanted: str) -> bool:
    """A version that cannot be read is outside every range."""
    try:
        return version_in_range(version, wanted)
    except BadInput:
        return False


def _amounts(needs: Mapping[str, float] | None) -> dict[str, float]:
    for name, amount in (needs or {}).items():
        if name not in AMOUNTS:
            raise BadInput(f"needs has no {name!r}; it has: {', '.join(AMOUNTS)}", option="needs")
        check_amount(amount, f"needs {name}")
    return {name: float(amount) for name, amount in (needs or {}).items() if amount > 0}


def _has_free(agent: AgentRecord, amounts: dict[str, float]) -> bool:
    have = agent.resources
    return all(getattr(have, name) - getattr(have, AMOUNTS[name]) >= amount for name, amount in amounts.items())
