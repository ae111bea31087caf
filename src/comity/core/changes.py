"""What the replicated state is made of beside its tasks: what changed, who holds leases, how much there was."""

from __future__ import annotations

import msgspec

from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.mail import Letter
from comity.model.task import Attempt, Task


class Change(msgspec.Struct, gc=False):
    """One thing that changed. ``kind`` is the event's type; ``attempt`` the one it is about."""

    kind: str
    task: Task | None = None
    attempt: Attempt | None = None
    node: ProcessId | None = None
    reason: str = ""
    task_id: TaskId | None = None
    agent: AgentId | None = None
    letter: Letter | None = None


class NodeLease(msgspec.Struct, array_like=True, gc=False):
    """A node that may run attempts, and those it has: ``attempts`` keys are exactly the tasks whose attempt is there."""

    incarnation: int
    since_ms: int
    attempts: dict[TaskId, None] = {}


class Aside(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How a node is set aside (draining or isolated), why, and since when (entry time)."""

    state: str
    reason: str
    since_ms: int


class Totals(msgspec.Struct, array_like=True, gc=False):
    """Counts since the network began."""

    submitted: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    retries: int = 0
    requeues: int = 0
    evictions: int = 0
    rejected_reports: int = 0
    stuck: int = 0
    poisoned: int = 0
    fired: int = 0
    replayed: int = 0
