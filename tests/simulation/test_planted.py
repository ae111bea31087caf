"""Faults planted in the programs: the simulated world must find each of them, or it proves nothing.

Some are what one might well write (no fence, an answer before the log has it, a time-out taken for success); some were really
there once, and are planted again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from comity.bus.base import to
from comity.client.outcomes import Outcome, Outcomes
from comity.controller import keeping, snapshot
from comity.controller import resuming as leading
from comity.controller.answers import Answers
from comity.controller.controller import Controller
from comity.controller.keeping import Keeping
from comity.controller.leader import Leader
from comity.controller.pipeline import EntryClock, Pipeline
from comity.controller.schedules import Schedules
from comity.controller.snapshot import Writing
from comity.core import again, aside
from comity.core import reconcile as reconciling
from comity.core import resuming as core
from comity.core.archive import holding
from comity.core.breaker import Breakers
from comity.core.dead import DeadLetters
from comity.core.ledger import Ledger
from comity.core.reconcile import Reconcile
from comity.core.tasks import Tasks
from comity.errors import Conflict, Indefinite
from comity.model.ids import ProcessId, TaskId
from comity.model.records import GiveAnswer, RecordStep, SaveCheckpoint
from comity.model.task import Cancel, Complete, Fire, IsolateNode, Payload, Submit, Task, TaskState
from comity.model.wire import Accepted, Done, Ended, Recorded, StepDone, SubmitTask
from comity.node.attempts import Attempts
from comity.sim import World
from comity.sim.doors import SimLog
from comity.sim.loop import SimulationError
from comity.sim.workload import Workload

LIVES = 100
"""Lives in which a planted fault must show."""

Plant = Callable[[pytest.MonkeyPatch], None]
PLANTS: list[tuple[Plant, dict[str, Any]]] = []
CLOSE_LIMITS = {"snapshot_every": 10, "keep_finished": 20, "dedup_window_s": 10.0}


def plant(**world: Any) -> Callable[[Plant], Plant]:
    """A fault, and the ``World`` in which it must show."""

    def add(function: Plant) -> Plant:
        PLANTS.append((function, world))
        return function

    return add


# The log


@plant()
def old_leaders_entries_count(patch: pytest.MonkeyPatch) -> None:
    def fault(self: Ledger, entry: Any) -> None:
        return None

    patch.setattr(Ledger, "_fault", fault)


@plant()
def a_snapshot_forgets_the_chain(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Ledger, "restore", classmethod(lambda cls, state: cls(state.network, state.index, term=state.term)))


@plant()
def a_write_is_acknowledged_before_it_is_durable(patch: pytest.MonkeyPatch) -> None:
    durable = SimLog.append

    async def lazy(self: SimLog, entry: bytes, after: int) -> int:
        try:
            return await durable(self, entry, after)
        except Indefinite:
            return after + 1

    patch.setattr(SimLog, "append", lazy)


@plant()
def a_refused_entry_is_applied(patch: pytest.MonkeyPatch) -> None:
    strict = SimLog.append

    async def lax(self: SimLog, entry: bytes, after: int) -> int:
        try:
            return await strict(self, entry, after)
        except Conflict:
            return after + 1

    patch.setattr(SimLog, "append", lax)


@plant(controllers=2, faults={"server cut off": 1, "pause": 1}, settings=CLOSE_LIMITS)
def a_trimmed_log_is_taken_for_a_damaged_one(patch: pytest.MonkeyPatch) -> None:
    async def overtaken(self: Controller) -> bool:
        return False

    patch.setattr(Controller, "_overtaken", overtaken)


@plant(faults={"clock": 1}, settings={"retries": 3})
def entry_time_waits_for_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EntryClock, "_now", lambda self: max(self._last_ms, self._wall() * 1000))


# The replicated state


@plant(nodes=3, controllers=1, torture_s=18.0, faults={"partition": 1, "server cut off": 0.5}, settings={"lease_s": 2.0})
def reports_are_not_fenced(patch: pytest.MonkeyPatch) -> None:
    def current(self: Tasks, task: TaskId, token: int) -> Task | None:
        found = self.tasks.get(task)
        return found if found is not None and found.attempt is not None else None

    report = Leader._report

    def unfenced(self: Leader, item: Any, sender: ProcessId) -> None:
        task = self.state.tasks.get(item.task)
        report(self, item, task.attempt.node if task is not None and task.attempt is not None else sender)

    patch.setattr(Tasks, "current", current)
    patch.setattr(Leader, "_report", unfenced)


@plant()
def epochs_start_again_with_each_leader(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tasks, "next_epoch", lambda self: 1)


@plant()
def an_evicted_nodes_attempts_stay(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Tasks, "end_lease", lambda self, node, *_: self.nodes.pop(node))


@plant()
def a_finished_task_can_be_canceled(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Task, "is_terminal", property(lambda task: task.state is TaskState.REJECTED))


@plant()
def a_repeated_submit_is_a_new_task(patch: pytest.MonkeyPatch) -> None:
    once = Tasks._submit

    def again(self: Tasks, command: Submit, index: int, ordinal: int) -> None:
        self.tasks.pop(command.spec.id, None)
        once(self, command, index, ordinal)

    patch.setattr(Tasks, "_submit", again)
    patch.setattr(Leader, "_submit", Leader._take_in)


@plant()
def keys_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    once = Tasks._submit

    def forgetful(self: Tasks, command: Submit, index: int, ordinal: int) -> None:
        self.keys.clear()
        once(self, command, index, ordinal)

    patch.setattr(Tasks, "_submit", forgetful)


@plant(faults={"deaf": 1, "loss": 1})
def only_the_newest_archive_chunk_is_remembered(patch: pytest.MonkeyPatch) -> None:
    patch.setattr("comity.controller.leader.holding", lambda archive, task: holding(archive[-1:], task))


# The leader


@plant()
def a_submit_is_accepted_before_the_log_has_it(patch: pytest.MonkeyPatch) -> None:
    take_in = Leader._take_in

    def hasty(self: Leader, item: SubmitTask, sender: ProcessId) -> None:
        take_in(self, item, sender)
        self.outbox.post(to(sender), Accepted(((item.spec.id, item.spec.id),)))

    patch.setattr(Leader, "_take_in", hasty)


@plant()
def a_result_is_told_before_the_log_has_it(patch: pytest.MonkeyPatch) -> None:
    ending = Leader._ending

    def hasty(self: Leader, item: Any, task: Task, *rest: Any) -> Any:
        if type(item) is Done:
            self.outbox.post(to(task.spec.submitter), Ended(item.task, TaskState.COMPLETED, item.result))
        return ending(self, item, task, *rest)

    patch.setattr(Leader, "_ending", hasty)


@plant(controllers=2, clients=2, torture_s=18.0, faults={"split": 1})
def a_leader_answers_without_asking_the_log(patch: pytest.MonkeyPatch) -> None:
    make = Answers.__init__

    def hasty(self: Answers, *args: Any, **options: Any) -> None:
        make(self, *args, **{**options, "barrier": lambda call: call()})

    patch.setattr(Answers, "__init__", hasty)


@plant()
def a_result_is_mixed_up(patch: pytest.MonkeyPatch) -> None:
    ending = Leader._ending
    last: list[Payload] = [b"null"]

    def mixed(self: Leader, *about: Any) -> Any:
        command = ending(self, *about)
        if type(command) is Complete:
            last.append(command.result)
            return Complete(command.task, command.epoch, last[-2], command.ran_ms)
        return command

    patch.setattr(Leader, "_ending", mixed)


@plant(faults={"loss": 1, "deaf": 0.5})
def nobody_waits_for_an_attempt_to_start(patch: pytest.MonkeyPatch) -> None:
    expired = Reconcile._expired

    def patient(self: Reconcile, kind: int, *rest: Any) -> None:
        if kind != reconciling._START:
            expired(self, kind, *rest)

    patch.setattr(Reconcile, "_expired", patient)


@plant()
def the_pipeline_goes_on_after_a_time_out(patch: pytest.MonkeyPatch) -> None:
    stop = Pipeline._break

    def go_on(self: Pipeline, error: Exception) -> None:
        if not isinstance(error, Indefinite):
            stop(self, error)
            return
        flight = self._flights.popleft()
        self.ledger.accept(flight.entry, flight.digest)
        self._effective(self.ledger.index, flight.entry)

    patch.setattr(Pipeline, "_break", go_on)


# Keeping


@plant(faults={"slow": 1, "slow server": 1, "power cut": 0.3}, settings=CLOSE_LIMITS)
def a_snapshot_is_written_while_tasks_change(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Writing, "_save", lambda self, task: None)


@plant(faults={"power cut": 1, "crash": 0.5}, settings=CLOSE_LIMITS)
def payloads_are_trimmed_away_with_the_log(patch: pytest.MonkeyPatch) -> None:
    async def none(*_: Any) -> list[Any]:
        return []

    patch.setattr(keeping, "logged_before", none)


@plant(settings=CLOSE_LIMITS)
def an_archived_result_stays_in_the_log(patch: pytest.MonkeyPatch) -> None:
    async def as_it_is(self: Keeping, task: Task) -> Task:
        return task

    patch.setattr(Keeping, "_whole", as_it_is)


@plant(faults={"deaf": 1}, settings={"keep_finished": 5, "dedup_window_s": 600.0})
def the_archive_is_dropped_too_early(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(keeping, "task_time_ms", lambda task: 0)


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


@plant()
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


@plant(controllers=2, faults={"power cut": 1, "crash": 1}, settings={**CLOSE_LIMITS, "retries": 3})
def a_new_leader_takes_records_for_leavings(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(keeping, "_moved_records", lambda task: [])


# Nodes and clients


@plant(controllers=2, faults={"crash": 1, "slow server": 1, "one-way cut": 1})
def a_repeated_assignment_runs_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempts, "knows", lambda self, run: False)


@plant()
def a_lost_push_is_never_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcomes, "_look", lambda self: None)
    patch.setattr(Outcomes, "_renew", lambda self, lost: None)


@plant(faults={"deaf": 1, "loss": 1})
def the_end_of_a_submit_under_way_is_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcomes, "submitting", Outcomes.of)


@plant(clients=1, torture_s=18.0, faults={"stall": 1, "pause": 1, "deaf": 1, "one-way cut": 1})
def one_task_has_two_outcomes(patch: pytest.MonkeyPatch) -> None:
    def of(self: Outcomes, task: TaskId) -> Outcome:
        return self._open.setdefault(task, Outcome(task))

    patch.setattr(Outcomes, "of", of)


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


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.planted
@pytest.mark.parametrize(("bug", "world"), PLANTS, ids=[bug.__name__ for bug, _ in PLANTS])
def test_a_planted_fault_is_found(bug: Plant, world: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)
    for seed in range(LIVES):
        try:
            World(seed, **world).run()
        except SimulationError as found:
            print(f"seed {seed}: {str(found).splitlines()[0]}")
            return
    pytest.fail(f"{LIVES} lives with this fault, and nobody noticed")
