"""Judge of what attempts may rely on: a recorded step, a saved checkpoint, an answer. Told by the auditor what the log says, and
by a witness in the agents' place what attempts really did and were given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from comity.core.changes import Change
from comity.errors import Corrupt, NotFound, Unanswered
from comity.handles import Attempt
from comity.model.codec import digest, to_json
from comity.model.ids import TaskId
from comity.model.payload import Payload, Stored
from comity.model.records import GiveAnswer, RecordStep, SaveCheckpoint
from comity.model.task import Ending, Entry
from comity.sim.loop import SimulationError, VirtualLoop


class Misremembered(SimulationError):
    """An attempt was not given what the ones before it had recorded."""


_LOST = (Corrupt.code, NotFound.code)


class Record(NamedTuple):
    epoch: int
    mark: bytes


def _mark(payload: Payload) -> bytes:
    if isinstance(payload, Stored):
        return payload.digest
    assert isinstance(payload, bytes)
    return digest(payload)


class Recollection:
    """By task and name. ``answers`` has None for a question that nobody answered in time."""

    def __init__(self) -> None:
        self.steps: dict[tuple[TaskId, str], Record] = {}
        self.checkpoints: dict[TaskId, list[Record]] = {}
        self.answers: dict[tuple[TaskId, str], bytes | None] = {}
        self.lost: set[tuple[TaskId, int]] = set()
        """Attempts whose node lost its lease."""

    # What the log says

    def changed(self, index: int, entry: Entry, change: Change, epoch: int) -> None:
        """An entry changed a task whose epoch is ``epoch``."""
        if change.task is None:
            return
        task, records = change.task.spec.id, change.task.records
        if change.attempt is not None and change.attempt.ending is Ending.EVICTED:
            self.lost.add((task, change.attempt.epoch))
        failure = change.attempt.failure if change.attempt is not None else None
        if failure is not None and failure.code in _LOST and records is not None:
            raise Misremembered(f"entry {index}: an attempt at task {task} finds its records lost: {failure.message}")
        match change.kind:
            case "task.step":
                self._recorded(index, entry, task, change.reason, epoch)
            case "task.checkpoint":
                self._saved(index, entry, task, epoch)
            case "task.answered" if records is not None:
                self._answered(index, entry, task, change.reason, records.questions[change.reason].by)
            case "task.unanswered":
                self._settle(index, task, change.reason, None)

    def _recorded(self, index: int, entry: Entry, task: TaskId, name: str, epoch: int) -> None:
        if (task, name) in self.steps:
            raise Misremembered(f"entry {index} records step {name} of task {task} again")
        told = [c for c in entry.commands if isinstance(c, RecordStep) and (c.task, c.name) == (task, name)]
        accepted = next((command for command in told if command.epoch == epoch), None)
        if accepted is None:
            epochs = [command.epoch for command in told]
            raise Misremembered(f"entry {index} records step {name} of task {task} by epochs {epochs}; its epoch is {epoch}")
        self.steps[task, name] = Record(epoch, _mark(accepted.result))

    def _saved(self, index: int, entry: Entry, task: TaskId, epoch: int) -> None:
        told = [c for c in entry.commands if isinstance(c, SaveCheckpoint) and c.task == task]
        accepted = [command for command in told if command.epoch == epoch]
        if not accepted:
            epochs = [command.epoch for command in told]
            raise Misremembered(f"entry {index} saves checkpoints of task {task} by epochs {epochs}; its epoch is {epoch}")
        known = self.checkpoints.setdefault(task, [])
        known += [Record(epoch, _mark(command.state)) for command in accepted]

    def _answered(self, index: int, entry: Entry, task: TaskId, name: str, by: int) -> None:
        told = [c for c in entry.commands if isinstance(c, GiveAnswer) and (c.task, c.by) == (task, by)]
        if not told or told[0].name not in ("", name):
            raise Misremembered(f"entry {index} answers {name} of task {task} with what nobody said")
        self._settle(index, task, name, _mark(told[0].answer))

    def _settle(self, index: int, task: TaskId, name: str, mark: bytes | None) -> None:
        if (task, name) in self.answers:
            raise Misremembered(f"entry {index} answers {name} of task {task} again")
        self.answers[task, name] = mark

    # What attempts did, and were given

    def runs(self, task: TaskId, epoch: int, name: str) -> None:
        """A step's function is called."""
        known = self.steps.get((task, name))
        if known is not None and known.epoch <= epoch:
            raise Misremembered(f"attempt {task}/{epoch} runs step {name}, which attempt {known.epoch} recorded")

    def gave(self, task: TaskId, epoch: int, name: str, value: Any) -> None:
        """A step has returned: its record counts by now."""
        known = self.steps.get((task, name))
        if known is None or known.epoch > epoch or known.mark != digest(to_json(value)):
            raise Misremembered(f"attempt {task}/{epoch} was given for step {name} what is not recorded: {known}")

    def saved(self, task: TaskId, epoch: int, state: Any) -> None:
        """A checkpoint has returned."""
        if Record(epoch, digest(to_json(state))) not in self.checkpoints.get(task, ()):
            raise Misremembered(f"attempt {task}/{epoch} was told that a checkpoint is saved, and it is not")

    def resumes(self, task: TaskId, epoch: int, state: Any) -> None:
        """An attempt begins, and this is its ``resume_state``."""
        before = [record for record in self.checkpoints.get(task, ()) if record.epoch < epoch]
        if (before[-1].mark if before else None) != (digest(to_json(state)) if state is not None else None):
            raise Misremembered(f"attempt {task}/{epoch} does not resume from the last of {len(before)} checkpoints")

    def guarded(self, task: TaskId, epoch: int, was_lost: bool) -> None:
        """An attempt is told that its node holds the lease; ``was_lost``: before it asked."""
        if was_lost:
            raise Misremembered(f"attempt {task}/{epoch} was told that its node holds the lease, which it had lost")

    def answered(self, task: TaskId, name: str, value: Any) -> None:
        """An attempt is given an answer, or somebody was told that it was recorded; a Unanswered: that there is none."""
        if not self.is_answered_with(task, name, value):
            raise Misremembered(f"{value!r} is not what answers {name} of task {task}")

    def is_answered_with(self, task: TaskId, name: str, value: Any) -> bool:
        """Whether ``value`` is what counts."""
        mark = None if isinstance(value, Unanswered) else digest(to_json(value))
        return self.answers.get((task, name), b"") == mark


