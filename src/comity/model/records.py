"""What attempts at a task leave for the next one: results of steps, a checkpoint, questions and their answers; and the commands
that write them. Payloads are dropped when the task ends; names, times and sizes stay."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from comity.model.ids import TaskId
from comity.model.mail import Posted
from comity.model.payload import Payload

RECORDS_MAX = 1000
"""Steps and questions of one task."""
RECORDS_BYTES = 64 * 1024 * 1024
"""Of all payloads recorded for one task, wherever they are."""
NAME_BYTES = 100


class Step(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A step's result, recorded at ``at_ms`` (entry time) by the attempt of ``epoch``. None: the task has ended."""

    result: Payload | None
    size: int
    at_ms: int
    epoch: int


class Checkpoint(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The state that an attempt saved last. ``number`` counts those of one attempt."""

    state: Payload | None
    size: int
    at_ms: int
    epoch: int
    number: int


class Question(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What an attempt ended to wait for; until ``until_ms`` (entry time, 0: for ever). ``by`` is the number of the call that
    answered it; ``is_over``: nobody did in time."""

    ask: Payload | None
    size: int
    asked_at: int
    until_ms: int = 0
    answer: Payload | None = None
    answered_at: int = 0
    by: int = 0
    is_over: bool = False

    @property
    def is_open(self) -> bool:
        return not self.answered_at


class Place(NamedTuple):
    """Where in a task's records a payload belongs: ``kind`` is step, checkpoint, ask or answer."""

    kind: str
    name: str


class Records(msgspec.Struct, array_like=True, gc=False):
    """Of one task, by name, in the order in which they were written. Invariant: ``size`` is what the payloads take."""

    steps: dict[str, Step] = {}
    checkpoint: Checkpoint | None = None
    questions: dict[str, Question] = {}
    size: int = 0

    @property
    def count(self) -> int:
        return len(self.steps) + len(self.questions)

    def has_room(self, size: int, more: int = 1) -> bool:
        """Whether ``more`` records of ``size`` bytes still fit."""
        return self.count + more <= RECORDS_MAX and self.size + size <= RECORDS_BYTES

    def asked(self) -> str | None:
        """The name of the question that waits for its answer. Only the last one can."""
        name = next(reversed(self.questions), None)
        return name if name is not None and self.questions[name].is_open else None

    def payloads(self) -> Iterator[tuple[Place, Payload]]:
        """All there are."""
        for name, step in self.steps.items():
            if step.result is not None:
                yield Place("step", name), step.result
        if self.checkpoint is not None and self.checkpoint.state is not None:
            yield Place("checkpoint", ""), self.checkpoint.state
        for name, question in self.questions.items():
            if question.ask is not None:
                yield Place("ask", name), question.ask
            if question.answer is not None:
                yield Place("answer", name), question.answer

    def find(self, place: Place) -> Payload | None:
        """The payload at ``place``."""
        kind, name = place
        if kind == "step":
            step = self.steps.get(name)
            return step.result if step is not None else None
        if kind == "checkpoint":
            return self.checkpoint.state if self.checkpoint is not None else None
        question = self.questions.get(name)
        if question is None:
            return None
        return question.ask if kind == "ask" else question.answer

    def put(self, place: Place, payload: Payload | None) -> None:
        """Have ``payload`` where another one was."""
        kind, name = place
        replace = msgspec.structs.replace
        if kind == "step":
            self.steps[name] = replace(self.steps[name], result=payload)
        elif kind == "checkpoint" and self.checkpoint is not None:
            self.checkpoint = replace(self.checkpoint, state=payload)
        elif kind == "ask":
            self.questions[name] = replace(self.questions[name], ask=payload)
        elif kind == "answer":
            self.questions[name] = replace(self.questions[name], answer=payload)


# Commands. Tags are part of the log's format and never reused.


class RecordStep(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=40):
    """Counts once: a name that is recorded stays as it is."""

    task: TaskId
    epoch: int
    name: str
    result: Payload
    mail: tuple[Posted, ...] = ()


class SaveCheckpoint(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=41):
    task: TaskId
    epoch: int
    number: int
    state: Payload
    mail: tuple[Posted, ...] = ()


class AskInput(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=42):
    """Ends the attempt; the task waits for an answer until ``until_ms`` (0: for ever)."""

    task: TaskId
    epoch: int
    name: str
    ask: Payload
    until_ms: int = 0
    ran_ms: int = 0
    mail: tuple[Posted, ...] = ()


class GiveAnswer(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=43):
    """Answers the open question, if it is called ``name`` (or ``name`` is ""). ``by`` is drawn by who answers, so that it can ask
    whether it was his answer that counted."""

    task: TaskId
    name: str
    answer: Payload
    by: int


class EndWait(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=44):
    """Nobody answered in time."""

    task: TaskId
    epoch: int


class MoveRecord(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=45):
    """A payload of a task's records that was ``was`` is now ``payload``, in the store, for as long as its task needs it."""

    task: TaskId
    kind: str
    name: str
    was: Payload
    payload: Payload
