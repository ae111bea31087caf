"""The terms of a task: what its caller says, what its capability says, and what the settings say, in this order."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple, TypedDict, TypeVar

import msgspec

from comity.client.task import Pausing
from comity.config import Settings
from comity.errors import BadInput
from comity.model.capability import Capability, Requirements, Retry, Strategy, parse_need, strategy
from comity.model.ids import ProcessId, TaskId
from comity.model.limits import (
    NAME_MAX,
    check_requirements,
    check_seconds,
    check_sound,
    check_text,
    check_whole,
    check_word,
)
from comity.model.mail import Outgoing
from comity.model.task import Payload, TaskSpec

T = TypeVar("T")
FOREVER = float("inf")


class Scope(NamedTuple):
    """In whose name a client speaks. ``deadline`` (the loop's clock) bounds its tasks and requests; ``pausing`` is told
    of waits for tasks; ``outgoing`` keeps an attempt's durable mail until its next record."""

    sender: str = ""
    parent: TaskId | None = None
    parent_epoch: int = 0
    deadline: float = FOREVER
    pausing: Pausing | None = None
    trace: str = ""
    outgoing: Callable[[Outgoing], None] | None = None


class TaskOptions(TypedDict, total=False):
    """Options of ``submit`` and ``submit_many``.

    ``priority`` 0 to 9, higher first (5). ``deadline_s``: seconds until it must be done. ``tags`` the agent must have,
    beside ``requirements``. ``strategy`` by which the agent is picked; ``sticky``: what has the same key goes to the same
    agent while that can take it. ``retries`` after failures;
    ``attempt_timeout_s`` from an attempt's start; ``start_timeout_s`` from its assignment. ``queue`` False: be refused
    if no live agent can do it, busy or not. ``retry``: how it is tried again. ``progress_timeout_s``: an attempt that
    shows no progress for so long is moved. ``in_s`` seconds from now, or ``at`` a moment (with a time zone), it may
    start, not before; its deadline counts from then. ``patience_s``: if the network is overloaded, wait and submit again for so
    long, instead of raising Overloaded at once.
    """

    priority: int
    deadline_s: float | None
    tags: Iterable[str]
    requirements: Requirements | None
    strategy: Strategy | str | None
    sticky: str | None
    retries: int | None
    attempt_timeout_s: float | None
    start_timeout_s: float | None
    queue: bool
    retry: Retry | None
    progress_timeout_s: float | None
    in_s: float | None
    at: datetime | None
    patience_s: float | None


class Terms(NamedTuple):
    """``deadline`` and ``start`` on the loop's clock (``start`` 0: at once); ``spec`` lacks only its id and input."""

    spec: TaskSpec
    deadline: float
    queue: bool
    start: float = 0.0

    def task(self, id: TaskId, payload: Payload) -> TaskSpec:
        s = self.spec
        return TaskSpec(
            id, s.capability, payload, s.submitter, 0, s.priority, s.retries, s.attempt_timeout_s, s.start_timeout_s, s.key,
            s.requirements, s.strategy, s.parent, s.parent_epoch, s.trace, 0, s.retry, s.progress_timeout_s,
        )  # fmt: skip


def name_of(need: str) -> tuple[str, str]:
    """A capability's name and the versions wanted (``review>=1.2``). Raises BadInput."""
    name, versions = parse_need(check_text(need, "capability", 2 * NAME_MAX))
    if not 0 < len(name) <= NAME_MAX:
        raise BadInput(f"a capability has a name of 1 to {NAME_MAX} characters, not {name[:40]!r}", capability=name[:NAME_MAX])
    return name, versions


def terms(
    need: str, key: str, options: TaskOptions, *, submitter: ProcessId, scope: Scope, known: Capability | None,
    settings: Settings, now: float, now_ms: int,
) -> Terms:  # fmt: skip
    """Check and complete what the caller says. Raises BadInput, TypeError (no such option)."""
    unknown = [name for name in options if name not in TaskOptions.__annotations__]
    if unknown:
        raise TypeError(f"submit has no option {unknown[0]!r}; it has: {', '.join(TaskOptions.__annotations__)}")
    name, versions = name_of(need)
    deadline_s = options.get("deadline_s")
    own = known or Capability(name=name)
    retry = _retry(options.get("retry"), own)
    retries = _first(options.get("retries"), retry.retries, settings.retries)
    silence_s = _first(options.get("progress_timeout_s"), own.progress_timeout_s, 0.0)
    start = _start(options.get("in_s"), options.get("at"), now, now_ms)
    attempt_s = _first(options.get("attempt_timeout_s"), own.attempt_timeout_s, settings.attempt_timeout_s)
    start_s = _first(options.get("start_timeout_s"), own.start_timeout_s, settings.start_timeout_s)
    patience_s = options.get("patience_s")
    times = {"deadline_s": deadline_s, "attempt_timeout_s": attempt_s, "start_timeout_s": start_s, "patience_s": patience_s}
    for what, seconds in times.items():
        if seconds is not None:
            check_seconds(seconds, what)
    if silence_s:
        check_seconds(silence_s, "progress_timeout_s")
    how = options.get("strategy")
    spec = TaskSpec(
        TaskId(""), name, b"", submitter, 0, check_whole(options.get("priority", 5), "priority", 0, 9),
        check_whole(retries, "retries"), attempt_s, start_s, check_text(key, "key"),
        needs(options.get("requirements"), options.get("tags", ()), versions, options.get("sticky") or ""),
        strategy(how) if how is not None else None,
        scope.parent, scope.parent_epoch, scope.trace, 0, retry.pauses(), silence_s,
    )  # fmt: skip
    deadline = min(scope.deadline, max(now, start) + deadline_s) if deadline_s is not None else scope.deadline
    return Terms(spec, deadline, options.get("queue", True), start)


def _retry(given: Retry | None, own: Capability) -> Retry:
    """The caller's policy over the capability's. Raises BadInput."""
    published = Retry(own.retries).over(own.retry)
    if given is None:
        return published
    if not isinstance(given, Retry):
        raise BadInput(f"retry is comity.Retry, not {type(given).__name__}", option="retry")
    given = check_sound(given, "retry")
    given.check()
    return given.over(published)


def _start(in_s: float | None, at: datetime | None, now: float, now_ms: int) -> float:
    """When it may start, on the loop's clock; 0: at once. Raises BadInput."""
    if at is not None:
        if in_s is not None:
            raise BadInput("say when it may start with in_s or with at, not with both")
        if at.tzinfo is None:
            raise BadInput("at is a datetime with a time zone, such as datetime.now().astimezone()", option="at")
        in_s = max(0.0, at.timestamp() - now_ms / 1000)
    return now + check_seconds(in_s, "in_s") if in_s else 0.0


def words(given: Iterable[str]) -> tuple[str, ...]:
    """Tags as a tuple; a single text is one tag. Raises BadInput for what no agent can have."""
    if isinstance(given, str):
        return (check_word(given, "tag"),)
    return tuple(sorted([check_word(tag, "tag") for tag in given]))


def needs(requirements: Requirements | None, tags: Iterable[str], versions: str, sticky: str = "") -> Requirements | None:
    """Requirements with tags, versions and a key added; None if nothing is required. Raises BadInput."""
    tags = words(tags)
    check_text(sticky, "sticky")
    if not tags and not versions and not sticky and requirements is None:
        return None
    known = Requirements() if requirements is None else requirements
    if not isinstance(known, Requirements):
        raise BadInput(f"requirements are comity.Requirements, not {type(known).__name__}")
    check_sound(known, "requirements")
    versions = ",".join(part for part in (known.version, versions) if part)
    asked = msgspec.structs.replace(known, tags=(*known.tags, *tags), version=versions, sticky=sticky or known.sticky)
    check_requirements(asked)
    return asked


def _first(given: T | None, own: T | None, default: T) -> T:
    if given is not None:
        return given
    return own if own is not None else default
