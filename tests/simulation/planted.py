"""Bugs to plant in the programs, one at a time: the simulated world, or a test on a real server, must find each of them, or it
proves nothing.

Some are what one might well write (no fence, an answer before the log has it, a time-out taken for success); some were really
there once, and are planted again.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from planting import CLOSE_LIMITS, plant

from comity.bus.base import to
from comity.client.outcomes import Outcome, Outcomes
from comity.controller import keeping
from comity.controller.answers import Answers
from comity.controller.controller import Controller
from comity.controller.keeping import Keeping
from comity.controller.leader import Leader
from comity.controller.liveness import Liveness
from comity.controller.pipeline import EntryClock, Pipeline
from comity.controller.snapshot import Writing
from comity.controller.term import Term
from comity.core import reconcile as reconciling
from comity.core.archive import holding
from comity.core.expiry import START
from comity.core.ledger import Effective, Ledger
from comity.core.reconcile import Reconcile
from comity.core.tasks import Tasks
from comity.embedded import EmbeddedServer
from comity.errors import ComityError, Conflict, Indefinite
from comity.log import jetstream as jetstream_log
from comity.model.codec import unseal
from comity.model.ids import ProcessId, TaskId
from comity.model.task import (
    Assign,
    Command,
    Complete,
    Evict,
    Lead,
    Payload,
    Submit,
    Task,
    TaskState,
)
from comity.model.wire import Accepted, Beacon, Began, Done, Ended, Refused, SubmitTask
from comity.node.attempts import Attempts
from comity.node.guarding import Guard
from comity.registry.memory import MemoryRegistryState
from comity.sim.doors import SimLog
from comity.sim.workload import Workload

# The log


@plant(controllers=2, faults={"stall": 1})
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


@plant(test="tests/conformance/test_embedded.py::test_it_writes_to_disk_before_it_acknowledges")
def the_server_syncs_when_it_likes(patch: pytest.MonkeyPatch) -> None:
    """Lazy fsync."""
    strict = EmbeddedServer._write_config

    def lazy(self: EmbeddedServer) -> None:
        self._sync = "2m"
        strict(self)

    patch.setattr(EmbeddedServer, "_write_config", lazy)


@plant(test="tests/conformance/test_log.py::TestJetStreamLog::test_a_stream_that_may_lose_entries_is_refused")
def the_log_persists_asynchronously(patch: pytest.MonkeyPatch) -> None:
    """``persist_mode: async``."""
    strict = jetstream_log.stream_config
    patch.setattr(jetstream_log, "stream_config", lambda *args: {**strict(*args), "persist_mode": "async"})


@plant(controllers=2, faults={"server crash": 1, "full disk": 1})
def a_leader_acts_before_its_term_is_durable(patch: pytest.MonkeyPatch) -> None:
    durable = SimLog.append
    under_way: set[asyncio.Task[Any]] = set()

    async def written(self: SimLog, entry: bytes, after: int) -> None:
        try:
            await durable(self, entry, after)
        except ComityError:
            return

    async def hasty(self: SimLog, entry: bytes, after: int) -> int:
        commands = unseal(entry)[0].commands
        if not commands or not isinstance(commands[0], Lead):
            return await durable(self, entry, after)
        under_way.add(asyncio.create_task(written(self, entry, after)))
        return after + 1

    patch.setattr(SimLog, "append", hasty)


@plant(controllers=2)
def a_follower_skips_an_entry(patch: pytest.MonkeyPatch) -> None:
    def skip(self: Controller, index: int, data: bytes) -> None:
        verdict = self.ledger.offer(index, data)
        if isinstance(verdict, Effective) and index % 7:
            self.payloads.note(index, verdict.entry)
            self.state.apply(verdict.entry, index)

    patch.setattr(Controller, "_offer", skip)


# The replicated state


@plant(
    nodes=3, controllers=1, torture_s=18.0, faults={"partition": 1, "server cut off": 0.5},
    settings={"lease_s": 2.0, "retries": 3},
)  # fmt: skip
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
    patch.setattr(Workload, "_task", Workload._careful)  # else it takes many lives


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


@plant()
def a_completion_is_applied_twice(patch: pytest.MonkeyPatch) -> None:
    once = Tasks._complete

    def twice(self: Tasks, command: Complete, index: int, ordinal: int) -> None:
        once(self, command, index, ordinal)
        task = self.tasks.get(command.task)
        if task is not None and task.state is TaskState.COMPLETED and task.epoch == command.epoch:
            self._finish(task, TaskState.COMPLETED, "task.completed", task.past[-1])

    patch.setattr(Tasks, "_complete", twice)


@plant()
def an_assignment_is_lost(patch: pytest.MonkeyPatch) -> None:
    fill = Leader.fill
    count = 0

    def lossy(self: Leader, budget: int) -> list[Command]:
        nonlocal count
        commands: list[Command] = []
        for command in fill(self, budget):
            count += type(command) is Assign
            if type(command) is not Assign or count % 10:
                commands.append(command)
        return commands

    patch.setattr(Leader, "fill", lossy)


@plant(nodes=1, settings={"start_timeout_s": 2.0})
def the_time_to_start_counts_from_the_submit(patch: pytest.MonkeyPatch) -> None:
    def assigned(self: Reconcile, task: Task, change: Any) -> None:
        self.reserved.pop(task.spec.id, None)
        self.rotation.settled(task.spec.id)
        due = task.created_at + int(task.spec.start_timeout_s * 1000)
        self._timer(due, START, task.spec.id, task.epoch)

    patch.setitem(reconciling._OBSERVERS, "task.assigned", assigned)


@plant()
def load_is_never_given_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Reconcile, "freed", lambda self, agent: self._freed(agent))


@plant()
def a_requeued_task_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(reconciling._OBSERVERS, "task.requeued", Reconcile._attempt_ended)


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

    async def look_often(self: Workload, task: Any) -> None:
        for _ in range(6):
            await self.caller.status(task)
            await asyncio.sleep(self.random.random() / 2)

    patch.setattr(Answers, "__init__", hasty)
    patch.setattr(Workload, "_follow_up", look_often)  # else it takes many lives, as do jobs of other kinds
    for job in ("_careful", "_dead", "_schedule", "_set_aside"):
        patch.setattr(Workload, job, Workload._someone_elses)


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
        if kind != START:
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


@plant()
def an_acknowledgement_counts_as_completion(patch: pytest.MonkeyPatch) -> None:
    report = Leader._report

    def eager(self: Leader, item: Any, sender: ProcessId) -> None:
        report(self, item, sender)
        task = self.state.current(item.task, item.epoch)
        if type(item) is Began and task is not None and task.attempt is not None and task.attempt.node == sender:
            self._pending.append(Complete(item.task, item.epoch, b"null"))

    patch.setattr(Leader, "_report", eager)


@plant(liars=2)
def anybody_may_complete_an_attempt(patch: pytest.MonkeyPatch) -> None:
    report = Leader._report

    def trusting(self: Leader, item: Any, sender: ProcessId) -> None:
        task = self.state.current(item.task, item.epoch)
        report(self, item, task.attempt.node if task is not None and task.attempt is not None else sender)

    patch.setattr(Leader, "_report", trusting)


@plant(faults={"bad writes": 1, "server crash": 0.5}, clients=2)
def an_append_of_unknown_fate_counts_as_failed(patch: pytest.MonkeyPatch) -> None:
    broken = Term._broken

    def hasty(self: Term, error: Exception) -> None:
        for flight in self.pipeline._flights:
            for command in flight.entry.commands:
                if type(command) is Submit:
                    refused = Refused(command.spec.id, "overloaded", "it could not be written")
                    self.leader.outbox.post(to(command.spec.submitter), refused)
        broken(self, error)

    patch.setattr(Term, "_broken", hasty)


@plant(faults={"clock": 1}, nodes=2)
def leases_go_by_the_wall_clock(patch: pytest.MonkeyPatch) -> None:
    make, heard, pulse = Term.__init__, Liveness.beacon, Liveness.lag

    def made(self: Term, controller: Controller, clock: EntryClock) -> None:
        make(self, controller, clock)
        vars(self.liveness)["wall"], vars(self.liveness)["last"] = controller.wall, {}

    def beacon(self: Any, item: Beacon, node: ProcessId) -> bool:
        self.last[node] = self.wall()
        return heard(self, item, node)

    def lag(self: Any, seconds: float) -> None:
        pulse(self, seconds)
        for node, lease in self._reconcile.state.nodes.items():
            if self.wall() - self.last.get(node, self.wall()) > self._lease_s:
                self._propose(Evict(node, lease.incarnation, "its lease is over"))

    patch.setattr(Term, "__init__", made)
    patch.setattr(Liveness, "beacon", beacon)
    patch.setattr(Liveness, "lag", lag)


@plant(controllers=2, torture_s=18.0, faults={"split": 1}, settings={"lease_s": 2.0, "orphan_s": 20.0, "attempt_timeout_s": 20.0})
def a_guard_believes_a_beacon(patch: pytest.MonkeyPatch) -> None:
    async def believes(self: Guard) -> bool:
        return True

    patch.setattr(Guard, "_is_held", believes)


# Keeping


@plant(controllers=2, clients=2, torture_s=18.0, faults={"slow server": 1}, settings=CLOSE_LIMITS)
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


# Nodes and clients


@plant(faults={"duplicates": 1})
def a_repeated_assignment_runs_again(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Attempts, "knows", lambda self, run: False)


@plant()
def a_lost_push_is_never_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcomes, "_look", lambda self: None)
    patch.setattr(Outcomes, "_renew", lambda self, lost: None)


@plant(faults={"deaf": 1, "loss": 1})
def the_end_of_a_submit_under_way_is_asked_for(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Outcomes, "submitting", Outcomes.of)


@plant(test="tests/unit/test_client_tasks.py::test_a_task_under_way_to_the_leader_has_one_outcome")
def one_task_has_two_outcomes(patch: pytest.MonkeyPatch) -> None:
    def of(self: Outcomes, task: TaskId) -> Outcome:
        return self._open.setdefault(task, Outcome(task))

    patch.setattr(Outcomes, "of", of)


@plant(faults={"crash": 1}, controllers=2)
def a_watch_has_no_first_list(patch: pytest.MonkeyPatch) -> None:
    watch = MemoryRegistryState.open

    def blind(self: MemoryRegistryState, prefix: str) -> Any:
        opened = watch(self, prefix)
        opened.pending = []
        return opened

    patch.setattr(MemoryRegistryState, "open", blind)
