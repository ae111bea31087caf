"""Scheduling against a naive oracle that looks at every agent every time."""

from __future__ import annotations

import random
from unittest import mock

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comity.core import hosts
from comity.core import scheduling as module
from comity.core.scheduling import Scheduling
from comity.model.capability import AgentRecord, AgentStatus, Offer, Performance, Requirements, Resources, Strategy
from comity.model.ids import AgentId, ProcessId

NODES = [ProcessId(f"n{i}") for i in range(3)]
IDS = [AgentId(f"n{i % 3}/a{i}") for i in range(9)]
NAMES = ["c", "d"]

performances = st.builds(
    Performance,
    latency_ms=st.sampled_from([0.0, 1.0, 50.0, 900.0]),
    throughput=st.sampled_from([0.0, 5.0]),
    success=st.sampled_from([1.0, 0.5]),
    accuracy=st.sampled_from([0.0, 0.9]),
)
offers = st.builds(
    Offer,
    name=st.sampled_from(NAMES),
    version=st.sampled_from(["1.0", "1.5", "2.0", "beta"]),
    schema=st.just(""),
    declared=st.none() | performances,
)
records = st.builds(
    AgentRecord,
    id=st.sampled_from(IDS),
    name=st.just("x"),
    kind=st.sampled_from(["", "llm"]),
    tags=st.sampled_from([(), ("red",), ("red", "big"), ("big",)]),
    labels=st.sampled_from([{}, {"zone": "a"}, {"zone": "b", "tier": "1"}]),
    resources=st.builds(Resources, cpu=st.sampled_from([0.0, 4.0]), cpu_used=st.sampled_from([0.0, 2.0])),
    concurrency=st.integers(0, 3),
    weight=st.sampled_from([0.0, 0.5, 100.0]),
    status=st.sampled_from([AgentStatus.ACTIVE] * 4 + [AgentStatus.PAUSED]),
    offers=st.lists(offers, max_size=3).map(tuple),
)
demands = st.none() | st.builds(
    Requirements,
    tags=st.sampled_from([(), ("red",), ("big", "red")]),
    any_tags=st.sampled_from([(), ("red", "none")]),
    labels=st.sampled_from([{}, {"zone": "a"}, {"tier": "1"}]),
    cpu=st.sampled_from([0.0, 3.0]),
    version=st.sampled_from(["", ">=1.2", "<2", "==1"]),
    kind=st.sampled_from(["", "llm"]),
    agent=st.sampled_from([AgentId("")] * 5 + IDS[:2]),
    avoid=st.lists(st.sampled_from(IDS), max_size=2).map(tuple),
    sticky=st.sampled_from(["", "", "k1", "k2"]),
)


def meets(needs: Requirements | None, record: AgentRecord, capability: str) -> bool:
    """By the model's own rule; an unreadable version is outside every range."""
    mine = [offer for offer in record.offers if offer.name == capability]
    if needs is None:
        return bool(mine)
    return any(needs.met_by(record, offer) for offer in mine if not needs.version or offer.version != "beta")


