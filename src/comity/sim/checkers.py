"""Judges of a simulated life. Each is told what happened and raises ``Violation`` at the first thing that must not.

``Truth`` knows what agents really did, ``Auditor`` reads the log as it grows, ``TaskModel`` says what clients may be told.
They share no state and little code with the programs they judge: an entry is judged twice (by the program's ``Ledger`` and
by the rule written out here), and so is every end of a task.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from comity.core.changes import Change
from comity.core.ledger import Effective, Ledger
from comity.core.tasks import Tasks
from comity.model.codec import ROOT_DIGEST, digest, unseal
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId
from comity.model.task import (
    Archived,
    Attempt,
    Complete,
    DropDead,
    Dropped,
    Ending,
    Entry,
    Evict,
    Fail,
    Lead,
    Logged,
    Payload,
    Replay,
    Requeue,
    Stored,
    Submit,
    Task,
    TaskState,
)
from comity.sim.history import Operation
from comity.sim.loop import SimulationError
from comity.sim.recollection import Recollection

STUCK_S = 40.0
"""How much longer than its progress timeout a silent attempt may last: through the faults of a life, and a clock gone wrong."""
CHECK_EVERY = 16
"""Effective entries between two full checks of the replicated state's invariants."""


class Violation(SimulationError):
    """Something happened that Comity promises never happens."""


class Truth:
    """What agents really did, told by the agents themselves."""

    def __init__(self) -> None:
        self.began: dict[tuple[TaskId, int], AgentId] = {}
        self.returned: dict[tuple[TaskId, int], bytes] = {}
        self.recollection = Recollection()

    def begin(self, task: TaskId, epoch: int, agent: AgentId) -> None:
        """An agent's function is called. An attempt runs once: a repeated assignment must not start it again."""
        if (task, epoch) in self.began:
            raise Violation(f"attempt {task}/{epoch} was started twice: by {self.began[task, epoch]} and by {agent}")
        self.began[task, epoch] = agent

    def end(self, task: TaskId, epoch: int, result: bytes) -> None:
        """It returns ``result``, as JSON."""
        self.returned[task, epoch] = result


_ENDINGS = frozenset({"task.completed", "task.failed", "task.canceled", "task.rejected"})
_NO_TOUCH = frozenset({"assignment.void", "report.rejected", "task.rated", "schedule.fired"})


class End(NamedTuple):
    """How a task ended. ``result`` is the digest of a completed one's result."""

    state: TaskState
    result: bytes = b""


