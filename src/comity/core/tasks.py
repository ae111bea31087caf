"""The replicated state: a pure function of the log's effective entries.

    submitted ──▶ assigned ──▶ working ──▶ completed
        │  ▲          │           │
        │  └ waiting ◀┴───────────┤   put back: refused, not started in time, node lost, failed with retries left
        ▼                         ▼          (input-required: see ``resuming``)
     canceled · failed (attempts used up, deadline) · rejected

``apply`` takes one command at a time and never fails: a command that no longer fits (an old epoch, a finished task, a node
that came back) changes nothing. What did change is appended to ``changes``, from which the leader derives every reply,
assignment, event and metric. Two readers that apply the same entries hold equal states.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import msgspec

from comity.core import again, aside, origin
from comity.core.archive import Chunk, chunk
from comity.core.backlog import Backlog
from comity.core.changes import Aside, Change, NodeLease, Totals
from comity.core.dead import DeadLetters
from comity.core.invariants import check
from comity.core.mail import Mail
from comity.core.resuming import Resuming
from comity.model.capability import Strategy
from comity.model.ids import NetworkId, ProcessId, TaskId, epoch
from comity.model.payload import placed
from comity.model.task import (
    Archived,
    Assign,
    Attempt,
    Barrier,
    Cancel,
    Canceled,
    Complete,
    Configure,
    Dropped,
    Ending,
    Entry,
    Evict,
    Expire,
    Fail,
    Lead,
    Moved,
    NodeLeft,
    NodeUp,
    Rate,
    Requeue,
    Restored,
    Schedule,
    SnapshotTaken,
    Start,
    Submit,
    Task,
    TaskFailure,
    TaskSpec,
    TaskState,
    TimeJump,
)

PAST_KEPT = 16
"""Ended attempts kept in a task's record; the oldest go first."""
ENDED_KEPT = 10_000
"""Nodes of which is known that their lease ended; those that ended first go first."""

_OPEN = (TaskState.SUBMITTED, TaskState.WAITING)


