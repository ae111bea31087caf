"""The leader's part in resuming: takes in what attempts record and people answer, tells whom it concerns once it is durable, and
gives the next attempt what the ones before it recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.controller.admission import check_payload
from comity.controller.payloads import Payloads
from comity.core.tasks import Tasks
from comity.errors import BadInput, ComityError, NotFound, TooLarge
from comity.model.codec import to_json
from comity.model.ids import ProcessId, TaskId, check_task_id
from comity.model.limits import FAR_S, NUMBER_MAX, check_line
from comity.model.mail import Outgoing, Posted
from comity.model.payload import Logged, Payload, size_of
from comity.model.records import (
    NAME_BYTES,
    RECORDS_BYTES,
    RECORDS_MAX,
    AskInput,
    GiveAnswer,
    Place,
    Records,
    RecordStep,
    SaveCheckpoint,
)
from comity.model.task import Command, Fail, Task, TaskFailure
from comity.model.wire import (
    Answer,
    AnswerTask,
    Ask,
    Checkpointed,
    InputAsked,
    Item,
    Known,
    Recall,
    Recalled,
    Recorded,
    StepDone,
)

RUN_BYTES = 64 * 1024
"""Of records, that travel with an assignment; larger ones are asked for when they are needed."""
REFERENCE_BYTES = 64
"""Of a reference to the store, beside its key."""
Key = tuple[TaskId, int, str, str]


def known(task: Task) -> tuple[Known, ...]:
    """What an assignment says of earlier attempts."""
    return tuple(_known(task.records)) if task.records is not None else ()


def _known(records: Records) -> Iterator[Known]:
    room = RUN_BYTES
    carried: Payload | None
    for (kind, name), payload in records.payloads():
        if kind == "ask":
            continue
        if isinstance(payload, Logged):
            carried, cost = None, 0
        else:
            cost = len(payload) if isinstance(payload, bytes) else len(payload.key) + REFERENCE_BYTES
            carried = payload if cost <= room else None
        room -= cost if carried is not None else 0
        yield Known(kind, name, size_of(payload), carried)
    for name, question in records.questions.items():
        if question.is_over:
            yield Known("unanswered", name, 0)


def check_name(name: str) -> None:
    """BadInput, TooLarge if no step or question can be called so."""
    if not check_line(name, "the name of a step or question", NAME_BYTES):
        raise BadInput("a step or question has a name")
    if len(name.encode()) > NAME_BYTES:
        raise TooLarge(f"the name of a step or question has at most {NAME_BYTES} bytes", limit=NAME_BYTES)


class Resuming:
    """See the module. ``propose`` takes commands, ``settle`` tells a node that its attempt is over; ``barrier`` calls back once
    what was proposed before is effective."""

    def __init__(
        self,
        state: Tasks,
        outbox: Outbox,
        payloads: Payloads,
        *,
        now_ms: Callable[[], int],
        propose: Callable[[Command], None],
        settle: Callable[[ProcessId, TaskId, int], None],
        barrier: Callable[[Callable[[], None]], None],
    ) -> None:
        self._state = state
        self._outbox = outbox
        self._payloads = payloads
        self._now_ms = now_ms
        self._propose = propose
        self._settle = settle
        self._barrier = barrier
        self.ask: Callable[[Ask, ProcessId], None]
        self.mail: Callable[[tuple[Outgoing, ...], ProcessId], tuple[Posted, ...]]
        self._under_way: set[Key] = set()
        self._work: set[asyncio.Task[None]] = set()
        self.takers: dict[type[Item], Callable[[Any, ProcessId], None]] = {
            StepDone: self._step,
            Checkpointed: self._checkpoint,
            Recall: self._recall,
            AnswerTask: self._answer,
        }

    def end(self) -> None:
        for work in self._work:
            work.cancel()

    # What attempts record

    def _running(self, item: StepDone | Checkpointed | Recall, sender: ProcessId) -> Task | None:
        """The task, if its running attempt is the one that speaks; else that one is told that it is over."""
        task = self._state.current(item.task, item.epoch)
        if task is None or task.attempt is None or task.attempt.node != sender:
            self._settle(sender, item.task, item.epoch)
            return None
        return task

    def _step(self, item: StepDone, sender: ProcessId) -> None:
        task = self._running(item, sender)
        if task is not None:
            command = RecordStep(item.task, item.epoch, item.name, item.result)
            self._record(task, command, ("step", item.name), item.result, item.mail, sender)

    def _checkpoint(self, item: Checkpointed, sender: ProcessId) -> None:
        task = self._running(item, sender)
        if task is not None and 0 < item.number <= NUMBER_MAX:
            command = SaveCheckpoint(item.task, item.epoch, item.number, item.state)
            self._record(task, command, ("checkpoint", str(item.number)), item.state, item.mail, sender)

    def _record(
        self,
        task: Task,
        command: RecordStep | SaveCheckpoint,
        what: tuple[str, str],
        payload: Payload,
        mail: tuple[Outgoing, ...],
        sender: ProcessId,
    ) -> None:
        kind, name = what
        if _holds(task, command):
            self._outbox.post(to(sender), Recorded(command.task, command.epoch, kind, name))
            return
        key = (command.task, command.epoch, kind, name)
        if key in self._under_way:
            return  # answered when it is effective
        try:
            check_name(name)
            check_payload(payload, sender)
            check_room(task, size_of(payload), kind == "step")
            if mail:
                command = msgspec.structs.replace(command, mail=self.mail(mail, sender))
        except ComityError as error:
            self._outbox.post(to(sender), Recorded(*key, error.code, error.message))
            return
        self._under_way.add(key)
        self._propose(command)

    def applied(self, command: RecordStep | SaveCheckpoint) -> None:
        """It is effective, whatever came of it. Of an attempt that is over by now the node is told by others."""
        kind, name = ("step", command.name) if isinstance(command, RecordStep) else ("checkpoint", str(command.number))
        key = (command.task, command.epoch, kind, name)
        self._under_way.discard(key)
        task = self._state.current(command.task, command.epoch)
        if task is None or task.attempt is None:
            return
        refused = () if _holds(task, command) else ("too-large", "no room is left for records of this task")
        self._outbox.post(to(task.attempt.node), Recorded(*key, *refused))

    def asked(self, item: InputAsked, sender: ProcessId) -> Command:
        """The command that ends an attempt for a question."""
        try:
            check_name(item.name)
            check_payload(item.ask, sender)
            if not 0 <= item.timeout_ms <= FAR_S * 1000:
                raise BadInput("a time-out must not be negative, nor beyond reason")
            mail = self.mail(item.mail, sender)
        except ComityError as error:
            return Fail(item.task, item.epoch, TaskFailure(error.code, error.message, retryable=False))
        until_ms = self._now_ms() + item.timeout_ms if item.timeout_ms else 0
        return AskInput(item.task, item.epoch, item.name, item.ask, until_ms, max(0, item.ran_ms), mail)

    # What they ask for

    def _recall(self, item: Recall, sender: ProcessId) -> None:
        task = self._running(item, sender)
        if task is None:
            return
        payload = task.records.find(Place(item.kind, item.name)) if task.records is not None else None
        held = self._payloads.hot(payload) if payload is not None else None
        if payload is None or held is not None:
            self._recalled(item, sender, held)
        else:
            work = asyncio.get_running_loop().create_task(self._load(item, sender, payload))
            self._work.add(work)
            work.add_done_callback(self._work.discard)

    async def _load(self, item: Recall, sender: ProcessId, payload: Payload) -> None:
        try:
            held = await self._payloads.load_from(lambda: payload)
        except ComityError as error:
            task = self._state.current(item.task, item.epoch)
            if task is None or task.records is None or not error.definite:
                return  # the node asks again
            if task.records.find(Place(item.kind, item.name)) == payload:
                answer = Recalled(item.task, item.epoch, item.kind, item.name, None, error.code, error.message)
                self._outbox.post(to(sender), answer)
            else:  # it went to the store meanwhile
                self._recall(item, sender)
            return
        self._recalled(item, sender, held)

    def _recalled(self, item: Recall, sender: ProcessId, held: Payload | None) -> None:
        error = ("", "")
        if held is None:
            error = (NotFound.code, f"task {item.task} has no {item.kind} {item.name}")
        self._outbox.post(to(sender), Recalled(item.task, item.epoch, item.kind, item.name, held, *error))

    # What people answer

    def _answer(self, item: AnswerTask, sender: ProcessId) -> None:
        try:
            check_task_id(item.task)
            check_payload(item.answer, sender)
            if item.name:
                check_name(item.name)
            task = self._state.tasks.get(item.task)
            if task is not None and not task.is_terminal:
                check_room(task, size_of(item.answer), 0)
        except ComityError as error:
            body = to_json({"message": error.message, "details": error.details})
            self._outbox.post(to(sender), Answer(item.ref, error.code, body))
            return
        if item.task in self._state.tasks:
            self._propose(GiveAnswer(item.task, item.name, item.answer, item.ref))
        question = {"id": item.task, "name": item.name, "by": item.ref}
        self._barrier(lambda: self.ask(Ask(item.ref, "answered", msgspec.json.encode(question)), sender))


def check_room(task: Task, size: int, more: int) -> None:
    """TooLarge if the task's records leave no room for this one."""
    if not (task.records or Records()).has_room(size, more):
        said = f"a task has at most {RECORDS_MAX} steps and questions, and records of {RECORDS_BYTES} bytes"
        raise TooLarge(said, count=RECORDS_MAX, limit=RECORDS_BYTES)


def _holds(task: Task, command: RecordStep | SaveCheckpoint) -> bool:
    records = task.records
    if records is None:
        return False
    if isinstance(command, RecordStep):
        return command.name in records.steps
    last = records.checkpoint
    return last is not None and (last.epoch, last.number) >= (command.epoch, command.number)
