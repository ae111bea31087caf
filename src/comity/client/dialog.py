"""A conversation that this process opens, with one agent or with many: a machine for each of them, and one row of what they say.

Each ends in what its protocol calls an end, when its reply_by has passed, or when the other side is gone: so whoever reads the
row until nobody is left to be heard never hangs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.client.complaints import Complaints
from comity.client.messages import Messages, error_in, key_of, late
from comity.client.timers import Alarm, Timers
from comity.core.conversations import (
    CLOSING,
    Conversation,
    Event,
    Lost,
    NotUnderstood,
    Protocol,
    Role,
    Said,
    Seen,
    State,
    Tick,
)
from comity.errors import ComityError, Conflict, NoAgent, OutOfProtocol, Overloaded, PeerLost
from comity.model.codec import from_json, to_json
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId, ProcessId, node_of
from comity.model.wire import Message

PAST = 1024
"""Conversations that are over and still known, so that what comes late gets the reason."""
UNREAD, UNREAD_BYTES = 10_000, 64 * 1024 * 1024
"""Who says more than so much before it is read is no longer listened to."""
NOTHING = b"null"
STANDING = (State.SUBSCRIBED, State.JOINED)
"""Where nothing is awaited, the agent says every five seconds that it stands."""
SILENT_S = 20.0
"""So long without a word, and it does not stand any more."""


class Heard(NamedTuple):
    """What an agent said; or the error that ended its side."""

    leg: Leg
    says: Performative | None
    body: Any
    error: ComityError | None


class Leg:
    """One agent's side of a dialog. See ``messages.Awaited``."""

    __slots__ = ("_alarm", "_asked_s", "_heard", "agent", "began_at", "conversation", "dialog", "incarnation", "seen")

    def __init__(self, dialog: Dialog, agent: AgentId, began_at: float) -> None:
        self.dialog = dialog
        self.agent = agent
        self.incarnation: int | None = None
        self.began_at = began_at
        self.conversation = Conversation(dialog.protocol)
        self.seen = Seen()
        self._heard = ""
        self._alarm: Alarm | None = None
        self._asked_s = 0.0

    @property
    def state(self) -> State:
        return self.conversation.state

    def say(self, says: Performative, data: bytes = NOTHING, reply_in_s: float = 0.0, topic: str = "") -> None:
        """Raises Conflict (its side is over, or ``says`` is out of protocol), TooLarge."""
        if not self.tell(says, data, reply_in_s, topic):
            raise Conflict(f"the conversation with {self.agent} is {self.state}: no {says} now", agent=self.agent)

    def tell(self, says: Performative, data: bytes = NOTHING, reply_in_s: float = 0.0, topic: str = "") -> bool:
        """Say it if it can be said now. Raises TooLarge."""
        dialog, now = self.dialog, self.dialog.talks.loop.time()
        if not self.conversation.allows(Role.INITIATOR, says):
            return False
        envelope = dialog.envelope(self.agent, says, data, reply_in_s, self._heard, topic)
        self._asked_s = reply_in_s
        if self._step(Said(Role.INITIATOR, says, now + reply_in_s if reply_in_s else None), now):
            return False  # it has expired
        dialog.talks.outbox.post(to(node_of(self.agent)), Message(envelope))
        return True

    def hear(self, envelope: Envelope) -> str:
        if self.seen.is_copy(envelope.id):
            return ""
        now, left_s = self.dialog.talks.loop.time(), envelope.remaining_ms / 1000
        says, self._heard = envelope.performative, envelope.id
        reason = self._step(Said(Role.PARTICIPANT, says, now + left_s if left_s > 0 else None), now)
        if reason:
            self.dialog.talks.refuse(envelope, node_of(self.agent), reason, self.dialog.speaker)
            if self.state is not State.EXPIRED:
                self._put(None, None, OutOfProtocol(f"{self.agent}: {reason}", agent=self.agent))
            return ""
        if says is Performative.AGREE:
            return ""
        try:
            body = from_json(envelope.body)
            error = error_in(self.agent, says, body)
        except ComityError as broken:
            body, error = None, broken
        if says is Performative.REJECT_PROPOSAL:
            error = NoAgent(f"{self.agent} declines", agent=self.agent, refused=_reason(body))
        self._put(says, body, error, len(envelope.body))
        return ""

    def fail(self, error: ComityError) -> None:
        if self._step(Lost(), self.dialog.talks.loop.time()) == "lost":
            self._put(None, None, error)

    def _tick(self) -> None:
        self._alarm = None
        if self.state in STANDING:
            self.fail(PeerLost(f"{self.agent} has said nothing for {SILENT_S:g} s", agent=self.agent))
        else:
            self._step(Tick(), self.dialog.talks.loop.time())

    def _step(self, event: Event, now: float) -> str:
        """Why not, if it was refused; "lost" if a loss ended it."""
        was_over = self.conversation.is_over
        effects = self.conversation.step(event, now)
        if self.conversation.is_over and not was_over:
            self._watch(None)
            self.dialog.talks.end(self)
            if self.state is State.EXPIRED:
                self._put(None, None, late(self.agent, self._asked_s))
            elif self.state is State.LOST:
                return "lost"
        if self.state not in STANDING:
            self._watch(self.conversation.next_deadline())
        elif self._alarm is None or (isinstance(event, Said) and event.role is Role.PARTICIPANT):
            self._watch(now + SILENT_S)
        return next((effect.reason for effect in effects if isinstance(effect, NotUnderstood)), "")

    def _watch(self, deadline: float | None) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if deadline is not None:
            self._alarm = self.dialog.talks.timers.at(deadline, self._tick)

    def _put(self, says: Performative | None, body: Any, error: ComityError | None, size: int = 0) -> None:
        self.dialog.put(Heard(self, says, body, error), size)


