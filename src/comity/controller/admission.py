"""Whether a submit is taken in: at once, definitely, and before anything is written."""

from __future__ import annotations

from typing import Any

import msgspec

from comity.core.archive import may_hold
from comity.core.scheduling import Scheduling
from comity.core.tasks import Tasks
from comity.errors import (
    BadInput,
    ComityError,
    NoAgent,
    Overloaded,
    ShuttingDown,
    TooLarge,
    TooOld,
    UnknownCapability,
)
from comity.model.capability import parse_range
from comity.model.ids import ProcessId, TaskId, check_task_id, task_time_ms
from comity.model.task import LOG_LIMIT, Logged, TaskSpec
from comity.model.wire import Refused, SubmitTask

CLOCK_SLACK_MS = 60_000
"""How far ahead of leader time a task id may claim to have been made."""

REQUIREMENTS_MAX = 4096
TEXT_MAX = 500
_encode = msgspec.msgpack.Encoder().encode


class Admission:
    """The rules. ``shutting_down`` refuses everything new."""

    def __init__(self, state: Tasks, scheduling: Scheduling, *, max_waiting: int, window_ms: int) -> None:
        self.state = state
        self.scheduling = scheduling
        self.max_waiting = max_waiting
        self.window_ms = window_ms
        self.shutting_down = False
        self.refused = 0

    def check(self, item: SubmitTask, under_way: int, now_ms: int) -> None:
        """Raise the typed error of a submit that must not be taken in; ``under_way`` others wait to be written."""
        spec = item.spec
        _well_formed(spec)
        made_ms = task_time_ms(spec.id)
        if made_ms < now_ms - self.window_ms:
            raise TooOld(f"task {spec.id} was made {(now_ms - made_ms) / 1000:.0f} s ago", window_s=self.window_ms / 1000)
        if made_ms > now_ms + CLOCK_SLACK_MS:
            raise BadInput(f"task id {spec.id} lies {(made_ms - now_ms) / 1000:.0f} s in the future: is the clock right?")
        if self.shutting_down:
            raise ShuttingDown("the network is shutting down")
        if self.state.waiting + under_way >= self.max_waiting:
            limit = self.max_waiting
            raise Overloaded(f"{limit} tasks wait already", retry_after_s=1.0, limit=limit)
        if not item.queue:
            self._somebody(spec.capability)

    def _somebody(self, capability: str) -> None:
        if not self.scheduling.offered(capability):
            raise UnknownCapability(f"no agent offers {capability!r}", capability=capability)
        if not self.scheduling.live(capability):
            raise NoAgent(f"no live agent offers {capability!r} now", capability=capability)

    def archived_in(self, task: TaskId) -> list[str]:
        """Keys of the archive chunks that may hold ``task``, newest first."""
        return [held.key for held in reversed(self.state.archive) if may_hold(held, task)]


def _well_formed(spec: TaskSpec) -> None:
    check_task_id(spec.id)
    if not 0 <= spec.priority <= 9:
        raise BadInput(f"priority {spec.priority} must be 0 to 9", priority=spec.priority)
    if not spec.capability or len(spec.capability) > 200:
        raise BadInput("a task needs a capability, of at most 200 characters")
    if spec.retries < 0 or spec.attempt_timeout_s <= 0 or spec.start_timeout_s < 0 or spec.deadline_ms < 0:
        raise BadInput("retries and timeouts must not be negative")
    if type(spec.input) is bytes and len(spec.input) > LOG_LIMIT:
        raise TooLarge(f"an input of {len(spec.input)} bytes must go by the store", limit=LOG_LIMIT)
    if isinstance(spec.input, Logged):
        raise BadInput("an input cannot be a place in the log")
    if spec.requirements is not None:
        if spec.requirements.version:
            parse_range(spec.requirements.version)
        if len(_encode(spec.requirements)) > REQUIREMENTS_MAX:
            raise TooLarge(f"requirements take more than {REQUIREMENTS_MAX} bytes", limit=REQUIREMENTS_MAX)
    if len(spec.key) > TEXT_MAX or len(spec.trace) > TEXT_MAX:
        raise TooLarge(f"a key or trace has at most {TEXT_MAX} characters", limit=TEXT_MAX)


def stamped(spec: TaskSpec, sender: ProcessId, now_ms: int) -> TaskSpec:
    """``spec`` as the log shall have it: from who really sent it, its time left turned into a deadline."""
    if spec.submitter == sender and not spec.deadline_ms:
        return spec
    deadline_ms = now_ms + spec.deadline_ms if spec.deadline_ms else 0
    return msgspec.structs.replace(spec, submitter=sender, deadline_ms=deadline_ms)


def refusal(task: TaskId, error: ComityError) -> Refused:
    details: dict[str, Any] = error.details
    return Refused(task, error.code, error.message, details)
