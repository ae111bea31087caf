"""An attempt, as the function that runs it has it in its hands."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from comity import speaking
from comity.model.ids import AgentId, TaskId
from comity.model.typed import returned_by

if TYPE_CHECKING:
    from comity.client.client import Client

__all__ = ["Attempt", "Memory", "Ticket"]

T = TypeVar("T")


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


class Attempt:
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

    # What it says, as a client does

    submit, submit_many, stream = speaking.submit, speaking.submit_many, speaking.stream
    task, cancel = speaking.task, speaking.cancel
    request, send, broadcast, receipts = speaking.request, speaking.send, speaking.broadcast, speaking.receipts
    discover, capabilities = speaking.discover, speaking.capabilities
    describe, performance = speaking.describe, speaking.performance
    put_file, get_file = speaking.put_file, speaking.get_file
    call_for_proposals, request_via = speaking.call_for_proposals, speaking.request_via
    query_if, query_ref, subscribe = speaking.query_if, speaking.query_ref, speaking.subscribe
    ping, borrow, invite = speaking.ping, speaking.borrow, speaking.invite

    @property
    def _client(self) -> Client:
        return self._ticket.client()
