"""Functions of a plain client that receive messages, by topic or performative. (A node has its agents' own.)"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, TypeVar

from comity.client.files import Depot
from comity.errors import ComityError, Conflict, InvalidInput, Refuse
from comity.message import Message
from comity.model.envelope import Envelope, Performative
from comity.model.ids import ProcessId
from comity.model.limits import check_name
from comity.model.signature import Arguments, Signature

F = TypeVar("F", bound=Callable[..., Any])
Reply = Callable[[Envelope, ProcessId, Performative, Any], None]

WANTS_REPLY = frozenset({Performative.REQUEST, Performative.QUERY})


class Listener(NamedTuple):
    function: Callable[..., Any]
    signature: Signature


class Listeners:
    """``reply(to_this, sender, performative, body)`` sends an answer; ``depot`` holds large bodies."""

    def __init__(self, reply: Reply, depot: Depot) -> None:
        self._reply = reply
        self._depot = depot
        self._by_topic: dict[str, Listener] = {}
        self._running: dict[asyncio.Task[None], None] = {}

    def on(self, topic: str, namespace: Mapping[str, Any]) -> Callable[[F], F]:
        """A decorator. Raises BadInput, Conflict."""
        check_name(topic, "a topic")

        def listen(function: F) -> F:
            if topic in self._by_topic:
                raise Conflict(f"there is a function for {topic!r} already", topic=topic)
            signature = Signature(function, handles={"message": Message}, namespace=namespace, whole=True)
            self._by_topic[topic] = Listener(function, signature)
            return function

        return listen

    def off(self, topic: str) -> None:
        self._by_topic.pop(topic, None)

    def deliver(self, envelope: Envelope, sender: ProcessId) -> None:
        listener = self._by_topic.get(envelope.topic) or self._by_topic.get(envelope.performative)
        if listener is not None:
            self.spawn(self._receive(listener, envelope, sender))
        elif envelope.receiver and envelope.performative in WANTS_REPLY:
            said = {"message": f"nothing here listens to {envelope.topic or envelope.performative!r}"}
            self._reply(envelope, sender, Performative.NOT_UNDERSTOOD, said)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` in the background, until the client closes."""
        task = asyncio.get_running_loop().create_task(work)
        self._running[task] = None
        task.add_done_callback(self._running.pop)

    async def _receive(self, listener: Listener, envelope: Envelope, sender: ProcessId) -> None:
        awaited = envelope.performative in WANTS_REPLY
        try:
            envelope = await self._depot.fetched(envelope)
            message = Message(envelope, lambda to_this, how, body: self._reply(to_this, sender, how, body))
            body = await _call(listener, envelope, message)
            if awaited and not message.is_answered:
                self._reply(envelope, sender, Performative.INFORM, body)
        except Refuse as refusal:
            self._reply(envelope, sender, Performative.REFUSE, {"message": refusal.reason})
        except Exception as error:  # whoever asked is told; if nobody did, the event loop is
            if awaited:
                how = Performative.NOT_UNDERSTOOD if isinstance(error, InvalidInput) else Performative.FAILURE
                code = error.code if isinstance(error, ComityError) else type(error).__name__
                self._reply(envelope, sender, how, {"code": code, "message": str(error)})
            else:
                context = {"message": f"the function for {envelope.topic!r} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    def close(self) -> None:
        for work in self._running:
            work.cancel()


async def _call(listener: Listener, envelope: Envelope, message: Message) -> Any:
    signature = listener.signature
    given = signature.decode(envelope.body) if signature.takes_input else Arguments((), {})
    found = listener.function(*[message for _ in signature.handles], *given.positional, **given.named)
    return await found if signature.is_async else found
