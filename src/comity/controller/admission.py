"""Whether a submit is taken in: at once, definitely, and before anything is written."""

from __future__ import annotations

from typing import Any

import msgspec

from comity.controller.room import Room
from comity.core.scheduling import Scheduling
from comity.core.tasks import Tasks
from comity.errors import (
    BadInput,
    ComityError,
    NoAgent,
    ShuttingDown,
    TooLarge,
    TooOld,
    UnknownCapability,
)
from comity.model.capability import Requirements
from comity.model.codec import DIGEST_SIZE
from comity.model.ids import ProcessId, TaskId, check_task_id, task_time_ms, time_text
from comity.model.limits import FAR_S, NAME_MAX, NUMBER_MAX, TEXT_MAX, check_requirements
from comity.model.task import LOG_LIMIT, Logged, Payload, Stored, TaskSpec
from comity.model.wire import Refused, SubmitTask
from comity.store.base import check_key

CLOCK_SLACK_MS = 60_000
"""How far ahead of leader time a task id may claim to have been made."""



class Admission:
    """The rules. ``shutting_down`` refuses everything new."""

    def __init__(self, state: Tasks, scheduling: Scheduling, room: Room, *, window_ms: int) -> None:
        self.state = state
        self.scheduling = scheduling
        self.room = room
        self.window_ms = window_ms
        self.shutting_down = False
        self.refused = 0
        self._now_ms = 0
        self._oldest = self._newest = ""  # ids sort by time as text: what a time in an id may be, at ``_now_ms``

    @property
    def max_waiting(self) -> int:
        return self.room.max_tasks

    def check(self, item: SubmitTask, sender: ProcessId, now_ms: int) -> None:
        """Raise the typed error of a submit that must not be taken in."""
        spec = item.spec
        _well_formed(spec, sender)
        self._check_time(spec.id, now_ms)
        if self.shutting_down:
            raise ShuttingDown("the network is shutting down")
        self.room.check(sender)
        if not item.queue:
            self._somebody(spec.capability, spec.requirements)

    def _check_time(self, task: TaskId, now_ms: int) -> None:
        if now_ms != self._now_ms:
            self._now_ms = now_ms
            self._oldest = time_text(max(0, now_ms - self.window_ms))
            self._newest = time_text(now_ms + CLOCK_SLACK_MS)
        if not self._oldest <= task[2:11] <= self._newest:
            ago_s = (now_ms - task_time_ms(task)) / 1000
            if ago_s > 0:
                raise TooOld(f"task {task} was made {ago_s:.0f} s ago", window_s=self.window_ms / 1000)
            raise BadInput(f"task id {task} lies {-ago_s:.0f} s in the future: is the clock right?")

    def _somebody(self, capability: str, needs: Requirements | None) -> None:
        if not self.scheduling.offered(capability):
            raise UnknownCapability(f"no agent offers {capability!r}", capability=capability)
        if not self.scheduling.live(capability):
            raise NoAgent(f"no live agent offers {capability!r} now", capability=capability)
        if needs is not None and not self.scheduling.serves(capability, needs):
            raise NoAgent(f"no live agent that offers {capability!r} meets the requirements", capability=capability)


def check_capability(name: str) -> None:
    """BadInput if no capability can be called so."""
    if not 0 < len(name) <= NAME_MAX:
        raise BadInput(f"a capability has a name of 1 to {NAME_MAX} characters, not {name[:40]!r}")


def check_payload(payload: Payload, owner: ProcessId) -> None:
    """Raise BadInput, TooLarge or AccessDenied for an input or result that ``owner`` cannot have sent honestly."""
    if isinstance(payload, Logged):
        raise BadInput("a payload from outside cannot be a place in the log")
    if isinstance(payload, Stored):
        check_key(payload.key, owner)
        if len(payload.digest) != DIGEST_SIZE or payload.size < 0:
            raise BadInput(f"what is said of {payload.key} cannot be true")
    elif len(payload) > LOG_LIMIT:
        raise TooLarge(f"a payload of {len(payload)} bytes must go by the store", limit=LOG_LIMIT)


def _well_formed(spec: TaskSpec, sender: ProcessId) -> None:
    check_task_id(spec.id)
    if spec.parent is not None:
        check_task_id(spec.parent)
    if spec.replays is not None:
        raise BadInput("only the network itself replays a dead letter: ask it to")
    check_terms(spec, sender)


def check_terms(spec: TaskSpec, sender: ProcessId) -> None:
    """BadInput, TooLarge or AccessDenied if no task can be submitted by ``sender`` so, whatever its id."""
    check_capability(spec.capability)
    if not 0 <= spec.priority <= 9:
        raise BadInput(f"priority {spec.priority} must be 0 to 9", priority=spec.priority)
    if not 0 <= spec.retries <= NUMBER_MAX or spec.parent_epoch < 0:
        raise BadInput("retries and epochs must not be negative, nor beyond reason")
    attempt_s, start_s, left_s = spec.attempt_timeout_s, spec.start_timeout_s, spec.deadline_ms / 1000
    delay_s, silence_s = spec.not_before_ms / 1000, spec.progress_timeout_s
    if not (0.0 <= delay_s <= FAR_S and 0.0 <= silence_s <= FAR_S):
        raise BadInput(f"a delay or progress time-out lies within 0 and {FAR_S:g} s, not {delay_s}, {silence_s}")
    if spec.retry is not None:
        spec.retry.check()
    if not (0.0 < attempt_s <= FAR_S and 0.0 < start_s <= FAR_S and 0.0 <= left_s <= FAR_S):
        raise BadInput(f"times must be above 0 and at most {FAR_S:g} s, not {attempt_s}, {start_s} and {left_s or None}")
    if len(spec.key) > TEXT_MAX or len(spec.trace) > TEXT_MAX:
        raise TooLarge(f"a key or trace has at most {TEXT_MAX} characters", limit=TEXT_MAX)
    if type(spec.input) is not bytes or len(spec.input) > LOG_LIMIT:
        check_payload(spec.input, sender)
    if spec.requirements is not None:
        check_requirements(spec.requirements)


def stamped(spec: TaskSpec, sender: ProcessId, now_ms: int) -> TaskSpec:
    """``spec`` as the log shall have it: from who really sent it, times left turned into moments."""
    if spec.submitter == sender and not spec.deadline_ms and not spec.not_before_ms:
        return spec
    deadline_ms = now_ms + spec.deadline_ms if spec.deadline_ms else 0
    not_before_ms = now_ms + spec.not_before_ms if spec.not_before_ms else 0
    return msgspec.structs.replace(spec, submitter=sender, deadline_ms=deadline_ms, not_before_ms=not_before_ms)


def refusal(task: TaskId, error: ComityError) -> Refused:
    details: dict[str, Any] = error.details
    return Refused(task, error.code, error.message, details)
