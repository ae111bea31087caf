"""Schedules: fires each when it is due, and answers for them.

What is due is looked at a few times a second. A firing is a command that names the due time, and replicated state takes each time
once: a leader that does not know what the one before it wrote may propose it again. If nobody led (or nothing could be taken in)
while it was due, it fires once when somebody does, and says what was missed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import msgspec

from comity.controller.admission import check_terms
from comity.controller.answers import Args, retry_view
from comity.core.tasks import Tasks
from comity.errors import BadInput, NotFound, TooLarge
from comity.model.codec import from_json
from comity.model.cron import Cron, parse
from comity.model.ids import ProcessId, TaskId, TaskIds, check_token
from comity.model.task import INLINE_LIMIT, Command, DropSchedule, Fire, PutSchedule, Schedule
from comity.model.wire import AddSchedule

SCHEDULES_MAX = 1000
FIRED_AT_ONCE = 100


class Schedules:
    """See the module. ``may_fire``: whether the network takes in tasks; ``effective`` waits until what was proposed counts."""

    def __init__(
        self,
        state: Tasks,
        ids: TaskIds,
        *,
        propose: Callable[[Command], None],
        effective: Callable[[], Awaitable[None]],
        may_fire: Callable[[], bool],
        notice: Callable[..., None],
    ) -> None:
        self._state = state
        self._ids = ids
        self._propose = propose
        self._effective = effective
        self._may_fire = may_fire
        self._notice = notice
        self._next: dict[str, tuple[Schedule, int]] = {}  # the schedule as it was when its next time was worked out
        self._proposed: dict[str, int] = {}
        self._unreadable: set[str] = set()

    def look(self, now_ms: int) -> None:
        """Fire what is due."""
        if not self._state.schedules or not self._may_fire():
            return
        fired = 0
        for schedule in self._state.schedules.values():
            if self._due(schedule) <= now_ms and self._proposed.get(schedule.name, -1) < schedule.last_ms + 1:
                self._fire(schedule, now_ms)
                fired += 1
                if fired == FIRED_AT_ONCE:
                    break

    def _due(self, schedule: Schedule) -> float:
        known = self._next.get(schedule.name)
        if known is not None and known[0] is schedule:
            return known[1]
        cron = self._cron(schedule)
        due = cron.next(schedule.last_ms) if cron is not None else None
        if due is None:
            return float("inf")
        if len(self._next) > 2 * SCHEDULES_MAX:
            self._next.clear()
        self._next[schedule.name] = schedule, due
        return due

    def _cron(self, schedule: Schedule) -> Cron | None:
        """None, with an event, if this machine cannot read it: its time zone may be unknown here."""
        try:
            return parse(schedule.cron, schedule.zone)
        except BadInput as error:
            if schedule.name not in self._unreadable:
                self._unreadable.add(schedule.name)
                self._notice("schedule.unreadable", reason=f"{schedule.name}: {error.message}")
            return None

    def _fire(self, schedule: Schedule, now_ms: int) -> None:
        latest = parse(schedule.cron, schedule.zone).latest(schedule.last_ms, now_ms)
        if latest is None:
            return
        due_ms, missed = latest
        when = datetime.fromtimestamp(due_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        deadline_ms = now_ms + schedule.spec.deadline_ms if schedule.spec.deadline_ms else 0
        spec = msgspec.structs.replace(
            schedule.spec, id=self._ids.next(), key=f"{schedule.name}/{when}", deadline_ms=deadline_ms
        )
        self._proposed[schedule.name] = due_ms
        self._propose(Fire(schedule.name, due_ms, spec, missed))

    # Questions

    async def add(self, item: AddSchedule, sender: ProcessId) -> dict[str, Any]:
        """Make or change one."""
        check_token(item.name, "a schedule's name")
        cron = parse(item.cron, item.zone)
        spec = msgspec.structs.replace(item.spec, id=TaskId(""), submitter=sender, parent=None, parent_epoch=0, replays=None)
        check_terms(spec, sender)
        if not isinstance(spec.input, bytes) or len(spec.input) > INLINE_LIMIT:
            said = f"a schedule's input has at most {INLINE_LIMIT} bytes: pass a reference to what is larger"
            raise TooLarge(said, limit=INLINE_LIMIT)
        from_json(spec.input)  # else it could not be shown, nor read by an agent
        if spec.not_before_ms or spec.key:
            raise BadInput("a schedule's task has neither a delay nor a key: the schedule says when, and once")
        if len(self._state.schedules) >= SCHEDULES_MAX and item.name not in self._state.schedules:
            raise TooLarge(f"there are {SCHEDULES_MAX} schedules already", limit=SCHEDULES_MAX)
        self._proposed.pop(item.name, None)
        self._propose(PutSchedule(Schedule(item.name, item.cron, item.zone, spec)))
        await self._effective()
        schedule = self._state.schedules.get(item.name)
        return self.view(schedule, cron) if schedule is not None else {"name": item.name}

    async def list(self, _args: Args) -> dict[str, Any]:
        await self._effective()
        named = sorted(self._state.schedules.values(), key=lambda schedule: schedule.name)
        return {"schedules": [self.view(schedule, self._cron(schedule)) for schedule in named]}

    async def remove(self, args: Args) -> dict[str, Any]:
        """Raises NotFound."""
        await self._effective()
        schedule = self._state.schedules.get(args.id)
        if schedule is None:
            raise NotFound(f"no schedule is called {args.id[:80]!r}", name=args.id[:80])
        found = self.view(schedule, self._cron(schedule))
        self._propose(DropSchedule(args.id))
        await self._effective()
        return found

    def view(self, schedule: Schedule, cron: Cron | None) -> dict[str, Any]:
        """A schedule as users see it."""
        spec = schedule.spec
        due_ms = cron.next(schedule.last_ms) if cron is not None else None
        return {
            "name": schedule.name,
            "cron": schedule.cron,
            "zone": schedule.zone,
            "capability": spec.capability,
            "input": from_json(spec.input) if isinstance(spec.input, bytes) else None,
            "next": _iso(due_ms),
            "last": _iso(schedule.last_ms) if schedule.fired else None,
            "fired": schedule.fired,
            "priority": spec.priority,
            "retries": spec.retries,
            "retry": retry_view(spec.retry),
            "deadline_s": spec.deadline_ms / 1000 or None,
            "progress_timeout_s": spec.progress_timeout_s or None,
            "submitter": spec.submitter,
        }


def _iso(ms: int | None) -> str | None:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat() if ms is not None else None
