"""Live messages between agents: requests that await a reply, and those that do not. A reply is matched by
``in_reply_to`` and by the process it comes from. A request ends when the reply comes, its time is over, or the peer's
process is seen to be gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import count
from random import Random
from typing import Any, Protocol

from comity.bus.base import EVERYONE, Address, to
from comity.bus.outbox import Outbox
from comity.client.files import JSON, Depot
from comity.client.timers import Alarm, Timers
from comity.core.protocols import may_answer
from comity.directory import Directory, Seen
from comity.errors import (
    BadInput,
    ComityError,
    NoAgent,
    OutOfProtocol,
    PeerLost,
    TimedOut,
    TooLarge,
    UnknownAgent,
    by_code,
    from_wire,
)
from comity.model.capability import NodeRecord
from comity.model.codec import from_json
from comity.model.envelope import Envelope, Performative
from comity.model.files import REFERENCE
from comity.model.ids import AgentId, ProcessId, base32, node_of
from comity.model.limits import NAME_MAX, check_text
from comity.model.payload import LOG_LIMIT
from comity.model.wire import Message, Ping

PING_S = 0.5
"""How often the process behind an unanswered request is probed: one that is gone is then reported by the bus."""
GIVEN_UP = 1024
"""Requests that were not answered in time and are still known."""


class Awaited(Protocol):
    """What an agent is to say something to. ``incarnation``: of its node, when it began."""

    agent: AgentId
    incarnation: int | None
    began_at: float

    def hear(self, envelope: Envelope) -> str:
        """Take it in. Why not, if it is out of protocol and nobody has been told so yet."""
        ...

    def fail(self, error: ComityError) -> None:
        """It will say nothing more."""
        ...


class Talk:
    """One request under way."""

    __slots__ = ("agent", "asked", "began_at", "future", "incarnation")

    def __init__(self, agent: AgentId, asked: Performative, future: asyncio.Future[Any], began_at: float) -> None:
        self.agent = agent
        self.asked = asked
        self.incarnation: int | None = None
        self.future = future
        self.began_at = began_at

    def hear(self, envelope: Envelope) -> str:
        if not may_answer(self.asked, envelope.performative):
            reason = f"{envelope.performative} is no answer to a {self.asked}"
            self.fail(OutOfProtocol(f"{self.agent}: {reason}", agent=self.agent))
            return reason
        if envelope.content_type == REFERENCE and envelope.performative is Performative.INFORM:
            if not self.future.done():
                self.future.set_result(envelope)  # to be fetched
        elif envelope.performative is not Performative.AGREE and not self.future.done():
            try:
                body = from_json(envelope.body)
                error = error_in(self.agent, envelope.performative, body)
            except ComityError as broken:
                body, error = None, broken
            if error is None:
                self.future.set_result(body)
            else:
                self.future.set_exception(error)
        return ""

    def fail(self, error: ComityError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Messages:
    """``wall`` gives seconds since 1970. Invariant: ``_by_node`` holds the open talks, by the process that must
    answer."""

    def __init__(
        self,
        process: ProcessId,
        outbox: Outbox,
        directory: Directory,
        timers: Timers,
        rng: Random,
        wall: Callable[[], float],
        depot: Depot,
    ) -> None:
        self._process = process
        self._depot = depot
        self._outbox = outbox
        self._directory = directory
        self._timers = timers
        self._rng = rng
        self._prefix = base32(rng.getrandbits(100), 20)
        self._numbers = count(1)
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._by_node: dict[ProcessId, dict[str, Awaited]] = {}
        self._alarm: Alarm | None = None
        self._closed: ComityError | None = None
        self.refuse: Callable[[Envelope, ProcessId, str], None] = lambda envelope, sender, reason: None
        self.complain: Callable[[Envelope, str], None] = lambda envelope, reason: None
        self._given_up: dict[str, AgentId] = {}
        directory.watch(self._on_seen)

    def wall_ms(self) -> int:
        """What this process's clock says, in UTC milliseconds."""
        return int(self._wall() * 1000)

    def envelope(
        self, body: bytes, content_type: str = JSON, *, sender: str, timeout_s: float = 0.0, conversation: str = "", **fields: Any
    ) -> Envelope:
        """A new message of this process's, in a conversation of its own unless one is given; of ``body`` and its type as
        ``Depot.carried`` gives them. Raises BadInput, TooLarge."""
        check_text(fields.get("topic", ""), "topic", NAME_MAX)
        check_text(conversation, "conversation")
        check_text(fields.get("in_reply_to", ""), "in_reply_to")
        if len(body) > LOG_LIMIT:
            raise TooLarge(f"a message of {len(body)} bytes: pass a FileRef of put_file", limit=LOG_LIMIT)
        now_ms = int(self._wall() * 1000)
        left_ms = round(timeout_s * 1000)
        id = self.fresh_id()
        return Envelope(
            id=id, sender=sender or self._process, reply_to=self._process, conversation=conversation or id, body=body,
            content_type=content_type, sent_at=now_ms, reply_by=now_ms + left_ms if left_ms else 0, remaining_ms=left_ms,
            **fields,
        )  # fmt: skip

    def fresh_id(self) -> str:
        return f"{self._prefix}-{next(self._numbers)}"

    def shuffle(self, agents: list[AgentId]) -> None:
        self._rng.shuffle(agents)

    def attach(self, key: str, talk: Awaited) -> None:
        """Wait for what the agent says in answer to ``key``, and learn it if its process is gone. Raises what ended the
        connection."""
        if self._closed is not None:
            raise self._closed
        self._directory.start()
        node = node_of(talk.agent)
        known = self._directory.nodes.get(node)
        talk.incarnation = known.incarnation if known is not None else None
        self._by_node.setdefault(node, {})[key] = talk
        if self._alarm is None:
            self._alarm = self._timers.after(PING_S, self._probe)

    def detach(self, key: str, talk: Awaited) -> None:
        node = node_of(talk.agent)
        talks = self._by_node.get(node, {})
        if talks.get(key) is talk:
            del talks[key]
            if not talks:
                del self._by_node[node]

    async def request(self, agent: AgentId, envelope: Envelope, timeout_s: float) -> Any:
        """The body of the reply. Raises UnknownAgent, PeerLost, TimedOut, NoAgent (it refuses) or what the peer
        says."""
        node = node_of(agent)
        talk = Talk(agent, envelope.performative, self._loop.create_future(), self._loop.time())
        self.attach(envelope.id, talk)
        alarm = self._timers.after(timeout_s, lambda: self._give_up(envelope.id, talk, timeout_s))
        try:
            self._outbox.post(to(node), Message(envelope))
            reply = await talk.future
            return await self._fetched(agent, reply, timeout_s) if isinstance(reply, Envelope) else reply
        except asyncio.CancelledError:
            called_off = self.envelope(
                b"null", sender=envelope.sender, performative=Performative.CANCEL, receiver=agent, topic=envelope.topic,
                in_reply_to=envelope.id,
            )  # fmt: skip
            self.post(node, called_off)
            raise
        finally:
            alarm.cancel()
            self.detach(envelope.id, talk)

    def _give_up(self, id: str, talk: Talk, timeout_s: float) -> None:
        talk.fail(late(talk.agent, timeout_s))
        while len(self._given_up) >= GIVEN_UP:
            del self._given_up[next(iter(self._given_up))]
        self._given_up[id] = talk.agent

    async def _fetched(self, agent: AgentId, reply: Envelope, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return from_json((await self._depot.fetched(reply)).body)
        except TimeoutError:
            raise late(agent, timeout_s) from None

    def post(self, node: ProcessId, envelope: Envelope) -> None:
        self._outbox.post(to(node), Message(envelope))

    def broadcast(self, envelope: Envelope) -> None:
        self._outbox.post(EVERYONE, Message(envelope))

    def on_reply(self, envelope: Envelope, sender: ProcessId) -> bool:
        """Whether ``envelope`` answers a request that waits, or belongs to a conversation that is open."""
        talks = self._by_node.get(sender, {})
        talk = talks.get(envelope.in_reply_to)
        if talk is None and envelope.protocol:
            talk = talks.get(key_of(envelope.conversation, envelope.sender))
        if talk is None:
            agent = self._given_up.pop(envelope.in_reply_to, "")
            if agent and agent == envelope.sender:
                self.complain(envelope, f"{envelope.performative} came after its reply_by")
            return bool(agent)
        reason = talk.hear(envelope)
        if reason:
            self.refuse(envelope, sender, reason)
        return True

    def on_unreachable(self, address: Address) -> None:
        kind, _, name = address.partition("/")
        for talk in list(self._by_node.get(ProcessId(name), {}).values()) if kind == "to" else ():
            if self._directory.is_loaded and name not in self._directory.nodes:
                talk.fail(UnknownAgent(f"no agent {talk.agent} is here", agent=talk.agent))
            else:
                talk.fail(PeerLost(f"{talk.agent}: nobody answers at {name}", agent=talk.agent))

    def _on_seen(self, changes: list[Seen]) -> None:
        for what, node in changes:
            if not isinstance(node, NodeRecord):
                continue
            for talk in list(self._by_node.get(node.id, {}).values()):
                if what == "left":
                    talk.fail(PeerLost(f"{talk.agent}: its node has left", agent=talk.agent))
                elif talk.incarnation is None:
                    talk.incarnation = node.incarnation
                elif talk.incarnation != node.incarnation:
                    talk.fail(PeerLost(f"{talk.agent}: its node was started anew", agent=talk.agent))

    def _probe(self) -> None:
        self._alarm = None
        before = self._loop.time() - PING_S
        for node, talks in self._by_node.items():
            if any(talk.began_at <= before for talk in talks.values()):
                self._outbox.post(to(node), Ping(self._rng.getrandbits(53)))
        if self._by_node:
            self._alarm = self._timers.after(PING_S, self._probe)

    def close(self, error: ComityError) -> None:
        """Every request, now and later, ends in ``error``."""
        self._closed = error
        for talks in list(self._by_node.values()):
            for talk in list(talks.values()):
                talk.fail(error)


_OURS = ("self", "message")
"""What no detail of an error can be called."""


def key_of(conversation: str, agent: str) -> str:
    """Under which one side of a conversation is known; no message's id, for it has a slash."""
    return f"{conversation}/{agent}"


def late(agent: AgentId, timeout_s: float) -> TimedOut:
    return TimedOut(f"{agent} did not reply within {round(timeout_s, 2):g} s", agent=agent)


def error_in(agent: AgentId, performative: Performative, body: Any) -> ComityError | None:
    """What a reply that is no answer says; None for an answer."""
    said: dict[str, Any] = body if isinstance(body, dict) else {"message": str(body)}
    code, message = str(said.get("code", "")), str(said.get("message", ""))
    given = said.get("details")
    details = {name: value for name, value in given.items() if name not in _OURS} if isinstance(given, dict) else {}
    details["agent"] = agent
    if performative is Performative.FAILURE:
        return from_wire(code, message, details)
    if performative is Performative.REFUSE:
        reason = message or said.get("reason", "")
        return NoAgent(f"{agent} refuses: {reason}", agent=agent, refused=reason)
    if performative is Performative.NOT_UNDERSTOOD:
        return by_code().get(code, BadInput)(f"{agent} did not understand: {message}", **details)
    return None
