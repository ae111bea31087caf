"""Commands that make tasks by themselves: schedules that fire, and dead letters that are replayed or dropped."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from comity.core.changes import Change
from comity.model.ids import TaskId
from comity.model.task import DropDead, DropSchedule, Fire, PutSchedule, Replay

if TYPE_CHECKING:
    from comity.core.tasks import Tasks


def _put_schedule(state: Tasks, command: PutSchedule, _index: int, _ordinal: int) -> None:
    schedule = command.schedule
    before = state.schedules.get(schedule.name)
    fired = before.fired if before is not None else 0
    state.schedules[schedule.name] = msgspec.structs.replace(schedule, last_ms=state.time_ms, fired=fired)
    state.changes.append(Change("schedule.set", reason=f"{schedule.name}: {schedule.cron}"))


def _drop_schedule(state: Tasks, command: DropSchedule, _index: int, _ordinal: int) -> None:
    if state.schedules.pop(command.name, None) is not None:
        state.changes.append(Change("schedule.removed", reason=command.name))


def _fire(state: Tasks, command: Fire, index: int, ordinal: int) -> None:
    """Once for each due time, whoever leads: what fired already is void."""
    schedule = state.schedules.get(command.name)
    if schedule is None or command.due_ms <= schedule.last_ms:
        return
    state.schedules[command.name] = msgspec.structs.replace(schedule, last_ms=command.due_ms, fired=schedule.fired + 1)
    state.totals.fired += 1
    state.take_in(command.spec, index, ordinal)
    key = command.spec.key
    task_id = state.keys.get(key, command.spec.id)
    late = f", late: {command.missed} due before were missed" if command.missed else ""
    state.changes.append(Change("schedule.fired", state.tasks.get(task_id), None, None, key + late, task_id))


def _drop_dead(state: Tasks, command: DropDead, _index: int, _ordinal: int) -> None:
    for task_id in command.ids:
        _remove(state, task_id, "dead.dropped")


def _replay(state: Tasks, command: Replay, index: int, ordinal: int) -> None:
    """In the place of its dead letter; a second time there is none."""
    spec = command.spec
    if spec.replays is not None and _remove(state, spec.replays, "dead.replayed", f"as {spec.id}"):
        state.totals.replayed += 1
        state.take_in(spec, index, ordinal)


def _remove(state: Tasks, task_id: TaskId, kind: str, reason: str = "") -> bool:
    letter, emptied = state.dead.remove(task_id)
    if emptied:
        state.changes.append(Change("dead.emptied", reason=emptied))
    if letter is not None:
        state.changes.append(Change(kind, reason=reason, task_id=task_id))
    return letter is not None


APPLIERS: dict[type, Callable[[Tasks, Any, int, int], None]] = {
    PutSchedule: _put_schedule,
    DropSchedule: _drop_schedule,
    Fire: _fire,
    DropDead: _drop_dead,
    Replay: _replay,
}
