"""One term of leading: takes in what processes say, packs it into entries, and acts on what became effective.

A leader object lives as long as its pipeline. When that breaks, the object is dropped with all that it had not yet written
(callers and nodes repeat themselves to the next one) and nothing it said was untrue: every reply left after its entry was
durable.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from comity.bus.base import EVERYONE, Bus, Delivery, to
from comity.bus.outbox import Outbox
from comity.controller.admission import Admission, refusal, stamped
from comity.controller.events import Events
from comity.controller.liveness import Liveness
from comity.controller.payloads import Payloads
from comity.controller.pipeline import COMMANDS_MAX, EntryClock, Pipeline, weight
from comity.core.reconcile import Reconcile
from comity.core.tasks import Change, Tasks
from comity.errors import BadInput, ComityError, InvalidInput
from comity.model.ids import ProcessId, TaskId
from comity.model.task import (
    Attempt,
    Barrier,
    Cancel,
    Command,
    Complete,
    Ending,
    Entry,
    Evict,
    Fail,
    NodeLeft,
    NodeUp,
    Rate,
    Requeue,
    Start,
    Submit,
    Task,
    TaskFailure,
    TaskState,
)
from comity.model.wire import (
    Accepted,
    Ask,
    Beacon,
    Began,
    CallEnded,
    CancelTask,
    Declined,
    Done,
    Ended,
    Failed,
    FollowEvents,
    FollowTask,
    Item,
    Leading,
    Leaving,
    Live,
    Pong,
    RateTask,
    Route,
    Run,
    Settled,
    Slot,
    Stop,
    SubmitTask,
    decode,
)

CODE_MAX = 200
REASON_MAX = 2000
"""Characters of an error's code and message that replicated state keeps."""
LIVE_MAX = 64 * 1024
"""Bytes of a live event; a larger one is dropped and counted."""

Report = Began | Done | Failed | Declined