class Auditor:
    """Reads every entry at the moment it is appended, and knows which process wrote it. ``is_well(node, incarnation)`` says
    whether a node is alive and has long been undisturbed, so that nobody may take it for dead."""

    def __init__(
        self,
        network: NetworkId,
        truth: Truth | None = None,
        is_well: Callable[[ProcessId, int], bool] = lambda _node, _incarnation: False,
    ) -> None:
        self.network = network
        self.truth = truth
        self.is_well = is_well
        self.items: list[tuple[int, bytes]] = []
        self.ledger = Ledger(network)
        self.state = Tasks(network)
        self.submitted: dict[TaskId, int] = {}  # to the index of the entry
        self.keys: dict[str, TaskId] = {}
        self.ends: dict[TaskId, End] = {}
        self.dead: dict[TaskId, None] = {}  # failed, and neither replayed nor dropped
        self.fired: dict[str, int] = {}  # by schedule and due time, to the index of the entry
        self.refusals: dict[TaskId, str] = {}
        self._chunks: dict[str, tuple[TaskId, ...]] = {}
        self.leaders: dict[int, ProcessId] = {}  # by term
        self.void = 0
        self._term = 0
        self._digest = ROOT_DIGEST
        self._epochs: dict[TaskId, int] = {}
        self._last_epoch = 0
        self._effective = 0

    # The log

    def appended(self, index: int, data: bytes, writer: ProcessId) -> None:
        """``writer`` put ``data`` at ``index``."""
        self.items.append((index, data))
        verdict = self.ledger.offer(index, data)
        entry, mark = unseal(data)
        counts = self._counts(entry)
        if counts != isinstance(verdict, Effective):
            raise Violation(f"entry {index} must be {'effective' if counts else 'void'}, and a reader says {verdict}")
        if not counts:
            self.void += 1
            return
        self._led(index, entry, writer)
        self._digest = mark
        self._commands(index, entry)
        for change in self.state.apply(entry, index):
            self._changed(index, entry, change)
        self._effective += 1
        if self._effective % CHECK_EVERY == 0:
            self.state.check()
            self._lost(index)

    def _counts(self, entry: Entry) -> bool:
        begins = bool(entry.commands) and isinstance(entry.commands[0], Lead)
        return entry.parent == self._digest and (entry.term > self._term if begins else entry.term == self._term)

    def _led(self, index: int, entry: Entry, writer: ProcessId) -> None:
        if entry.term < self._term:
            raise Violation(f"entry {index} of term {entry.term} counts, though term {self._term} has begun")
        first = entry.commands[0] if entry.commands else None
        if isinstance(first, Lead):
            if entry.term in self.leaders:
                raise Violation(f"term {entry.term} has two leaders: {self.leaders[entry.term]} and {first.controller}")
            self.leaders[entry.term] = first.controller
        self._term = entry.term
        if writer != self.leaders[entry.term]:
            raise Violation(f"entry {index} counts, but {writer} wrote it and {self.leaders[entry.term]} leads")

    def _commands(self, index: int, entry: Entry) -> None:
        for command in entry.commands:
            if isinstance(command, Submit):
                spec = command.spec
                if spec.id in self.refusals:
                    raise Violation(f"entry {index} accepts task {spec.id}, which was refused: {self.refusals[spec.id]}")
                if not spec.key or spec.key not in self.keys:
                    self.submitted.setdefault(spec.id, index)
                    self.keys.setdefault(spec.key, spec.id)
            elif isinstance(command, Replay):
                self._replayed(index, command)
            elif isinstance(command, DropDead):
                for task_id in command.ids:
                    self.dead.pop(task_id, None)
            elif isinstance(command, Archived):
                self._chunks[command.key] = command.ids
            elif isinstance(command, Dropped):  # a key is known as long as its task
                gone = {task: None for key in command.keys for task in self._chunks.get(key, ())}
                self.keys = {key: task for key, task in self.keys.items() if task not in gone}
            elif isinstance(command, Requeue | Fail):
                self._given_up(index, entry.time_ms, command)
            elif isinstance(command, Evict):
                lease = self.state.nodes.get(command.node)
                if lease and lease.incarnation == command.incarnation and self.is_well(command.node, command.incarnation):
                    raise Violation(f"entry {index} evicts {command.node}, which is well: {command.reason}")

    def _given_up(self, index: int, time_ms: int, command: Requeue | Fail) -> None:
        """An attempt has all of its time to start, and to run; in entry time, which the log itself tells."""
        task = self.state.current(command.task, command.epoch)
        attempt = task.attempt if task is not None else None
        if task is None or attempt is None:
            return
        if command.ending is Ending.NOT_STARTED:
            limit_s, since_ms = task.spec.start_timeout_s, attempt.assigned_at
        elif command.ending is Ending.TIMED_OUT:
            limit_s, since_ms = task.spec.attempt_timeout_s, attempt.started_at
        else:
            return
        had_s = (time_ms - since_ms) / 1000
        if had_s < limit_s:
            said = f"entry {index} gives up attempt {task.spec.id}/{attempt.epoch} ({command.ending})"
            raise Violation(f"{said} after {had_s:.3f} s, and it has {limit_s:g} s")

    def _lost(self, index: int) -> None:
        for task in self.open_tasks():
            if task not in self.state.tasks:
                raise Violation(f"after entry {index} task {task} is gone, and it never ended")

    def _replayed(self, index: int, command: Replay) -> None:
        if command.spec.replays in self.dead:
            del self.dead[command.spec.replays]
            self.submitted[command.spec.id] = index

    def _fired(self, index: int, change: Change) -> None:
        due = change.reason.partition(",")[0]
        if due in self.fired:
            raise Violation(f"entry {index} fires {due}, which entry {self.fired[due]} did before")
        self.fired[due] = index
        if change.task is not None:
            self.submitted.setdefault(change.task.spec.id, index)

    def _silent(self, index: int, task: Task, attempt: Attempt) -> None:
        """An attempt that never showed progress, and had to, must have been moved before it could last for so long."""
        lasted_s = (attempt.ended_at - attempt.started_at) / 1000
        if attempt.started_at and lasted_s > task.spec.progress_timeout_s + STUCK_S:
            raise Violation(f"entry {index} ends attempt {task.spec.id}/{attempt.epoch}, which was stuck for {lasted_s:.1f} s")

    def _changed(self, index: int, entry: Entry, change: Change) -> None:
        """Changes come after the whole entry was applied, so a task may look further than its change."""
        task = change.task
        if change.kind == "schedule.fired":
            self._fired(index, change)
        if task is None or change.kind in _NO_TOUCH:
            return
        if task.spec.progress_timeout_s and change.attempt is not None and change.attempt.ended_at:
            self._silent(index, task, change.attempt)
        task_id = task.spec.id
        if self.truth is not None:
            self.truth.recollection.changed(index, entry, change, self._epochs.get(task_id, 0))
        if change.kind == "task.canceled":
            self._orphaned(index, task, change.reason)
        end = self.ends.get(task_id)
        if change.kind not in _ENDINGS:
            if end is not None:
                raise Violation(f"entry {index} touched task {task_id}, which was {end.state}: {change.kind}")
            if change.kind == "task.assigned" and change.attempt is not None:
                self._assigned(index, task_id, change.attempt.epoch)
            return
        if end is not None:
            raise Violation(f"entry {index} ended task {task_id} again: it was {end.state}, and now {change.kind}")
        if task.state is TaskState.FAILED:
            self.dead[task_id] = None
        self.ends[task_id] = End(task.state, _mark(task.result, entry))
        if task.state is TaskState.COMPLETED:
            self._completed(index, entry, task_id)

    def _orphaned(self, index: int, task: Task, reason: str) -> None:
        """A child with a key lives as long as its parent: the parent's next attempt finds it again."""
        parent = self.state.tasks.get(task.spec.parent) if task.spec.parent is not None else None
        goes_on = parent is not None and not parent.is_terminal and not parent.cancel_at
        if task.spec.key and reason.startswith("its parent") and parent is not None and goes_on:
            raise Violation(f"entry {index} cancels task {task.spec.id}, though its parent {parent.spec.id} goes on")

    def _assigned(self, index: int, task_id: TaskId, epoch: int) -> None:
        if epoch <= self._last_epoch:
            raise Violation(f"entry {index} gives epoch {epoch} to task {task_id}, after epoch {self._last_epoch} was used")
        self._last_epoch = self._epochs[task_id] = epoch

    def _completed(self, index: int, entry: Entry, task_id: TaskId) -> None:
        epoch = self._epochs.get(task_id, 0)
        reports = [c for c in entry.commands if isinstance(c, Complete) and c.task == task_id]
        accepted = next((report for report in reports if report.epoch == epoch), None)
        if accepted is None:
            told = [report.epoch for report in reports]
            raise Violation(f"entry {index} completes task {task_id} by epochs {told}, though its epoch is {epoch}")
        if self.truth is None:
            return
        result = self.truth.returned.get((task_id, epoch))
        if result is None:
            raise Violation(f"entry {index} completes task {task_id}, but attempt {epoch} never returned")
        if _mark(accepted.result, entry) != digest(result):
            raise Violation(f"entry {index} completes task {task_id} with something that attempt {epoch} did not return")

    # What clients were told

    def acknowledged(self, task: TaskId) -> None:
        """A client was told that ``task`` is accepted: it must be in the log already."""
        if task not in self.submitted:
            raise Violation(f"task {task} was acknowledged, and no effective entry holds it")

    def refused(self, task: TaskId, code: str) -> None:
        """A client was told for certain that ``task`` is not accepted: then it never is."""
        if task in self.submitted:
            raise Violation(f"task {task} was refused ({code}), and entry {self.submitted[task]} accepts it")
        self.refusals[task] = code

    def told_end(self, task: TaskId, end: End) -> None:
        """A client was told how ``task`` ended: the log must say so already, and the same."""
        known = self.ends.get(task)
        if known is None:
            raise Violation(f"a client was told that task {task} is {end.state}, and the log does not say so")
        if known.state is not end.state or (end.result and known.result != end.result):
            raise Violation(f"a client was told that task {task} is {end}, and the log says {known}")

    def open_tasks(self) -> list[TaskId]:
        """Accepted tasks that have not ended."""
        return [task for task in self.submitted if task not in self.ends]

    # The end

    def finish(self) -> None:
        """After healing and quiet: nothing accepted is lost or open, and every way of reading the log agrees."""
        self.state.check()
        for task in self.state.tasks.values():
            if task.is_terminal and task.state is not self.ends[task.spec.id].state:
                raise Violation(f"task {task.spec.id} was {self.ends[task.spec.id].state}, and now it is {task.state}")
        lost = self.open_tasks()
        if lost:
            raise Violation(f"{len(lost)} accepted tasks never ended, such as {lost[0]}: {self.state.tasks.get(lost[0])}")
        if {*self.state.dead.letters} != {*self.dead}:
            odd = {*self.state.dead.letters} ^ {*self.dead}
            raise Violation(f"dead letters are not the tasks that failed and were neither replayed nor dropped: {odd}")
        agree(self.network, self.items)

    def compare(self, reader: str, state: Tasks) -> None:
        """A reader that applied the whole log must hold the same tasks."""
        mine, theirs = self.state, state
        same = ("tasks", "counts", "nodes", "ended", "aside", "keys", "archive", "dead", "schedules", "totals")
        for name in (*same, "term", "leader", "last_epoch"):
            if getattr(mine, name) != getattr(theirs, name):
                raise Violation(f"{reader} read the whole log and holds other {name} than another reader")
        for name in ("letters", "boxes", "dead", "known", "streams", "groups", "last", "posted", "taken"):
            if getattr(mine.mail, name) != getattr(theirs.mail, name):
                raise Violation(f"{reader} read the whole log and holds other mail ({name}) than another reader")