class Tasks:
    """All that the log decides. Fields are public to read; only ``apply`` writes them."""

    def __init__(self, network: NetworkId) -> None:
        self.network = network
        self.term = 0
        self.leader = ProcessId("")
        self.generation = 0
        self.last_epoch = 0  # invariant: no task, past or present, has a higher epoch
        self.time_ms = 0
        self.tasks: dict[TaskId, Task] = {}
        self.counts: dict[TaskState, int] = dict.fromkeys(TaskState, 0)  # invariant: counts what is in ``tasks``
        self.backlog = Backlog()  # invariant: holds those that are submitted or waiting
        self.finished: dict[TaskId, None] = {}  # terminal and not yet archived, oldest first
        self.children: dict[TaskId, dict[TaskId, None]] = {}  # open children only
        self.keys: dict[str, TaskId] = {}  # of tasks in ``tasks`` and ``archive``: a key is known as long as its task
        self.nodes: dict[ProcessId, NodeLease] = {}
        self.ended: dict[ProcessId, int] = {}  # by node, the last incarnation evicted: it must come back as a higher one
        self.aside: dict[ProcessId, Aside] = {}  # nodes that get no attempts, whether or not they hold a lease now
        self.archive: list[Chunk] = []
        self.archived = 0
        self.snapshots: list[SnapshotTaken] = []
        self.strategies: dict[str, Strategy] = {}
        self.schedules: dict[str, Schedule] = {}
        self.dead = DeadLetters()
        self.origin: Restored | None = None  # invariant: no epoch given here is below its generation
        self.totals = Totals()
        self.changes: list[Change] = []
        self.before_change: Callable[[Task], None] | None = None
        """Set while a snapshot is being written: told of a task just before it changes (copy on write)."""
        self._resuming = Resuming(self)
        self.mail = Mail(self)
        self._appliers: dict[type, Callable[[Any, int, int], None]] = {
            **self._resuming.appliers,
            **self.mail.appliers,
            Lead: self._lead,
            Submit: self._submit,
            Assign: self._assign,
            Start: self._start,
            Complete: self._complete,
            Fail: self._fail,
            Requeue: self._requeue,
            Cancel: self._cancel,
            Canceled: self._canceled,
            Expire: self._expire,
            NodeUp: self._node_up,
            Evict: self._evict,
            NodeLeft: self._node_left,
            Archived: self._archived,
            Dropped: self._dropped,
            SnapshotTaken: self._snapshot_taken,
            Moved: self._moved,
            Rate: self._rate,
            Barrier: self._barrier,
            TimeJump: self._barrier,
            Configure: self._configure,
            **{kind: partial(apply, self) for kind, apply in (again.APPLIERS | aside.APPLIERS | origin.APPLIERS).items()},
        }

    # What others ask

    @property
    def waiting(self) -> int:
        """Tasks that wait for an agent."""
        return self.counts[TaskState.SUBMITTED] + self.counts[TaskState.WAITING]

    def current(self, task: TaskId, token: int) -> Task | None:
        """The task if ``token`` is the epoch of its running attempt: what every report must pass."""
        found = self.tasks.get(task)
        if found is None or found.epoch != token or found.attempt is None:
            return None
        return found

    def next_epoch(self) -> int:
        """The lowest epoch that nobody was given."""
        return max(self.last_epoch, epoch(self.generation, 0)) + 1

    # Applying

    def apply(self, entry: Entry, index: int) -> list[Change]:
        """Take in the effective entry at ``index``; what changed, in order."""
        self.time_ms = max(self.time_ms, entry.time_ms)
        self.term = entry.term
        appliers = self._appliers
        for ordinal, command in enumerate(entry.commands):
            appliers[type(command)](command, index, ordinal)
        changes, self.changes = self.changes, []
        return changes

    def _move(self, task: Task, state: TaskState) -> None:
        before = task.state
        self.counts[before] -= 1
        self.counts[state] += 1
        task.state = state
        if before in _OPEN:
            if state not in _OPEN:
                self.backlog.remove(task.spec)
        elif state in _OPEN:
            self.backlog.add(task.spec)

    def _touch(self, task: Task) -> None:
        if self.before_change is not None:
            self.before_change(task)

    def _lead(self, command: Lead, index: int, _ordinal: int) -> None:
        self.leader = command.controller
        self.changes.append(Change("leader.elected", node=command.controller))

    def _submit(self, command: Submit, index: int, ordinal: int) -> None:
        self.take_in(command.spec, index, ordinal)

    def take_in(self, spec: TaskSpec, index: int, ordinal: int) -> None:
        """A new task, unless its id or key is known."""
        task_id = spec.id
        if task_id in self.tasks or (spec.key and spec.key in self.keys):
            return
        held = placed(spec.input, index, ordinal)
        if held is not spec.input:
            spec = msgspec.structs.replace(spec, input=held)
        task = self.tasks[task_id] = Task(spec, TaskState.SUBMITTED, self.time_ms)
        self.counts[TaskState.SUBMITTED] += 1
        self.backlog.add(spec)
        self.totals.submitted += 1
        if spec.key:
            self.keys[spec.key] = task_id
        if spec.parent is not None:
            self.children.setdefault(spec.parent, {})[task_id] = None
        self.changes.append(Change("task.submitted", task))
        if spec.not_before_ms > self.time_ms:
            task.not_before = spec.not_before_ms
            wait_s = (spec.not_before_ms - self.time_ms) / 1000
            self.changes.append(Change("task.delayed", task, reason=f"may start in {wait_s:g} s"))

    def _assign(self, command: Assign, index: int, _ordinal: int) -> None:
        task = self.tasks.get(command.task)
        lease = self.nodes.get(command.node)
        self.last_epoch = max(self.last_epoch, command.epoch)
        fits = task is not None and task.state in _OPEN and task.epoch < command.epoch and command.node not in self.aside
        if task is None or not fits or lease is None or lease.incarnation != command.incarnation:
            self.changes.append(Change("assignment.void", task, node=command.node, task_id=command.task))
            return
        self._touch(task)
        task.epoch = command.epoch
        attempt = Attempt(command.epoch, command.agent, command.node, command.incarnation, self.time_ms)
        task.attempt = attempt
        self._move(task, TaskState.ASSIGNED)
        lease.attempts[task.spec.id] = None
        self.changes.append(Change("task.assigned", task, attempt))

    def _report(self, task_id: TaskId, token: int, what: str) -> Task | None:
        task = self.current(task_id, token)
        if task is None:
            self.totals.rejected_reports += 1
            self.changes.append(Change("report.rejected", self.tasks.get(task_id), reason=f"{what} with epoch {token}"))
            return None
        self._touch(task)
        return task

    def _start(self, command: Start, index: int, _ordinal: int) -> None:
        task = self._report(command.task, command.epoch, "start")
        if task is None or task.state is not TaskState.ASSIGNED or task.attempt is None:
            return
        task.attempt.started_at = self.time_ms
        self._move(task, TaskState.WORKING)
        self.changes.append(Change("task.started", task, task.attempt))

    def _complete(self, command: Complete, index: int, ordinal: int) -> None:
        task = self._report(command.task, command.epoch, "completion")
        if task is None:
            return
        task.result = placed(command.result, index, ordinal)
        self.mail.commit(task, "end", command.mail)
        attempt = self._end_attempt(task, Ending.COMPLETED, None, command.ran_ms)
        self._finish(task, TaskState.COMPLETED, "task.completed", attempt)

    def _end_attempt(self, task: Task, ending: Ending, failure: TaskFailure | None, ran_ms: int = 0) -> Attempt:
        attempt = task.attempt
        if attempt is None:
            raise AssertionError("only a running attempt ends")
        lease = self.nodes.get(attempt.node)
        if lease is not None and lease.incarnation == attempt.incarnation:
            lease.attempts.pop(task.spec.id, None)
        if ran_ms and not attempt.started_at:
            attempt.started_at = max(attempt.assigned_at, self.time_ms - ran_ms)
        attempt.ended_at = self.time_ms
        attempt.ending = ending
        attempt.failure = failure
        task.past = (*task.past[-PAST_KEPT + 1 :], attempt) if task.past else (attempt,)
        task.attempt = None
        return attempt

    def _finish(self, task: Task, state: TaskState, kind: str, attempt: Attempt | None = None, reason: str = "") -> None:
        self._move(task, state)
        self._resuming.drop(task)
        task.finished_at = self.time_ms
        spec = task.spec
        self.finished[spec.id] = None
        if state is TaskState.FAILED:
            self.dead.add(task)
            self.changes.append(Change("task.dead", task, attempt, None, reason))
        if state is TaskState.COMPLETED:
            self.totals.completed += 1
        elif state is TaskState.CANCELED:
            self.totals.canceled += 1
        else:
            self.totals.failed += 1
        if spec.parent is not None:
            siblings = self.children.get(spec.parent)
            if siblings is not None:
                siblings.pop(spec.id, None)
                if not siblings:
                    del self.children[spec.parent]
        self.changes.append(Change(kind, task, attempt, None, reason))

    def _fail(self, command: Fail, index: int, _ordinal: int) -> None:
        task = self._report(command.task, command.epoch, "failure")
        if task is not None:
            self._failed(task, command.failure, command.ending, command.not_before, command.ran_ms)

    def _failed(self, task: Task, failure: TaskFailure, ending: Ending, not_before: int, ran_ms: int = 0) -> None:
        attempt = self._end_attempt(task, ending, failure, ran_ms)
        retry = task.spec.retry
        if ending is Ending.STUCK:
            self.totals.stuck += 1
            self.changes.append(Change("task.stuck", task, attempt, reason=failure.message))
        if task.cancel_at or ending is Ending.CANCELED:
            task.failure = _called_off(failure.message if ending is Ending.CANCELED else "")
            self._finish(task, TaskState.CANCELED, "task.canceled", attempt, task.failure.message)
        elif (
            not failure.retryable
            or task.retries_used >= task.spec.retries
            or (retry is not None and failure.code in retry.no_retry)
        ):
            task.failure = failure
            self._finish(task, TaskState.FAILED, "task.failed", attempt, failure.message)
        else:
            task.retries_used += 1
            task.not_before = not_before
            self.totals.retries += 1
            self._move(task, TaskState.WAITING)
            self.changes.append(Change("task.retrying", task, attempt, reason=failure.message))

    def _requeue(self, command: Requeue, index: int, _ordinal: int) -> None:
        task = self._report(command.task, command.epoch, "hand-back")
        if task is not None:
            self._put_back(task, command.ending, command.reason, command.not_before)

    def put_back(self, task_id: TaskId, ending: Ending, reason: str) -> None:
        """The running attempt of a task ends; the task waits again, no retry used."""
        task = self.tasks[task_id]
        self._touch(task)
        self._put_back(task, ending, reason)

    def _put_back(self, task: Task, ending: Ending, reason: str, not_before: int = 0) -> None:
        failure = TaskFailure(ending, reason) if reason else None
        attempt = self._end_attempt(task, ending, failure)
        if task.cancel_at:
            task.failure = _called_off("")
            self._finish(task, TaskState.CANCELED, "task.canceled", attempt, reason)
            return
        task.not_before = not_before
        self.totals.requeues += 1
        self._move(task, TaskState.WAITING)
        self.changes.append(Change("task.requeued", task, attempt, reason=reason))

    def _cancel(self, command: Cancel, index: int, _ordinal: int) -> None:
        task = self.tasks.get(command.task)
        if task is None or task.is_terminal or task.cancel_at:
            return
        self._touch(task)
        task.cancel_at = self.time_ms
        if task.attempt is None:
            self._end_canceled(task, command.reason)
        else:
            self.changes.append(Change("task.canceling", task, task.attempt, reason=command.reason))

    def _canceled(self, command: Canceled, index: int, _ordinal: int) -> None:
        task = self.tasks.get(command.task)
        if task is not None and not task.is_terminal:
            self._touch(task)
            self._end_canceled(task, command.reason)

    def _end_canceled(self, task: Task, reason: str) -> None:
        task.failure = _called_off(reason)
        attempt = self._end_attempt(task, Ending.CANCELED, task.failure) if task.attempt is not None else None
        self._finish(task, TaskState.CANCELED, "task.canceled", attempt, reason)

    def _expire(self, command: Expire, index: int, _ordinal: int) -> None:
        task = self.tasks.get(command.task)
        if task is None or task.is_terminal:
            return
        self._touch(task)
        task.failure = TaskFailure("deadline-exceeded", "its deadline passed", retryable=False)
        attempt = self._end_attempt(task, Ending.TIMED_OUT, task.failure) if task.attempt is not None else None
        self._finish(task, TaskState.FAILED, "task.failed", attempt, task.failure.message)

    def _node_up(self, command: NodeUp, index: int, _ordinal: int) -> None:
        lease = self.nodes.get(command.node)
        if lease is not None and lease.incarnation >= command.incarnation:
            return
        if command.incarnation <= self.ended.get(command.node, -1):
            return
        if lease is not None:
            self.end_lease(command.node, lease, "restarted", command.poison_nodes)
            self.mail.node_lost(command.at_work, command.poison_nodes)
        self.nodes[command.node] = NodeLease(command.incarnation, self.time_ms)
        self.changes.append(Change("node.joined", node=command.node))

    def _evict(self, command: Evict, index: int, _ordinal: int) -> None:
        lease = self.nodes.get(command.node)
        if lease is None or lease.incarnation != command.incarnation:
            return
        self.totals.evictions += 1
        self.changes.append(Change("node.evicted", node=command.node, reason=command.reason))
        self.end_lease(command.node, lease, command.reason, command.poison_nodes)
        self.mail.node_lost(command.at_work, command.poison_nodes)

    def _node_left(self, command: NodeLeft, index: int, _ordinal: int) -> None:
        lease = self.nodes.get(command.node)
        if lease is None or lease.incarnation != command.incarnation:
            return
        self.changes.append(Change("node.left", node=command.node))
        self.end_lease(command.node, lease, "left")
        self.mail.node_left(command.node)

    def end_lease(self, node: ProcessId, lease: NodeLease, reason: str, poison_nodes: int | None = None) -> None:
        """Its attempts go elsewhere. ``poison_nodes`` None: it left by itself, so none of them took it down."""
        del self.nodes[node]
        self.ended.pop(node, None)
        self.ended[node] = lease.incarnation
        if len(self.ended) > ENDED_KEPT:
            del self.ended[next(iter(self.ended))]
        for task_id in list(lease.attempts):
            task = self.tasks[task_id]
            self._touch(task)
            failure = TaskFailure("node-lost", f"node {node}: {reason}")
            poison, again = None, False
            if poison_nodes is not None:
                again = node in task.felled
                poison = self._suspect(task, node, poison_nodes)
            if task.state is TaskState.ASSIGNED and poison is None and not again:
                self._put_back(task, Ending.EVICTED, failure.message)
            else:
                self._failed(task, poison or failure, Ending.EVICTED, 0)

    def _suspect(self, task: Task, node: ProcessId, poison_nodes: int) -> TaskFailure | None:
        """``node`` was lost while it had ``task``, started or not: of one that kills its node at once no start is ever known. Its
        end, if it happened on too many."""
        if node not in task.felled:
            task.felled = (*task.felled[-PAST_KEPT + 1 :], node)
        if not 0 < poison_nodes <= len(task.felled) or task.cancel_at:
            return None
        failure = TaskFailure("poison", f"it was on {', '.join(task.felled)} when they were lost", retryable=False)
        self.totals.poisoned += 1
        self.changes.append(Change("task.poisoned", task, task.attempt, reason=failure.message))
        return failure

    def _archived(self, command: Archived, index: int, _ordinal: int) -> None:
        gone = [task_id for task_id in command.ids if task_id in self.finished]
        if not gone:
            return
        keys = {}
        for task_id in gone:
            del self.finished[task_id]
            task = self.tasks.pop(task_id)
            self._touch(task)
            self.counts[task.state] -= 1
            if task.spec.key:
                keys[task.spec.key] = task_id
        self.dead.archived(gone, command.dead_key)
        self.archive.append(chunk(command, gone, keys, self.archive[-1] if self.archive else None))
        self.archived += len(gone)
        self.changes.append(Change("archive.grown", reason=command.key))

    def _dropped(self, command: Dropped, index: int, _ordinal: int) -> None:
        for held in self.archive:
            if held.key in command.keys:
                self.archived -= held.count
                for key in held.keys:
                    self.keys.pop(key, None)
        self.archive = [held for held in self.archive if held.key not in command.keys]
        self.changes.extend(Change("archive.dropped", reason=key) for key in command.keys)

    def _snapshot_taken(self, command: SnapshotTaken, index: int, _ordinal: int) -> None:
        for old in self.snapshots[:-1]:
            self.changes.append(Change("snapshot.dropped", reason=old.key))
        self.snapshots = [*self.snapshots[-1:], command]
        self.changes.append(Change("snapshot.taken", reason=command.key))

    def _moved(self, command: Moved, index: int, _ordinal: int) -> None:
        task = self.tasks.get(command.task)
        if task is None:
            return
        self._touch(task)
        if command.is_result:
            task.result = command.payload
        else:
            task.spec = msgspec.structs.replace(task.spec, input=command.payload)

    def _rate(self, command: Rate, index: int, _ordinal: int) -> None:
        """A rating can be changed, but counts once."""
        task = self.tasks.get(command.task)
        if task is None or task.state is not TaskState.COMPLETED:
            return
        self._touch(task)
        if task.score < 0:
            self.changes.append(Change("task.rated", task, task.past[-1]))
        task.score = command.score

    def _configure(self, command: Configure, index: int, _ordinal: int) -> None:
        self.strategies[command.capability] = command.strategy
        self.changes.append(Change("strategy.set", reason=f"{command.capability}: {command.strategy}"))

    def _barrier(self, command: Barrier | TimeJump, index: int, _ordinal: int) -> None:
        """Changes nothing."""

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        check(self)


def _called_off(reason: str) -> TaskFailure:
    return TaskFailure("task-canceled", reason or "canceled", retryable=False)
