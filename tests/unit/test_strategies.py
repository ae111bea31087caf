"""The strategies: what weights and scores come to."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from crowd import C, agent, choose, scheduling, several
from hypothesis import given
from hypothesis import strategies as st
from test_reconcile import Leading, submit

from comity.core.pools import HEAVIEST, LIGHTEST, OUT, Candidate, Pool, Queues, Urn
from comity.core.scheduling import Scheduling
from comity.core.strategies import PRIOR, WINDOW, Fit, Fits, Reference, free_of, make_pool, weight_of
from comity.model.capability import AgentRecord, Offer, Performance, Requirements, Strategy
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.task import Fail, TaskFailure

RANDOM, BEST = Strategy.WEIGHTED_RANDOM, Strategy.BEST_FIT


def drawn(made: Scheduling, times: int, *args: Any, **kwargs: Any) -> Counter[str]:
    return Counter(choose(made, times, *args, strategy=RANDOM, **kwargs).split())


def near(counts: Counter[str], weights: dict[str, float], times: int) -> bool:
    """Whether every count lies within four standard deviations of its expectation."""
    total = sum(weights.values())
    for name, weight in weights.items():
        p = weight / total
        if abs(counts[name] - times * p) > 4 * (times * p * (1 - p)) ** 0.5:
            return False
    return set(counts) <= set(weights)


# Weighted random


def test_draws_follow_set_weights() -> None:
    weights = {"a": 1.0, "b": 3.0, "c": 0.3, "d": 50.0, "e": 2.0, "f": 1.99}
    made = scheduling(*(agent(name, weight=weight) for name, weight in weights.items()))
    assert near(drawn(made, 20_000), weights, 20_000)


def test_draws_follow_the_nodes_free_cpu_and_memory() -> None:
    made = scheduling(*(agent(f"a{i}", f"n{i}") for i in range(3)))
    for i, (cpu, memory_gb) in enumerate([(1, 1), (4, 4), (16, 1)]):
        made.set_node(ProcessId(f"n{i}"), eligible=True, cpu_free=cpu, memory_free_mb=1024 * memory_gb)
    assert near(drawn(made, 10_000), {"a0": 1, "a1": 4, "a2": 4}, 10_000)
    made.set_node(ProcessId("n0"), eligible=True, cpu_free=4, memory_free_mb=1024)
    assert near(drawn(made, 10_000), {"a0": 2, "a1": 4, "a2": 4}, 10_000)
    made.check()


def test_a_set_weight_beats_the_nodes() -> None:
    made = scheduling(agent("a", weight=2.0), agent("b"))
    made.set_node(ProcessId("n1"), eligible=True, cpu_free=8, memory_free_mb=8 * 1024)
    assert near(drawn(made, 5_000), {"a": 2, "b": 8}, 5_000)
    made.put_agent(agent("a", weight=24.0))
    assert near(drawn(made, 5_000), {"a": 24, "b": 8}, 5_000)


def test_draws_with_requirements_and_avoided_agents_keep_their_proportions() -> None:
    weights = {f"a{i}": 1.0 + i for i in range(8)}
    records = [agent(name, weight=weight, tags=("odd",) if weight % 2 else ()) for name, weight in weights.items()]
    made = scheduling(*records, agent("giant", weight=HEAVIEST))
    odd = {name: weight for name, weight in weights.items() if weight % 2}
    assert near(drawn(made, 6_000, Requirements(tags=("odd",))), odd, 6_000)
    without = {name: weight for name, weight in weights.items() if name != "a7"}
    assert near(drawn(made, 6_000, avoid=(AgentId("n1/a7"), AgentId("n1/giant"))), without, 6_000)
    made.check()


@pytest.mark.parametrize("weight", [1e-300, -1.0, float("nan"), float("inf"), 1e300])
def test_no_weight_is_zero_or_beyond_bounds(weight: float) -> None:
    made = scheduling(agent("a", weight=weight))
    made.set_node(ProcessId("n1"), eligible=True, cpu_free=-3, memory_free_mb=float("nan"))
    made.set_node(ProcessId("n1"), eligible=True, cpu_free=1e-9, memory_free_mb=0)
    assert drawn(made, 5) == {"a": 5}
    made.check()


def test_one_draw_in_a_thousand_is_for_the_light() -> None:
    made = scheduling(agent("light", weight=1.0), agent("heavy", weight=1000.0))
    assert near(drawn(made, 30_000), {"light": 1, "heavy": 1000}, 30_000)


class _Scripted:
    """Numbers given beforehand; the last one repeats."""

    def __init__(self, *numbers: float) -> None:
        self.numbers = list(numbers)

    def __call__(self) -> float:
        return self.numbers.pop(0) if len(self.numbers) > 1 else self.numbers[0]


@given(st.lists(st.floats(LIGHTEST, HEAVIEST), min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_any_random_number_draws_somebody(weights: list[float], number: float) -> None:
    urn = Urn(_Scripted(number, 0.0))
    for i, weight in enumerate(weights):
        candidate = Candidate(AgentId(f"n/{i}"))
        candidate.ready, candidate.weight = True, weight
        urn.add(candidate)
    urn.check()
    assert urn.pick() is not None


def test_a_stuck_source_of_numbers_does_not_hang() -> None:
    made = Scheduling(lambda: 0.999)
    made.set_node(ProcessId("n1"), eligible=True)
    for record in several(3):
        made.put_agent(record)
    assert made.choose(C, strategy=RANDOM) == "n1/a2"


def test_weights_and_free_resources() -> None:
    candidate = Candidate(AgentId("n/a"))
    assert weight_of(candidate) == 1.0
    assert free_of(1, 1024) == 0.0
    assert free_of(4, 4096) == 2.0
    assert free_of(4, 1024) == 1.0
    assert free_of(1.02, 1024) == 0.0, "small changes change nothing"
    assert free_of(0, 0) == free_of(-1, float("nan")) < -9


# Pools


@pytest.mark.parametrize("how", Strategy)
def test_an_empty_pool(how: Strategy) -> None:
    pool: Pool = make_pool(how, Fits(), lambda: 0.5)
    candidate = Candidate(AgentId("n/a"))
    assert pool.pick() is None
    assert len(pool) == 0 and candidate not in pool
    pool.discard(candidate)
    candidate.limit = 1
    candidate.ready = True
    pool.add(candidate)
    assert candidate in pool and list(pool.members()) == list(pool.ranked()) == [candidate]
    assert pool.pick((candidate,)) is None
    assert pool.pick() is candidate
    candidate.ready = False
    with pytest.raises(AssertionError):
        pool.check()
    pool.refresh(candidate)
    assert pool.pick() is None and len(pool) == 1
    pool.check()
    pool.discard(candidate)
    assert len(pool) == 0


def test_queues_are_first_in_first_out_by_level() -> None:
    levels = {"a": 2, "b": 0, "c": 2, "d": 0}
    queues = Queues(lambda candidate: levels[candidate.id])
    candidates = {}
    for name in levels:
        candidates[name] = candidate = Candidate(AgentId(name))
        candidate.ready = True
        queues.add(candidate)
    assert [one.id for one in queues.ranked()] == ["b", "d", "a", "c"]
    assert [one.id for _ in range(3) if (one := queues.pick())] == ["b", "d", "b"]
    levels["b"] = levels["d"] = 3
    queues.refresh(candidates["b"])
    queues.refresh(candidates["d"])
    assert queues.lowest() == 2
    assert [one.id for one in queues.ranked()] == ["a", "c", "b", "d"]
    for candidate in candidates.values():
        queues.place(candidate, OUT)
    assert queues.lowest() == OUT


# Best fit


def declared(name: str, node: str = "n1", **figures: float) -> AgentRecord:
    return agent(name, node, offers=(Offer(C, "1.0", "", None, Performance(**figures)),))


def best(made: Scheduling, times: int = 1) -> str:
    return choose(made, times, strategy=BEST)


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({"latency_ms": 10}, {"latency_ms": 20}),
        ({"throughput": 20}, {"throughput": 10}),
        ({"latency_ms": 10, "throughput": 20}, {"latency_ms": 10, "throughput": 10}),
        ({"latency_ms": 10, "success": 1.0}, {"latency_ms": 10, "success": 0.8}),
        ({"latency_ms": 10, "accuracy": 0.9}, {"latency_ms": 10, "accuracy": 0.7}),
        ({"latency_ms": 10, "accuracy": 0.9}, {"latency_ms": 10}),
        ({"latency_ms": 10}, {"latency_ms": 10, "accuracy": 0.2}),
        ({"latency_ms": 20, "success": 1.0}, {"latency_ms": 10, "success": 0.5}),
    ],
)
def test_declared_figures_decide_at_first(better: dict[str, float], worse: dict[str, float]) -> None:
    made = scheduling(declared("worse", **worse), declared("better", **better))
    assert best(made, 3) == "better better better"
    made.check()


def test_free_resources_of_the_node_count() -> None:
    made = scheduling(declared("a", "n1", latency_ms=10), declared("b", "n2", latency_ms=10))
    made.set_node(ProcessId("n1"), eligible=True, cpu_free=1, memory_free_mb=1024)
    made.set_node(ProcessId("n2"), eligible=True, cpu_free=8, memory_free_mb=8192)
    assert best(made, 2) == "b b"
    made.set_node(ProcessId("n2"), eligible=True, cpu_free=0.1, memory_free_mb=512)
    assert best(made, 2) == "a a"
    made.check()


def test_the_idle_come_before_the_busy_among_equals() -> None:
    made = scheduling(*(declared(f"a{i}", latency_ms=10) for i in range(3)))
    assert choose(made, 6, strategy=BEST, take=True) == "a0 a1 a2 a0 a1 a2"


def test_a_nearly_full_agent_scores_less_than_an_idle_one() -> None:
    made = scheduling(declared("a", latency_ms=10), declared("b", latency_ms=10))
    made.set_calls(AgentId("n1/a"), 6)
    assert best(made, 3) == "b b b"
    made.put_agent(agent("b", concurrency=1, offers=()))
    assert best(made, 1) == "a"


def test_the_first_sample_of_an_unknown_agent_does_not_decide_alone() -> None:
    """It starts from what the others do: one slow first call does not put an agent behind all others for good."""
    fits, new = Fits(), Candidate(AgentId("n/new"))
    for _ in range(20):
        fits.reference.add(latency=3.0, throughput=7.0)
    fits.make(new).measure(8.0 * 32, True, 1, fits.reference)
    assert fits.of(new).latency == pytest.approx(3.0 + 5.0 / (PRIOR + 1))
    fits.declare(Candidate(AgentId("n/d")), Performance(latency_ms=1024.0), 1)
    assert fits.reference.samples == 22
    assert 3.0 < fits.reference.latency < 4.0


def test_a_much_better_agent_is_filled_before_others_are_used() -> None:
    made = scheduling(declared("fast", latency_ms=1), declared("slow", latency_ms=1000))
    assert choose(made, 9, strategy=BEST, take=True) == " ".join(["fast"] * 8 + ["slow"])


def test_measured_figures_overrule_declared_ones() -> None:
    made = scheduling(declared("boaster", latency_ms=1), declared("honest", latency_ms=50))
    assert best(made) == "boaster"
    for _ in range(20):
        made.measured(AgentId("n1/boaster"), C, 500.0, True)
    assert best(made) == "honest"
    made.check()


def test_an_attempt_that_fails_at_once_is_measured_too() -> None:
    net = Leading(("n1/a", 1))
    net.commit(submit("t"))
    assert net.assigned() == ["t"]
    net.commit(Fail(TaskId("t"), 1, TaskFailure("x", retryable=False), ran_ms=1))
    (row,) = net.scheduling.explain("echo", strategy=BEST)["candidates"]
    assert row["figures"]["samples"] == 1
    assert row["figures"]["success"] < 1


def test_a_prior_is_worth_a_few_samples() -> None:
    fit, reference = Fit(Performance(latency_ms=64.0), 1), Reference()
    for _ in range(int(PRIOR)):
        fit.measure(1.0, True, 1, reference)
    assert fit.figures()["latency_ms"] == 8.0, "half way, geometrically"
    for _ in range(1000):
        fit.measure(1.0, True, 1, reference)
    figures = fit.figures()
    assert figures["latency_ms"] == pytest.approx(1.0)
    assert figures["throughput"] == pytest.approx(1000.0)
    assert figures["samples"] == WINDOW - PRIOR


def test_figures_follow_change() -> None:
    fit, reference = Fit(None, 1), Reference()
    for _ in range(1000):
        fit.measure(1.0, True, 1, reference)
    for _ in range(300):
        fit.measure(100.0, False, 1, reference)
    assert fit.figures()["success"] == pytest.approx(0.0, abs=0.02)
    assert fit.figures()["latency_ms"] == pytest.approx(1.0), "how long a failure took says nothing of the work"
    for _ in range(300):
        fit.measure(100.0, True, 8, reference)
    assert fit.figures()["latency_ms"] == pytest.approx(100.0, rel=0.05)
    assert fit.figures()["throughput"] == pytest.approx(80.0, rel=0.1), "8 in flight, 100 ms each"


def test_failures_and_ratings_lower_a_score() -> None:
    made = scheduling(declared("a", latency_ms=10), declared("b", latency_ms=11))
    assert best(made) == "a"
    for _ in range(3):
        made.measured(AgentId("n1/a"), C, 10.0, False)
    assert best(made) == "b"
    for _ in range(10):
        made.rated(AgentId("n1/b"), C, 0.05)
    assert best(made) == "a"
    made.measured(AgentId("n1/a"), C, 10.0, True, 0.0)
    made.check()
    shown = {row["agent"]: row for row in made.explain(C, strategy=BEST)["candidates"]}
    assert shown["n1/b"]["figures"] == {
        "latency_ms": 11.0,
        "throughput": 727.273,
        "success": 1.0,
        "accuracy": 0.1786,
        "samples": 0,
    }
    assert max(row["score"] for row in shown.values()) == 1.0


def test_only_the_requested_capability_is_scored() -> None:
    offers = (Offer(C, "1.0", ""), Offer("other", "1.0", ""))
    made = scheduling(agent("a", offers=offers), agent("b", offers=offers))
    for _ in range(10):
        made.measured(AgentId("n1/a"), C, 1.0, True)
        made.measured(AgentId("n1/b"), C, 100.0, True)
        made.measured(AgentId("n1/a"), "other", 100.0, True)
        made.measured(AgentId("n1/b"), "other", 1.0, True)
    assert best(made, 2) == "a a"
    assert made.choose("other", strategy=BEST) == "n1/b"


def test_the_unknown_stand_where_the_others_are_on_average() -> None:
    made = scheduling(declared("fast", latency_ms=10), declared("slow", latency_ms=1000), agent("new"))
    ranked = [row["agent"] for row in made.explain(C, strategy=BEST)["candidates"]]
    assert ranked == ["n1/fast", "n1/new", "n1/slow"]
    assert best(made) == "fast"
    for _ in range(60):
        made.measured(AgentId("n1/slow"), C, 1e6, True)
    for _ in range(60):
        made.measured(AgentId("n1/fast"), C, 1e6, True)
    ranked = [row["agent"] for row in made.explain(C, strategy=BEST)["candidates"]]
    assert ranked[0] == "n1/fast", "measured later than most, and a little quicker than the average by its prior"
    made.check()


def test_with_nothing_known_all_are_tried() -> None:
    made = scheduling(*several(4))
    assert sorted(best(made, 4).split()) == ["a0", "a1", "a2", "a3"]
    made.measured(AgentId("n1/a2"), C, 5.0, True)
    assert "a2" not in best(made, 1), "an average agent, and the others may be better"
    made.check()


def test_what_was_measured_outlives_an_update_but_not_a_removal() -> None:
    made = scheduling(agent("a"), agent("b"))
    for _ in range(30):
        made.measured(AgentId("n1/a"), C, 1.0, True)
        made.measured(AgentId("n1/b"), C, 100.0, True)
    made.put_agent(declared("a", latency_ms=1e6))
    assert best(made) == "a"
    made.remove_agent(AgentId("n1/a"))
    made.put_agent(declared("a", latency_ms=1e6))
    assert best(made) == "b"
    made.check()


def test_measuring_what_is_not_offered_is_ignored() -> None:
    made = scheduling(agent("a"), agent("b", offers=(Offer("other", "1.0", ""),)))
    made.measured(AgentId("n1/a"), "unknown", 1.0, True)
    made.measured(AgentId("n1/unknown"), C, 1.0, True)
    made.measured(AgentId("n1/b"), C, 1.0, True)
    made.rated(AgentId("n1/b"), C, 1.0)
    assert made.explain(C, strategy=BEST)["candidates"][0]["figures"]["samples"] == 0
    made.check()


@given(
    st.lists(
        st.tuples(st.floats(allow_nan=True), st.booleans(), st.integers(0, 10**6), st.none() | st.floats(0, 1)),
        max_size=50,
    ),
    st.builds(Performance, latency_ms=st.floats(), throughput=st.floats(), success=st.floats(), accuracy=st.floats()),
)
def test_no_figure_breaks_a_score(samples: list[tuple[float, bool, int, float | None]], claimed: Performance) -> None:
    made = scheduling(agent("a", offers=(Offer(C, "1.0", "", None, claimed),)), agent("b"), seed=1)
    for latency, ok, calls, accuracy in samples:
        made.set_calls(AgentId("n1/a"), calls)
        made.measured(AgentId("n1/a"), C, latency, ok, accuracy)
    made.set_calls(AgentId("n1/a"), 0)
    assert made.choose(C, strategy=BEST) is not None
    made.check()
    for row in made.explain(C, strategy=BEST)["candidates"]:
        assert 0.0 <= row["score"] <= 1.0


def test_what_is_not_a_number_is_not_believed() -> None:
    nan = float("nan")
    fit = Fit(Performance(latency_ms=nan, throughput=nan, success=nan, accuracy=nan), 1)
    assert fit.figures() == Fit(None, 1).figures()
    fit.rate(nan)
    fit.measure(nan, True, 1, Reference())
    assert fit.weigh() == fit.weigh() and fit.figures()["accuracy"] == 0.5


def test_scores_are_free_of_units() -> None:
    """The order of agents does not depend on what unit latency is measured in."""
    rng = random.Random(4)
    figures = [(rng.uniform(1, 1000), rng.uniform(0.5, 1), rng.uniform(0.2, 1)) for _ in range(12)]
    orders = []
    for unit in (1.0, 1000.0):
        made = scheduling(
            *(
                declared(f"a{i}", latency_ms=ms * unit, success=ok, accuracy=good)
                for i, (ms, ok, good) in enumerate(figures)
            )
        )
        rows = made.explain(C, strategy=BEST)["candidates"]
        orders.append([row["agent"] for row in sorted(rows, key=lambda row: -row["score"])])
    assert orders[0] == orders[1]
