"""The terms of a task: what its caller says, what its capability says, and what the settings say, in this order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypedDict, TypeVar

import msgspec

from comity.client.task import Pausing
from comity.config import Settings
from comity.errors import BadInput
from comity.model.capability import Capability, Requirements, Strategy, parse_need, strategy
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
from comity.model.task import Payload, TaskSpec

T = TypeVar("T")
FOREVER = float("inf")


class Scope(NamedTuple):
    """In whose name a client speaks. ``deadline`` (the loop's clock) bounds its tasks and requests; ``pausing`` is told
    of waits for tasks."""

    sender: str = ""
    parent: TaskId | None = None
    parent_epoch: int = 0
    deadline: float = FOREVER
    pausing: Pausing | None = None
    trace: str = ""


class TaskOptions(TypedDict, total=False):
    """Options of ``submit`` and ``submit_many``.

    ``priority`` 0 to 9, higher first (5). ``deadline_s``: seconds until it must be done. ``tags`` the agent must have,
    beside ``requirements``. ``strategy`` by which the agent is picked. ``retries`` after failures;
    ``attempt_timeout_s`` from an attempt's start; ``start_timeout_s`` from its assignment. ``queue`` False: be refused
    if no live agent can do it, busy or not. ``patience_s``: if the network is overloaded, wait and submit again for so
    long, instead of raising Overloaded at once.
    """

    priority: int
    deadline_s: float | None
    tags: Iterable[str]
    requirements: Requirements | None
    strategy: Strategy | str | None
    retries: int | None
    attempt_timeout_s: float | None
    start_timeout_s: float | None
    queue: bool
    patience_s: float | None


class Terms(NamedTuple):
    """``deadline`` on the loop's clock; ``spec`` lacks only its id and input."""

    spec: TaskSpec
    deadline: float
    queue: bool

    def task(self, id: TaskId, payload: Payload) -> TaskSpec:
        s = self.spec
        return TaskSpec(
            id, s.capability, payload, s.submitter, 0, s.priority, s.retries, s.attempt_timeout_s, s.start_timeout_s, s.key,
            s.requirements, s.strategy, s.parent, s.parent_epoch, s.trace,
        )  # fmt: skip


def name_of(need: str) -> tuple[str, str]:
    """A capability's name and the versions wanted (``review>=1.2``). Raises BadInput."""
    name, versions = parse_need(check_text(need, "capability", 2 * NAME_MAX))
    if not 0 < len(name) <= NAME_MAX:
        raise BadInput(f"a capability has a name of 1 to {NAME_MAX} characters, not {name[:40]!r}", capability=name[:NAME_MAX])
    return name, versions


def terms(
    need: str, key: str, options: TaskOptions, *, submitter: ProcessId, scope: Scope, known: Capability | None,
    settings: Settings, now: float,
) -> Terms:  # fmt: skip
    """Check and complete what the caller says. Raises BadInput, TypeError (no such option)."""
    unknown = [name for name in options if name not in TaskOptions.__annotations__]
    if unknown:
        raise TypeError(f"submit has no option {unknown[0]!r}; it has: {', '.join(TaskOptions.__annotations__)}")
    name, versions = name_of(need)
    deadline_s = options.get("deadline_s")
    own = known or Capability(name=name)
    retries = _first(options.get("retries"), own.retries, settings.retries)
    attempt_s = _first(options.get("attempt_timeout_s"), own.attempt_timeout_s, settings.attempt_timeout_s)
    start_s = _first(options.get("start_timeout_s"), own.start_timeout_s, settings.start_timeout_s)
    patience_s = options.get("patience_s")
    times = {"deadline_s": deadline_s, "attempt_timeout_s": attempt_s, "start_timeout_s": start_s, "patience_s": patience_s}
    for what, seconds in times.items():
        if seconds is not None:
            check_seconds(seconds, what)
    how = options.get("strategy")
    spec = TaskSpec(
        TaskId(""), name, b"", submitter, 0, check_whole(options.get("priority", 5), "priority", 0, 9),
        check_whole(retries, "retries"), attempt_s, start_s, check_text(key, "key"),
        needs(options.get("requirements"), options.get("tags", ()), versions), strategy(how) if how is not None else None,
        scope.parent, scope.parent_epoch, scope.trace,
    )  # fmt: skip
    deadline = min(scope.deadline, now + deadline_s) if deadline_s is not None else scope.deadline
    return Terms(spec, deadline, options.get("queue", True))


def words(given: Iterable[str]) -> tuple[str, ...]:
    """Tags as a tuple; a single text is one tag. Raises BadInput for what no agent can have."""
    if isinstance(given, str):
        return (check_word(given, "tag"),)
    return tuple(sorted([check_word(tag, "tag") for tag in given]))


def needs(requirements: Requirements | None, tags: Iterable[str], versions: str) -> Requirements | None:
    """Requirements with tags and versions added; None if nothing is required. Raises BadInput."""
    tags = words(tags)
    if not tags and not versions and requirements is None:
        return None
    known = Requirements() if requirements is None else requirements
    if not isinstance(known, Requirements):
        raise BadInput(f"requirements are comity.Requirements, not {type(known).__name__}")
    check_sound(known, "requirements")
    versions = ",".join(part for part in (known.version, versions) if part)
    asked = msgspec.structs.replace(known, tags=(*known.tags, *tags), version=versions)
    check_requirements(asked)
    return asked


def _first(given: T | None, own: T | None, default: T) -> T:
    if given is not None:
        return given
    return own if own is not None else default
