"""Live messages between agents: requests that await a reply, and those that do not. A reply is matched by
``in_reply_to`` and by the process it comes from. A request ends when the reply comes, its time is over, or the peer's
process is seen to be gone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

from comity.bus.base import EVERYONE, Address, to
from comity.bus.outbox import Outbox
from comity.client.files import JSON, Depot
from comity.client.timers import Alarm, Timers
from comity.directory import Directory, Seen
from comity.errors import BadInput, ComityError, NoAgent, PeerLost, TimedOut, UnknownAgent, by_code, from_wire
from comity.model.capability import NodeRecord
from comity.model.codec import from_json
from comity.model.envelope import Envelope, Performative
from comity.model.files import REFERENCE
from comity.model.ids import AgentId, ProcessId, base32, node_of
from comity.model.limits import NAME_MAX, check_text
from comity.model.wire import Message, Ping

PING_S = 0.5
"""How often the process behind an unanswered request is probed: one that is gone is then reported by the bus."""


class Talk:
    """One request under way."""

    __slots__ = ("agent", "began_at", "future", "incarnation")

    def __init__(self, agent: AgentId, incarnation: int | None, future: asyncio.Future[Any], began_at: float) -> None:
        self.agent = agent
        self.incarnation = incarnation
        self.future = future
        self.began_at = began_at

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
        self._wall = wall
        self._loop = asyncio.get_running_loop()
        self._by_node: dict[ProcessId, dict[str, Talk]] = {}
        self._alarm: Alarm | None = None
        self._closed: ComityError | None = None
        directory.watch(self._on_seen)

    def envelope(
        self, body: bytes, content_type: str = JSON, *, sender: str, timeout_s: float = 0.0, conversation: str = "", **fields: Any
    ) -> Envelope:
        """A new message of this process's, in a conversation of its own unless one is given; of ``body`` and its type as
        ``Depot.carried`` gives them. Raises BadInput."""
        check_text(fields.get("topic", ""), "topic", NAME_MAX)
        check_text(conversation, "conversation")
        check_text(fields.get("in_reply_to", ""), "in_reply_to")
        now_ms = int(self._wall() * 1000)
        left_ms = round(timeout_s * 1000)
        id = base32(self._rng.getrandbits(100), 20)
        return Envelope(
            id=id, sender=sender or self._process, reply_to=self._process, conversation=conversation or id, body=body,
            content_type=content_type, sent_at=now_ms, reply_by=now_ms + left_ms if left_ms else 0, remaining_ms=left_ms,
            **fields,
        )  # fmt: skip

    async def request(self, agent: AgentId, envelope: Envelope, timeout_s: float) -> Any:
        """The body of the reply. Raises UnknownAgent, PeerLost, TimedOut, NoAgent (it refuses) or what the peer
        says."""
        if self._closed is not None:
            raise self._closed
        self._directory.start()
        node = node_of(agent)
        known = self._directory.nodes.get(node)
        incarnation = known.incarnation if known is not None else None
        talk = Talk(agent, incarnation, self._loop.create_future(), self._loop.time())
        talks = self._by_node.setdefault(node, {})
        talks[envelope.id] = talk
        alarm = self._timers.after(timeout_s, lambda: talk.fail(_late(agent, timeout_s)))
        if self._alarm is None:
            self._alarm = self._timers.after(PING_S, self._probe)
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
            del talks[envelope.id]
            if not talks and self._by_node.get(node) is talks:
                del self._by_node[node]

    async def _fetched(self, agent: AgentId, reply: Envelope, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return from_json((await self._depot.fetched(reply)).body)
        except TimeoutError:
            raise _late(agent, timeout_s) from None

    def post(self, node: ProcessId, envelope: Envelope) -> None:
        self._outbox.post(to(node), Message(envelope))

    def broadcast(self, envelope: Envelope) -> None:
        self._outbox.post(EVERYONE, Message(envelope))

    def on_reply(self, envelope: Envelope, sender: ProcessId) -> bool:
        """Whether ``envelope`` answers a request that waits."""
        talk = self._by_node.get(sender, {}).get(envelope.in_reply_to)
        if talk is None:
            return False
        if envelope.content_type == REFERENCE and envelope.performative is Performative.INFORM and not talk.future.done():
            talk.future.set_result(envelope)  # to be fetched
        elif envelope.performative is not Performative.AGREE and not talk.future.done():
            try:
                body = from_json(envelope.body)
                error = _error(talk.agent, envelope.performative, body)
            except ComityError as broken:
                body, error = None, broken
            if error is None:
                talk.future.set_result(body)
            else:
                talk.future.set_exception(error)
        return True

    def on_unreachable(self, address: Address) -> None:
        kind, _, name = address.partition("/")
        for talk in self._by_node.get(ProcessId(name), {}).values() if kind == "to" else ():
            if self._directory.is_loaded and name not in self._directory.nodes:
                talk.fail(UnknownAgent(f"no agent {talk.agent} is here", agent=talk.agent))
            else:
                talk.fail(PeerLost(f"{talk.agent}: nobody answers at {name}", agent=talk.agent))

    def _on_seen(self, changes: list[Seen]) -> None:
        for what, node in changes:
            if not isinstance(node, NodeRecord):
                continue
            for talk in self._by_node.get(node.id, {}).values():
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
        for talks in self._by_node.values():
            for talk in talks.values():
                talk.fail(error)


def _late(agent: AgentId, timeout_s: float) -> TimedOut:
    return TimedOut(f"{agent} did not reply within {round(timeout_s, 2):g} s", agent=agent)


def _error(agent: AgentId, performative: Performative, body: Any) -> ComityError | None:
    """What a reply that is no answer says; None for an answer."""
    said: dict[str, Any] = body if isinstance(body, dict) else {"message": str(body)}
    code, message = str(said.get("code", "")), str(said.get("message", ""))
    details: dict[str, Any] = {**(said.get("details") or {}), "agent": agent}
    if performative is Performative.FAILURE:
        return from_wire(code, message, details)
    if performative is Performative.REFUSE:
        reason = message or said.get("reason", "")
        return NoAgent(f"{agent} refuses: {reason}", agent=agent, refused=reason)
    if performative is Performative.NOT_UNDERSTOOD:
        return by_code().get(code, BadInput)(f"{agent} did not understand: {message}", **details)
    return None
