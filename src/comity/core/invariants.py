"""What always holds of the replicated state."""

from __future__ import annotations

from typing import TYPE_CHECKING

from comity.core import aside, origin, resuming
from comity.core.backlog import Backlog
from comity.model.ids import ProcessId, TaskId
from comity.model.task import TaskState

if TYPE_CHECKING:
    from comity.core.tasks import Tasks


def check(state: Tasks) -> None:
    """Raise AssertionError if an invariant is broken."""
    counted = dict.fromkeys(TaskState, 0)
    on_nodes: dict[TaskId, ProcessId] = {}
    for node, lease in state.nodes.items():
        for task_id in lease.attempts:
            if task_id in on_nodes:
                raise AssertionError(f"{task_id} has attempts on two nodes")
            on_nodes[task_id] = node
    for task_id, task in state.tasks.items():
        counted[task.state] += 1
        running = task.state in (TaskState.ASSIGNED, TaskState.WORKING)
        _hold(running == (task.attempt is not None), task_id, "an attempt exactly while one runs")
        _hold(task.is_terminal == (task_id in state.finished), task_id, "finished lists what is terminal")
        _hold(task.is_terminal == bool(task.finished_at), task_id, "a finish time exactly when terminal")
        _hold(task.epoch <= state.last_epoch, task_id, "no epoch above the last")
        _hold((task.result is None) or task.state is TaskState.COMPLETED, task_id, "a result only when completed")
        broken = resuming.check(task)
        _hold(not broken, task_id, broken)
        if task.attempt is not None:
            _hold(task.attempt.epoch == task.epoch, task_id, "the attempt has the task's epoch")
            _hold(on_nodes.get(task_id) == task.attempt.node, task_id, "its node knows of it")
    state.dead.check(state.tasks)
    keys = {task.spec.key: task_id for task_id, task in state.tasks.items() if task.spec.key}
    for held in state.archive:
        keys |= held.keys
    _hold(keys == state.keys, "keys", "lead to tasks that are there or archived")
    backlog = Backlog()
    for task in state.tasks.values():
        if task.state in (TaskState.SUBMITTED, TaskState.WAITING):
            backlog.add(task.spec)
    same = (backlog.tasks, backlog.bytes) == (state.backlog.tasks, state.backlog.bytes)
    _hold(same and backlog.by_submitter == state.backlog.by_submitter, "backlog", "holds what waits")
    _hold(counted == state.counts, "counts", "count what is there")
    _hold(all(state.tasks[t].attempt is not None for t in on_nodes), "nodes", "list only running attempts")
    broken = state.mail.check()
    _hold(not broken, "mail", broken)
    broken = aside.check(state)
    _hold(not broken, "aside", broken)
    broken = origin.check(state)
    _hold(not broken, "epochs", broken)


def _hold(true: bool, what: str, rule: str) -> None:
    if not true:
        raise AssertionError(f"{what}: {rule}")
