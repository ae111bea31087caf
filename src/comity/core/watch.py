"""Which attempts are alive but stuck: they have a progress timeout, and showed nothing for so long.

What an attempt shows travels ahead of its node's beacons. So an attempt that is overdue is stuck once a beacon, which would have
told of progress, has come without: half a second later at most. A node that sends none is membership's business. After the leader
itself was away, everybody gets another second.

Times are entry times in milliseconds. Leader-local: under a new leader the times of all attempts start afresh.
"""

from __future__ import annotations

from comity.model.ids import NodeId, TaskId
from comity.model.task import Ending, Fail, Task, TaskFailure

LATE_MS = 500
"""A look that comes so much too late says that the leader was away."""
GRACE_MS = 1000


def timeout_ms(task: Task) -> int:
    """The task's progress timeout; 0 if it has none."""
    return int(task.spec.progress_timeout_s * 1000)


class Watch:
    """Invariant: both hold running attempts only, by their tasks."""

    def __init__(self) -> None:
        self._seen: dict[TaskId, int] = {}  # when it last showed progress
        self._overdue: dict[NodeId, dict[TaskId, None]] = {}

    def began(self, task: Task, now_ms: int) -> int:
        """When to look at it first."""
        self._seen[task.spec.id] = now_ms
        return now_ms + timeout_ms(task)

    def progressed(self, task: Task, at_ms: int) -> None:
        seen = self._seen.get(task.spec.id)
        if seen is not None:
            self._seen[task.spec.id] = max(seen, at_ms)

    def look(self, task: Task, now_ms: int) -> int | None:
        """Its time may be up. When to look again; None if it is overdue."""
        task_id, attempt = task.spec.id, task.attempt
        due = self._seen.get(task_id, now_ms) + timeout_ms(task)
        if due > now_ms or attempt is None:
            return due
        if now_ms - due > LATE_MS:
            self._seen[task_id] = now_ms + GRACE_MS - timeout_ms(task)
            return now_ms + GRACE_MS
        self._overdue.setdefault(attempt.node, {})[task_id] = None
        return None

    def overdue(self, node: NodeId) -> list[TaskId]:
        """Tasks to be judged now that a beacon of ``node`` has come; each once."""
        return list(self._overdue.pop(node, ()))

    def verdict(self, task: Task, now_ms: int) -> Fail | int:
        """The end of an attempt that was overdue; or, if it has shown progress since, when to look again."""
        due = self._seen.get(task.spec.id, now_ms) + timeout_ms(task)
        if due > now_ms:
            return due
        failure = TaskFailure("stuck", f"it showed no progress for {task.spec.progress_timeout_s:g} s")
        return Fail(task.spec.id, task.epoch, failure, 0, Ending.STUCK)

    def ended(self, task_id: TaskId, node: NodeId) -> None:
        """The attempt is over."""
        if self._seen.pop(task_id, None) is not None:
            overdue = self._overdue.get(node)
            if overdue is not None:
                overdue.pop(task_id, None)
                if not overdue:
                    del self._overdue[node]
