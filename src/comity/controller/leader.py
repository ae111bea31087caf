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
from comity.controller.admission import Admission, check_payload, refusal, stamped
from comity.controller.events import Events
from comity.controller.lag import Lag
from comity.controller.liveness import Liveness
from comity.controller.mailing import Mailing
from comity.controller.misfits import told
from comity.controller.pipeline import ASSIGN_BYTES, COMMANDS_MAX, EntryClock, Pipeline, weight
from comity.controller.resuming import Resuming
from comity.controller.telling import Telling
from comity.core.archive import holding
from comity.core.changes import Change
from comity.core.reconcile import Reconcile
from comity.core.tasks import Tasks
from comity.errors import BadInput, ComityError, InvalidInput, TooLarge
from comity.model.codec import from_json
from comity.model.ids import ProcessId, TaskId
from comity.model.mail import AckMail, BuryMail, PostMail, SkipMail
from comity.model.records import AskInput, RecordStep, SaveCheckpoint
from comity.model.task import (
    Attempt,
    Barrier,
    Cancel,
    Command,
    Complete,
    DrainNode,
    Ending,
    Entry,
    Evict,
    Fail,
    Fire,
    IsolateNode,
    NodeLeft,
    NodeUp,
    Rate,
    Replay,
    Requeue,
    ResumeNode,
    Start,
    Submit,
    Task,
    TaskFailure,
    TaskState,
)
from comity.model.wire import (
    AddSchedule,
    Answer,
    Ask,
    Beacon,
    Began,
    CallEnded,
    CancelTask,
    Declined,
    Done,
    Failed,
    FollowEvents,
    FollowTask,
    InputAsked,
    Item,
    Leading,
    Leaving,
    Live,
    Pong,
    Progress,
    RateTask,
    Refused,
    Route,
    Slot,
    SubmitTask,
    decode,
)
from comity.model.wire_talk import Misfit

CODE_MAX = 200
REASON_MAX = 2000
"""Characters of an error's code and message that replicated state keeps."""
LIVE_KINDS = ("progress", "log", "part")
LIVE_MAX = 64 * 1024
"""Bytes of a live event; a larger one is dropped and counted."""

MAIL = frozenset({PostMail, SkipMail, AckMail, BuryMail})

Report = Began | Done | Failed | Declined | InputAsked