class Leader:
    """See the module. Built by ``Controller`` once its term entry is effective; ``begin`` starts it."""

    def __init__(
        self,
        bus: Bus,
        outbox: Outbox,
        state: Tasks,
        reconcile: Reconcile,
        admission: Admission,
        payloads: Payloads,
        events: Events,
        clock: EntryClock,
        grace_ms: int,
    ) -> None:
        self.bus = bus
        self.outbox = outbox
        self.state = state
        self.reconcile = reconcile
        self.admission = admission
        self.payloads = payloads
        self.events = events
        self.clock = clock
        self.grace_ms = grace_ms
        self.malformed = 0
        self.pipeline: Pipeline
        self.liveness: Liveness
        self.ask: Callable[[Ask, ProcessId], None]
        self.route: Callable[[Route, ProcessId], None]
        self.call_ended: Callable[[CallEnded, ProcessId], None]
        self.kept: Callable[[list[Change]], None]
        self.follow_missing: Callable[[TaskId, ProcessId], None]
        self.once_effective: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Command] = deque()
        self._submits_under_way: dict[TaskId, None] = {}
        self._keys_under_way: dict[str, list[tuple[ProcessId, TaskId]]] = {}
        self._reports_under_way: dict[TaskId, int] = {}
        self._barrier_calls: list[Callable[[], None]] = []
        self._barriers: deque[list[Callable[[], None]]] = deque()
        self._followers: dict[TaskId, dict[ProcessId, None]] = {}
        self._fetches: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._now_ms = 0  # entry time when the message now being taken in arrived
        self._accepted: dict[ProcessId, list[tuple[TaskId, TaskId]]] = {}
        self._settled: dict[ProcessId, list[tuple[TaskId, int]]] = {}
        self._on: dict[type, Callable[[Any, ProcessId], None]] = {}
        self._react: dict[str, Callable[[Change], None]] = {
            "task.submitted": self._on_submitted,
            "task.assigned": self._on_assigned,
            "task.canceling": self._on_canceling,
            "task.completed": self._on_ended,
            "task.failed": self._on_ended,
            "task.canceled": self._on_ended,
            "task.retrying": self._on_put_back,
            "task.requeued": self._on_put_back,
        }

    def begin(self) -> None:
        """Take up the work that the log says is there."""
        self._on = self._takers()
        self.reconcile.rebuild()
        term, leader = self.state.term, self.bus.process
        self.outbox.post(EVERYONE, Leading(term, leader, self.clock.now_ms()))
        for task in list(self.state.tasks.values()):
            if task.attempt is not None and task.state is TaskState.ASSIGNED:
                self._send_run(task, task.attempt)  # whether the leader before did is not known; a node runs an epoch once
        self.wake()

    def end(self) -> None:
        """This term is over for us."""
        if self._timer is not None:
            self._timer.cancel()
        for fetch in self._fetches:
            fetch.cancel()
        self.pipeline.cancel()

    # What processes say

    def _takers(self) -> dict[type, Callable[[Any, ProcessId], None]]:
        """Who takes in which item."""
        return {
            SubmitTask: self._submit,
            FollowTask: self._follow,
            CancelTask: self._cancel,
            Ask: self.ask,
            FollowEvents: self.events.follow,
            Route: self.route,
            CallEnded: self.call_ended,
            Beacon: self.liveness.beacon,
            Began: self._report,
            Done: self._report,
            Failed: self._report,
            Declined: self._report,
            Slot: lambda item, _sender: self.reconcile.slot(item.task, item.epoch, item.held),
            Live: self._live,
            Leaving: self.liveness.leaving,
            RateTask: self._rate,
            Pong: lambda _item, sender: self.liveness.answered(sender),
        }

    def receive(self, delivery: Delivery) -> None:
        try:
            items = decode(delivery.data)
        except InvalidInput as error:
            self.malformed += 1
            self.notice("message.malformed", node=delivery.sender, reason=error.message)
            return
        self._now_ms = self.clock.now_ms()
        for item in items:
            take = self._on.get(type(item))
            if take is not None:
                take(item, delivery.sender)
        self.flush()
        self.wake()

    def propose(self, command: Command) -> None:
        """Write ``command`` with the next entry."""
        self._pending.append(command)
        self.wake()

    def barrier(self, call: Callable[[], None]) -> None:
        """``call`` once everything proposed before now is effective, and the log has confirmed that we still lead."""
        self._barrier_calls.append(call)
        self.wake()

    def notice(self, kind: str, **about: Any) -> None:
        """An event that is no entry."""
        self.events.live({"type": kind, "at": self.clock.now_ms(), **about})

    def wake(self) -> None:
        self.pipeline.wake()
        self.arm()

    def _submit(self, item: SubmitTask, sender: ProcessId) -> None:
        spec = item.spec
        known = self.state.tasks.get(spec.id)
        if known is not None:
            self._accept(sender, spec.id, spec.id)
            self._follow_one(spec.id, known, sender)
        elif spec.id in self._submits_under_way:
            return  # answered when it is effective
        elif spec.key and spec.key in self.state.keys:
            self._accept(sender, spec.id, self.state.keys[spec.key])
            self._follow(FollowTask((self.state.keys[spec.key],)), sender)
        elif spec.key and spec.key in self._keys_under_way:
            self._keys_under_way[spec.key].append((sender, spec.id))
        elif spec.id <= self.state.archived_last and self.admission.archived_in(spec.id):
            self._accept(sender, spec.id, spec.id)
            self._follow(FollowTask((spec.id,)), sender)
        else:
            self._take_in(item, sender)

    def _take_in(self, item: SubmitTask, sender: ProcessId) -> None:
        now_ms = self._now_ms
        try:
            self.admission.check(item, len(self._submits_under_way), now_ms)
        except ComityError as error:
            self.admission.refused += 1
            self.outbox.post(to(sender), refusal(item.spec.id, error))
            self.notice("submit.refused", task=item.spec.id, node=sender, reason=error.code)
            return
        spec = stamped(item.spec, sender, now_ms)
        self._submits_under_way[spec.id] = None
        if spec.key:
            self._keys_under_way[spec.key] = []
        self._pending.append(Submit(spec))

    def _accept(self, sender: ProcessId, asked: TaskId, stands_for: TaskId) -> None:
        self._accepted.setdefault(sender, []).append((asked, stands_for))

    def _follow(self, item: FollowTask, sender: ProcessId) -> None:
        for task_id in item.tasks:
            self._follow_one(task_id, self.state.tasks.get(task_id), sender)

    def _follow_one(self, task_id: TaskId, task: Task | None, sender: ProcessId) -> None:
        if task is None:
            if task_id not in self._submits_under_way:
                self.follow_missing(task_id, sender)
        elif task.is_terminal:
            self._send_end(task, {sender: None})
        elif task.spec.submitter != sender:
            self._followers.setdefault(task_id, {})[sender] = None

    def _cancel(self, item: CancelTask, sender: ProcessId) -> None:
        self._pending.append(Cancel(item.task, item.reason[:REASON_MAX]))
        body = msgspec.json.encode({"id": item.task})
        self.barrier(lambda: self.ask(Ask(item.ref, "task", body), sender))

    def _report(self, item: Report, sender: ProcessId) -> None:
        task = self.state.current(item.task, item.epoch)
        attempt = task.attempt if task is not None else None
        if task is None or attempt is None or attempt.node != sender:
            self._settle(sender, item.task, item.epoch)
            self.state.totals.rejected_reports += 1
            self.notice("report.rejected", task=item.task, node=sender, reason=f"{type(item).__name__} with epoch {item.epoch}")
            return
        if type(item) is Began:
            if task.state is TaskState.ASSIGNED:
                self._pending.append(Start(item.task, item.epoch))
            return
        if self._reports_under_way.get(item.task) == item.epoch:
            return
        self._reports_under_way[item.task] = item.epoch
        self._pending.append(self._ending(item, task))

    def _ending(self, item: Done | Failed | Declined | Began, task: Task) -> Command:
        if type(item) is Done:
            return Complete(item.task, item.epoch, item.result, item.ran_ms)
        if type(item) is Failed:
            not_before = self.clock.now_ms() + self.reconcile.backoff(task.retries_used)
            ending = Ending.CANCELED if item.canceled else Ending.FAILED
            code, message = item.failure.code[:CODE_MAX], item.failure.message[:REASON_MAX]
            failure = TaskFailure(code, message, item.failure.retryable)
            return Fail(item.task, item.epoch, failure, not_before, ending)
        reason = item.reason if type(item) is Declined else ""
        return Requeue(item.task, item.epoch, Ending.REFUSED, reason[:REASON_MAX])

    def _settle(self, node: ProcessId, task: TaskId, token: int) -> None:
        self._settled.setdefault(node, []).append((task, token))

    def _live(self, item: Live, sender: ProcessId) -> None:
        task = self.state.current(item.task, item.epoch)
        if task is None or task.attempt is None or task.attempt.node != sender:
            return
        if len(item.body) > LIVE_MAX:
            self.malformed += 1
            return
        try:
            body = msgspec.json.decode(item.body, type=dict[str, Any])
        except msgspec.MsgspecError:
            self.malformed += 1
            return
        kind = f"task.{body.pop('type', 'progress')}"
        event = {**body, "type": kind, "at": self.clock.now_ms(), "task": item.task, "agent": task.attempt.agent, "node": sender}
        self.events.live(event, item.task)

    def _rate(self, item: RateTask, sender: ProcessId) -> None:
        if not 0.0 <= item.score <= 1.0:
            self.notice("message.malformed", node=sender, reason=BadInput("a rating is 0 to 1").message)
            return
        self._pending.append(Rate(item.task, item.score))

    # Into the log

    def fill(self, budget: int) -> list[Command]:
        """The next entry's commands."""
        commands: list[Command] = []
        pending = self._pending
        while pending and budget > 0 and len(commands) < COMMANDS_MAX:
            command = pending.popleft()
            budget -= weight(command)
            if budget < 0 and commands:
                pending.appendleft(command)
                break
            commands.append(command)
            if type(command) is Submit:
                assign = self.reconcile.ride(command.spec)
                if assign is not None:
                    commands.append(assign)
        room = min(COMMANDS_MAX - len(commands), max(0, budget) // 128)
        if room > 0:
            due = self.reconcile.due(self.clock.now_ms(), room)
            commands += due
            commands += self.reconcile.plan(room - len(due))
        if self._barrier_calls and not pending:
            self._barriers.append(self._barrier_calls)
            self._barrier_calls = []
            commands.append(Barrier())
        return commands

    # What became effective

    def effective(self, index: int, entry: Entry) -> None:
        """Entry ``index`` counts: apply it, then act on what changed."""
        self.payloads.note(index, entry)
        changes = self.state.apply(entry, index)
        self.reconcile.observe(changes)
        react = self._react
        for change in changes:
            act = react.get(change.kind)
            if act is not None:
                act(change)
        for command in entry.commands:
            kind = type(command)
            if kind is Submit:
                self._submitted(command)  # type: ignore[arg-type]
            elif kind is Complete or kind is Fail or kind is Requeue:
                self._reports_under_way.pop(command.task, None)  # type: ignore[union-attr]
            elif kind is NodeUp or kind is Evict or kind is NodeLeft:
                self.liveness.applied(command)  # type: ignore[arg-type]
            elif kind is Barrier:
                for call in self._barriers.popleft():
                    call()
        self.events.publish(index, entry.time_ms, changes)
        self.kept(changes)
        self.flush()
        if self.once_effective:
            calls, self.once_effective = self.once_effective, []
            for call in calls:
                call()
        self.arm()

    def _submitted(self, command: Submit) -> None:
        spec = command.spec
        self._submits_under_way.pop(spec.id, None)
        if spec.key:
            stands_for = self.state.keys.get(spec.key, spec.id)
            for sender, asked in self._keys_under_way.pop(spec.key, ()):
                self._accept(sender, asked, stands_for)
                self._follow(FollowTask((stands_for,)), sender)

    def flush(self) -> None:
        """Send what gathered while a message or an entry was acted on."""
        for process, pairs in self._accepted.items():
            self.outbox.post(to(process), Accepted(tuple(pairs)))
        for process, reports in self._settled.items():
            self.outbox.post(to(process), Settled(tuple(reports)))
        self._accepted.clear()
        self._settled.clear()

    def _on_submitted(self, change: Change) -> None:
        if change.task is not None:
            task_id = change.task.spec.id
            self._accept(change.task.spec.submitter, task_id, task_id)

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
        )  # fmt: skip
        self.outbox.post(to(attempt.node), run)

    async def _run_when_loaded(self, task: Task, attempt: Attempt) -> None:
        try:
            await self.payloads.load(task.spec.input)
        except ComityError as error:
            if error.definite and self.state.current(task.spec.id, attempt.epoch) is task:
                self.propose(Fail(task.spec.id, attempt.epoch, TaskFailure(error.code, error.message, False)))
            return  # unknown: the start time-out brings it back
        if self.state.current(task.spec.id, attempt.epoch) is task:
            self._send_run(task, attempt)

    def _fetch(self, work: Any) -> None:
        fetch = self._loop.create_task(work)
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
        if attempt.ending in (Ending.NOT_STARTED, Ending.TIMED_OUT, Ending.CANCELED):
            self._send_stop(attempt, task.spec.id, attempt.ending)
        self._settle(attempt.node, task.spec.id, attempt.epoch)

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
        self.send_end(Ended(task.spec.id, task.state, result, task.failure), who)

    def send_end(self, ended: Item, who: dict[ProcessId, None]) -> None:
        for process in who:
            self.outbox.post(to(process), ended)

    async def _end_when_loaded(self, task: Task, who: dict[ProcessId, None]) -> None:
        try:
            result = await self.payloads.load(task.result or b"")
        except ComityError as error:
            failure = TaskFailure(error.code, error.message, False)
            if error.definite:
                self.send_end(Ended(task.spec.id, TaskState.COMPLETED, None, failure), who)
            return  # unknown: whoever waits asks again
        self.send_end(Ended(task.spec.id, task.state, result, task.failure), who)

    # Time

    def arm(self) -> None:
        """Be woken when something is due."""
        due_ms = self.reconcile.next_deadline() if not self.pipeline.is_full else None
        at = self.liveness.next_deadline()
        if due_ms is not None:
            due_at = self._loop.time() + max(0, due_ms - self.clock.now_ms()) / 1000 + 0.001
            at = due_at if at is None else min(at, due_at)
        if self._timer is not None:
            if at is not None and self._timer_at <= at:
                return
            self._timer.cancel()
            self._timer = None
        if at is not None:
            self._timer_at = at  # uvloop gives what is due already a handle that does not tell when
            self._timer = self._loop.call_at(at, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.liveness.tick()
        self.pipeline.wake()
        self.arm()
