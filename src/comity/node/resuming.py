"""What a running attempt remembers: records of the attempts before it, and those it makes.

A record is effective before the call that made it returns. So the next attempt, wherever it runs, goes on from there; what was
under way when a node died is done once more.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from math import inf
from typing import TYPE_CHECKING, Any, NamedTuple

from comity.errors import BadInput, Fenced, InvalidOutput, TooLarge, Unanswered, from_wire
from comity.model.codec import to_json
from comity.model.limits import check_line, check_timeout
from comity.model.mail import AT_ONCE, SENT_BYTES, Outgoing, size_of_mail
from comity.model.payload import LOG_LIMIT, Payload, Stored
from comity.model.records import NAME_BYTES, RECORDS_BYTES, RECORDS_MAX, Place
from comity.model.typed import Decoder, decoder
from comity.model.wire import Checkpointed, InputAsked, Item, Known, Recall, Recalled, Recorded, Run, StepDone

if TYPE_CHECKING:
    from comity.node.performing import Performer

SUFFIX_BYTES = 5
"""For the number of a name that is used again."""
_CHECKPOINT = Place("checkpoint", "")


class Suspended(BaseException):
    """Ends the attempt until its question is answered. Not an ``Exception``: user code that catches those must not stop it."""

    def __init__(self, name: str, ask: bytes, timeout_ms: int, mail: tuple[Outgoing, ...] = ()) -> None:
        super().__init__(f"waits for {name}")
        self.name = name
        self.ask = ask
        self.timeout_ms = timeout_ms
        self.mail = mail

    def report(self, run: Run, ran_ms: int) -> InputAsked:
        return InputAsked(run.task, run.epoch, self.name, self.ask, self.timeout_ms, ran_ms, self.mail)


def suspension(error: BaseException) -> Suspended | None:
    """The question for which an attempt ended, if nothing else went wrong: a task group wraps it."""
    while isinstance(error, BaseExceptionGroup):
        own, others = error.split(Suspended)
        if own is None or others is not None:
            return None
        error = own.exceptions[0]
    return error if isinstance(error, Suspended) else None


class Doors(NamedTuple):
    """What a memory needs of its node: ``keep(payload, number)`` and ``fetch`` use the store; ``is_waiting(memory, yes)`` is told
    whether something is to be repeated; ``held()`` returns while the node holds its lease."""

    performer: Performer
    post: Callable[[Item], None]
    keep: Callable[[Run, bytes, int], Awaitable[Stored]]
    fetch: Callable[[Run, Payload, float], Awaitable[bytes]]
    is_waiting: Callable[[Memory, bool], None]
    held: Callable[[], Awaitable[None]]
    now: Callable[[], float]


class _Open:
    __slots__ = ("future", "item", "sent_at")

    def __init__(self, item: Item, future: asyncio.Future[Payload | None]) -> None:
        self.item = item
        self.future = future
        self.sent_at = 0.0


class Memory:
    """See the module. Of one attempt; used from the node's loop only."""

    def __init__(self, run: Run, doors: Doors) -> None:
        self._run = run
        self._doors = doors
        self._known: dict[Place, Known] = {Place(known.kind, known.name): known for known in run.known}
        self._count = sum(known.kind != "checkpoint" for known in run.known)
        self._size = sum(known.size for known in run.known)
        self._names: set[Place] = set()
        self._open: dict[Place, _Open] = {}
        self._checkpoints = self._kept = 0
        self._last = self._known.get(_CHECKPOINT)
        self._state = b""
        self._is_over = False
        self._outgoing: tuple[Outgoing, ...] = ()

    # What the attempt's function does

    async def step(self, name: str, call: functools.partial[Any], kind: Any) -> Any:
        """See ``Attempt.step``."""
        place, read = self._place("step", name), _reader(kind)
        known = self._known.get(place)
        if known is not None:
            self._outgoing = ()  # it went with the record
            return read(await self._load(known))
        self._check_room(0, 1)
        data = to_json(await self._doors.performer.run(call))
        value = read(data)
        self._check_room(len(data), 1)
        self._count, self._size = self._count + 1, self._size + len(data)
        payload = await self._carried(data)
        await self._ask(place, StepDone(self._run.task, self._run.epoch, place.name, payload, self.take_mail()))
        return value

    async def checkpoint(self, state: Any) -> None:
        """See ``Attempt.checkpoint``."""
        data = to_json(state)
        grown = len(data) - (self._last.size if self._last is not None else 0)
        self._check_room(grown, 0)
        self._checkpoints += 1
        number = self._checkpoints
        self._size += grown
        self._last = Known("checkpoint", "", len(data))
        payload = await self._carried(data)
        item = Checkpointed(self._run.task, self._run.epoch, number, payload, self.take_mail())
        await self._ask(Place("checkpoint", str(number)), item)

    @property
    def has_state(self) -> bool:
        """Whether there is something to ``load`` before the function begins."""
        return _CHECKPOINT in self._known

    async def load(self, limit_s: float) -> None:
        """Fetch the last checkpoint of earlier attempts. Raises Indefinite errors if the store is away for ``limit_s``."""
        self._state = await self._load(self._known[_CHECKPOINT], limit_s)

    def resume_state(self, kind: Any) -> Any:
        """See ``Attempt.resume_state``. None if there is none."""
        return _reader(kind)(self._state) if self._state else None

    async def wait_for(self, name: str, ask: Any, timeout: float | None, kind: Any) -> Any:
        """See ``Attempt.wait_for``."""
        timeout = check_timeout(timeout)
        place = self._place("answer", name)
        answer = self._known.get(place)
        if answer is not None or Place("unanswered", place.name) in self._known:
            self._outgoing = ()
        if answer is not None:
            return _reader(kind)(await self._load(answer))
        if Place("unanswered", place.name) in self._known:
            raise Unanswered(f"nobody answered {place.name!r} in time", question=place.name)
        data = to_json(ask)
        if len(data) > LOG_LIMIT:
            raise TooLarge(f"a question of {len(data)} bytes", limit=LOG_LIMIT)
        self._check_room(len(data), 1)
        raise Suspended(place.name, data, max(1, round(timeout * 1000)) if timeout is not None else 0, self.take_mail())

    async def guard(self) -> None:
        """See ``Attempt.guard``."""
        self._check_current()
        await self._doors.held()
        self._check_current()

    def send(self, mail: Outgoing) -> None:
        """Keep a mail until the next record, with which it becomes durable. Raises TooLarge, Fenced."""
        self._check_current()
        if len(self._outgoing) >= AT_ONCE or sum(map(size_of_mail, self._outgoing)) + size_of_mail(mail) > SENT_BYTES:
            said = f"an attempt sends at most {AT_ONCE} mails, of {SENT_BYTES} bytes, before its next step or checkpoint"
            raise TooLarge(said, count=AT_ONCE, limit=SENT_BYTES)
        self._outgoing += (mail,)

    def take_mail(self) -> tuple[Outgoing, ...]:
        """What is to go with a record."""
        mail, self._outgoing = self._outgoing, ()
        return mail

    def _check_current(self) -> None:
        if self._is_over:
            raise Fenced(f"this attempt at task {self._run.task} is over", task=self._run.task, epoch=self._run.epoch)

    def _place(self, kind: str, name: str) -> Place:
        """Where the record is: the second of one name in this attempt is ``name#2``, in the order of the calls."""
        limit = NAME_BYTES - SUFFIX_BYTES
        if not 0 < len(check_line(name, "the name of a step or question", limit).encode()) <= limit:
            raise BadInput(f"a step or question has a name of 1 to {limit} bytes, not {name[:40]!r}", limit=limit)
        found, number = Place(kind, name), 1
        while found in self._names:
            number += 1
            found = Place(kind, f"{name}#{number}")
        self._names.add(found)
        return found

    def _check_room(self, size: int, more: int) -> None:
        if self._count + more > RECORDS_MAX:
            raise TooLarge(f"a task has at most {RECORDS_MAX} steps and questions", limit=RECORDS_MAX)
        if self._size + size > RECORDS_BYTES:
            raise TooLarge(f"the records of a task take at most {RECORDS_BYTES} bytes", limit=RECORDS_BYTES)

    # Between here and the leader

    async def _carried(self, data: bytes) -> Payload:
        if len(data) <= LOG_LIMIT:
            return data
        self._kept += 1
        return await self._doors.keep(self._run, data, self._kept)

    async def _load(self, known: Known, limit_s: float = inf) -> bytes:
        payload = known.payload
        if payload is None:
            recall = Recall(self._run.task, self._run.epoch, known.kind, known.name)
            payload = await self._ask(Place(f"recall {known.kind}", known.name), recall)
        assert payload is not None
        return payload if isinstance(payload, bytes) else await self._doors.fetch(self._run, payload, limit_s)

    async def _ask(self, place: Place, item: Item) -> Payload | None:
        """Tell the leader, again and again, until it answers. Raises Fenced, or what it says."""
        self._check_current()
        opened = self._open[place] = _Open(item, asyncio.get_running_loop().create_future())
        self._doors.is_waiting(self, True)
        try:
            self._send(opened)
            return await opened.future
        finally:
            del self._open[place]
            if not self._open:
                self._doors.is_waiting(self, False)

    def _send(self, opened: _Open) -> None:
        opened.sent_at = self._doors.now()
        self._doors.post(opened.item)

    def repeat(self, before: float) -> None:
        """Send again what was sent ``before`` and is not answered."""
        for opened in self._open.values():
            if opened.sent_at <= before:
                self._send(opened)

    def on_recorded(self, item: Recorded) -> None:
        self._answered(Place(item.kind, item.name), None, item)

    def on_recalled(self, item: Recalled) -> None:
        self._answered(Place(f"recall {item.kind}", item.name), item.payload, item)

    def _answered(self, place: Place, payload: Payload | None, item: Recorded | Recalled) -> None:
        opened = self._open.get(place)
        if opened is None or opened.future.done():
            return
        if item.code:
            opened.future.set_exception(from_wire(item.code, item.message))
        else:
            opened.future.set_result(payload)

    def end(self) -> None:
        """The attempt is over. What still awaits a record is told so."""
        self._is_over = True
        for opened in self._open.values():
            if not opened.future.done():
                said = f"this attempt at task {self._run.task} is over; it may not have been recorded"
                opened.future.set_exception(Fenced(said, task=self._run.task, epoch=self._run.epoch))


class Forgetful:
    """Of a live call, at which there is one attempt only: steps run, and nothing is kept."""

    def __init__(self, performer: Performer) -> None:
        self._performer = performer

    async def step(self, name: str, call: functools.partial[Any], kind: Any) -> Any:
        return _reader(kind)(to_json(await self._performer.run(call)))

    async def checkpoint(self, state: Any) -> None:
        to_json(state)

    def resume_state(self, kind: Any) -> Any:
        return None

    async def guard(self) -> None:
        """Nobody else has the call."""

    async def wait_for(self, name: str, ask: Any, timeout: float | None, kind: Any) -> Any:
        raise BadInput("a live call cannot wait for an answer: submit it as a task", question=name)


def _reader(kind: Any) -> Callable[[bytes], Any]:
    """Reads a record as a ``kind``: what is recorded and what is used are the same, whichever attempt made it."""
    reads: Decoder = decoder(kind)

    def read(data: bytes) -> Any:
        try:
            return reads.decode(data)
        except (ValueError, RecursionError) as error:
            raise InvalidOutput(f"a record is no {kind}: {error}") from error

    return read
