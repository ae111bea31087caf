"""What the network is doing, in numbers: for ``comity stats``, the page and ``/metrics``."""

from __future__ import annotations

from collections import deque
from typing import Any

import msgspec

from comity.controller.census import Census
from comity.controller.leader import Leader
from comity.controller.performance import busiest
from comity.core.breaker import HALF_OPEN, OPEN, PROBING
from comity.core.changes import Totals
from comity.core.rotation import why_out
from comity.model.capability import AgentRecord
from comity.model.task import TaskState

WINDOW_S = 10.0
LISTED = 1000
"""Agents in one answer, which must fit into a message."""


class Rates:
    """Tasks per second over the last ten seconds, from samples of the totals."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int, int, int]] = deque()

    def sample(self, now: float, totals: Totals) -> None:
        ended = totals.completed + totals.failed + totals.canceled
        self._samples.append((now, totals.submitted, totals.completed, totals.failed, ended))
        while self._samples[0][0] < now - WINDOW_S:
            self._samples.popleft()

    def rates(self) -> dict[str, float]:
        names = ("submitted_per_s", "completed_per_s", "failed_per_s", "ended_per_s")
        if len(self._samples) < 2:
            return dict.fromkeys(names, 0.0)
        first, last = self._samples[0], self._samples[-1]
        span = max(last[0] - first[0], 1e-9)
        return {name: round((last[i] - first[i]) / span, 2) for i, name in enumerate(names, 1)}


def oldest_waiting_s(leader: Leader) -> float:
    """How long the oldest task that waits for an agent has done so, in seconds; delayed ones do not wait yet."""
    state, now_ms = leader.state, leader.clock.now_ms()
    if not state.waiting:
        return 0.0
    waiting = (TaskState.SUBMITTED, TaskState.WAITING)
    for task in state.tasks.values():  # they lie in the order of their creation
        if task.state in waiting and task.spec.not_before_ms <= now_ms:
            return max(0.0, (now_ms - max(task.created_at, task.spec.not_before_ms)) / 1000)
    return 0.0


def stats(leader: Leader, census: Census, rates: Rates, durability: tuple[str, str]) -> dict[str, Any]:
    """Everything, as JSON-able values."""
    state = leader.state
    totals, room = state.totals, leader.admission.room
    per_node = nodes(leader, census)
    states = [row["state"] for row in per_node]
    return {
        "network": state.network,
        "role": "leader",
        "leader": state.leader,
        "term": state.term,
        "log_head": leader.pipeline.ledger.index,
        "snapshot": state.snapshots[-1].index if state.snapshots else 0,
        "log_durability": durability[0],
        "log_durability_reason": durability[1],
        "tasks": {
            **{str(kind): count for kind, count in state.counts.items()},
            "archived": state.archived,
        },
        "totals": {
            **{field: getattr(totals, field) for field in totals.__struct_fields__},
            "rejected_reports": totals.rejected_reports + leader.rejected,
        },
        "refused_submits": leader.admission.refused,
        "refused_overload": dict(leader.admission.room.refused),
        "waiting": {"tasks": state.backlog.tasks, "bytes": state.backlog.bytes, "submitters": len(state.backlog.by_submitter)},
        "limits": {"tasks": room.max_tasks, "bytes": room.max_bytes, "submitter": room.max_each},
        "malformed_messages": leader.malformed + census.malformed,
        "dead_letters": len(state.dead.letters),
        "schedules": len(state.schedules),
        "held_retries": leader.reconcile.budget.held,
        "oldest_waiting_s": oldest_waiting_s(leader),
        "rates": rates.rates(),
        "loop_lag": leader.lag.figures(),
        "nodes": {kind: states.count(kind) for kind in ("alive", "suspect", "draining", "isolated")},
        "agents": census.by_status(state.nodes),
        "breakers": breakers(leader),
        "events": dict(leader.events.counts),
        "per_node": per_node,
        "per_agent": loads(leader, census, 50),
        "per_capability": busiest(leader.reconcile.scheduling, leader.clock.now_ms(), 50),
    }


def nodes(leader: Leader, census: Census) -> list[dict[str, Any]]:
    """Each node with a lease or set aside, its membership state and its own last figures."""
    rows = []
    for node in sorted({*leader.state.nodes, *leader.state.aside}):
        lease = leader.state.nodes.get(node)
        beacon, record = leader.liveness.beacons.get(node, (0.0, None))[1], census.nodes.get(node)
        state, reason = leader.liveness.states.get(node, ("alive" if lease is not None else "gone", ""))
        aside = leader.state.aside.get(node)
        if aside is not None and state in ("alive", "draining"):
            state, reason = aside.state, aside.reason
        rows.append(
            {
                "id": node,
                "state": state,
                "reason": reason,
                "aside": msgspec.structs.asdict(aside) if aside is not None else None,
                "incarnation": lease.incarnation if lease is not None else None,
                "since_ms": lease.since_ms if lease is not None else None,
                "attempts": len(lease.attempts) if lease is not None else 0,
                "agents": census.per_node(node),
                "seen_ago_s": leader.liveness.seen_ago_s(node),
                "cpu": beacon.cpu if beacon is not None else None,
                "memory_mb": beacon.memory_mb if beacon is not None else None,
                "lag_s": beacon.lag_s if beacon is not None else None,
                "clock_ahead_s": leader.liveness.ahead_s(node),
                "beacon_s": (record.beacon_s or None) if record is not None else None,
                "orphan_s": (record.orphan_s or None) if record is not None else None,
                "host": record.host if record is not None else None,
                "pid": record.pid if record is not None else None,
                "region": record.region if record is not None else "",
                "zone": record.zone if record is not None else "",
                "version": record.version if record is not None else "",
            }
        )
    return rows


def breakers(leader: Leader) -> dict[str, int]:
    """Breakers that are not closed, by state."""
    counts = dict.fromkeys((OPEN, HALF_OPEN, PROBING), 0)
    for _, breaker in leader.reconcile.rotation.breakers:
        if breaker.state in counts:
            counts[breaker.state] += 1
    return counts


def broken(leader: Leader, agent: AgentRecord) -> dict[str, str]:
    """The capabilities for which an agent gets no attempts, and why."""
    found = ((offer.name, leader.reconcile.rotation.breakers.of(agent.id, offer.name)) for offer in agent.offers)
    return {name: why_out(breaker) for name, breaker in found if breaker is not None and breaker.is_out}


def loads(leader: Leader, census: Census, limit: int = LISTED) -> list[dict[str, Any]]:
    """The busiest agents of nodes that are here first: what is in flight at each, against what it takes at once."""
    members = leader.state.nodes
    busiest = leader.reconcile.scheduling.busiest(limit)
    rows = {agent.id: (load, agent) for load, agent in busiest if agent.node in members}
    for agent in census.agents.values():
        if len(rows) >= limit:
            break
        if agent.node in members:
            rows.setdefault(agent.id, (0, agent))
    return [
        {
            "id": agent.id,
            "name": agent.name,
            "node": agent.node,
            "status": agent.status,
            "load": load,
            "concurrency": agent.concurrency,
            "node_state": leader.liveness.states.get(agent.node, ("unknown", ""))[0],
            "last_seen_ago_s": leader.liveness.seen_ago_s(agent.node),
            "broken": broken(leader, agent),
        }
        for load, agent in rows.values()
    ]