class Dialog:
    """Use it as a context: who still waits for a word at its end is told that none will come."""

    def __init__(self, talks: Talks, protocol: Protocol, topic: str, *, sender: str = "", trace: str = "") -> None:
        self.talks = talks
        self.protocol = protocol
        self.id = talks.messages.fresh_id()
        self.legs: dict[AgentId, Leg] = {}
        self.speaker = sender or talks.process
        self._topic = topic
        self._trace = trace
        self._row: deque[tuple[Heard, int]] = deque()
        self._size = 0
        self._came = asyncio.Event()

    def __enter__(self) -> Dialog:
        return self

    def __exit__(self, *_: object) -> None:
        for leg in list(self.legs.values()):
            leg.tell(Performative.REJECT_PROPOSAL if leg.state is State.PROPOSED else Performative.CANCEL)

    def open(self, agent: AgentId, says: Performative, data: bytes, reply_in_s: float) -> Leg:
        """Raises TooLarge, BadInput."""
        leg = self.legs[agent] = Leg(self, agent, self.talks.loop.time())
        self.talks.messages.attach(key_of(self.id, agent), leg)
        try:
            leg.say(says, data, reply_in_s)
        except ComityError:
            del self.legs[agent]
            self.talks.messages.detach(key_of(self.id, agent), leg)
            raise
        return leg

    def envelope(
        self, agent: AgentId, says: Performative, data: bytes, reply_in_s: float, in_reply_to: str, topic: str
    ) -> Envelope:
        return self.talks.messages.envelope(
            data, sender=self.speaker, timeout_s=reply_in_s, conversation=self.id, performative=says, receiver=agent,
            topic=topic or self._topic, protocol=self.protocol.name, in_reply_to=in_reply_to, trace=self._trace,
        )  # fmt: skip

    def put(self, heard: Heard, size: int) -> None:
        leg = heard.leg
        if (len(self._row) < UNREAD and self._size + size <= UNREAD_BYTES) or heard.error is not None:
            self._row.append((heard, size))
            self._size += size
        elif leg.tell(Performative.CANCEL):
            error = Overloaded(f"{leg.agent} said more than was read", agent=leg.agent)
            self._row.append((Heard(leg, None, None, error), 0))
        self._came.set()

    async def heard(self) -> Heard:
        """The next that was said."""
        while not self._row:
            self._came.clear()
            await self._came.wait()
        heard, size = self._row.popleft()
        self._size -= size
        return heard


class Talks:
    """The dialogs of a process, as far as they share anything: what is over, and what belongs to none."""

    def __init__(
        self, process: ProcessId, messages: Messages, outbox: Outbox, timers: Timers, complaints: Complaints
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.messages = messages
        self.outbox = outbox
        self.timers = timers
        self.complaints = complaints
        self.process = process
        self._past: dict[str, tuple[Conversation, str]] = {}
        messages.refuse, messages.complain = self.refuse, complaints.tell

    def end(self, leg: Leg) -> None:
        key = key_of(leg.dialog.id, leg.agent)
        self.messages.detach(key, leg)
        while len(self._past) >= PAST:
            del self._past[next(iter(self._past))]
        self._past[key] = (leg.conversation, leg.dialog.speaker)

    def stray(self, envelope: Envelope, sender: ProcessId) -> None:
        """A reply to something that no open dialog of ours has said."""
        known = self._past.get(key_of(envelope.conversation, envelope.sender))
        if known is None:
            if envelope.performative not in CLOSING:
                self.refuse(envelope, sender, f"no conversation {envelope.conversation!r} is open here")
            return
        conversation, speaker = known
        for effect in conversation.step(Said(Role.PARTICIPANT, envelope.performative), self.loop.time()):
            if isinstance(effect, NotUnderstood):
                self.refuse(envelope, sender, effect.reason, speaker)
                return
        if envelope.performative is Performative.AGREE and conversation.state is State.CANCELED:
            self._answer(envelope, sender, Performative.CANCEL, NOTHING, speaker)  # the first one was lost

    def refuse(self, envelope: Envelope, sender: ProcessId, reason: str, speaker: str = "") -> None:
        """Say that it was not understood, or to a bidder that comes too late that it is rejected; and complain."""
        self.complaints.tell(envelope, reason)
        if envelope.performative in CLOSING or envelope.sender.partition("/")[0] != sender:
            return
        proposed = envelope.performative is Performative.PROPOSE and envelope.protocol
        says = Performative.REJECT_PROPOSAL if proposed else Performative.NOT_UNDERSTOOD
        self._answer(envelope, sender, says, to_json({"code": OutOfProtocol.code, "message": reason}), speaker)

    def _answer(self, envelope: Envelope, sender: ProcessId, says: Performative, data: bytes, speaker: str) -> None:
        answer = self.messages.envelope(
            data, sender=speaker, conversation=envelope.conversation, performative=says, receiver=envelope.sender,
            topic=envelope.topic if envelope.protocol else "", protocol=envelope.protocol, in_reply_to=envelope.id,
            trace=envelope.trace,
        )  # fmt: skip
        self.outbox.post(to(sender), Message(answer))


def _reason(body: Any) -> str:
    return str(body.get("message", "")) if isinstance(body, dict) else str(body or "")
