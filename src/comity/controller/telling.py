"""What the leader tells others: that a submit counts, that an attempt is theirs to run or to stop, that a report is settled, how
a task ended. All of it follows from effective changes, and leaves after them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.controller.payloads import Payloads
from comity.controller.pipeline import EntryClock
from comity.controller.resuming import known
from comity.core.changes import Change
from comity.core.tasks import Tasks
from comity.errors import ComityError
from comity.model.ids import ProcessId, TaskId
from comity.model.task import Attempt, Command, Ending, Fail, Task, TaskFailure, TaskState
from comity.model.wire import Accepted, Ended, Run, Settled, Stop

FOLLOWERS_MAX = 1000
"""Processes told of one task's end, beside its submitter."""
PAIRS_MAX = 4096
"""In one item: it must fit into a message."""


class Telling:
    """See the module. ``propose`` takes a command; ``follow_missing`` answers for a task that is not in memory."""

    def __init__(
        self, state: Tasks, outbox: Outbox, payloads: Payloads, clock: EntryClock, *, grace_ms: int
    ) -> None:
        self.state = state
        self.outbox = outbox
        self.payloads = payloads
        self.clock = clock
        self.grace_ms = grace_ms
        self.propose: Callable[[Command], None]
        self.follow_missing: Callable[[TaskId, ProcessId], None]
        self._followers: dict[TaskId, dict[ProcessId, None]] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._accepted: dict[ProcessId, list[tuple[TaskId, TaskId]]] = {}
        self._settled: dict[ProcessId, list[tuple[TaskId, int]]] = {}
        self._reactions: dict[str, Callable[[Change], None]] = {
            "task.submitted": self._on_submitted,
            "task.assigned": self._on_assigned,
            "task.canceling": self._on_canceling,
            "task.completed": self._on_ended,
            "task.failed": self._on_ended,
            "task.canceled": self._on_ended,
            "task.retrying": self._on_put_back,
            "task.requeued": self._on_put_back,
            "task.input_required": self._on_put_back,
        }

    def react(self, changes: list[Change]) -> None:
        """Tell who is concerned."""
        reactions = self._reactions
        for change in changes:
            act = reactions.get(change.kind)
            if act is not None:
                act(change)

    def resume(self) -> None:
        """A new term: whether the leader before sent these is not known; a node runs an epoch once."""
        for task in list(self.state.tasks.values()):
            if task.attempt is not None and task.state is TaskState.ASSIGNED:
                self._send_run(task, task.attempt)

    def repeat(self, node: ProcessId) -> None:
        """What was sent to the node may not have reached it: tell it again what to run, and what to stop."""
        for task_id in self.state.nodes[node].attempts:
            task = self.state.tasks[task_id]
            if task.attempt is not None and task.cancel_at:
                self._send_stop(task.attempt, task_id, "canceled", self.grace_ms)
            elif task.attempt is not None and task.state is TaskState.ASSIGNED:
                self._send_run(task, task.attempt)

    def end(self) -> None:
        for fetch in self._fetches:
            fetch.cancel()

    def accept(self, sender: ProcessId, asked: TaskId, stands_for: TaskId) -> None:
        """Tell ``sender``, with the next ``flush``, that its submit counts, and as which task."""
        self._accepted.setdefault(sender, []).append((asked, stands_for))

    def follow(self, task_id: TaskId, sender: ProcessId) -> None:
        """Tell ``sender`` how the task ends."""
        task = self.state.tasks.get(task_id)
        if task is None:
            self.follow_missing(task_id, sender)
        elif task.is_terminal:
            self._send_end(task, {sender: None})
        elif task.spec.submitter != sender:
            who = self._followers.setdefault(task_id, {})
            who[sender] = None
            if len(who) > FOLLOWERS_MAX:  # who still waits asks again
                del who[next(iter(who))]

    def settle(self, node: ProcessId, task: TaskId, token: int) -> None:
        """Tell ``node``, with the next ``flush``, that it may forget its report."""
        self._settled.setdefault(node, []).append((task, token))

    def flush(self) -> None:
        """Send what gathered while a message or an entry was acted on."""
        for process, pairs in self._accepted.items():
            for at in range(0, len(pairs), PAIRS_MAX):
                self.outbox.post(to(process), Accepted(tuple(pairs[at : at + PAIRS_MAX])))
        for process, reports in self._settled.items():
            for at in range(0, len(reports), PAIRS_MAX):
                self.outbox.post(to(process), Settled(tuple(reports[at : at + PAIRS_MAX])))
        self._accepted.clear()
        self._settled.clear()

    def _on_submitted(self, change: Change) -> None:
        if change.task is not None:
            task_id = change.task.spec.id
            self.accept(change.task.spec.submitter, task_id, task_id)

    def _on_assigned(self, change: Change) -> None:
        if change.task is not None and change.attempt is not None:
            self._send_run(change.task, change.attempt)

    def _send_run(self, task: Task, attempt: Attempt) -> None:
        spec = task.spec
        payload = self.payloads.hot(spec.input)
        if payload is None:
            self._fetch(self._run_when_loaded(task, attempt))
            return
        remaining_ms = max(1, spec.deadline_ms - self.clock.now_ms()) if spec.deadline_ms else 0
        run = Run(
            spec.id, attempt.epoch, self.state.term, attempt.incarnation, attempt.agent, spec.capability, payload,
            len(task.past) + 1, remaining_ms, spec.attempt_timeout_s, spec.submitter, spec.parent, spec.trace,
            spec.progress_timeout_s, spec.retry.no_retry if spec.retry is not None else (), known(task),
        )  # fmt: skip
        self.outbox.post(to(attempt.node), run)

    async def _run_when_loaded(self, task: Task, attempt: Attempt) -> None:
        try:
            await self.payloads.load_from(lambda: task.spec.input)
        except ComityError as error:
            if error.definite and self.state.current(task.spec.id, attempt.epoch) is task:
                self.propose(Fail(task.spec.id, attempt.epoch, TaskFailure(error.code, error.message, False)))
            return  # unknown: the start time-out brings it back
        if self.state.current(task.spec.id, attempt.epoch) is task:
            self._send_run(task, attempt)

    def _fetch(self, work: Coroutine[Any, Any, None]) -> None:
        fetch = asyncio.get_running_loop().create_task(work)
        self._fetches.add(fetch)
        fetch.add_done_callback(self._fetches.discard)

    def _on_canceling(self, change: Change) -> None:
        if change.task is not None and change.attempt is not None:
            self._send_stop(change.attempt, change.task.spec.id, change.reason or "canceled", self.grace_ms)

    def _send_stop(self, attempt: Attempt, task: TaskId, reason: str, grace_ms: int = 0) -> None:
        self.outbox.post(to(attempt.node), Stop(task, attempt.epoch, reason, grace_ms))

    def _on_put_back(self, change: Change) -> None:
        if change.task is not None and change.attempt is not None:
            self._attempt_over(change.task, change.attempt)

    def _attempt_over(self, task: Task, attempt: Attempt) -> None:
        """Settle the node's report, or tell it to stop what it did not report."""
        if attempt.ending in (Ending.NOT_STARTED, Ending.TIMED_OUT, Ending.CANCELED, Ending.STUCK, Ending.MOVED):
            self._send_stop(attempt, task.spec.id, attempt.ending)
        self.settle(attempt.node, task.spec.id, attempt.epoch)

    def _on_ended(self, change: Change) -> None:
        task = change.task
        if task is None:
            return
        if change.attempt is not None:
            self._attempt_over(task, change.attempt)
        who = self._followers.pop(task.spec.id, {})
        who[task.spec.submitter] = None
        self._send_end(task, who)

    def _send_end(self, task: Task, who: dict[ProcessId, None]) -> None:
        result = task.result
        if result is not None:
            result = self.payloads.hot(result)
            if result is None:
                self._fetch(self._end_when_loaded(task, who))
                return
        self.send_end(Ended(task.spec.id, task.state, result, task.failure, task.epoch), who)

    def send_end(self, ended: Ended, who: dict[ProcessId, None]) -> None:
        for process in who:
            self.outbox.post(to(process), ended)

    async def _end_when_loaded(self, task: Task, who: dict[ProcessId, None]) -> None:
        try:
            result = await self.payloads.load_from(lambda: task.result or b"")
        except ComityError as error:
            failure = TaskFailure(error.code, error.message, False)
            if self.state.tasks.get(task.spec.id) is not task:  # it went to the archive meanwhile
                for process in who:
                    self.follow_missing(task.spec.id, process)
            elif error.definite:
                self.send_end(Ended(task.spec.id, TaskState.COMPLETED, None, failure, task.epoch), who)
            return  # unknown: whoever waits asks again
        self.send_end(Ended(task.spec.id, task.state, result, task.failure, task.epoch), who)
