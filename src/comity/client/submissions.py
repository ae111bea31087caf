"""Submits under way. The client makes the id, so that a repeated submit is the same task; it repeats until the leader
answers or the time for it is over, and never from a buffer of the connection's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec

from comity.client.calls import SILENCE_S
from comity.client.contact import Contact
from comity.client.outcomes import NEVER, Outcome, Outcomes
from comity.client.timers import Alarm, Timers
from comity.client.turns import Turns
from comity.errors import ComityError, Indefinite, Overloaded, TimedOut, Unreachable, from_wire
from comity.model.ids import TaskId
from comity.model.task import TaskSpec
from comity.model.wire import Accepted, Refused, SubmitTask

WINDOW = 16_384
"""Submits that may wait for an answer; further ones wait their turn."""
SLICE = 1024
"""Submits handed over at once."""


class Batch:
    """Submits that one caller waits for together: it is told when all are answered, or at the first of unknown fate."""

    __slots__ = ("_turns", "future", "left", "refusal")

    def __init__(self, future: asyncio.Future[None], left: int, turns: Turns) -> None:
        self.future = future
        self.left = left
        self._turns = turns
        self.refusal: ComityError | None = None

    def settle(self, error: ComityError | None = None) -> None:
        self.left -= 1
        if self.refusal is None:
            self.refusal = error
        if self.future.done() or (self.left and (error is None or error.definite)):
            return
        if self.refusal is None:
            self._turns.wake(self.future, None)
        else:
            self.future.set_exception(self.refusal)


class Submission:
    """One submit. ``deadline`` and ``start`` are the task's, on the loop's clock (infinite, 0: none). ``accepted`` once
    it is: how it ends. A refusal for overload is not the last word before ``patient_until``; ``refusal`` is the latest."""

    __slots__ = ("accepted", "batch", "deadline", "item", "outcome", "patient_until", "posted_at", "refusal", "start")

    def __init__(self, item: SubmitTask, outcome: Outcome, batch: Batch, deadline: float, start: float) -> None:
        self.item = item
        self.outcome = outcome
        self.batch = batch
        self.deadline = deadline
        self.start = start
        self.posted_at = NEVER
        self.accepted: Outcome | None = None
        self.patient_until = NEVER
        self.refusal: ComityError | None = None


class Submissions:
    """Invariant: ``_open`` is in the order of posting, so that the first is the one unanswered for longest; what was refused
    and shall be sent again is in ``_parked`` instead. ``random`` gives floats in [0, 1)."""

    def __init__(
        self, contact: Contact, outcomes: Outcomes, timers: Timers, turns: Turns, random: Callable[[], float]
    ) -> None:
        self._contact = contact
        self._outcomes = outcomes
        self._timers = timers
        self._turns = turns
        self._loop = asyncio.get_running_loop()
        self._random = random
        self._open: dict[TaskId, Submission] = {}
        self._parked: dict[TaskId, Submission] = {}
        self._room: list[asyncio.Future[None]] = []
        self._alarm: Alarm | None = None
        self._closed: ComityError | None = None
        contact.on_renewed(self._renew)

    async def send(
        self, specs: list[TaskSpec], *, queue: bool, deadline: float, timeout_s: float, start: float = 0.0,
        patience_s: float = 0.0,
    ) -> list[Outcome]:
        """Submit ``specs``; returns when all are accepted. An outcome's id differs from its spec's if the key was
        known. What is refused for overload within ``patience_s`` is sent again when the leader says, and a bit later.

        Raises the refusal of the first refused one, once all are answered; Unreachable if nothing could be sent;
        TimedOut; or Indefinite for a refusal of a repetition. Of several, ``details["accepted"]`` lists the ids known
        to be accepted.
        """
        if self._closed is not None:
            raise self._closed
        if not specs:
            return []
        batch = Batch(self._loop.create_future(), len(specs), self._turns)
        alarms: list[Alarm] = []
        mine: list[Submission] = []
        patient_until = self._loop.time() + patience_s if patience_s else NEVER
        try:
            for first in range(0, len(specs), SLICE):
                if first:
                    await asyncio.sleep(0)  # others have their turn
                await self._have_room()
                if batch.future.done():
                    break
                part = [
                    Submission(SubmitTask(spec, queue), self._outcomes.submitting(spec.id), batch, deadline, start)
                    for spec in specs[first : first + SLICE]
                ]
                mine += part
                alarms.append(self._timers.after(timeout_s, partial(self._late, part, timeout_s)))
                for submission in part:
                    submission.patient_until = patient_until
                    self._open[submission.item.spec.id] = submission
                    self._post(submission)
                self._keep_watch()
            await batch.future
            return [submission.accepted or submission.outcome for submission in mine]
        except ComityError as error:
            if len(specs) > 1:
                error.details["accepted"] = [s.accepted.id for s in mine if s.accepted is not None]
            raise
        finally:
            for alarm in alarms:
                alarm.cancel()
            for submission in mine:
                self._forget(submission)
            if not batch.future.cancel():
                batch.future.cancelled() or batch.future.exception()

    async def _have_room(self) -> None:
        while len(self._open) + len(self._parked) >= WINDOW:
            waiter: asyncio.Future[None] = self._loop.create_future()
            self._room.append(waiter)
            await waiter

    def _make_room(self) -> None:
        if self._room and len(self._open) + len(self._parked) <= WINDOW // 2:
            room, self._room = self._room, []
            for waiter in room:
                if not waiter.done():
                    waiter.set_result(None)

    def _forget(self, submission: Submission) -> None:
        """Nobody waits for its answer any more."""
        task = submission.item.spec.id
        if self._open.pop(task, None) is not None or self._parked.pop(task, None) is not None:
            self._outcomes.forget(submission.outcome)
            self._make_room()

    def _post(self, submission: Submission) -> None:
        if not self._contact.is_up:
            self._contact.seek()
            return
        now = self._loop.time()
        item = submission.item
        if submission.deadline != float("inf") or submission.start:
            left_ms = max(1, round((submission.deadline - now) * 1000)) if submission.deadline != float("inf") else 0
            delay_ms = max(0, round((submission.start - now) * 1000))
            spec = msgspec.structs.replace(item.spec, deadline_ms=left_ms, not_before_ms=delay_ms)
            item = SubmitTask(spec, item.queue, item.again)
        if submission.posted_at != NEVER and not item.again:
            item = SubmitTask(item.spec, item.queue, again=True)
        submission.item = item
        submission.posted_at = now
        try:
            self._contact.post(item)
        except ComityError as error:  # it can never be sent
            self._forget(submission)
            submission.batch.settle(error)

    def on_accepted(self, item: Accepted) -> None:
        for asked, stands_for in item.tasks:
            submission = self._open.pop(asked, None)
            if submission is None:
                continue
            if stands_for == asked:
                self._outcomes.accepted(submission.outcome)
                submission.accepted = submission.outcome
            else:  # the key was known: whoever waits asks how that task ends
                self._outcomes.forget(submission.outcome)
                submission.accepted = self._outcomes.of(stands_for)
            submission.batch.settle()
        self._make_room()

    def on_refused(self, item: Refused) -> None:
        submission = self._open.get(item.task)
        if submission is None:
            return
        if item.code == "not-leader":
            self._contact.seek(lost=True)
            return
        error = from_wire(item.code, item.message, {**item.details, "task": item.task})
        if isinstance(error, Overloaded) and self._loop.time() < submission.patient_until:
            self._park(submission, error)
            return
        if submission.item.again and error.definite:
            said = f"refused when repeated ({item.code}: {item.message}); an earlier send may have been accepted"
            error = Indefinite(said, **error.details, refused=item.code)
        self._forget(submission)
        submission.batch.settle(error)

    def _park(self, submission: Submission, refusal: Overloaded) -> None:
        """Send it again later; not all who were refused at the same moment at the same moment."""
        task = submission.item.spec.id
        del self._open[task]
        self._parked[task] = submission
        submission.refusal = refusal
        said = refusal.details.get("retry_after_s")
        pause_s = (said if isinstance(said, int | float) else 1.0) * (0.5 + self._random())
        left_s = submission.patient_until - self._loop.time()
        self._timers.after(max(0.0, min(pause_s, left_s)), partial(self._again, submission))

    def _again(self, submission: Submission) -> None:
        task = submission.item.spec.id
        if self._parked.pop(task, None) is not None:
            self._open[task] = submission
            submission.posted_at = NEVER  # what was refused did not happen: this is a first send
            self._post(submission)
            self._keep_watch()

    def _late(self, submissions: list[Submission], timeout_s: float) -> None:
        for submission in submissions:
            task = submission.item.spec.id
            if self._parked.get(task) is submission:
                self._forget(submission)
                submission.batch.settle(submission.refusal)
            elif self._open.get(task) is submission:
                self._forget(submission)
                if submission.posted_at == NEVER:
                    said = f"no controller leads, or none can be reached: tried for {round(timeout_s, 2):g} s"
                    submission.batch.settle(Unreachable(said, task=task))
                else:
                    said = f"the submit of {task} was not answered within {round(timeout_s, 2):g} s"
                    submission.batch.settle(TimedOut(said, task=task))

    def _renew(self, lost: bool) -> None:
        """In touch with the leader: repeat what it has not answered, all of it or what is overdue."""
        before = self._loop.time() - (0.0 if lost else SILENCE_S)
        for submission in [s for s in self._open.values() if s.posted_at <= before]:
            task = submission.item.spec.id
            del self._open[task]
            self._open[task] = submission
            self._post(submission)
        self._keep_watch()

    def _keep_watch(self) -> None:
        if self._alarm is None and self._open:
            self._alarm = self._timers.after(SILENCE_S, self._look)

    def _look(self) -> None:
        self._alarm = None
        first = next(iter(self._open.values()), None)
        if first is not None and first.posted_at <= self._loop.time() - SILENCE_S:
            self._contact.seek()
        self._keep_watch()

    def close(self, error: ComityError) -> None:
        """Every submit, now and later, ends in ``error``."""
        self._closed = error
        for submission in [*self._open.values(), *self._parked.values()]:
            self._forget(submission)
            if not submission.batch.future.done():
                submission.batch.future.set_exception(error)