class Naive(RuleBasedStateMachine):
    """The limits are so low that pools of all kinds come and go, and that agents learn late what their nodes are."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = [
            mock.patch.object(module, name, value) for name, value in {"TRIES": 2, "POOLS": 3, "FEW": 6}.items()
        ]
        self.patches.append(mock.patch.object(hosts, "AT_ONCE", 1))
        for patch in self.patches:
            patch.start()

    def teardown(self) -> None:
        for patch in self.patches:
            patch.stop()

    @initialize(seed=st.integers(0, 99), default=st.sampled_from(Strategy))
    def begin(self, seed: int, default: Strategy) -> None:
        self.made = Scheduling(random.Random(seed).random, default)
        self.agents: dict[AgentId, AgentRecord] = {}
        self.eligible: set[ProcessId] = set()
        self.held: dict[AgentId, int] = {}
        self.calls: dict[AgentId, int] = {}
        self.strategies: dict[str, Strategy] = {}
        self.default = default
        for node in NODES[:2]:
            self.set_node(node, True, 1.0)

    @rule(record=records)
    def put(self, record: AgentRecord) -> None:
        record = msgspec.structs.replace(record, node=ProcessId(record.id.partition("/")[0]))
        self.agents[record.id] = record
        self.made.put_agent(record)

    @precondition(lambda self: self.agents)
    @rule(data=st.data(), status=st.sampled_from(AgentStatus))
    def change_status(self, data: st.DataObject, status: AgentStatus) -> None:
        agent = data.draw(st.sampled_from(sorted(self.agents)))
        self.put(msgspec.structs.replace(self.agents[agent], status=status))

    @rule(agent=st.sampled_from(IDS))
    def remove(self, agent: AgentId) -> None:
        self.made.remove_agent(agent)
        self.agents.pop(agent, None)
        self.calls.pop(agent, None)

    @rule(node=st.sampled_from(NODES), eligible=st.booleans(), cpu=st.sampled_from([0.0, 0.5, 16.0]))
    def set_node(self, node: ProcessId, eligible: bool, cpu: float) -> None:
        self.made.set_node(node, eligible=eligible, cpu_free=cpu, memory_free_mb=1024 * cpu)
        (self.eligible.add if eligible else self.eligible.discard)(node)

    @precondition(lambda self: self.made.is_behind)
    @rule()
    def catch_up(self) -> None:
        self.made.catch_up()

    @rule(agent=st.sampled_from(IDS))
    def take(self, agent: AgentId) -> None:
        self.made.take(agent)
        self.held[agent] = self.held.get(agent, 0) + 1

    @precondition(lambda self: any(self.held.values()))
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        agent = data.draw(st.sampled_from(sorted(one for one, count in self.held.items() if count)))
        self.made.give(agent)
        self.held[agent] -= 1

    @rule(agent=st.sampled_from(IDS), count=st.integers(-1, 3))
    def set_calls(self, agent: AgentId, count: int) -> None:
        self.made.set_calls(agent, count)
        if agent in self.agents:
            self.calls[agent] = max(count, 0)

    @rule()
    def clear_load(self) -> None:
        self.made.clear_load()
        self.held.clear()
        self.calls.clear()

    @rule(capability=st.sampled_from(NAMES), strategy=st.sampled_from(Strategy))
    def set_strategy(self, capability: str, strategy: Strategy) -> None:
        self.made.set_strategy(capability, strategy)
        self.strategies[capability] = strategy

    @rule(
        agent=st.sampled_from(IDS),
        capability=st.sampled_from(NAMES),
        latency=st.sampled_from([0.0, 2.0, 700.0]),
        ok=st.booleans(),
        accuracy=st.none() | st.floats(0, 1),
    )
    def measure(self, agent: AgentId, capability: str, latency: float, ok: bool, accuracy: float | None) -> None:
        self.made.measured(agent, capability, latency, ok, accuracy)

    @rule(
        capability=st.sampled_from(NAMES),
        needs=demands,
        strategy=st.none() | st.sampled_from(Strategy),
        avoid=st.lists(st.sampled_from(IDS), max_size=9).map(tuple),
        take=st.booleans(),
    )
    def choose(
        self,
        capability: str,
        needs: Requirements | None,
        strategy: Strategy | None,
        avoid: tuple[AgentId, ...],
        take: bool,
    ) -> None:
        can = {
            agent
            for agent, record in self.agents.items()
            if record.status is AgentStatus.ACTIVE
            and record.node in self.eligible
            and self.load(agent) < record.concurrency
            and meets(needs, record, capability)
            and agent not in avoid
        }
        if self.made.is_behind:
            chosen = self.made.choose(capability, needs, strategy, avoid)
            assert chosen is None or chosen in can
            while self.made.is_behind:
                self.made.catch_up()
        told = self.made.explain(capability, needs, strategy, avoid)
        chosen = self.made.choose(capability, needs, strategy, avoid)
        assert (chosen in can) if can else (chosen is None)
        key = needs.sticky if needs is not None else ""
        how = Strategy.STICKY if key else strategy or self.strategies.get(capability) or self.default
        assert told["strategy"] == how
        shown = {row["agent"]: row for row in told["candidates"]}
        assert {agent for agent, row in shown.items() if row["eligible"]} == can
        if not (needs is not None and needs.agent):
            assert set(shown) == {
                a for a, record in self.agents.items() if any(o.name == capability for o in record.offers)
            }
        if how not in (Strategy.WEIGHTED_RANDOM, Strategy.POWER_OF_TWO) and (how is not Strategy.STICKY or key):
            assert told["choice"] == chosen
        if how is Strategy.LEAST_LOADED and chosen is not None:
            assert self.load(chosen) == min(self.load(agent) for agent in can)
        if how is Strategy.BEST_FIT and chosen is not None:
            # A level is 1/8 octave; where unknown speeds stand is rounded to one.
            assert shown[chosen]["score"] >= max(shown[agent]["score"] for agent in can) * 2 ** (-2 / 8) - 1e-6
        if take and chosen is not None:
            self.take(chosen)

    def load(self, agent: AgentId) -> int:
        return self.held.get(agent, 0) + self.calls.get(agent, 0)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "made"):
            return
        self.made.check()
        for capability in NAMES:
            offer = [record for record in self.agents.values() if any(o.name == capability for o in record.offers)]
            live = [record for record in offer if record.status is AgentStatus.ACTIVE and record.node in self.eligible]
            assert self.made.offered(capability) == len(offer)
            assert self.made.is_behind or self.made.live(capability) == len(live)
        assert all(self.made.load(agent) == self.load(agent) for agent in IDS)
        assert {record.id: record for record in self.made.agents()} == self.agents


TestNaive = Naive.TestCase
TestNaive.settings = settings(max_examples=80, stateful_step_count=60)
