"""Scheduling: who is chosen, by example."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import msgspec
import pytest
from crowd import C, agent, choose, names, scheduling, several

from comity.core import scheduling as module
from comity.core.scheduling import Scheduling
from comity.errors import BadInput
from comity.model.capability import AgentStatus, Offer, Requirements, Resources, Strategy
from comity.model.ids import AgentId, ProcessId

# Who is a candidate


def test_nobody_offers_it() -> None:
    made = scheduling(agent("a"))
    assert made.choose("other") is None
    assert made.offered("other") == made.live("other") == 0


def test_an_agent_on_an_unknown_or_ineligible_node_gets_nothing() -> None:
    made = Scheduling(random.Random(1).random)
    made.put_agent(agent("a"))
    assert made.choose(C) is None
    assert (made.offered(C), made.live(C)) == (1, 0)
    made.set_node(ProcessId("n1"), eligible=True)
    assert made.choose(C) == "n1/a"
    assert made.live(C) == 1
    made.set_node(ProcessId("n1"), eligible=False)
    assert made.choose(C) is None
    made.check()


def test_a_node_may_be_known_before_its_agents() -> None:
    made = Scheduling(random.Random(1).random)
    made.set_node(ProcessId("n1"), eligible=True)
    made.put_agent(agent("a"))
    assert made.choose(C) == "n1/a"


@pytest.mark.parametrize("status", [status for status in AgentStatus if status is not AgentStatus.ACTIVE])
def test_only_active_agents_get_work(status: AgentStatus) -> None:
    made = scheduling(agent("a", status=status))
    assert made.choose(C) is None
    assert (made.offered(C), made.live(C)) == (1, 0)
    made.put_agent(agent("a"))
    assert made.choose(C) == "n1/a"
    made.put_agent(agent("a", status=status))
    assert made.choose(C) is None
    made.check()


@pytest.mark.parametrize("strategy", Strategy)
def test_concurrency_is_a_limit(strategy: Strategy) -> None:
    made = scheduling(agent("a", concurrency=2), agent("b", concurrency=1))
    assert sorted(choose(made, 3, strategy=strategy, take=True).split()) == ["a", "a", "b"]
    assert made.choose(C, strategy=strategy) is None
    assert made.live(C) == 2, "busy agents are live"
    made.give(AgentId("n1/b"))
    assert made.choose(C, strategy=strategy) == "n1/b"
    made.check()


def test_a_concurrency_of_zero_or_less_means_never() -> None:
    made = scheduling(agent("a", concurrency=0), agent("b", concurrency=-1))
    assert all(made.choose(C, strategy=strategy) is None for strategy in Strategy)


def test_more_concurrency_opens_a_full_agent() -> None:
    made = scheduling(agent("a", concurrency=1))
    made.take(AgentId("n1/a"))
    assert made.choose(C) is None
    made.put_agent(agent("a", concurrency=2))
    assert made.choose(C) == "n1/a"
    made.put_agent(agent("a", concurrency=1))
    assert made.choose(C) is None


def test_agents_are_chosen_for_what_they_offer() -> None:
    both = (Offer(C, "1.0", ""), Offer("other", "1.0", ""))
    made = scheduling(agent("a"), agent("b", offers=both))
    made.take(AgentId("n1/a"))
    assert made.choose("other") == "n1/b"
    made.take(AgentId("n1/b"))
    made.take(AgentId("n1/b"))
    assert made.choose(C) == "n1/a", "load counts over all capabilities"
    made.put_agent(agent("b"))
    assert made.choose("other") is None
    assert made.offered("other") == 0
    assert made.capabilities() == [C]
    made.check()


# Load


def test_load_is_attempts_and_calls() -> None:
    made = scheduling(agent("a"))
    a = AgentId("n1/a")
    made.take(a)
    made.set_calls(a, 3)
    assert made.load(a) == 4
    made.set_calls(a, 0)
    made.give(a)
    assert made.load(a) == 0
    made.set_calls(a, -5)
    assert made.load(a) == 0, "a node that counts below nothing is not believed"
    assert made.load(AgentId("n1/unknown")) == 0


def test_calls_alone_make_an_agent_busy() -> None:
    made = scheduling(agent("a", concurrency=3), agent("b", concurrency=3))
    made.set_calls(AgentId("n1/a"), 2)
    assert made.choose(C) == "n1/b"
    made.set_calls(AgentId("n1/b"), 3)
    assert made.choose(C) == "n1/a"


def test_giving_back_what_was_not_taken_is_a_mistake() -> None:
    made = scheduling(agent("a"))
    with pytest.raises(ValueError, match="gave back more"):
        made.give(AgentId("n1/a"))
    with pytest.raises(ValueError, match="gave back more"):
        made.give(AgentId("n1/unknown"))


def test_load_outlives_the_agents_record() -> None:
    made = scheduling(agent("a", concurrency=1))
    a = AgentId("n1/a")
    made.take(a)
    made.remove_agent(a)
    assert made.load(a) == 1
    assert list(made.agents()) == []
    assert made.record(a) is None
    made.put_agent(agent("a", concurrency=1))
    assert made.choose(C) is None, "its attempt still runs"
    made.give(a)
    assert made.choose(C) == a
    made.take(a)
    made.remove_agent(a)
    made.give(a)
    assert made.load(a) == 0
    made.check()


def test_calls_end_with_the_agents_record() -> None:
    made = scheduling(agent("a"))
    made.take(AgentId("n1/a"))
    made.set_calls(AgentId("n1/a"), 3)
    made.remove_agent(AgentId("n1/a"))
    assert made.load(AgentId("n1/a")) == 1


def test_load_may_come_before_the_agent() -> None:
    made = scheduling(agent("b", concurrency=9))
    made.take(AgentId("n1/a"))
    made.set_calls(AgentId("n1/unknown"), 4)
    made.put_agent(agent("a"))
    assert made.load(AgentId("n1/a")) == 1
    assert made.load(AgentId("n1/unknown")) == 0
    assert made.choose(C) == "n1/b"
    made.check()


def test_clear_load() -> None:
    made = scheduling(agent("a", concurrency=1))
    made.take(AgentId("n1/a"))
    made.set_calls(AgentId("n1/a"), 1)
    made.take(AgentId("n1/unknown"))
    made.clear_load()
    assert made.load(AgentId("n1/a")) == made.load(AgentId("n1/unknown")) == 0
    assert made.choose(C) == "n1/a"
    made.check()


def test_removing_an_unknown_agent_or_node_is_fine() -> None:
    made = scheduling(agent("a"))
    made.remove_agent(AgentId("n1/unknown"))
    made.set_node(ProcessId("unknown"), eligible=False)
    made.remove_agent(AgentId("n1/a"))
    made.remove_agent(AgentId("n1/a"))
    made.set_node(ProcessId("n1"), eligible=False)
    made.check()
    assert made.capabilities() == []


# Least loaded, round robin


def test_least_loaded_takes_the_fewest_in_flight_and_ties_in_rotation() -> None:
    made = scheduling(*several(3))
    assert choose(made, 7, take=True) == "a0 a1 a2 a0 a1 a2 a0"
    made.give(AgentId("n1/a1"))
    made.give(AgentId("n1/a1"))
    assert choose(made, 5, take=True) == "a1 a1 a2 a1 a0", "loads were 3 0 2; then whoever waited longest"


def test_ties_rotate_even_if_nothing_is_taken() -> None:
    made = scheduling(*several(3))
    assert choose(made, 6) == "a0 a1 a2 a0 a1 a2"


def test_loads_beyond_the_last_level_are_not_told_apart() -> None:
    made = scheduling(*several(2, concurrency=1_000_000))
    made.set_calls(AgentId("n1/a0"), 900_000)
    made.set_calls(AgentId("n1/a1"), 800_000)
    assert choose(made, 4) == "a0 a1 a0 a1"
    made.set_calls(AgentId("n1/a1"), 4000)
    assert choose(made, 2) == "a1 a1"
    made.check()


def test_round_robin_goes_round_whatever_the_load() -> None:
    made = scheduling(*several(3))
    made.take(AgentId("n1/a0"))
    assert choose(made, 6, strategy=Strategy.ROUND_ROBIN) == "a0 a1 a2 a0 a1 a2"


def test_round_robin_is_per_capability() -> None:
    both = (Offer(C, "1.0", ""), Offer("other", "1.0", ""))
    made = scheduling(*several(3, offers=both))
    made.set_strategy(C, Strategy.ROUND_ROBIN)
    made.set_strategy("other", Strategy.ROUND_ROBIN)
    assert choose(made, 2) == "a0 a1"
    assert [made.choose("other") for _ in range(2)] == ["n1/a0", "n1/a1"]
    assert choose(made, 2) == "a2 a0"


# Which strategy


def test_the_call_beats_the_capability_beats_the_offer_beats_the_default() -> None:
    offers = (Offer(C, "1.0", "", Strategy.ROUND_ROBIN),)
    made = scheduling(agent("a"), default=Strategy.WEIGHTED_RANDOM)
    assert made.strategy_of(C) is Strategy.WEIGHTED_RANDOM
    made.put_agent(agent("b", offers=offers))
    assert made.strategy_of(C) is Strategy.ROUND_ROBIN
    made.set_strategy(C, Strategy.BEST_FIT)
    assert made.strategy_of(C) is Strategy.BEST_FIT
    assert made.explain(C, strategy=Strategy.LEAST_LOADED)["strategy"] == "least_loaded"
    assert made.explain(C)["strategy"] == "best_fit"
    assert made.strategy_of("unknown") is Strategy.WEIGHTED_RANDOM


def test_an_unknown_strategy_is_an_error() -> None:
    made = scheduling(agent("a"))
    bad: Any = "fastest"
    for call in (
        lambda: made.set_strategy(C, bad),
        lambda: made.choose(C, strategy=bad),
        lambda: made.explain(C, strategy=bad),
    ):
        with pytest.raises(BadInput, match="unknown strategy 'fastest'"):
            call()
    made.check()


def test_a_strategys_name_will_do() -> None:
    made = scheduling(*several(2))
    name: Any = "round_robin"
    assert choose(made, 3, strategy=name) == "a0 a1 a0"


# Requirements


DIVERSE = [
    agent("plain"),
    agent("gpu", tags=("gpu", "fast"), resources=Resources(cpu=8, memory_mb=1000, gpu=2, gpu_used=1)),
    agent("eu", labels={"region": "eu", "tier": "1"}, kind="llm", offers=(Offer(C, "1.5", ""),)),
    agent("new", tags=("fast",), offers=(Offer(C, "2.1", ""), Offer(C, "1.2", ""))),
    agent("odd", offers=(Offer(C, "experimental", ""),)),
]


@pytest.mark.parametrize(
    ("needs", "meets"),
    [
        (Requirements(), "eu gpu new odd plain"),
        (Requirements(tags=("fast",)), "gpu new"),
        (Requirements(tags=("fast", "gpu")), "gpu"),
        (Requirements(tags=("none",)), ""),
        (Requirements(any_tags=("gpu", "none")), "gpu"),
        (Requirements(labels={"region": "eu"}), "eu"),
        (Requirements(labels={"region": "eu", "tier": "2"}), ""),
        (Requirements(kind="llm"), "eu"),
        (Requirements(version=">=1.2,<2"), "eu new"),
        (Requirements(version=">=2"), "new"),
        (Requirements(version="==1.0"), "gpu plain"),
        (Requirements(version="1"), "gpu plain"),
        (Requirements(version="!=1"), "eu new"),
        (Requirements(cpu=8), "gpu"),
        (Requirements(cpu=9), ""),
        (Requirements(gpu=1), "gpu"),
        (Requirements(gpu=2), ""),
        (Requirements(memory_mb=1000), "gpu"),
        (Requirements(agent=AgentId("n1/new")), "new"),
        (Requirements(agent=AgentId("n1/new"), tags=("gpu",)), ""),
        (Requirements(agent=AgentId("n1/absent")), ""),
        (Requirements(avoid=(AgentId("n1/gpu"), AgentId("n1/eu"))), "new odd plain"),
        (Requirements(avoid=(AgentId("n1/gpu"),), tags=("fast",)), "new"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("strategy", Strategy)
def test_requirements(needs: Requirements, meets: str, strategy: Strategy) -> None:
    made = scheduling(*DIVERSE)
    chosen: set[str] = set()
    for _ in range(60):
        one = made.choose(C, needs, strategy)
        chosen.add(names([one]))
        if one is not None:
            made.take(one)
            made.check()
        if made.load(AgentId("n1/plain")) + made.load(AgentId("n1/new")) == 16 or one is None:
            break
    assert chosen - {"-"} == set(meets.split())


def test_a_bad_version_range_is_an_error() -> None:
    made = scheduling(agent("a"))
    with pytest.raises(BadInput, match="dotted numbers"):
        made.choose(C, Requirements(version=">=one"))
    with pytest.raises(BadInput, match="dotted numbers"):
        made.choose(C, Requirements(version=">=one", agent=AgentId("n1/a")))


@pytest.mark.parametrize("strategy", Strategy)
def test_avoid_holds_for_the_call(strategy: Strategy) -> None:
    made = scheduling(*several(12))
    all_but_a7 = tuple(AgentId(f"n1/a{i}") for i in range(12) if i != 7)
    assert made.choose(C, strategy=strategy, avoid=all_but_a7) == "n1/a7"
    assert made.choose(C, strategy=strategy, avoid=(*all_but_a7, AgentId("n1/a7"))) is None
    needs = Requirements(avoid=all_but_a7[:5])
    assert made.choose(C, needs, strategy, avoid=all_but_a7[5:]) == "n1/a7"
    assert made.choose(C, Requirements(agent=AgentId("n1/a7")), strategy, avoid=(AgentId("n1/a7"),)) is None
    assert made.choose(C, strategy=strategy) is not None
    made.check()


def test_a_named_agent_must_be_able() -> None:
    made = scheduling(agent("a", concurrency=1), agent("b", offers=()))
    needs = Requirements(agent=AgentId("n1/a"))
    assert made.choose(C, needs) == "n1/a"
    made.take(AgentId("n1/a"))
    assert made.choose(C, needs) is None
    assert made.choose(C, Requirements(agent=AgentId("n1/b"))) is None


# Selective pools


def test_a_rare_agent_is_found_behind_many() -> None:
    made = scheduling(*several(200), agent("rare", tags=("rare",), concurrency=2))
    needs = Requirements(tags=("rare",))
    assert choose(made, 3, needs, take=True) == "rare rare -"
    made.check()
    made.put_agent(agent("late", tags=("rare",)))
    assert choose(made, 1, needs) == "late"
    made.put_agent(agent("late"))
    assert choose(made, 1, needs) == "-"
    made.give(AgentId("n1/rare"))
    assert choose(made, 1, needs) == "rare"
    made.remove_agent(AgentId("n1/rare"))
    assert choose(made, 1, needs) == "-"
    made.check()


@pytest.mark.parametrize("strategy", Strategy)
def test_rare_agents_are_found_by_what_has_no_index(strategy: Strategy) -> None:
    big = Resources(cpu=64)
    made = scheduling(*several(200), *(agent(f"big{i}", resources=big) for i in range(3)))
    assert set(choose(made, 30, Requirements(cpu=32), strategy).split()) == {"big0", "big1", "big2"}
    made.check()


def test_selective_pools_are_dropped_when_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOLS", 3)
    made = scheduling(*several(100), *(agent(f"r{i}", labels={"shard": str(i)}) for i in range(10)))
    for _ in range(2):
        for i in range(10):
            assert made.choose(C, Requirements(labels={"shard": str(i)})) == f"n1/r{i}"
            made.check()
    assert len(made._selective) == 3


def test_the_pool_longest_unused_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POOLS", 2)
    made = scheduling(*several(100), *(agent(f"r{i}", kind=f"k{i}") for i in range(3)))
    for kind in ("k0", "k1", "k0", "k2"):
        assert made.choose(C, Requirements(kind=kind)) is not None
    assert [key[1][-1] for key in made._selective] == ["k0", "k2"]


def test_pools_end_with_their_capability() -> None:
    made = scheduling(*several(50), agent("r", tags=("rare",)))
    assert made.choose(C, Requirements(tags=("rare",))) == "n1/r"
    for record in list(made.agents()):
        made.remove_agent(record.id)
    made.check()
    assert not made._selective and made.choose(C, Requirements(tags=("rare",))) is None
    made.put_agent(agent("r", tags=("rare",)))
    assert made.choose(C, Requirements(tags=("rare",))) == "n1/r"
    made.check()


def test_selective_pools_are_dropped_when_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW", 0)
    monkeypatch.setattr(module, "SHARE", 1)
    made = scheduling(*several(40), *(agent(f"r{i}", kind="k", tags=("t",), labels={"l": ""}) for i in range(40)))
    for needs in (Requirements(kind="k"), Requirements(tags=("t",)), Requirements(labels={"l": ""})):
        assert str(made.choose(C, needs)).startswith("n1/r")
        made.check()
    assert made._selective_members <= 80
    assert len(made._selective) == 2


def test_requirements_met_by_many_need_no_pool_of_their_own() -> None:
    made = scheduling(*several(100, tags=("common",)))
    for i in range(50):
        assert made.choose(C, Requirements(tags=("common",), memory_mb=-float(i))) is not None
    assert not made._selective


def test_a_pool_is_made_once_asking_in_vain_has_cost_as_much() -> None:
    made = scheduling(*(agent(f"a{i}", kind="odd" if i % 2 else "even") for i in range(400)))
    needs, when = Requirements(kind="odd"), None
    for i in range(400):
        assert made.choose(C, needs) is not None
        if made._selective:
            when = i
            break
    assert when is not None and 5 < when < 250
    made.check()


def test_matchers_do_not_pile_up() -> None:
    made = scheduling(agent("a", resources=Resources(memory_mb=10_000)))
    for i in range(3000):
        made.choose(C, Requirements(memory_mb=float(i)))
    assert len(made._matchers) <= 1024


# What is known


def test_records_are_listed_in_order_of_arrival() -> None:
    made = scheduling(*several(3))
    made.put_agent(agent("a1", kind="new"))
    assert [(record.name, record.kind) for record in made.agents()] == [("a0", ""), ("a1", "new"), ("a2", "")]
    record = made.record(AgentId("n1/a1"))
    assert record is not None and record.kind == "new"


def test_an_agent_may_move_to_another_node() -> None:
    made = scheduling(agent("a"))
    moved = msgspec.structs.replace(agent("a"), node=ProcessId("n2"))
    made.put_agent(moved)
    assert made.choose(C) is None
    made.set_node(ProcessId("n2"), eligible=True)
    assert made.choose(C) == "n1/a"
    made.check()


def test_free_resources_are_kept_until_told_otherwise() -> None:
    made = scheduling(agent("a"), agent("b", node="n2"))
    made.set_node(ProcessId("n1"), eligible=True, cpu_free=64, memory_free_mb=64 * 1024)
    made.set_node(ProcessId("n1"), eligible=False)
    made.set_node(ProcessId("n1"), eligible=True)
    drawn = Counter(choose(made, 300, strategy=Strategy.WEIGHTED_RANDOM).split())
    assert drawn["a"] > 280