class Witness(Attempt):
    """An attempt's handle that tells what happens. Steps have names of their own."""

    __slots__ = ("_judge", "_loop")

    def __init__(self, attempt: Attempt, judge: Recollection, loop: VirtualLoop) -> None:
        super().__init__(attempt._ticket)
        self._judge = judge
        self._loop = loop
        self._tell(judge.resumes, self.id, self.epoch, self.resume_state)

    def _tell(self, what: Callable[..., None], *about: Any) -> None:
        """A node takes whatever its agents raise for their failure: it must not take this."""
        try:
            what(*about)
        except Misremembered as violation:
            self._loop.abort(violation)

    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        async def seen() -> Any:
            self._tell(self._judge.runs, self.id, self.epoch, name)
            return await function(*args, **named)

        value = await super().step(name, seen)
        self._tell(self._judge.gave, self.id, self.epoch, name, value)
        return value

    async def guard(self) -> None:
        was_lost = (self.id, self.epoch) in self._judge.lost
        await super().guard()
        self._tell(self._judge.guarded, self.id, self.epoch, was_lost)

    async def checkpoint(self, state: Any) -> None:
        await super().checkpoint(state)
        self._tell(self._judge.saved, self.id, self.epoch, state)

    async def wait_for(self, name: str, *, ask: Any = None, timeout: float | None = None, as_type: Any = Any) -> Any:
        try:
            value = await super().wait_for(name, ask=ask, timeout=timeout, as_type=as_type)
        except Unanswered as error:
            self._tell(self._judge.answered, self.id, name, error)
            raise
        self._tell(self._judge.answered, self.id, name, value)
        return value
