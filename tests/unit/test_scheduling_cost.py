"""What scheduling costs, counted rather than timed; and that it is deterministic."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from crowd import C, agent, several

from comity.core.scheduling import Scheduling
from comity.model.capability import Offer, Performance, Requirements, Strategy
from comity.model.ids import ProcessId


def _lines(call: Callable[[], object]) -> int:
    """Lines of Python executed: a cost that does not depend on the machine."""
    count = 0

    def trace(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal count
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return count


def _crowd(count: int) -> Scheduling:
    """Nine of ten are full; a few have a GPU; measured and unmeasured ones mixed; all weights differ."""
    made = Scheduling(random.Random(5).random)
    for i in range(10):
        made.set_node(ProcessId(f"n{i}"), eligible=True, cpu_free=1 + i, memory_free_mb=1024 * (1 + i % 3))
    for i in range(count):
        declared = Performance(latency_ms=1.0 + i % 97) if i % 2 else None
        record = agent(
            f"a{i}", f"n{i % 10}", tags=("gpu",) if i % 10 == 9 else (), offers=(Offer(C, "1.0", "", None, declared),)
        )
        made.put_agent(record)
        if i % 10 < 9 and i > 3:
            made.set_calls(record.id, 8)
    return made


@pytest.mark.parametrize("needs", [None, Requirements(tags=("gpu",)), Requirements(version=">=1,<2")], ids=repr)
@pytest.mark.parametrize("strategy", Strategy)
def test_the_cost_of_a_choice_does_not_grow(strategy: Strategy, needs: Requirements | None) -> None:
    small, large = _cost(_crowd(20), strategy, needs), _cost(_crowd(4000), strategy, needs)
    assert large < 2 * small + 20, (small, large)


def _cost(made: Scheduling, strategy: Strategy, needs: Requirements | None) -> float:
    """Mean cost of choosing, taking and giving back."""
    chosen = made.choose(C, needs, strategy)  # makes the pools
    assert chosen is not None
    total = 0
    for _ in range(40):
        total += _lines(lambda: made.choose(C, needs, strategy))
        total += _lines(lambda: made.take(chosen))
        total += _lines(lambda: made.give(chosen))
    return total / 40


def test_rare_agents_are_found_without_looking_at_all() -> None:
    made = _crowd(2000)
    made.put_agent(agent("r1", "n1", tags=("rare",), kind="odd", labels={"shard": "7"}))
    made.choose(C)
    for needs in (Requirements(tags=("rare",)), Requirements(labels={"shard": "7"}), Requirements(kind="odd")):
        assert _lines(lambda needs=needs: made.choose(C, needs)) < 600


def test_the_cost_of_a_node_change_is_that_of_its_agents() -> None:
    made = _crowd(100)
    small = _lines(lambda: made.set_node(ProcessId("n1"), eligible=False))
    for i in range(3000):
        made.put_agent(agent(f"b{i}", "elsewhere"))
    made.set_node(ProcessId("n1"), eligible=True)
    assert _lines(lambda: made.set_node(ProcessId("n1"), eligible=False)) < 1.5 * small
    assert _lines(lambda: made.set_node(ProcessId("n1"), eligible=False)) < 30, "nothing changed"


def test_an_agent_costs_little_memory() -> None:
    records = several(5000, tags=("a", "b"), labels={"x": "y"})
    made = Scheduling(random.Random(5).random)
    made.set_node(ProcessId("n1"), eligible=True)
    gc.collect()
    tracemalloc.start()
    try:
        for record in records:
            made.put_agent(record)
        made.choose(C)
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used / len(records) < 1200


_LIFE = """
import random
from comity.core.scheduling import Scheduling
from comity.model.capability import AgentRecord, Offer, Requirements, Strategy
rng = random.Random(1)
made = Scheduling(random.Random(2).random)
for i in range(5): made.set_node(f"n{i}", eligible=True, cpu_free=i + 1, memory_free_mb=1000 * i + 500)
for i in range(300):
    tags = tuple(t for t in ("red", "green", "blue") if rng.random() < 0.1)
    made.put_agent(AgentRecord(id=f"n{i%5}/a{i}", name=f"a{i}", node=f"n{i%5}", tags=tags, labels={"k": str(i % 40)},
                               concurrency=2, offers=(Offer("c", "1.0", ""), Offer("d", "1.0", ""))))
flight = []
for i in range(3000):
    needs = rng.choice([Requirements(tags=("red",)), Requirements(any_tags=("green", "blue")), Requirements(labels={"k": "7"})])
    needs = rng.choice([needs, None])
    avoid = tuple(f"n{j%5}/a{j}" for j in rng.sample(range(300), rng.choice([0, 2, 20])))
    chosen = made.choose(rng.choice("cd"), needs, rng.choice(list(Strategy)), avoid)
    print(chosen)
    if chosen and rng.random() < 0.6: made.take(chosen); flight.append(chosen)
    elif flight:
        done = flight.pop(); made.measured(done, "c", rng.random() * 100, True); made.give(done)
"""


def test_the_same_life_has_the_same_choices_whatever_the_hash_seed() -> None:
    lives = [
        subprocess.run(
            [sys.executable, "-c", _LIFE], env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True, check=True, timeout=50,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert lives[0] == lives[1]
    assert lives[0].count(b"\n") == 3000
