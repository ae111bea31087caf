"""The explanation of a choice."""

from __future__ import annotations

import random

import msgspec
import pytest
from crowd import C, agent, scheduling, several

from comity.core.scheduling import Scheduling
from comity.model.capability import AgentStatus, Offer, Requirements, Resources, Strategy
from comity.model.ids import AgentId, ProcessId


def test_explain_names_everybody_and_why_not() -> None:
    made = scheduling(
        agent("busy", concurrency=1),
        agent("free"),
        agent("off", status=AgentStatus.PAUSED),
        agent("far", node="n2"),
        agent("tag", tags=("t",)),
    )
    made.take(AgentId("n1/busy"))
    made.take(AgentId("n1/free"))
    made.set_node(ProcessId("n2"), eligible=False)
    told = made.explain(C, avoid=(AgentId("n1/tag"),))
    assert told["strategy"] == "least_loaded"
    assert (told["offered"], told["live"], told["choice"]) == (5, 3, "n1/free")
    assert told["reason"] == "n1/free: fewest in flight, ties in rotation"
    rows = {
        row["agent"]: (row["eligible"], row["why_not"], row["load"], row["limit"], row["score"])
        for row in told["candidates"]
    }
    assert "-0.0" not in str(rows)
    assert rows == {
        "n1/free": (True, "", 1, 8, -1.0),
        "n1/busy": (False, "busy: 1 of 1", 1, 1, -1.0),
        "n1/off": (False, "its status is paused", 0, 8, 0.0),
        "n2/far": (False, "its node n2 is not alive, or takes no new work", 0, 8, 0.0),
        "n1/tag": (False, "to be avoided", 0, 8, 0.0),
    }
    assert [row["eligible"] for row in told["candidates"]] == [True, False, False, False, False]
    assert msgspec.json.decode(msgspec.json.encode(told)) == told


@pytest.mark.parametrize(
    ("needs", "why_not"),
    [
        (Requirements(tags=("gpu",)), "lacks tag gpu"),
        (Requirements(any_tags=("gpu", "tpu")), "has none of the tags gpu, tpu"),
        (Requirements(labels={"region": "eu"}), "label region is not eu"),
        (Requirements(kind="llm"), "is not of kind llm"),
        (Requirements(version=">=2"), "offers no version >=2"),
        (Requirements(cpu=4), "has 2 CPU cores free, not 4"),
        (Requirements(memory_mb=400), "has 100 MiB of memory free, not 400"),
        (Requirements(gpu=1), "has 0 GPUs free, not 1"),
    ],
    ids=repr,
)
def test_explain_says_what_is_lacking(needs: Requirements, why_not: str) -> None:
    made = scheduling(agent("a", resources=Resources(cpu=4, cpu_used=2, memory_mb=100)))
    told = made.explain(C, needs)
    assert told["choice"] is None
    assert told["candidates"][0]["why_not"] == why_not
    assert told["reason"] == f"no agent can take work now: 1 x {why_not}"


def test_explain_without_anybody() -> None:
    told = Scheduling(random.Random(1).random).explain(C)
    assert told["candidates"] == [] and told["choice"] is None
    assert told["reason"] == "no agent offers work"


def test_explain_a_named_agent() -> None:
    made = scheduling(*several(80), agent("b", concurrency=1))
    told = made.explain(C, Requirements(agent=AgentId("n1/b")))
    assert [row["agent"] for row in told["candidates"]] == ["n1/b"]
    assert told["choice"] == "n1/b"
    made.take(AgentId("n1/b"))
    told = made.explain(C, Requirements(agent=AgentId("n1/b")))
    assert told["candidates"][0]["why_not"] == "busy: 1 of 1"
    assert made.explain(C, Requirements(agent=AgentId("n1/absent")))["choice"] is None


def test_explain_shows_at_most_fifty_and_the_eligible_first() -> None:
    made = scheduling(*several(40, concurrency=1), *(agent(f"b{i}") for i in range(40)))
    for i in range(40):
        made.take(AgentId(f"n1/a{i}"))
    rows = made.explain(C)["candidates"]
    assert [row["eligible"] for row in rows] == [True] * 40 + [False] * 10


def test_explain_foretells_the_choice_and_changes_nothing() -> None:
    rng = random.Random(3)
    records = [agent(f"a{i}", tags=("rare",) if i % 37 == 0 else (), concurrency=3) for i in range(150)]
    made = scheduling(*records)
    flight: list[AgentId] = []
    for step in range(900):
        how = rng.choice([Strategy.LEAST_LOADED, Strategy.ROUND_ROBIN, Strategy.BEST_FIT])
        needs = rng.choice([None, Requirements(tags=("rare",)), Requirements(agent=AgentId("n1/a5"))])
        avoid = tuple(record.id for record in rng.sample(records, rng.randrange(3)))
        told = made.explain(C, needs, how, avoid)["choice"]
        assert made.explain(C, needs, how, avoid)["choice"] == told
        chosen = made.choose(C, needs, how, avoid)
        assert chosen == told, step
        if chosen is not None and rng.random() < 0.7:
            made.take(chosen)
            flight.append(chosen)
        elif flight:
            done = flight.pop(rng.randrange(len(flight)))
            made.measured(done, C, rng.uniform(1, 100), rng.random() < 0.9)
            made.give(done)
    made.check()


def test_whether_anybody_could_serve_is_asked_of_live_agents() -> None:
    made = scheduling(
        agent("busy", concurrency=1, tags=("t",)),
        agent("off", status=AgentStatus.PAUSED, kind="llm"),
        agent("other", offers=(Offer("else", "1.0", ""),), tags=("t", "u")),
    )
    made.take(AgentId("n1/busy"))
    assert made.serves(C, Requirements(tags=("t",)))
    assert made.serves(C, Requirements(agent="n1/busy"))
    assert not made.serves(C, Requirements(tags=("u",)))
    assert not made.serves(C, Requirements(kind="llm"))
    assert not made.serves(C, Requirements(version=">=2"))
    assert not made.serves(C, Requirements(avoid=(AgentId("n1/busy"),)))
    assert not made.serves("nothing", Requirements(tags=("t",)))