class Leader:
    """See the module. Built by ``Controller`` once its term entry is effective; ``begin`` starts it."""

    def __init__(
        self,
        bus: Bus,
        outbox: Outbox,
        state: Tasks,
        reconcile: Reconcile,
        admission: Admission,
        telling: Telling,
        events: Events,
        clock: EntryClock,
    ) -> None:
        self.bus = bus
        self.outbox = outbox
        self.state = state
        self.reconcile = reconcile
        self.admission = admission
        self.telling = telling
        self.events = events
        self.clock = clock
        self.lag = Lag()
        self.resuming = Resuming(
            state, outbox, telling.payloads, now_ms=clock.now_ms, propose=self.propose, settle=telling.settle,
            barrier=self.barrier,
        )  # fmt: skip
        self.malformed = 0
        self.rejected = 0
        """Reports refused before they got into the log; those refused there are in the totals."""
        self.pipeline: Pipeline
        self.liveness: Liveness
        self.mailing: Mailing
        self.ask: Callable[[Ask, ProcessId], None]
        self.route: Callable[[Route, ProcessId], None]
        self.call_ended: Callable[[CallEnded, ProcessId], None]
        self.add_schedule: Callable[[AddSchedule, ProcessId], None]
        self.witnessed: Callable[[Answer, ProcessId], None]
        self.kept: Callable[[list[Change]], None]
        self.rate_missing: Callable[[RateTask], None]
        self.once_effective: list[Callable[[], None]] = []
        self._loop = asyncio.get_running_loop()
        self._pending: deque[Command] = deque()
        self._submits_under_way: dict[TaskId, None] = {}
        self._keys_under_way: dict[str, list[tuple[ProcessId, TaskId]]] = {}
        self._reports_under_way: dict[TaskId, int] = {}
        self._barriers: deque[list[Callable[[], None]]] = deque()  # what awaits each barrier, pending or in flight
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._now_ms = 0  # entry time when the message now being taken in arrived
        self._on: dict[type, Callable[[Any, ProcessId], None]] = {}

    def begin(self) -> None:
        """Take up the work that the log says is there."""
        self._on = self._takers()
        self.reconcile.rebuild()
        term, leader = self.state.term, self.bus.process
        self.outbox.post(EVERYONE, Leading(term, leader, self.clock.now_ms()))
        self.telling.resume()
        self.mailing.begin()
        self.wake()

    def end(self) -> None:
        """This term is over for us."""
        if self._timer is not None:
            self._timer.cancel()
        self.lag.end()
        self.telling.end()
        self.resuming.end()
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
            Beacon: self._beacon,
            Began: self._report,
            Done: self._report,
            Failed: self._report,
            Declined: self._report,
            InputAsked: self._report,
            Slot: self._slot,
            Live: self._live,
            Leaving: self.liveness.leaving,
            Progress: self._progress,
            AddSchedule: self.add_schedule,
            RateTask: self._rate,
            Answer: self.witnessed,
            Misfit: lambda item, sender: self.events.live(told(item, sender, self.clock.now_ms())),
            Pong: lambda _item, sender: self.liveness.answered(sender),
            **self.resuming.takers,
            **self.mailing.takers,
        }

    def receive(self, delivery: Delivery) -> None:
        try:
            items = decode(delivery.data)
        except InvalidInput as error:
            self._malformed(delivery.sender, error.message)
            return
        self._now_ms = self.clock.now_ms()
        for item in items:
            take = self._on.get(type(item))
            if take is not None:
                self._take(take, item, delivery.sender)
        self.telling.flush()
        self.wake()

    def _take(self, take: Callable[[Any, ProcessId], None], item: Item, sender: ProcessId) -> None:
        try:
            take(item, sender)
        except ComityError as error:  # such as an answer that would be too large: it concerns no other item
            self._malformed(sender, error.message)

    def _malformed(self, sender: ProcessId, reason: str) -> None:
        self.malformed += 1
        self.notice("message.malformed", node=sender, reason=reason[:REASON_MAX])

    def propose(self, command: Command) -> None:
        """Write ``command`` with the next entry."""
        self._pending.append(command)
        self.wake()

    def barrier(self, call: Callable[[], None]) -> None:
        """``call`` once everything proposed before now is effective, and the log has confirmed that we still lead."""
        if not self._pending or type(self._pending[-1]) is not Barrier:
            self._pending.append(Barrier())
            self._barriers.append([])
        self._barriers[-1].append(call)
        self.wake()

    def notice(self, kind: str, **about: Any) -> None:
        """An event that is no entry."""
        self.events.live({"type": kind, "at": self.clock.now_ms(), **about})

    def wake(self) -> None:
        self.lag.touch()
        self.pipeline.wake()
        self.arm()

    def _submit(self, item: SubmitTask, sender: ProcessId) -> None:
        spec = item.spec
        known = self.state.tasks.get(spec.id)
        if known is not None:
            self.telling.accept(sender, spec.id, spec.id)
            self.telling.follow(spec.id, sender)
        elif spec.id in self._submits_under_way:
            return  # answered when it is effective
        elif spec.key and spec.key in self.state.keys:
            self.telling.accept(sender, spec.id, self.state.keys[spec.key])
            self.telling.follow(self.state.keys[spec.key], sender)
        elif spec.key and spec.key in self._keys_under_way:
            self._keys_under_way[spec.key].append((sender, spec.id))
        elif next(holding(self.state.archive, spec.id), None) is not None:
            self.telling.accept(sender, spec.id, spec.id)
            self.telling.follow(spec.id, sender)
        else:
            self._take_in(item, sender)

    def _take_in(self, item: SubmitTask, sender: ProcessId) -> None:
        now_ms = self._now_ms
        try:
            self.admission.check(item, sender, now_ms)
        except ComityError as error:
            self.admission.refused += 1
            refused = refusal(item.spec.id, error)
            self.barrier(lambda: self._refuse(refused, sender))  # definite only if no other leader has heard it too
            return
        spec = stamped(item.spec, sender, now_ms)
        self._submits_under_way[spec.id] = None
        self.admission.room.take(spec)
        if spec.key:
            self._keys_under_way[spec.key] = []
        self._pending.append(Submit(spec))

    def _refuse(self, refused: Refused, sender: ProcessId) -> None:
        self.outbox.post(to(sender), refused)
        self.notice("submit.refused", task=refused.task, node=sender, reason=refused.code)

    def _follow(self, item: FollowTask, sender: ProcessId) -> None:
        for task_id in item.tasks:
            if task_id not in self._submits_under_way:
                self.telling.follow(task_id, sender)

    def _cancel(self, item: CancelTask, sender: ProcessId) -> None:
        if item.task in self.state.tasks or item.task in self._submits_under_way:
            self._pending.append(Cancel(item.task, item.reason[:REASON_MAX]))
        body = msgspec.json.encode({"id": item.task})
        self.barrier(lambda: self.ask(Ask(item.ref, "task", body), sender))

    def _beacon(self, item: Beacon, sender: ProcessId) -> None:
        if self.liveness.beacon(item, sender):
            self.telling.repeat(sender)
            self.mailing.repeat(sender)
        self._pending += self.reconcile.stuck(sender, self._now_ms)

    def _progress(self, item: Progress, sender: ProcessId) -> None:
        for task_id, epoch, ago_ms in item.made:
            task = self.state.current(task_id, epoch)
            if task is not None and task.attempt is not None and task.attempt.node == sender:
                self.reconcile.watch.progressed(task, self._now_ms - max(0, ago_ms))

    def _report(self, item: Report, sender: ProcessId) -> None:
        task = self.state.current(item.task, item.epoch)
        attempt = task.attempt if task is not None else None
        if task is None or attempt is None or attempt.node != sender:
            self.telling.settle(sender, item.task, item.epoch)
            self.rejected += 1
            self.notice("report.rejected", task=item.task, node=sender, reason=f"{type(item).__name__} with epoch {item.epoch}")
            return
        if type(item) is Began:
            if task.state is TaskState.ASSIGNED:
                self._pending.append(Start(item.task, item.epoch))
            return
        if self._reports_under_way.get(item.task) == item.epoch:
            return
        self._reports_under_way[item.task] = item.epoch
        self._pending.append(self._ending(item, task, sender))

    def _ending(self, item: Report, task: Task, sender: ProcessId) -> Command:
        if type(item) is Done:
            try:
                check_payload(item.result, sender)
                mail = self.mailing.posting.committed(item.mail, sender)
            except ComityError as error:
                return Fail(item.task, item.epoch, TaskFailure(error.code, error.message[:REASON_MAX], retryable=False))
            return Complete(item.task, item.epoch, item.result, max(0, item.ran_ms), mail)
        if type(item) is Failed:
            not_before = self.clock.now_ms() + self.reconcile.pause_ms(task)
            ending = Ending.CANCELED if item.canceled and task.cancel_at else Ending.FAILED
            code, message = item.failure.code[:CODE_MAX], item.failure.message[:REASON_MAX]
            failure = TaskFailure(code, message, item.failure.retryable)
            return Fail(item.task, item.epoch, failure, not_before, ending, max(0, item.ran_ms))
        if type(item) is InputAsked:
            return self.resuming.asked(item, sender)
        reason = item.reason if type(item) is Declined else ""
        return Requeue(item.task, item.epoch, Ending.REFUSED, reason[:REASON_MAX])

    def _attempt(self, item: Slot | Live, sender: ProcessId) -> Attempt | None:
        """The running attempt that ``item`` speaks of, if it runs at ``sender``."""
        task = self.state.current(item.task, item.epoch)
        attempt = task.attempt if task is not None else None
        return attempt if attempt is not None and attempt.node == sender else None

    def _slot(self, item: Slot, sender: ProcessId) -> None:
        if self._attempt(item, sender) is not None:
            self.reconcile.slot(item.task, item.epoch, item.held)

    def _live(self, item: Live, sender: ProcessId) -> None:
        attempt = self._attempt(item, sender)
        if attempt is None:
            return
        if len(item.body) > LIVE_MAX:
            raise TooLarge(f"a live event of {len(item.body)} bytes", limit=LIVE_MAX)
        body = from_json(item.body)
        kind = body.pop("type", "progress") if isinstance(body, dict) else None
        if kind not in LIVE_KINDS:
            raise BadInput("a live event is an object of type progress, log or part")
        about = {"type": f"task.{kind}", "at": self.clock.now_ms(), "task": item.task, "agent": attempt.agent, "node": sender}
        self.events.live({**body, **about}, item.task)

    def _rate(self, item: RateTask, sender: ProcessId) -> None:
        if not 0.0 <= item.score <= 1.0:
            raise BadInput("a rating is 0 to 1")
        if item.task in self.state.tasks:
            self._pending.append(Rate(item.task, item.score))
        else:
            self.rate_missing(item)

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
            if type(command) is Submit or type(command) is Replay or type(command) is Fire:
                assign = self.reconcile.ride(command.spec)
                if assign is not None:
                    budget -= ASSIGN_BYTES
                    commands.append(assign)
        room = min(COMMANDS_MAX - len(commands), max(0, budget) // ASSIGN_BYTES)
        if room > 0:
            due = self.reconcile.due(self.clock.now_ms(), room)
            commands += due
            commands += self.reconcile.plan(room - len(due))
            if self.reconcile.is_behind:
                self.pipeline.wake()
        return commands

    # What became effective

    def effective(self, index: int, entry: Entry) -> None:
        """Entry ``index`` counts: apply it, then act on what changed."""
        self.telling.payloads.note(index, entry)
        changes = self.state.apply(entry, index)
        self.reconcile.observe(changes)
        self.telling.react(changes)
        self.mailing.react(changes)
        for command in entry.commands:
            kind = type(command)
            if kind is Submit:
                self._submitted(command)  # type: ignore[arg-type]
            elif kind is Complete or kind is Fail or kind is Requeue or kind is AskInput:
                self._reports_under_way.pop(command.task, None)  # type: ignore[union-attr]
            elif kind is RecordStep or kind is SaveCheckpoint:
                self.resuming.applied(command)  # type: ignore[arg-type]
            elif kind is NodeUp or kind is Evict or kind is NodeLeft:
                self.liveness.applied(command)  # type: ignore[arg-type]
                self.mailing.applied(command)
            elif kind is DrainNode or kind is IsolateNode or kind is ResumeNode:
                self.liveness.aside_changed(command.node)  # type: ignore[union-attr]
            elif kind in MAIL:
                self.mailing.applied(command)
            elif kind is Barrier:
                for call in self._barriers.popleft():
                    call()
        self.events.publish(index, entry.time_ms, changes)
        self.kept(changes)
        self.telling.flush()
        if self.once_effective:
            calls, self.once_effective = self.once_effective, []
            for call in calls:
                call()
        self.arm()

    def _submitted(self, command: Submit) -> None:
        spec = command.spec
        if self._submits_under_way.pop(spec.id, self) is None:
            self.admission.room.settle(spec)
        if spec.key:
            stands_for = self.state.keys.get(spec.key, spec.id)
            for sender, asked in self._keys_under_way.pop(spec.key, ()):
                self.telling.accept(sender, asked, stands_for)
                self.telling.follow(stands_for, sender)

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
