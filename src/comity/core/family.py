"""Parents and children: a child is canceled with the attempt that submitted it, unless that completes its task. One with a key
ends only with its parent's task: by its key the next attempt finds it again."""

from __future__ import annotations

from comity.core.tasks import Tasks
from comity.model.ids import TaskId
from comity.model.task import Cancel, TaskSpec, TaskState


def cancels(state: Tasks, parent: TaskId, token: int | None) -> list[Cancel]:
    """For its open children; with ``token`` only for those of that attempt of the parent, or of earlier ones, without a key."""
    reason = f"its parent {parent} ended"
    children = ((child_id, state.tasks[child_id].spec) for child_id in state.children.get(parent, ()))
    return [
        Cancel(child_id, reason)
        for child_id, child in children
        if token is None or (child.parent_epoch <= token and not child.key)
    ]


def is_orphan(state: Tasks, child: TaskSpec) -> bool:
    """Whether the attempt that submitted ``child`` is over, other than by its task's completion; of one with a key: whether
    the task is."""
    parent = state.tasks.get(child.parent) if child.parent is not None else None
    if parent is None or parent.state is TaskState.COMPLETED:
        return False
    if parent.is_terminal or parent.cancel_at:
        return True
    return not child.key and child.parent_epoch < parent.epoch + (parent.attempt is None)
