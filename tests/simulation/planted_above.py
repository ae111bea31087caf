"""Bugs to plant in what stands on tasks: schedules, dead letters, records, nodes set aside; and in who leads."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from planting import CLOSE_LIMITS, plant

from comity.bus.base import to
from comity.controller import hearing, keeping, snapshot
from comity.controller import resuming as leading
from comity.controller.answers import Answers
from comity.controller.schedules import Schedules
from comity.core import again, aside, breaker
from comity.core import resuming as core
from comity.core.breaker import Breakers
from comity.core.dead import DeadLetters
from comity.core.reconcile import Reconcile
from comity.core.tasks import Tasks
from comity.directory import Directory
from comity.model.ids import ProcessId, TaskId
from comity.model.records import GiveAnswer, RecordStep, SaveCheckpoint
from comity.model.task import (
    Cancel,
    Fire,
    IsolateNode,
    Task,
)
from comity.model.wire import Recorded, StepDone
from comity.sim.workload import Workload

# Schedules, stuck attempts, dead letters


@plant(clients=2)
def a_firing_that_is_written_twice_counts_twice(patch: pytest.MonkeyPatch) -> None:
    once, fire = again.APPLIERS[Fire], Schedules._fire

    def lax(state: Tasks, command: Fire, *place: int) -> None:
        schedule = state.schedules.get(command.name)
        if schedule is not None:
            state.schedules[command.name] = msgspec.structs.replace(schedule, last_ms=command.due_ms - 1)
        once(state, command, *place)

    patch.setitem(again.APPLIERS, Fire, lax)
    patch.setattr(Schedules, "_fire", lambda *about: (fire(*about), fire(*about)))


@plant(faults={"pause": 0.3})
def nobody_looks_for_stuck_attempts(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconcile, "stuck", lambda self, node, now_ms: [])


@plant(clients=2, torture_s=18.0, faults={"pause": 0.3}, settings=CLOSE_LIMITS)
def a_dead_letter_takes_others_with_it(patch: pytest.MonkeyPatch) -> None:
    remove = DeadLetters.remove

    def careless(self: DeadLetters, task_id: TaskId) -> tuple[Any, str]:
        letter, _ = remove(self, task_id)
        return letter, letter.key if letter is not None else ""

    patch.setattr(DeadLetters, "remove", careless)


# Resuming


@plant()
def the_next_attempt_is_told_of_no_records(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("comity.controller.telling.known", lambda task: ())


@plant()
def a_step_is_confirmed_before_the_log_has_it(patch: pytest.MonkeyPatch) -> None:
    step = leading.Resuming._step

    def hasty(self: leading.Resuming, item: StepDone, sender: ProcessId) -> None:
        step(self, item, sender)
        self._outbox.post(to(sender), Recorded(item.task, item.epoch, "step", item.name))

    patch.setattr(leading.Resuming, "_step", hasty)


@plant(nodes=3, torture_s=18.0, faults={"partition": 1, "server cut off": 0.5}, settings={"lease_s": 2.0, "retries": 3})
def steps_are_not_fenced(patch: pytest.MonkeyPatch) -> None:
    report = Tasks._report

    def unfenced(self: Tasks, task_id: TaskId, token: int, what: str) -> Task | None:
        found = self.tasks.get(task_id)
        lax = what == "step" and found is not None and found.attempt is not None
        return found if lax else report(self, task_id, token, what)

    def running(self: leading.Resuming, item: Any, _sender: ProcessId) -> Task | None:
        return self._state.tasks.get(item.task)

    patch.setattr(Tasks, "_report", unfenced)
    patch.setattr(leading.Resuming, "_running", running)
    patch.setattr(Workload, "_task", Workload._careful)  # else it takes many lives


@plant()
def a_step_is_recorded_again(patch: pytest.MonkeyPatch) -> None:
    once = core.Resuming._step

    def again(self: core.Resuming, command: RecordStep, index: int, ordinal: int) -> None:
        task = self._tasks.current(command.task, command.epoch)
        if task is not None and task.records is not None and (step := task.records.steps.pop(command.name, None)):
            task.records.size -= step.size
        once(self, command, index, ordinal)

    patch.setattr(core.Resuming, "_step", again)
    patch.setattr(leading, "_holds", lambda task, command: False)


@plant()
def the_first_checkpoint_stays(patch: pytest.MonkeyPatch) -> None:
    save = core.Resuming._checkpoint

    def once(self: core.Resuming, command: SaveCheckpoint, index: int, ordinal: int) -> None:
        task = self._tasks.tasks.get(command.task)
        if task is None or task.records is None or task.records.checkpoint is None:
            save(self, command, index, ordinal)

    patch.setattr(core.Resuming, "_checkpoint", once)
    patch.setattr(leading, "_holds", lambda task, command: True)


@plant()
def everybody_who_answers_is_told_that_it_counted(patch: pytest.MonkeyPatch) -> None:
    async def polite(self: Answers, args: Any) -> Any:
        return await self._task(args)

    patch.setattr(Answers, "_answered", polite)


@plant(faults={})
def the_last_answer_counts(patch: pytest.MonkeyPatch) -> None:
    answer = core.Resuming._answer

    def late(self: core.Resuming, command: GiveAnswer, index: int, ordinal: int) -> None:
        answer(self, command, index, ordinal)
        task = self._tasks.tasks.get(command.task)
        if task is not None and task.records is not None and not task.is_terminal and command.name in task.records.questions:
            known = task.records.questions[command.name]
            if known.answer is not None:
                task.records.questions[command.name] = msgspec.structs.replace(known, answer=command.answer, by=command.by)

    patch.setattr(core.Resuming, "_answer", late)
    patch.setattr(Workload, "_task", Workload._careful)  # else it takes many lives


@plant(faults={"crash": 1}, settings={"retries": 3})
def a_child_with_a_key_ends_with_its_parents_attempt(patch: pytest.MonkeyPatch) -> None:
    def cancel(self: Reconcile, parent: TaskId, token: int | None) -> None:
        self._proposals.extend(Cancel(child, f"its parent {parent} ended") for child in self.state.children.get(parent, ()))

    patch.setattr(Reconcile, "_cancel_children", cancel)


@plant(faults={"power cut": 1, "crash": 1}, settings={**CLOSE_LIMITS, "retries": 3})
def records_are_trimmed_away_with_the_log(patch: pytest.MonkeyPatch) -> None:
    async def none(*_: Any) -> list[Any]:
        return []

    patch.setattr(keeping, "records_before", none)


@plant(test="tests/unit/test_controller_resuming.py::test_a_new_leader_keeps_what_records_need")
def a_new_leader_takes_records_for_leavings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(keeping, "_moved_records", lambda task: [])


# Out of rotation


@plant()
def what_runs_on_an_isolated_node_stays_there(patch: pytest.MonkeyPatch) -> None:
    def stay(state: Tasks, command: IsolateNode, _index: int, _ordinal: int) -> None:
        aside._set_aside(state, command.node, aside.ISOLATED, command.reason)

    patch.setitem(aside.APPLIERS, IsolateNode, stay)


@plant(controllers=2, faults={"crash": 1, "power cut": 1}, settings=CLOSE_LIMITS)
def a_snapshot_forgets_who_is_set_aside(patch: pytest.MonkeyPatch) -> None:
    restore = snapshot._restore

    def forgetful(*about: Any) -> Tasks:
        state = restore(*about)
        state.aside = {}
        return state

    patch.setattr(snapshot, "_restore", forgetful)


@plant(nodes=1, faults={}, settings={"breaker_failures": 1})
def a_broken_agent_is_never_tried_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Breakers, "due", lambda self, now_ms: [])


@plant(nodes=1, faults={"stall": 1}, settings={"breaker_failures": 1})
def a_probe_that_asks_is_waited_for_for_ever(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(breaker, "_ENDED", breaker._ENDED - {"task.input_required"})


@plant(test="tests/simulation/test_deaf_leaders.py::test_a_leader_that_hears_nothing_gives_way")
def a_leader_that_hears_nothing_stays(patch: pytest.MonkeyPatch) -> None:
    """No check-quorum."""
    patch.setattr(hearing, "SILENT_AFTER", 10**9)


# Who is here


@plant(nodes=3, faults={"crash": 0.3})
def a_copy_of_the_registry_loses_a_change_now_and_then(patch: pytest.MonkeyPatch) -> None:
    apply, count = Directory.apply, [0]

    def lax(self: Directory, changes: list[Any]) -> None:
        count[0] += 1
        if count[0] % 3:
            apply(self, changes)

    patch.setattr(Directory, "apply", lax)


@plant(nodes=2, faults={"crash": 0.3})
def a_watch_tells_nothing_of_who_comes_back(patch: pytest.MonkeyPatch) -> None:
    apply = Directory.apply

    def lax(self: Directory, changes: list[Any]) -> None:
        watchers = self._watchers
        if any(change.value is not None and change.key.startswith("nodes/") for change in changes) and self.is_loaded:
            self._watchers = {}
        apply(self, changes)
        self._watchers = watchers

    patch.setattr(Directory, "apply", lax)
