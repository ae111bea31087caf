"""What scheduling costs, in microseconds, as the number of agents grows.

    python bench/scheduling.py [--json]

Each figure is processor time, the best of several rounds, with garbage collection frozen as in the controller.
``idle``: all agents free. ``full``: nine of ten have no room. ``rare``: one agent in fifty meets the requirement.
``avoid``: two agents are avoided. ``take``, ``give``, ``measured``: bookkeeping around one attempt, at agents in turn.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
import tracemalloc
from collections.abc import Callable

from comity.core.scheduling import Scheduling
from comity.model.capability import AgentRecord, Offer, Requirements, Strategy
from comity.model.ids import AgentId, ProcessId

COUNTS = (10, 1_000, 100_000)
CALLS = 2_000
ROUNDS = 4
RARE = Requirements(tags=("gpu",))
COLUMNS = ("idle", "full", "rare", "avoid", "take", "give", "measured")


def records(count: int) -> list[AgentRecord]:
    nodes = min(20, count)
    return [
        AgentRecord(
            id=AgentId(f"n{i % nodes}/a{i}"),
            name=f"a{i}",
            node=ProcessId(f"n{i % nodes}"),
            tags=("any", "gpu") if i % 50 == 9 else ("any",),
            concurrency=4,
            offers=(Offer("work", "1.0", ""),),
        )
        for i in range(count)
    ]


def fill(agents: list[AgentRecord]) -> Scheduling:
    made = Scheduling(random.Random(1).random)
    for i in range(20):
        made.set_node(ProcessId(f"n{i}"), eligible=True, cpu_free=1 + i % 7, memory_free_mb=1024 * (1 + i % 5))
    for agent in agents:
        made.put_agent(agent)
    return made


def cost(call: Callable[[], object]) -> float:
    """Microseconds per call."""
    best = float("inf")
    for _ in range(ROUNDS):
        begun = time.process_time()
        for _ in range(CALLS):
            call()
        best = min(best, time.process_time() - begun)
    return best / CALLS * 1e6


def book(made: Scheduling, agents: list[AgentId]) -> dict[str, float]:
    """Microseconds per call of what surrounds an attempt."""
    calls: dict[str, Callable[[AgentId], object]] = {
        "take": made.take,
        "measured": lambda agent: made.measured(agent, "work", 20.0, True),
        "give": made.give,
    }
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(ROUNDS):
        for name, call in calls.items():
            begun = time.process_time()
            for agent in agents:
                call(agent)
            best[name] = min(best[name], (time.process_time() - begun) / len(agents) * 1e6)
    return best


def measure(count: int, how: Strategy) -> dict[str, float]:
    agents = records(count)
    made = fill(agents)
    for needs in (None, RARE):
        made.choose("work", needs, how)  # makes the pools
    gc.collect()
    gc.freeze()
    avoid = tuple(agent.id for agent in agents[:2])
    figures = {
        "idle": cost(lambda: made.choose("work", None, how)),
        "rare": cost(lambda: made.choose("work", RARE, how)),
        "avoid": cost(lambda: made.choose("work", None, how, avoid)),
    }
    figures |= book(made, [agents[i % count].id for i in range(0, 7 * CALLS, 7)])
    for i, agent in enumerate(agents):
        if i % 10 != 9:
            made.set_calls(agent.id, 4)
    figures["full"] = cost(lambda: made.choose("work", None, how))
    gc.unfreeze()
    return figures


def registering(count: int) -> dict[str, float]:
    """Seconds to register all agents, bytes for each beside its record, milliseconds for a node of a twentieth of them."""
    agents = records(count)
    gc.collect()
    gc.freeze()
    begun = time.process_time()
    made = fill(agents)
    put_s = time.process_time() - begun
    made.choose("work")
    begun = time.process_time()
    made.set_node(ProcessId("n1"), eligible=False)
    node_ms = (time.process_time() - begun) * 1e3
    del made
    gc.unfreeze()
    tracemalloc.start()
    kept = fill(agents)
    kept.choose("work")
    size = tracemalloc.get_traced_memory()[0] / count
    tracemalloc.stop()
    return {"put_s": put_s, "node_ms": node_ms, "bytes_per_agent": size}


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure scheduling.")
    parser.add_argument("--json", action="store_true")
    as_json = parser.parse_args().json
    found = {count: {str(how): measure(count, how) for how in Strategy} for count in COUNTS}
    many = registering(COUNTS[-1])
    if as_json:
        print(json.dumps({"us": found, "registering": many}, indent=1))
        return
    print(f"{'agents':>8} {'strategy':<16}" + "".join(f"{column:>9}" for column in COLUMNS))
    for count, by_strategy in found.items():
        for how, figures in by_strategy.items():
            print(f"{count:>8} {how:<16}" + "".join(f"{figures[column]:>9.2f}" for column in COLUMNS))
    print(
        f"{COUNTS[-1]} agents put in {many['put_s']:.2f} s; {many['bytes_per_agent']:.0f} bytes each beside the record;"
    )
    print(f"a node with {COUNTS[-1] // 20} of them lost in {many['node_ms']:.1f} ms")


if __name__ == "__main__":
    main()
