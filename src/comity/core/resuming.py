"""The part of the replicated state that lets an attempt go on where the one before it was: steps, checkpoints, questions.

    working ──(AskInput)──▶ input-required ──(GiveAnswer, EndWait)──▶ waiting ──▶ assigned ...

A question ends its attempt: while a task waits for its answer it holds no slot and no node. What replicated state says of a step
never changes; so an attempt that was given a step's result can rely on it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from comity.core.changes import Change
from comity.model.ids import TaskId
from comity.model.payload import Payload, Stored, placed, size_of
from comity.model.records import (
    AskInput,
    Checkpoint,
    EndWait,
    GiveAnswer,
    MoveRecord,
    Place,
    Question,
    Records,
    RecordStep,
    SaveCheckpoint,
    Step,
)
from comity.model.task import Ending, Task, TaskFailure, TaskState

if TYPE_CHECKING:
    from comity.core.tasks import Tasks


class Resuming:
    """Applies the commands of ``model.records`` to ``tasks``, of which it is a part."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self.appliers: dict[type, Callable[[Any, int, int], None]] = {
            RecordStep: self._step,
            SaveCheckpoint: self._checkpoint,
            AskInput: self._ask,
            GiveAnswer: self._answer,
            EndWait: self._end_wait,
            MoveRecord: self._move,
        }

    def _say(self, kind: str, task: Task, reason: str) -> None:
        self._tasks.changes.append(Change(kind, task, task.attempt, reason=reason))

    def _step(self, command: RecordStep, index: int, ordinal: int) -> None:
        task = self._tasks._report(command.task, command.epoch, "step")
        if task is None:
            return
        records, size = _records(task), size_of(command.result)
        if command.name in records.steps:
            return
        if not records.has_room(size):
            self._say("report.rejected", task, f"step {command.name}: no room is left")
            return
        result = placed(command.result, index, ordinal)
        records.steps[command.name] = Step(result, size, self._tasks.time_ms, command.epoch)
        records.size += size
        self._tasks.mail.commit(task, f"step.{command.name}", command.mail)
        self._say("task.step", task, command.name)

    def _checkpoint(self, command: SaveCheckpoint, index: int, ordinal: int) -> None:
        task = self._tasks._report(command.task, command.epoch, "checkpoint")
        if task is None:
            return
        records, size = _records(task), size_of(command.state)
        last = records.checkpoint
        if last is not None and (last.epoch, last.number) >= (command.epoch, command.number):
            return
        grown = size - (last.size if last is not None else 0)
        if not records.has_room(grown, 0):
            self._say("report.rejected", task, "checkpoint: no room is left")
            return
        state = placed(command.state, index, ordinal)
        records.checkpoint = Checkpoint(state, size, self._tasks.time_ms, command.epoch, command.number)
        records.size += grown
        self._tasks.mail.commit(task, f"checkpoint.{command.epoch}-{command.number}", command.mail)
        self._say("task.checkpoint", task, "")
        if last is not None:
            self._dropped(last.state)

    def _ask(self, command: AskInput, index: int, ordinal: int) -> None:
        tasks = self._tasks
        task = tasks._report(command.task, command.epoch, "question")
        if task is None:
            return
        records, size = _records(task), size_of(command.ask)
        if task.cancel_at:
            tasks._put_back(task, Ending.INPUT_REQUIRED, "")
        elif command.name in records.questions or not records.has_room(size):
            why = "was answered already" if command.name in records.questions else "has no room left"
            failure = TaskFailure("conflict", f"question {command.name} {why}", retryable=False)
            tasks._failed(task, failure, Ending.FAILED, 0)
        else:
            ask = placed(command.ask, index, ordinal)
            records.questions[command.name] = Question(ask, size, tasks.time_ms, command.until_ms)
            records.size += size
            tasks.mail.commit(task, f"ask.{command.name}", command.mail)
            attempt = tasks._end_attempt(task, Ending.INPUT_REQUIRED, None, command.ran_ms)
            tasks._move(task, TaskState.INPUT_REQUIRED)
            tasks.changes.append(Change("task.input_required", task, attempt, reason=command.name))

    def _answer(self, command: GiveAnswer, index: int, ordinal: int) -> None:
        task, name = self._asking(command.task)
        if task is None or command.name not in ("", name):
            return
        records, size = _records(task), size_of(command.answer)
        if not records.has_room(size, 0):
            return
        self._tasks._touch(task)
        answer = placed(command.answer, index, ordinal)
        records.questions[name] = msgspec.structs.replace(
            records.questions[name], answer=answer, answered_at=self._tasks.time_ms, by=command.by
        )
        records.size += size
        self._go_on(task, "task.answered", name)

    def _end_wait(self, command: EndWait, _index: int, _ordinal: int) -> None:
        task, name = self._asking(command.task)
        if task is None or task.epoch != command.epoch:
            return
        self._tasks._touch(task)
        questions = _records(task).questions
        questions[name] = msgspec.structs.replace(questions[name], answered_at=self._tasks.time_ms, is_over=True)
        self._go_on(task, "task.unanswered", name)

    def _asking(self, task_id: TaskId) -> tuple[Task | None, str]:
        """The task and its open question; None if it waits for no answer."""
        task = self._tasks.tasks.get(task_id)
        if task is None or task.state is not TaskState.INPUT_REQUIRED:
            return None, ""
        return task, _records(task).asked() or ""

    def _go_on(self, task: Task, kind: str, name: str) -> None:
        task.not_before = 0
        self._tasks._move(task, TaskState.WAITING)
        self._say(kind, task, name)

    def _move(self, command: MoveRecord, _index: int, _ordinal: int) -> None:
        task = self._tasks.tasks.get(command.task)
        place = Place(command.kind, command.name)
        if task is None or task.records is None or task.records.find(place) != command.was:
            self._dropped(command.payload)  # replaced, or not needed any more, while it was being moved
            return
        self._tasks._touch(task)
        task.records.put(place, command.payload)

    def drop(self, task: Task) -> None:
        """The task has ended: nobody will go on from its records."""
        if task.records is not None:
            for place, payload in list(task.records.payloads()):
                task.records.put(place, None)
                self._dropped(payload)
            task.records.size = 0

    def _dropped(self, payload: Payload | None) -> None:
        if isinstance(payload, Stored):
            self._tasks.changes.append(Change("record.dropped", reason=payload.key))


def _records(task: Task) -> Records:
    if task.records is None:
        task.records = Records()
    return task.records


def check(task: Task) -> str:
    """The invariant that a task's records break; "" if they break none."""
    records = task.records
    if records is None:
        return "it asks for something" if task.state is TaskState.INPUT_REQUIRED else ""
    asking = [name for name, question in records.questions.items() if question.is_open]
    payloads = list(records.payloads())
    if task.is_terminal:
        return "no payload of its records outlives it" if payloads or records.size else ""
    if (asking == [records.asked()]) != (task.state is TaskState.INPUT_REQUIRED):
        return "one question is open exactly while it waits for an answer"
    if records.size != sum(size_of(payload) for _, payload in payloads):
        return "the size of its records is what they take"
    return ""
