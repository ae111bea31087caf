"""Parents and children: a child is canceled with the attempt that submitted it, unless that completes its task."""

from __future__ import annotations

from comity.core.tasks import Tasks
from comity.model.ids import TaskId
from comity.model.task import Cancel, TaskSpec, TaskState


def cancels(state: Tasks, parent: TaskId, token: int | None) -> list[Cancel]:
    """For its open children; with ``token`` only for those of that attempt of the parent, or of earlier ones."""
    reason = f"its parent {parent} ended"
    return [
        Cancel(child_id, reason)
        for child_id in state.children.get(parent, ())
        if token is None or state.tasks[child_id].spec.parent_epoch <= token
    ]


def is_orphan(state: Tasks, child: TaskSpec) -> bool:
    """Whether the attempt that submitted ``child`` is over, other than by its task's completion."""
    parent = state.tasks.get(child.parent) if child.parent is not None else None
    if parent is None or parent.state is TaskState.COMPLETED:
        return False
    if parent.is_terminal or parent.cancel_at:
        return True
    return child.parent_epoch < parent.epoch + (parent.attempt is None)
