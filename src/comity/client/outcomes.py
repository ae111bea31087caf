"""How tasks end: pushed by the leader, asked for again when a push may have been lost."""

from __future__ import annotations

import asyncio
from functools import partial

from comity.client.contact import Contact
from comity.client.timers import Alarm, Timers
from comity.client.turns import Turns
from comity.errors import ComityError, TimedOut
from comity.model.ids import TaskId
from comity.model.task import TERMINAL
from comity.model.wire import Ended, FollowTask

FOLLOW_S = 5.0
"""How often an unanswered wait is repeated: a push is lost only with a connection, a leader or a very full queue."""
AWAITED_AT_ONCE = 8192
OTHERS_AT_ONCE = 1024
IDS_PER_ITEM = 4096
NEVER = float("-inf")


class Outcome:
    """What is known here of one task's end. ``heard_at``: when its end was last asked for or promised, on the loop's
    clock."""

    __slots__ = ("ended", "heard_at", "id", "waiters")

    def __init__(self, id: TaskId) -> None:
        self.id = id
        self.ended: Ended | None = None
        self.heard_at = NEVER
        self.waiters: list[asyncio.Future[Ended]] = []


class Outcomes:
    """Tasks that have not ended, as far as is known here: ``open`` those to be told of, ``awaited`` those that have
    waiters; both with the one first of which there has been no word for longest. Nobody asks for those still being
    submitted: the leader may not know them yet, and would say so."""

    def __init__(self, contact: Contact, timers: Timers, turns: Turns) -> None:
        self._contact = contact
        self._timers = timers
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._submitted: dict[TaskId, Outcome] = {}
        self._open: dict[TaskId, Outcome] = {}
        self._awaited: dict[TaskId, Outcome] = {}
        self._doubtful_before = NEVER  # a push before then may have been lost
        self._alarm: Alarm | None = None
        self._closed: ComityError | None = None
        contact.on_renewed(self._renew)

    def of(self, task: TaskId) -> Outcome:
        """The outcome of ``task``, which exists as far as is known; one object however often it is asked for while it is open."""
        found = self._open.get(task)
        if found is None:
            submitted = self._submitted.pop(task, None)
            found = self._open[task] = submitted or Outcome(task)
        return found

    def submitting(self, task: TaskId) -> Outcome:
        """The outcome of a task that is being submitted, until it is ``accepted`` or forgotten."""
        outcome = self._submitted[task] = Outcome(task)
        return outcome

    def accepted(self, outcome: Outcome) -> None:
        """There is such a task. Its end may have been told before."""
        self._submitted.pop(outcome.id, None)
        if outcome.ended is None:
            outcome.heard_at = self._loop.time()
            self._open[outcome.id] = outcome

    def forget(self, outcome: Outcome) -> None:
        """``outcome`` is of no task that exists, as far as is known."""
        self._submitted.pop(outcome.id, None)

    def on_ended(self, item: Ended) -> None:
        outcome = self._open.get(item.task) or self._submitted.get(item.task)
        if outcome is None or item.state not in TERMINAL:
            return
        self._open.pop(item.task, None)
        self._awaited.pop(item.task, None)
        outcome.ended = item
        for waiter in outcome.waiters:
            self._turns.wake(waiter, item)

    async def end(self, outcome: Outcome, timeout_s: float | None) -> Ended:
        """Wait until the task has ended. Raises TimedOut, or what closed the connection."""
        if outcome.ended is not None:
            return outcome.ended
        waiter = self.watch(outcome)
        alarm = None
        if timeout_s is not None:
            alarm = self._timers.after(timeout_s, partial(_late, outcome.id, waiter, timeout_s))
        try:
            return await waiter
        finally:
            if alarm is not None:
                alarm.cancel()
            self.leave(outcome, waiter)

    def watch(self, outcome: Outcome) -> asyncio.Future[Ended]:
        """A future of the task's end. The caller ends it by ``leave``, whatever became of it."""
        waiter: asyncio.Future[Ended] = self._loop.create_future()
        if outcome.ended is not None:
            waiter.set_result(outcome.ended)
        elif self._closed is not None:
            waiter.set_exception(self._closed)
        else:
            outcome.waiters.append(waiter)
            if len(outcome.waiters) == 1:
                self._begin(outcome)
        return waiter

    def _begin(self, outcome: Outcome) -> None:
        self._open.setdefault(outcome.id, outcome)
        self._awaited[outcome.id] = outcome
        if not self._contact.is_up:
            self._contact.seek()
        elif outcome.heard_at <= max(self._doubtful_before, self._loop.time() - FOLLOW_S):
            self._follow([outcome])
        self._keep_watch()

    def leave(self, outcome: Outcome, waiter: asyncio.Future[Ended]) -> None:
        waiter.cancel()
        if waiter in outcome.waiters:
            outcome.waiters.remove(waiter)
            if not outcome.waiters:
                self._awaited.pop(outcome.id, None)

    def _renew(self, lost: bool) -> None:
        if lost:
            self._doubtful_before = self._loop.time()
        self._follow([outcome for outcome in self._awaited.values() if lost or outcome.heard_at == NEVER])

    def _keep_watch(self) -> None:
        if self._alarm is None and self._awaited:
            self._alarm = self._timers.after(FOLLOW_S, self._look)

    def _look(self) -> None:
        self._alarm = None
        if self._contact.is_up:
            before = self._loop.time() - FOLLOW_S / 2
            for outcomes, limit in ((self._awaited, AWAITED_AT_ONCE), (self._open, OTHERS_AT_ONCE)):
                overdue: list[Outcome] = []
                for outcome in outcomes.values():
                    if outcome.heard_at > before or len(overdue) >= limit:
                        break
                    overdue.append(outcome)
                for outcome in overdue:
                    del outcomes[outcome.id]
                    outcomes[outcome.id] = outcome
                self._follow(overdue)
        else:
            self._contact.seek()
        self._keep_watch()

    def _follow(self, outcomes: list[Outcome]) -> None:
        now = self._loop.time()
        for start in range(0, len(outcomes), IDS_PER_ITEM):
            part = outcomes[start : start + IDS_PER_ITEM]
            self._contact.post(FollowTask(tuple(outcome.id for outcome in part)))
            for outcome in part:
                outcome.heard_at = now

    def close(self, error: ComityError) -> None:
        """Every wait, now and later, ends in ``error``."""
        self._closed = error
        for outcome in self._awaited.values():
            for waiter in outcome.waiters:
                if not waiter.done():
                    waiter.set_exception(error)


def _late(task: TaskId, waiter: asyncio.Future[Ended], timeout_s: float) -> None:
    if not waiter.done():
        waiter.set_exception(TimedOut(f"task {task} has not ended within {round(timeout_s, 2):g} s", task=task))
