"""Agents to be scheduled, for tests."""

from __future__ import annotations

import random
from typing import Any

from comity.core.scheduling import Scheduling
from comity.model.capability import AgentRecord, Offer, Strategy
from comity.model.ids import AgentId, ProcessId

C = "work"


def agent(name: str, node: str = "n1", **fields: Any) -> AgentRecord:
    """An agent that offers ``C`` unless ``offers`` says otherwise."""
    fields.setdefault("offers", (Offer(C, "1.0", ""),))
    return AgentRecord(id=AgentId(f"{node}/{name}"), name=name, node=ProcessId(node), **fields)


def scheduling(*agents: AgentRecord, seed: int = 7, default: Strategy = Strategy.LEAST_LOADED) -> Scheduling:
    """All agents' nodes are eligible."""
    made = Scheduling(random.Random(seed).random, default)
    for record in agents:
        made.set_node(record.node, eligible=True)
        made.put_agent(record)
    made.check()
    return made


def several(count: int, **fields: Any) -> list[AgentRecord]:
    return [agent(f"a{i}", **fields) for i in range(count)]


def names(ids: list[AgentId | None]) -> str:
    return " ".join("-" if one is None else one.partition("/")[2] for one in ids)


def choose(made: Scheduling, times: int, *args: Any, take: bool = False, **kwargs: Any) -> str:
    chosen = []
    for _ in range(times):
        one = made.choose(C, *args, **kwargs)
        chosen.append(one)
        if take and one is not None:
            made.take(one)
    return names(chosen)