def _mark(payload: Payload | None, entry: Entry) -> bytes:
    """The digest of a payload; one that lies in the log must lie in ``entry``."""
    if payload is None:
        return b""
    if isinstance(payload, Stored):
        return payload.digest
    if isinstance(payload, Logged):
        command = entry.commands[payload.ordinal] if payload.ordinal < len(entry.commands) else None
        return _mark(command.result, entry) if isinstance(command, Complete) else b""
    return digest(payload)


def agree(network: str, items: Sequence[tuple[int, bytes]]) -> None:
    """Readers agree on what counts, whether they read from the start or go on from a snapshot taken anywhere."""
    first = Ledger(network)
    places = sorted({len(items) * part // 4 for part in range(4)})
    states = []
    verdicts = []
    for place, (index, data) in enumerate(items):
        if place in places:
            states.append((place, first.state()))
        verdicts.append(first.offer(index, data))
    for start, state in states:
        second = Ledger.restore(state)
        for place in range(start, len(items)):
            verdict = second.offer(*items[place])
            if verdict != verdicts[place]:
                raise Violation(f"two readers disagree on entry {items[place][0]}: {verdicts[place]} and {verdict}")


# What clients may be told

ABSENT = "absent"
LIVE = "live"
CANCELING = "canceling"

_OPEN = frozenset({
    TaskState.SUBMITTED, TaskState.WAITING, TaskState.ASSIGNED, TaskState.WORKING, TaskState.INPUT_REQUIRED,
})  # fmt: skip


FORGETS_BELOW = 10_000


class TaskModel:
    """One task, as its clients see it. A state is (phase, end): absent, live, canceling, or ended in exactly one way.

    Operations: ``submit`` (answer: anything), ``cancel`` (anything), ``status`` and ``result`` (answer: ``End``). A task
    ends on its own between two operations, so the first that sees its end moves it there. ``canceled`` needs a cancel.
    Where few finished tasks are kept (``keep``), a task may be unknown again.
    """

    def __init__(self, keep: int = 1_000_000) -> None:
        self._forgets = keep < FORGETS_BELOW

    def start(self) -> Hashable:
        return (ABSENT, None)

    def step(self, state: Hashable, operation: Operation) -> Hashable | None:
        assert isinstance(state, tuple)
        phase, end = state
        if not operation.is_known:
            return self._unknown(state, operation)
        if operation.error == "unknown-task":
            return state if phase == ABSENT or self._forgets else None
        if operation.kind == "submit":
            if operation.error:
                return state
            return (LIVE, None) if phase == ABSENT else state
        if phase == ABSENT:
            return None
        if operation.kind == "cancel":
            return (CANCELING, end) if not operation.error else state
        return self._seen(phase, end, operation.answer)

    def _unknown(self, state: Hashable, operation: Operation) -> Hashable:
        assert isinstance(state, tuple)
        if operation.kind == "submit" and state[0] == ABSENT:
            return (LIVE, None)
        if operation.kind == "cancel" and state[0] == LIVE:
            return (CANCELING, state[1])
        return state

    def _seen(self, phase: str, end: End | None, seen: End) -> Hashable | None:
        if seen.state in _OPEN:
            return (phase, end) if end is None else None
        if end is not None:
            return (phase, end) if _same(end, seen) else None
        if seen.state is TaskState.CANCELED and phase != CANCELING:
            return None
        return (phase, seen)


def _same(known: End, seen: End) -> bool:
    return known.state is seen.state and (not known.result or not seen.result or known.result == seen.result)
