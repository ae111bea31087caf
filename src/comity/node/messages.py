"""Delivers messages to the agents of this node, and sends back what their functions answer.

A message goes to the agent's function for its topic; else, if it asks something, to the capability of that name; else to the
function for its performative. Every message runs in an asyncio task of its own, so a function that awaits a reply stops no
other, least of all that reply. Whoever asks is answered: with what the function returns (inform), with its error (failure), its
refusal (refuse), or not-understood. A broadcast reaches the agents that listen to it and have its tags or are in its group,
but not its sender.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any

import msgspec
import structlog

from comity.agent import Agent, Listener, Offered
from comity.bus.base import LEADER, to
from comity.client.client import Client
from comity.client.complaints import Complaints
from comity.client.files import JSON, Depot, is_large
from comity.core.protocols import may_answer
from comity.errors import (
    BadInput,
    ComityError,
    Conflict,
    InvalidInput,
    NoAgent,
    NotSerializable,
    Refuse,
    ShuttingDown,
    UnknownAgent,
)
from comity.handles import Attempt
from comity.message import Message
from comity.model import wire
from comity.model.capability import AgentStatus
from comity.model.codec import to_json
from comity.model.envelope import Envelope, Performative
from comity.model.files import REFERENCE
from comity.model.ids import AgentId, ProcessId, TaskId, base32, check_token
from comity.node.brokering import Broker
from comity.node.conversing import Conversing
from comity.node.failing import failure_of, place, said_by
from comity.node.performing import Performer, ended, is_closing
from comity.node.resuming import Forgetful

ANSWERED = frozenset({Performative.REQUEST, Performative.QUERY})
"""What a function returns for these goes back as inform."""
ASKING = ANSWERED | {Performative.SUBSCRIBE, Performative.CFP, Performative.PROPOSE}
"""Who sends these is told if it cannot be done."""

_log = structlog.get_logger("comity.node")


class Call:
    """One message at work, and what the handle of a live call to a capability sees (a ``Ticket`` without a task)."""

    __slots__ = ("_messages", "agent", "deadline_at", "envelope", "hosted", "is_canceled", "timer", "work")

    work: asyncio.Task[None]
    task = TaskId("")
    epoch = 0
    number = 1
    parent = None

    def __init__(self, messages: Messages, envelope: Envelope, agent: AgentId, hosted: Agent, now: float) -> None:
        self._messages = messages
        self.envelope = envelope
        self.agent = agent
        self.hosted = hosted
        self.deadline_at = now + envelope.remaining_ms / 1000 if envelope.remaining_ms else inf
        self.is_canceled = False
        self.timer: asyncio.TimerHandle | None = None

    @property
    def capability(self) -> str:
        return self.envelope.topic

    @property
    def deadline(self) -> datetime | None:
        return self._messages.utc(self.deadline_at) if self.deadline_at < inf else None

    def remaining_s(self) -> float:
        return max(0.0, self.deadline_at - self._messages.now())

    def tell(self, body: dict[str, Any]) -> None:
        """Nobody follows a call; what cannot be told is refused all the same."""
        to_json(body)

    def client(self) -> Client:
        return self._messages.speak(self)

    @property
    def memory(self) -> Forgetful:
        return self._messages.forgetful


def _is_somewhere(reply_to: str, sender: ProcessId) -> bool:
    """Whether a reply can be sent there; "" is to the sender."""
    try:
        return reply_to in ("", sender) or bool(check_token(reply_to.partition("/")[0], "address"))
    except BadInput:
        return False


def _is_meant(agent: Agent, broadcast: Envelope) -> bool:
    return all(tag in agent.tags for tag in broadcast.tags) and (not broadcast.group or broadcast.group in agent.groups)


class Messages:
    """``find`` gives an agent of this node by name, ``speak`` gives a live call its verbs. Dropped and counted: ``expired`` ones,
    ``forged`` ones whose sender is not the process they came from or that want a reply nowhere, ``late`` replies that nobody
    waits for."""

    def __init__(
        self,
        node: ProcessId,
        incarnation: int,
        find: Callable[[str], Agent | None],
        performer: Performer,
        post: Callable[[str, wire.Item], None],
        speak: Callable[[Call], Client],
        wall: Callable[[], float],
        depot: Depot,
    ) -> None:
        self.expired = 0
        self.forged = 0
        self.late = 0
        self.calls: dict[tuple[str, str], Call] = {}
        """At work, by sender and id. A broadcast's calls have the agent's name behind the id."""
        self.speak = speak
        self.forgetful = Forgetful(performer)
        self.is_closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.now = self._loop.time
        self._node = node
        self._prefix = base32(incarnation, 9)
        self._made = 0
        self._find = find
        self._performer = performer
        self._post = post
        self._wall = wall
        self._depot = depot
        self._replies: set[asyncio.Task[None]] = set()
        self._listeners: dict[str, dict[str, Agent]] = {}
        self._fresh: list[Call] = []
        self._complaints = Complaints(lambda item: post(LEADER, item), self.now)
        self.conversing = Conversing(self._send, self._stop_work, post, self._complaints)

    def utc(self, at: float) -> datetime:
        return datetime.fromtimestamp(self._wall(), UTC) + timedelta(seconds=at - self.now())

    # Who listens

    def listens(self, agent: Agent, topics: Iterable[str]) -> None:
        """``agent`` is hosted here; whether it listens to each of ``topics`` is up to its listeners now."""
        for topic in topics:
            if topic in agent.listeners:
                self._listeners.setdefault(topic, {})[agent.name] = agent
            else:
                self.forget(agent, (topic,))

    def forget(self, agent: Agent, topics: Iterable[str]) -> None:
        for topic in topics:
            found = self._listeners.get(topic, {})
            found.pop(agent.name, None)
            if not found:
                self._listeners.pop(topic, None)

    def is_listened_to(self, topic: str) -> bool:
        return topic in self._listeners

    # Taking in

    def take(self, envelope: Envelope, sender: ProcessId) -> None:
        """A message from ``sender``, as the bus says, that no request of this process's waits for."""
        if envelope.sender.partition("/")[0] != sender or not _is_somewhere(envelope.reply_to, sender):
            self.forged += 1
            self._complaints.tell(envelope, f"it came from {sender}, which cannot speak for {envelope.sender}")
        elif envelope.remaining_ms < 0 or 0 < envelope.expires_at <= self._wall() * 1000:
            self.expired += 1
        elif not envelope.receiver:
            self._spread(envelope)
        else:
            self._deliver(envelope)

    def _spread(self, envelope: Envelope) -> None:
        topic = envelope.topic if envelope.topic in self._listeners else ""
        found = self._listeners.get(topic or envelope.performative, {})
        other = self._listeners.get(envelope.performative, {}) if topic else {}
        for name, agent in [*found.items(), *((n, a) for n, a in other.items() if n not in found)]:
            if f"{self._node}/{name}" != envelope.sender and _is_meant(agent, envelope):
                listener = agent.listeners.get(envelope.topic) or agent.listeners[envelope.performative]
                self._start(envelope, agent, listener, f"{envelope.id}/{name}")

    def _deliver(self, envelope: Envelope) -> None:
        if envelope.performative is Performative.CANCEL and not envelope.protocol:
            call = self.calls.get((envelope.sender, envelope.in_reply_to))
            if call is not None:
                self._stop(call)
                return
        node, _, name = envelope.receiver.partition("/")
        agent = self._find(name) if node == self._node else None
        if envelope.protocol and name and node == self._node:
            taken = self.conversing.take(envelope, agent)
            if taken is None:
                return
            envelope = taken
        if agent is None:
            if not name and (envelope.in_reply_to or envelope.performative not in ASKING):
                self.late += 1
            else:
                self._fail(envelope, self._node, UnknownAgent(f"no agent {envelope.receiver} is here", agent=envelope.receiver))
            return
        to_do = self._function(agent, envelope)
        if self.is_closed and envelope.performative in ASKING:
            self._fail(envelope, self._node, ShuttingDown(f"node {self._node} is leaving"))
        elif to_do is not None:
            self._start(envelope, agent, to_do, envelope.id)
            if envelope.protocol:
                self.conversing.started(envelope, AgentId(envelope.receiver))
        elif envelope.performative in ASKING:
            about = f"topic {envelope.topic!r}" if envelope.topic else f"a {envelope.performative} without a topic"
            said = {"message": f"{envelope.receiver} has no function for {about}"}
            self._answer(envelope, AgentId(envelope.receiver), Performative.NOT_UNDERSTOOD, said)

    def _function(self, agent: Agent, envelope: Envelope) -> Listener | Offered | Broker | None:
        own = self.conversing.function(agent, envelope) if envelope.protocol else None
        if own is not None:
            return own
        listener = agent.listeners.get(envelope.topic)
        if listener is None and envelope.performative in ANSWERED:
            offered = agent.offered.get(envelope.topic)
            if offered is not None:
                return offered
        return listener or agent.listeners.get(envelope.performative)

    # Doing it

    def _start(self, envelope: Envelope, agent: Agent, to_do: Listener | Offered | Broker, number: str) -> None:
        key = (envelope.sender, number)
        if key in self.calls:
            return
        call = Call(self, envelope, AgentId(f"{self._node}/{agent.name}"), agent, self.now())
        self.calls[key] = call
        call.work = self._loop.create_task(self._run(key, call, to_do))
        if call.deadline_at < inf:
            if not self._fresh:
                self._loop.call_soon(self._loop.call_soon, self._look)  # behind the first steps of what came with it
            self._fresh.append(call)

    def _look(self) -> None:
        """Only calls that outlive the turn they came in need a timer."""
        fresh, self._fresh = self._fresh, []
        for call in fresh:
            if not call.work.done():
                call.timer = self._loop.call_at(call.deadline_at, self._stop, call)

    def _stop(self, call: Call) -> None:
        """Nobody waits for it any more. It is canceled behind its first step: what never began could not clean up."""
        call.is_canceled = True
        self._loop.call_soon(call.work.cancel)

    async def _run(self, key: tuple[str, str], call: Call, to_do: Listener | Offered | Broker) -> None:
        envelope = call.envelope
        try:
            if call.is_canceled:
                return
            if envelope.content_type == REFERENCE:
                call.envelope = envelope = await self._depot.fetched(envelope)
            data = await (self._listener(call, to_do) if isinstance(to_do, Listener) else self._perform(call, to_do))
            if envelope.protocol:
                self.conversing.returned(envelope, call.agent, data)
            elif data is not None and envelope.performative in ANSWERED:
                body, kind = await self._depot.carried(data)
                self._send(envelope, call.agent, Performative.INFORM, body, content_type=kind)
        except Refuse as refusal:
            self._answer(envelope, call.agent, Performative.REFUSE, {"message": said_by(refusal.reason)})
        except asyncio.CancelledError as error:
            if not call.is_canceled:
                self._fail(envelope, call.agent, error)
        except BaseException as error:  # whatever the user's function raises
            if is_closing(error, call.work):
                raise
            self._fail(envelope, call.agent, error)
        finally:
            del self.calls[key]
            if call.timer is not None:
                call.timer.cancel()

    async def _perform(self, call: Call, to_do: Offered | Broker) -> bytes | None:
        return await (to_do.relay(call) if isinstance(to_do, Broker) else self._offered(call, to_do))

    def _stop_work(self, sender: str, id: str) -> None:
        call = self.calls.get((sender, id))
        if call is not None:
            self._stop(call)

    async def _offered(self, call: Call, offered: Offered) -> bytes:
        if call.hosted.status is not AgentStatus.ACTIVE:
            raise Refuse(f"{call.agent} is {call.hosted.status}")
        return await self._performer.perform(offered, call.envelope.body, lambda: Attempt(call), lambda: None)

    async def _listener(self, call: Call, listener: Listener) -> bytes | None:
        """The function's answer as JSON; None if there is nothing more to say."""
        envelope, signature = call.envelope, listener.signature
        arguments = None
        if signature.takes_input:
            try:
                if envelope.content_type != "application/json":
                    raise InvalidInput(f"the body is {envelope.content_type}, not JSON; take the message instead")
                arguments = signature.decode(envelope.body)
            except InvalidInput as error:
                said = {"code": error.code, "message": error.message}
                self._answer(envelope, call.agent, Performative.NOT_UNDERSTOOD, said)
                return None
        handles = (Message(envelope, functools.partial(self.reply, call.agent)),) if signature.handles else ()
        value = await self._performer.call(listener.function, signature, handles, arguments)
        is_awaited = envelope.protocol or envelope.performative in ANSWERED
        return signature.encode(value) if is_awaited and not any(message.is_answered for message in handles) else None

    # Sending back

    def reply(self, agent: AgentId, envelope: Envelope, performative: Performative, body: Any) -> None:
        """``Message.reply``, maybe from a thread. Raises NotSerializable, TooLarge, BadInput (no answer to what was asked),
        Conflict (its conversation has no place for it, any more)."""
        data = to_json(body)
        if envelope.protocol:
            reason = self.conversing.why_not(envelope, agent, performative)
            if reason:
                raise Conflict(f"no {performative} now: {reason}")
        elif not may_answer(envelope.performative, performative):
            raise BadInput(f"{performative} is no answer to a {envelope.performative}")
        send = self._begin_large if is_large(data) else self._send
        if threading.get_ident() == self._thread:
            send(envelope, agent, performative, data)
        else:
            self._loop.call_soon_threadsafe(send, envelope, agent, performative, data)

    def _begin_large(self, envelope: Envelope, agent: AgentId | ProcessId, performative: Performative, data: bytes) -> None:
        work = self._loop.create_task(self._send_large(envelope, agent, performative, data))
        self._replies.add(work)
        work.add_done_callback(self._replies.discard)

    async def _send_large(
        self, envelope: Envelope, agent: AgentId | ProcessId, performative: Performative, data: bytes
    ) -> None:
        try:
            body, kind = await self._depot.carried(data)
            self._send(envelope, agent, performative, body, content_type=kind)
        except ComityError as error:
            self._fail(envelope, agent, error)

    def _fail(self, envelope: Envelope, agent: AgentId | ProcessId, error: BaseException) -> None:
        failure = failure_of(error)
        said = {"code": failure.code, "message": failure.message}
        try:
            details = msgspec.json.decode(to_json(error.details)) if isinstance(error, ComityError) else {}
        except NotSerializable:
            details = {}
        self._answer(envelope, agent, Performative.FAILURE, {**said, "details": details})
        if envelope.performative not in ASKING:
            _log.warning("a message's function failed", topic=envelope.topic, agent=agent, **said, at=place(error))

    def _answer(
        self, envelope: Envelope, agent: AgentId | ProcessId, performative: Performative, body: dict[str, Any]
    ) -> None:
        if envelope.protocol and performative is Performative.REFUSE and self.conversing.why_not(envelope, agent, performative):
            performative, body = Performative.FAILURE, {"code": NoAgent.code, **body}  # too late to refuse
        if envelope.performative in ASKING:
            self._send(envelope, agent, performative, to_json(body))

    def _send(
        self, envelope: Envelope, agent: AgentId | ProcessId, performative: Performative, data: bytes, hold_ms: int = 0,
        content_type: str = JSON,
    ) -> None:
        """A reply to ``envelope``, unless its conversation has no place for it any more. Raises TooLarge."""
        if envelope.protocol:
            held_ms = self.conversing.says(envelope, agent, performative, hold_ms)
            if held_ms is None:
                return
            hold_ms = held_ms
        self._made += 1
        receiver = envelope.reply_to or envelope.sender
        reply = Envelope(
            id=f"{self._node}-{self._prefix}-{self._made}", performative=performative, sender=agent, receiver=receiver,
            topic=envelope.topic, protocol=envelope.protocol, conversation=envelope.conversation,
            in_reply_to=envelope.id, sent_at=int(self._wall() * 1000), trace=envelope.trace, body=data,
            content_type=content_type, remaining_ms=hold_ms,
        )  # fmt: skip
        self._post(to(receiver.partition("/")[0]), wire.Message(reply))

    def load(self) -> dict[AgentId, int]:
        """Calls at work, by agent."""
        counts: dict[AgentId, int] = {}
        for call in self.calls.values():
            counts[call.agent] = counts.get(call.agent, 0) + 1
        return counts

    async def close(self, grace_s: float) -> None:
        """Stop what is at work; whoever asked is told."""
        self.is_closed = True
        calls = list(self.calls.values())
        for call in calls:
            self._fail(call.envelope, call.agent, ShuttingDown(f"node {self._node} has left"))
            self._stop(call)
        self.conversing.leave(self.conversing.agents, f"node {self._node} has left")
        await ended([*(call.work for call in calls), *self._replies], grace_s)
        self.conversing.close()
