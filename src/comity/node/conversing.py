"""The agents' side of conversations that others open with them: a machine for each, which lets through to their functions what
the protocol has, and refuses the rest. What an agent says goes through it, too.

    cfp ──▶ the function of @agent.bid ──▶ propose;  accept-proposal ──▶ what the agent would do on request, with the cfp's body
    subscribe ──▶ the function of the topic: each reply is an inform, its return the end (cancel), its error a failure
    propose (an invitation) ──▶ the function of collaboration.invite ──▶ accept-proposal
    request of a resource ──▶ propose, if enough of what the agent lends is left

A conversation ends at its deadline; one that has none, when nobody listens any more where it came from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated

import msgspec

from comity.agent import Agent, Listener
from comity.bus.base import to
from comity.client.complaints import Complaints
from comity.client.timers import Alarm, Timers
from comity.core.conversations import (
    CLOSING,
    Conversation,
    Event,
    Lost,
    NotUnderstood,
    Role,
    Said,
    Seen,
    State,
    Tick,
)
from comity.core.protocols import BROKERING, PROTOCOLS, RESOURCE
from comity.errors import OutOfProtocol, ShuttingDown
from comity.model.capability import AgentStatus
from comity.model.codec import UNREADABLE, to_json
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId
from comity.model.limits import FAR_S, NUMBER_MAX
from comity.model.wire import Item, Ping
from comity.node.brokering import Broker

OPEN_MAX = 10_000
PER_PEER = 1000
"""Conversations that one process may have open at this node."""
HELD_MAX = 64 * 1024 * 1024
"""Bytes of calls for proposals that are kept for the work."""
KEY_MAX = 1000
PAST = 1024
BINDS_S = 60.0
"""How long a proposal binds its bidder."""
PING_S = 5.0
"""How often the processes behind open conversations are probed, and told of those that have no deadline."""
NOTHING = b"null"
_RETURNS = {
    Performative.REQUEST: Performative.INFORM, Performative.QUERY: Performative.INFORM, Performative.CFP: Performative.PROPOSE,
    Performative.PROPOSE: Performative.ACCEPT_PROPOSAL,
}  # fmt: skip
"""What a function that returns so says."""

Key = tuple[str, str, str]
"""Initiator, conversation, agent."""


class Wanted(msgspec.Struct, frozen=True):
    """What somebody would borrow."""

    amount: Annotated[float, msgspec.Meta(gt=0, le=NUMBER_MAX)]
    for_s: Annotated[float, msgspec.Meta(gt=0, le=FAR_S)]


_decode_wanted = msgspec.json.Decoder(Wanted).decode

class Open:
    """A conversation under way. ``said``: the call or request that the work is for; ``work``: the message that is worked on."""

    __slots__ = ("alarm", "amount", "conversation", "key", "peer", "said", "seen", "work")

    def __init__(self, key: Key, conversation: Conversation, said: Envelope) -> None:
        self.key = key
        self.conversation = conversation
        self.said = said
        self.seen = Seen()
        self.work = ""
        self.peer = (said.reply_to or said.sender).partition("/")[0]
        self.amount = 0.0
        self.alarm: Alarm | None = None


class Conversing:
    """``send(to_this, agent, performative, data, hold_ms)`` sends an answer, ``stop(sender, id)`` ends the work on a message."""

    def __init__(
        self,
        send: Callable[[Envelope, AgentId, Performative, bytes, int], None],
        stop: Callable[[str, str], None],
        post: Callable[[str, Item], None],
        complaints: Complaints,
    ) -> None:
        self._send = send
        self._stop = stop
        self._post = post
        self._complaints = complaints
        self._loop = asyncio.get_running_loop()
        self._timers = Timers(self._loop)
        self._open: dict[Key, Open] = {}
        self._past: dict[Key, Conversation] = {}
        self._per_peer: dict[str, int] = {}
        self._held = 0
        self._missed: set[str] = set()
        self._missed_before: set[str] = set()
        self._probe: Alarm | None = None

    def __len__(self) -> int:
        return len(self._open)

    @property
    def agents(self) -> set[str]:
        """With a conversation open."""
        return {found.key[2] for found in self._open.values()}

    # What others say

    def take(self, envelope: Envelope, agent: Agent | None) -> Envelope | None:
        """The message as an agent's function is to get it; None if that is none of its business."""
        protocol = PROTOCOLS.get(envelope.protocol)
        if protocol is None:
            self.refuse(envelope, f"there is no protocol {envelope.protocol!r}; there are: {', '.join(PROTOCOLS)}")
            return None
        key = (envelope.sender, envelope.conversation, envelope.receiver)
        if sum(map(len, key)) > KEY_MAX:
            self.refuse(envelope, "the names of its sender and conversation are too long")
            return None
        found = self._open.get(key)
        if found is None:
            if key not in self._past and protocol.opens(envelope.performative):
                if agent is None:
                    return envelope  # whoever asks is told that nobody of this name is here
                if not self._is_room(envelope):
                    return None
                found = self._begin(Open(key, Conversation(protocol), envelope))
            else:
                self._stray(key, envelope)
                return None
        if found.conversation.protocol is not protocol:
            self.refuse(envelope, f"this conversation is a {found.conversation.protocol.name}, not a {envelope.protocol}")
            return None
        if found.seen.is_copy(envelope.id):
            return None
        now = self._loop.time()
        reply_by = now + envelope.remaining_ms / 1000 if envelope.remaining_ms > 0 else None
        reason = self._step(found, Said(Role.INITIATOR, envelope.performative, reply_by))
        if reason:
            self.refuse(envelope, reason)
            return None
        return self._to_do(found, envelope, agent)

    def _to_do(self, found: Open, envelope: Envelope, agent: Agent | None) -> Envelope | None:
        says = envelope.performative
        if says is Performative.CANCEL:
            self._send(envelope, AgentId(envelope.receiver), Performative.INFORM, NOTHING, 0)
            return None
        if says is Performative.ACCEPT_PROPOSAL:
            envelope = msgspec.structs.replace(envelope, performative=Performative.REQUEST, body=found.said.body)
        elif found.conversation.protocol is RESOURCE:
            if says is Performative.REQUEST:
                self._lend(found, envelope, agent)
            return None
        elif says is Performative.SUBSCRIBE:
            envelope = msgspec.structs.replace(envelope, remaining_ms=0)  # that was for the first word
        elif says in (Performative.REJECT_PROPOSAL, Performative.NOT_UNDERSTOOD):
            listens = agent is not None and says in agent.listeners
            return msgspec.structs.replace(envelope, topic="") if listens else None
        elif says is Performative.CFP and envelope is not found.said:
            if not self._fits(envelope):
                self._refuse_more(envelope)
                return None
            self._held += len(envelope.body) - len(found.said.body)
            found.said = envelope
        if not found.conversation.is_over and says is not Performative.INFORM:
            found.work = envelope.id
        return envelope

    def _is_room(self, envelope: Envelope) -> bool:
        """Whether another one can be kept; if not, it is refused."""
        peer = (envelope.reply_to or envelope.sender).partition("/")[0]
        if len(self._open) < OPEN_MAX and self._per_peer.get(peer, 0) < PER_PEER and self._fits(envelope):
            return True
        self._refuse_more(envelope)
        return False

    def _fits(self, envelope: Envelope) -> bool:
        return self._held + len(envelope.body) <= HELD_MAX

    def _refuse_more(self, envelope: Envelope) -> None:
        reason = to_json({"message": "too many conversations are open here, or too large ones"})
        self._send(envelope, AgentId(envelope.receiver), Performative.REFUSE, reason, 0)

    def _stray(self, key: Key, envelope: Envelope) -> None:
        """Belongs to nothing that is open here."""
        past = self._past.get(key)
        if past is None:
            if envelope.performative not in CLOSING:
                self.refuse(envelope, f"no conversation {envelope.conversation!r} is open here")
            return
        for effect in past.step(Said(Role.INITIATOR, envelope.performative), self._loop.time()):
            if isinstance(effect, NotUnderstood):
                self.refuse(envelope, effect.reason)

    def refuse(self, envelope: Envelope, reason: str) -> None:
        self._complaints.tell(envelope, reason)
        if envelope.performative not in CLOSING:
            said = to_json({"code": OutOfProtocol.code, "message": reason})
            self._send(envelope, AgentId(envelope.receiver), Performative.NOT_UNDERSTOOD, said, 0)

    # What the agent does and says

    def function(self, agent: Agent, envelope: Envelope) -> Listener | Broker | None:
        """What the agent has for a message of a protocol alone."""
        if envelope.performative is Performative.CFP:
            return agent.bids.get(envelope.topic)
        if envelope.protocol == BROKERING.name and agent.brokers is not None:
            return Broker(agent.brokers)
        return None

    def started(self, envelope: Envelope, agent: AgentId) -> None:
        """A function is at work on it: a subscription begins, unless it refuses at once."""
        if envelope.performative is Performative.SUBSCRIBE or envelope.protocol == BROKERING.name:
            self._loop.call_soon(self._loop.call_soon, self._agree, envelope, agent)

    def _agree(self, envelope: Envelope, agent: AgentId) -> None:
        found = self._open.get((envelope.sender, envelope.conversation, agent))
        if found is not None and found.conversation.state is State.ASKED:
            self._send(envelope, agent, Performative.AGREE, NOTHING, 0)

    def returned(self, envelope: Envelope, agent: AgentId, data: bytes | None) -> None:
        """The function for ``envelope`` has returned; ``data`` None: it has said all there is to say."""
        if envelope.performative is Performative.SUBSCRIBE:
            self._agree(envelope, agent)
            self._send(envelope, agent, Performative.CANCEL, NOTHING, 0)
        elif data is not None and envelope.performative in _RETURNS:
            says = _RETURNS[envelope.performative]
            if says is Performative.PROPOSE and data == NOTHING:
                says, data = Performative.REFUSE, to_json({"message": "it makes no proposal"})
            self._send(envelope, agent, says, data, 0)

    def why_not(self, envelope: Envelope, agent: str, says: Performative) -> str:
        """Why the agent may not say this now; "" if it may."""
        key = (envelope.sender, envelope.conversation, agent)
        found = self._open.get(key)
        if found is not None:
            conversation = found.conversation
            if conversation.allows(Role.PARTICIPANT, says):
                return ""
            may = ", ".join(sorted(conversation.protocol.may_say(conversation.state, Role.PARTICIPANT)))
            return f"in {envelope.protocol}, {conversation.state}, it may say: {may}"
        past = self._past.get(key)
        return f"the conversation is over ({past.state})" if past is not None else ""

    def says(self, envelope: Envelope, agent: str, says: Performative, hold_ms: int) -> int | None:
        """The agent says this: for how many milliseconds it holds (0: for ever); None if it may not be said now."""
        found = self._open.get((envelope.sender, envelope.conversation, agent))
        if found is None:
            known = (envelope.sender, envelope.conversation, agent) in self._past
            confirms = envelope.performative is Performative.CANCEL or says is Performative.NOT_UNDERSTOOD
            return None if known and not confirms else 0
        if not found.conversation.allows(Role.PARTICIPANT, says):
            return None
        if says is Performative.PROPOSE and not hold_ms:
            hold_ms = round(BINDS_S * 1000)
        until = self._loop.time() + hold_ms / 1000 if hold_ms else None
        return None if self._step(found, Said(Role.PARTICIPANT, says, until)) else hold_ms

    def _lend(self, found: Open, envelope: Envelope, agent: Agent | None) -> None:
        """Offer what is asked for, if enough of it is left."""
        name, resource = AgentId(envelope.receiver), envelope.topic
        try:
            wanted = _decode_wanted(envelope.body)
        except UNREADABLE as error:
            self._send(envelope, name, Performative.NOT_UNDERSTOOD, to_json({"code": "invalid-input", "message": str(error)}), 0)
            return
        has = agent.lends.get(resource) if agent is not None and agent.status is AgentStatus.ACTIVE else None
        lent = sum(other.amount for other in self._open.values() if _lends(other, name, resource))
        if has is None or lent + wanted.amount > has:
            reason = f"it lends no {resource!r}" if has is None else f"{has - lent:g} of {has:g} {resource} is left"
            self._send(envelope, name, Performative.REFUSE, to_json({"message": reason, "left": (has or 0) - lent}), 0)
            return
        found.amount = wanted.amount
        offer = to_json({"resource": resource, "amount": wanted.amount, "for_s": wanted.for_s})
        self._send(envelope, name, Performative.PROPOSE, offer, round(wanted.for_s * 1000))

    # Keeping them

    def _begin(self, fresh: Open) -> Open:
        self._open[fresh.key] = fresh
        self._per_peer[fresh.peer] = self._per_peer.get(fresh.peer, 0) + 1
        self._held += len(fresh.said.body)
        if self._probe is None:
            self._probe = self._timers.after(PING_S, self._ping)
        return fresh

    def _step(self, found: Open, event: Event) -> str:
        """Why not, if it was refused."""
        effects = found.conversation.step(event, self._loop.time())
        if found.alarm is not None:
            found.alarm.cancel()
            found.alarm = None
        if found.conversation.is_over:
            self._end(found)
        else:
            deadline = found.conversation.next_deadline()
            if deadline is not None:
                found.alarm = self._timers.at(deadline, lambda: self._expire(found))
        return next((effect.reason for effect in effects if isinstance(effect, NotUnderstood)), "")

    def _expire(self, found: Open) -> None:
        found.alarm = None
        self._step(found, Tick())

    def _end(self, found: Open) -> None:
        if self._open.pop(found.key, None) is None:
            return
        self._held -= len(found.said.body)
        left = self._per_peer[found.peer] - 1
        if left:
            self._per_peer[found.peer] = left
        else:
            del self._per_peer[found.peer]
        while len(self._past) >= PAST:
            del self._past[next(iter(self._past))]
        self._past[found.key] = found.conversation
        if found.work and found.conversation.state in _STOPS:
            self._stop(found.key[0], found.work)

    def _ping(self) -> None:
        gone, self._missed_before, self._missed = self._missed & self._missed_before, self._missed, set()
        for found in [found for found in self._open.values() if found.peer in gone]:
            if found.conversation.next_deadline() is None:  # the others end by themselves; and a loan is kept for its time
                self._step(found, Lost())
        self._probe = self._timers.after(PING_S, self._ping) if self._open else None
        for peer in self._per_peer:
            self._post(to(peer), Ping(0))
        for found in list(self._open.values()):
            if found.conversation.state in (State.SUBSCRIBED, State.JOINED):
                self._send(found.said, AgentId(found.key[2]), Performative.AGREE, NOTHING, 0)

    def unreachable(self, address: str) -> None:
        """Nobody listens there now. A connection may break and stand again: who is missed twice in a row is gone."""
        kind, _, peer = address.partition("/")
        if kind == "to" and peer in self._per_peer:
            self._missed.add(peer)

    def leave(self, agents: set[str], reason: str) -> None:
        """These agents are here no longer: whoever speaks with them is told."""
        for found in [found for found in self._open.values() if found.key[2] in agents]:
            agent, data = AgentId(found.key[2]), to_json({"code": ShuttingDown.code, "message": reason})
            for says in (Performative.FAILURE, Performative.CANCEL, Performative.REFUSE):
                if found.conversation.allows(Role.PARTICIPANT, says):
                    self._send(found.said, agent, says, data, 0)
                    break
            self._step(found, Lost())
            self._stop(found.key[0], found.work)

    def close(self) -> None:
        self._timers.close()


_STOPS = frozenset({State.CANCELED, State.EXPIRED, State.LOST, State.NOT_UNDERSTOOD})
"""Ends that leave nobody to work for."""


def _lends(other: Open, agent: str, resource: str) -> bool:
    conversation = other.conversation
    return (
        conversation.protocol is RESOURCE
        and conversation.state is State.HELD
        and (other.key[2], other.said.topic) == (agent, resource)
    )

