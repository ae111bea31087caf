"""What the functions of an agent hold in their hands: the attempt they run, the message they receive, and the verbs with which
they call others."""

from __future__ import annotations

import functools
import os
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, Unpack, overload

from comity.model.capability import AgentRecord
from comity.model.codec import from_json
from comity.model.envelope import Envelope, Performative
from comity.model.files import FileRef
from comity.model.ids import AgentId, TaskId
from comity.model.typed import returned_by
from comity.talking import Talker

if TYPE_CHECKING:
    from comity.client.client import Client
    from comity.client.parts import Parts
    from comity.client.task import Task
    from comity.client.terms import TaskOptions

__all__ = ["Attempt", "Memory", "Message", "Speaker", "Ticket"]

T = TypeVar("T")


class Speaker(Talker):
    """The verbs of a client, spoken through ``_client``: what an agent and an attempt have in common."""

    __slots__ = ()

    async def submit(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - as the client calls it
        *,
        key: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> Task:
        """Ask the network to do a task. See ``Client.submit``."""
        return await self._client.submit(capability, input, key=key, **options)

    async def submit_many(self, capability: str, inputs: Iterable[Any], **options: Unpack[TaskOptions]) -> list[Task]:
        """One task for each input. See ``Client.submit_many``."""
        return await self._client.submit_many(capability, inputs, **options)

    def stream(
        self,
        capability: str,
        input: Any = None,  # noqa: A002 - as the client calls it
        *,
        as_type: Any = Any,
        key: str | None = None,
        **options: Unpack[TaskOptions],
    ) -> Parts:
        """Submit a task, and read what its capability yields. See ``Client.stream``."""
        return self._client.stream(capability, input, as_type=as_type, key=key, **options)

    def task(self, id: str) -> Task:
        """See ``Client.task``."""
        return self._client.task(id)

    async def request(self, target: str, body: Any = None, **options: Any) -> Any:
        """Ask an agent, or any that offers a capability, live; gives the reply's body. See ``Client.request``."""
        return await self._client.request(target, body, **options)

    async def send(self, target: str, body: Any = None, **options: Any) -> str:
        """Tell an agent something, live or durably. See ``Client.send``."""
        return await self._client.send(target, body, **options)

    async def broadcast(self, body: Any = None, **options: Any) -> str:
        """Tell every agent that listens and has the tags, or a group, live or durably. See ``Client.broadcast``."""
        return await self._client.broadcast(body, **options)

    async def receipts(self, id: str) -> dict[str, Any]:
        """Who has a durable mail. See ``Client.receipts``."""
        return await self._client.receipts(id)

    async def discover(self, capability: str = "", **options: Any) -> list[AgentRecord]:
        """Who is here and offers it. See ``Client.discover``."""
        return await self._client.discover(capability, **options)

    async def put_file(self, path: str | os.PathLike[str], **options: Any) -> FileRef:
        """Store a file; what stands for it. See ``Client.put_file``."""
        return await self._client.put_file(path, **options)

    async def get_file(self, ref: FileRef | dict[str, Any], path: str | os.PathLike[str]) -> Path:
        """Write a stored file to ``path``. See ``Client.get_file``."""
        return await self._client.get_file(ref, path)

    async def capabilities(self) -> list[dict[str, Any]]:
        """What can be done here. See ``Client.capabilities``."""
        return await self._client.capabilities()

    async def performance(self, capability: str) -> dict[str, dict[str, Any]]:
        """What was measured of each agent at it. See ``Client.performance``."""
        return await self._client.performance(capability)

    async def describe(self, name: str) -> dict[str, Any]:
        """One of them. See ``Client.describe``."""
        return await self._client.describe(name)

    async def cancel(self, task: Task | str, reason: str = "") -> dict[str, Any]:
        """Ask for a task's end. See ``Client.cancel``."""
        return await self._client.cancel(task, reason)


class Memory(Protocol):
    """What is recorded of a task's attempts: see the methods of ``Attempt``. ``kind`` is the type to read it as."""

    async def step(self, name: str, call: functools.partial[Any], kind: Any) -> Any: ...

    async def checkpoint(self, state: Any) -> None: ...

    def resume_state(self, kind: Any) -> Any: ...

    async def wait_for(self, name: str, ask: Any, timeout: float | None, kind: Any) -> Any: ...

    async def guard(self) -> None: ...


class Ticket(Protocol):
    """What an attempt's handle needs of the node that runs it."""

    is_canceled: bool

    @property
    def task(self) -> TaskId: ...

    @property
    def epoch(self) -> int: ...

    @property
    def number(self) -> int: ...

    @property
    def parent(self) -> TaskId | None: ...

    @property
    def capability(self) -> str: ...

    @property
    def agent(self) -> AgentId: ...

    @property
    def deadline(self) -> datetime | None: ...

    @property
    def memory(self) -> Memory: ...

    def remaining_s(self) -> float: ...

    def tell(self, body: dict[str, Any]) -> None: ...

    def client(self) -> Client:
        """Speaks for the attempt."""
        ...


class Attempt(Speaker):
    """One try at a task, in the hands of the function that runs it. Its verbs make child tasks: they record this task as their
    parent, inherit its deadline, and are canceled with it; while a child's result is awaited, no slot of the agent is held. A
    child without a key is canceled with the attempt, too; by its key the next attempt finds it again. Calls made live, not as a
    task, have an empty ``id`` and ``epoch`` 0, and their steps are recorded nowhere. ``progress``, ``log`` and ``is_canceled``
    may be used from the thread of a plain function."""

    __slots__ = ("_ticket",)

    def __init__(self, ticket: Ticket) -> None:
        self._ticket = ticket

    @property
    def id(self) -> TaskId:
        return self._ticket.task

    @property
    def epoch(self) -> int:
        """The attempt's fencing token: grows with every attempt at the task. Pass it to whatever must refuse a stale writer."""
        return self._ticket.epoch

    @property
    def number(self) -> int:
        """1 for the first try."""
        return self._ticket.number

    @property
    def parent(self) -> TaskId | None:
        return self._ticket.parent

    @property
    def capability(self) -> str:
        return self._ticket.capability

    @property
    def agent(self) -> AgentId:
        return self._ticket.agent

    @property
    def deadline(self) -> datetime | None:
        """When the task must be finished (UTC), if it has a deadline."""
        return self._ticket.deadline

    @property
    def remaining_s(self) -> float:
        """Seconds until this attempt will be stopped: by the task's deadline or the attempt's own time-out."""
        return self._ticket.remaining_s()

    @property
    def is_canceled(self) -> bool:
        """Whether to stop. An async function is also interrupted with CancelledError; a plain one has to look here."""
        return self._ticket.is_canceled

    def progress(self, value: float | None = None, **info: Any) -> None:
        """Tell followers how far it is (0 to 1, or what you like). Live: not kept, not in the log. Raises NotSerializable."""
        self._ticket.tell({"type": "progress", "value": value, **info})

    def log(self, message: str, **info: Any) -> None:
        """Tell followers something. Live, as ``progress``. Raises NotSerializable."""
        self._ticket.tell({"type": "log", "message": message, **info})

    @overload
    async def step(self, name: str, function: Callable[..., Awaitable[T]], /, *args: Any, **named: Any) -> T: ...

    @overload
    async def step(self, name: str, function: Callable[..., T], /, *args: Any, **named: Any) -> T: ...

    async def step(self, name: str, function: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        """Call ``function`` once, async or plain (that one in a thread), and record what it returns, durably: the next attempt
        gets the record and calls nothing. So whatever kills an attempt, at most the step that ran is done again.

        ``name`` (1 to 95 bytes) says which step it is; used again in the same attempt it is ``name#2`` and so on, in the order of
        the calls: give steps that run side by side names of their own. What it gives is read back from JSON, as the type that
        ``function`` is annotated to return. Raises what ``function`` raises (then nothing is recorded), NotSerializable,
        InvalidOutput, TooLarge (see ``docs/guide.md``), Fenced (the attempt is over).
        """
        call = functools.partial(function, *args, **named)
        return await self._ticket.memory.step(name, call, returned_by(function))

    async def checkpoint(self, state: Any) -> None:
        """Save how far it is; durable when this returns. The next attempt has it as ``resume_state``; a later one replaces it.
        Raises NotSerializable, TooLarge, Fenced."""
        await self._ticket.memory.checkpoint(state)

    @property
    def resume_state(self) -> Any:
        """What an earlier attempt saved last, as JSON builtins; None on the first attempt, or if nothing was saved."""
        return self._ticket.memory.resume_state(Any)

    def resume_state_as(self, kind: type[T]) -> T | None:
        """``resume_state`` as a dataclass, Struct or pydantic model. Raises InvalidOutput if it is none."""
        state: T | None = self._ticket.memory.resume_state(kind)
        return state

    async def wait_for(self, name: str, *, ask: Any = None, timeout: float | None = None, as_type: Any = Any) -> Any:
        """The answer to a question, from outside: ``comity tasks answer`` or ``Task.answer``.

        Until there is one the task is ``input-required``, and this attempt ENDS here: it holds no slot and no node, and uses no
        retry. The next attempt runs from the beginning, over its steps, and gets the answer here at once. ``ask`` is what to tell
        who answers; ``name`` as in ``step``. Raises Unanswered if nobody did within ``timeout`` seconds, InvalidOutput if the
        answer is no ``as_type``.
        """
        return await self._ticket.memory.wait_for(name, ask, timeout, as_type)

    async def guard(self) -> None:
        """Wait until it is known that this attempt has the task, and nobody else: right before an effect that should not happen
        twice. Returns at once but while the node is out of contact: then others may have been given the task already. What is
        moved in the very moment of the effect it cannot tell: for that, pass ``epoch`` along. Raises Fenced (the attempt is
        over)."""
        await self._ticket.memory.guard()

    @property
    def _client(self) -> Client:
        return self._ticket.client()


class Message:
    """A message in the hands of the function that receives it. Times are UTC. ``is_answered``: it was replied to by ``reply``, so
    that what the function returns is not sent. Of durable mail, ``is_repeat``: the function may have had it before, when its node
    was lost in the middle; ``fence`` grows with every life of the node: pass it, and ``id``, to whatever must refuse a stale or
    second effect (0: a live message)."""

    __slots__ = ("_answer", "envelope", "fence", "is_answered", "is_repeat")

    def __init__(
        self,
        envelope: Envelope,
        answer: Callable[[Envelope, Performative, Any], None],
        *,
        fence: int = 0,
        is_repeat: bool = False,
    ) -> None:
        self.envelope = envelope
        self._answer = answer
        self.fence = fence
        self.is_repeat = is_repeat
        self.is_answered = False

    @property
    def id(self) -> str:
        return self.envelope.id

    @property
    def performative(self) -> Performative:
        return self.envelope.performative

    @property
    def topic(self) -> str:
        return self.envelope.topic

    @property
    def sender(self) -> str:
        return self.envelope.sender

    @property
    def conversation(self) -> str:
        return self.envelope.conversation

    @property
    def in_reply_to(self) -> str:
        return self.envelope.in_reply_to

    @property
    def sent_at(self) -> datetime:
        return datetime.fromtimestamp(self.envelope.sent_at / 1000, UTC)

    @property
    def body(self) -> Any:
        """The body as JSON builtins; bytes if it is not JSON by its content type. Raises InvalidInput."""
        envelope = self.envelope
        return from_json(envelope.body) if envelope.content_type == "application/json" else envelope.body

    def reply(self, body: Any = None, performative: Performative | str = Performative.INFORM) -> None:
        """Answer it now, and as often as need be, instead of returning a value. May be used from a plain function's thread."""
        self.is_answered = True
        self._answer(self.envelope, Performative(performative), body)

    def leave(self, reason: str = "") -> None:
        """Leave the conversation that it opened: a collaboration, or a subscription of somebody. Raises Conflict (it is over)."""
        self.reply({"message": reason}, Performative.CANCEL)
