"""Nodes that an operator set aside: they get no attempts until they are resumed, whoever leads and however often they restart.

    in rotation ── DrainNode ──▶ draining ── IsolateNode ──▶ isolated
         ▲                          │                           │
         └────────────────────── ResumeNode ────────────────────┘

What runs on a draining node ends there; what runs on one that is isolated is moved by the same command. Either keeps its lease
and hears messages: it can be looked at. An assignment that was under way to the log when a node was set aside is void.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comity.core.changes import Aside, Change
from comity.model.ids import ProcessId
from comity.model.task import DrainNode, Ending, IsolateNode, ResumeNode

if TYPE_CHECKING:
    from comity.core.tasks import Tasks

DRAINING = "draining"
ISOLATED = "isolated"


def _set_aside(state: Tasks, node: ProcessId, how: str, reason: str) -> bool:
    """Whether that is new."""
    known = state.aside.get(node)
    if known is not None and known.state == how:
        return False
    state.aside[node] = Aside(how, reason, state.time_ms)
    state.changes.append(Change(f"node.{how}", node=node, reason=reason))
    return True


def _drain(state: Tasks, command: DrainNode, _index: int, _ordinal: int) -> None:
    _set_aside(state, command.node, DRAINING, command.reason)


def _isolate(state: Tasks, command: IsolateNode, _index: int, _ordinal: int) -> None:
    if not _set_aside(state, command.node, ISOLATED, command.reason):
        return
    lease = state.nodes.get(command.node)
    for task_id in list(lease.attempts) if lease is not None else ():
        state.put_back(task_id, Ending.MOVED, f"node {command.node} was isolated")


def _resume(state: Tasks, command: ResumeNode, _index: int, _ordinal: int) -> None:
    known = state.aside.pop(command.node, None)
    if known is not None:
        state.changes.append(Change("node.resumed", node=command.node, reason=command.reason or f"it was {known.state}"))


APPLIERS: dict[type, Callable[[Tasks, Any, int, int], None]] = {
    DrainNode: _drain,
    IsolateNode: _isolate,
    ResumeNode: _resume,
}


def check(state: Tasks) -> str:
    """Which invariant is broken; "" if none is."""
    for node, aside in state.aside.items():
        lease = state.nodes.get(node)
        if aside.state == ISOLATED and lease is not None and lease.attempts:
            return f"{node} is isolated and has attempts"
    return ""
