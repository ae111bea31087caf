"""What the network measures of capabilities and agents."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import pytest
from crowd import C, agent, scheduling
from hypothesis import given

from comity.controller.performance import busiest, performance
from comity.core.performance import OF_AGENT, Tally

SECOND = 1000


@given(st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=OF_AGENT))
def test_percentiles_are_of_the_nearest_rank(values: list[float]) -> None:
    tally = Tally(OF_AGENT)
    for value in values:
        tally.add(value, True, 0)
    found, ordered = tally.figures(0), sorted(values)
    assert found["p50_ms"] == pytest.approx(ordered[math.ceil(len(values) / 2) - 1], abs=1e-3)
    assert found["p95_ms"] == pytest.approx(ordered[math.ceil(len(values) * 0.95) - 1], abs=1e-3)


def test_only_the_last_ones_count_for_latency_and_success() -> None:
    tally = Tally(4)
    for _ in range(10):
        tally.add(9.0, False, 0)
    for took in (1.0, 2.0, 3.0):
        tally.add(took, True, 0)
    figures = tally.figures(0)
    assert (figures["p50_ms"], figures["p95_ms"], figures["success"], figures["samples"]) == (2.0, 3.0, 0.75, 4)
    assert tally.ended == 13


def test_failures_have_no_latency_and_nothing_is_known_at_first() -> None:
    tally = Tally(4)
    assert set(tally.figures(0).values()) == {None, 0}
    tally.add(5.0, False, 0)
    assert (tally.figures(0)["p50_ms"], tally.figures(0)["success"]) == (None, 0.0)


def test_the_rate_is_right_at_once_and_fades() -> None:
    tally = Tally(4)
    for i in range(50 * 10):
        tally.add(1.0, True, 1_000_000 + i * 20)  # fifty a second
    assert tally.per_s(1_000_000 + 10 * SECOND) == pytest.approx(50, rel=0.05)
    for i in range(50 * 120):
        tally.add(1.0, True, 1_010_000 + i * 20)
    end = 1_010_000 + 120 * SECOND
    assert tally.per_s(end) == pytest.approx(50, rel=0.05)
    assert tally.per_s(end + 300 * SECOND) < 0.01
    tally.add(1.0, True, 0)  # a clock that goes back is no reason to fail
    assert tally.per_s(0) > 0


def test_the_leader_tells_of_capabilities_and_of_agents() -> None:
    made = scheduling(agent("fast"), agent("slow"), agent("idle"))
    for name, took in (("fast", 2.0), ("slow", 80.0)):
        for _ in range(20):
            made.measured(agent(name).id, C, took, name == "fast", now_ms=5 * SECOND)
    (row,) = performance(made, None, 5 * SECOND)["capabilities"]
    assert (row["name"], row["agents"], row["live"], row["strategy"]) == (C, 3, 3, "least_loaded")
    assert (row["samples"], row["success"], row["p95_ms"]) == (40, 0.5, 2.0)
    told = performance(made, C, 5 * SECOND)
    by_agent = {one["id"]: one for one in told["agents"]}
    assert by_agent[agent("fast").id]["p50_ms"] == 2.0
    assert by_agent[agent("slow").id]["success"] == 0.0
    assert agent("idle").id not in by_agent
    assert busiest(made, 5 * SECOND, 5) == [row]
    assert performance(made, "nothing", 0)["capabilities"][0]["agents"] == 0


def test_who_no_longer_offers_it_is_forgotten() -> None:
    made = scheduling(agent("a"), agent("b"))
    for name in "ab":
        made.measured(agent(name).id, C, 1.0, True, now_ms=SECOND)
    made.remove_agent(agent("a").id)
    told = performance(made, C, SECOND)
    assert [one["id"] for one in told["agents"]] == [agent("b").id]
    made.remove_agent(agent("b").id)
    assert performance(made, None, SECOND)["capabilities"] == []
