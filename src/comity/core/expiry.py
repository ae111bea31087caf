"""What a timer of a task is for, and what is called for when its time is up."""

from __future__ import annotations

from comity.model.records import EndWait
from comity.model.task import Canceled, Command, Ending, Expire, Fail, Requeue, Task, TaskFailure, TaskState

READY, START, ATTEMPT, GRACE, DEADLINE, PROGRESS, WAIT = range(7)


def called_for(kind: int, task: Task, retry_ms: int) -> Command | None:
    """The command that ends what took too long; None if nothing does. A failed attempt's next one may begin at ``retry_ms``."""
    task_id, epoch = task.spec.id, task.epoch
    if kind == DEADLINE:
        return Expire(task_id)
    if kind == WAIT:
        return EndWait(task_id, epoch) if task.state is TaskState.INPUT_REQUIRED else None
    if task.attempt is None:
        return None
    if kind == GRACE:
        return Canceled(task_id, "canceled; it did not stop within its grace time")
    if kind == START and task.state is TaskState.ASSIGNED:
        return Requeue(task_id, epoch, Ending.NOT_STARTED, f"not started within {task.spec.start_timeout_s:g} s")
    if kind == ATTEMPT:
        failure = TaskFailure("attempt-timeout", f"ran longer than {task.spec.attempt_timeout_s:g} s")
        return Fail(task_id, epoch, failure, retry_ms, Ending.TIMED_OUT)
    return None
