"""Conversations between two agents: who may say what, when, and how it ends.

A protocol is a table of one shape, ``(state, role, performative) -> state``: see ``protocols``, which holds them all. A
``Conversation`` is one side's view of one of them. What its table does not have is answered with not-understood and ends it, as
FIPA wants; a message that crossed the end of a conversation is passed over. Nothing is ever said to a not-understood.

Deadlines: a message's ``reply_by`` is the moment by which the other side must have said what is next. Later than that the
conversation has expired, and what comes then is refused.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from comity.model.envelope import Performative


class Role(enum.StrEnum):
    """Who opened the conversation, and who was addressed."""

    INITIATOR = "initiator"
    PARTICIPANT = "participant"


class State(enum.StrEnum):
    START = "start"
    ASKED = "asked"
    AGREED = "agreed"
    PROPOSED = "proposed"
    ACCEPTED = "accepted"
    SUBSCRIBED = "subscribed"
    HELD = "held"
    JOINED = "joined"
    # Ends
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"
    REJECTED = "rejected"
    CANCELED = "canceled"
    NOT_UNDERSTOOD = "not-understood"
    EXPIRED = "expired"
    LOST = "lost"


ENDS = frozenset({
    State.DONE, State.REFUSED, State.FAILED, State.REJECTED, State.CANCELED, State.NOT_UNDERSTOOD, State.EXPIRED, State.LOST,
})  # fmt: skip
CLOSING = frozenset({
    Performative.NOT_UNDERSTOOD, Performative.CANCEL, Performative.REFUSE, Performative.FAILURE, Performative.REJECT_PROPOSAL,
})  # fmt: skip
"""Who says one of these expects nothing more: where no conversation is open, it needs no answer."""
SEEN = 256
_TURN: Mapping[State, Role | None] = {
    State.ASKED: Role.PARTICIPANT, State.AGREED: Role.PARTICIPANT, State.ACCEPTED: Role.PARTICIPANT,
    State.PROPOSED: Role.INITIATOR,
}  # fmt: skip
"""Who must speak next. In the other states both may, or neither."""


class Rule(NamedTuple):
    state: State
    role: Role
    says: Performative
    then: State


class Protocol:
    """``source``: the document it follows. ``table`` also has what all have in common: either side may say not-understood, and
    the initiator cancel, as long as it is open."""

    __slots__ = ("name", "source", "table")

    def __init__(self, name: str, source: str, rules: Iterable[Rule]) -> None:
        self.name = name
        self.source = source
        self.table: dict[tuple[State, Role, Performative], State] = {}
        for rule in rules:
            key = (rule.state, rule.role, rule.says)
            if key in self.table or rule.state in ENDS:
                raise ValueError(f"{name}: {rule} contradicts another rule, or goes on after an end")
            self.table[key] = rule.then
        for state in self.states() - ENDS - {State.START}:
            self.table.setdefault((state, Role.INITIATOR, Performative.CANCEL), State.CANCELED)
            for role in Role:
                self.table.setdefault((state, role, Performative.NOT_UNDERSTOOD), State.NOT_UNDERSTOOD)

    def states(self) -> set[State]:
        return {State.START, *(state for state, _, _ in self.table), *self.table.values()}

    def opens(self, says: Performative) -> bool:
        return (State.START, Role.INITIATOR, says) in self.table

    def may_say(self, state: State, role: Role) -> frozenset[Performative]:
        return frozenset(says for at, who, says in self.table if (at, who) == (state, role))


class Said(NamedTuple):
    """``reply_by`` (the loop's clock): when the other side must have said what is next; None: it does not say."""

    role: Role
    says: Performative
    reply_by: float | None = None


class Tick(NamedTuple):
    """Time has passed."""


class Lost(NamedTuple):
    """The other side is gone."""


class NotUnderstood(NamedTuple):
    """Say so to whoever spoke, and why."""

    reason: str


class Ended(NamedTuple):
    state: State


Event = Said | Tick | Lost
Effect = NotUnderstood | Ended


class Seen:
    """The messages of a conversation, the latest of them, by id: what arrives twice is one message."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def is_copy(self, id: str) -> bool:
        """Whether it was seen before; now it has been."""
        if id in self._ids:
            return True
        if len(self._ids) >= SEEN:
            del self._ids[next(iter(self._ids))]
        self._ids[id] = None
        return False


class Conversation:
    """Invariant: a deadline is set only while it is open. ``_before`` and ``_by``: where it was when it ended, and by whom."""

    __slots__ = ("_before", "_by", "_deadline", "protocol", "state")

    def __init__(self, protocol: Protocol) -> None:
        self.protocol = protocol
        self.state = State.START
        self._before = State.START
        self._by: Role | None = None
        self._deadline: float | None = None

    @property
    def is_over(self) -> bool:
        return self.state in ENDS

    def allows(self, role: Role, says: Performative) -> bool:
        return (self.state, role, says) in self.protocol.table

    def step(self, event: Event, now: float) -> list[Effect]:
        ended = self._expire(now)
        if isinstance(event, Said):
            return [*ended, *self._say(event)]
        if isinstance(event, Lost) and not self.is_over:
            return self._end(State.LOST)
        return ended

    def next_deadline(self) -> float | None:
        return self._deadline

    def _expire(self, now: float) -> list[Effect]:
        if self._deadline is None or now < self._deadline:
            return []
        return self._end(State.EXPIRED)

    def _say(self, said: Said) -> list[Effect]:
        then = self.protocol.table.get((self.state, said.role, said.says))
        if then is None:
            if self._crossed(said):
                return []
            refusal = NotUnderstood(self._why_not(said))
            return [refusal] if self.is_over else [refusal, *self._end(State.NOT_UNDERSTOOD, said.role)]
        if then in ENDS:
            return self._end(then, said.role)
        if said.reply_by is not None:
            self._deadline = said.reply_by
        elif _TURN.get(then) != _TURN.get(self.state):
            self._deadline = None
        self.state = then
        return []

    def _crossed(self, said: Said) -> bool:
        """Whether it was said before its sender could know of the end, or confirms a cancel."""
        if not self.is_over:
            return False
        if said.says in (Performative.NOT_UNDERSTOOD, Performative.CANCEL):
            return True
        if self._by is None or self._by is said.role:
            return False
        confirms = self.state is State.CANCELED and said.says in (Performative.INFORM, Performative.FAILURE)
        return confirms or (self._before, said.role, said.says) in self.protocol.table

    def _why_not(self, said: Said) -> str:
        name = self.protocol.name
        if self.state is State.EXPIRED:
            return f"{said.says} came after its reply_by: this {name} has expired"
        if self.is_over:
            return f"this {name} is over ({self.state}): {said.says} comes too late"
        may = ", ".join(sorted(self.protocol.may_say(self.state, said.role)))
        what = f"may say: {may}" if may else "may say nothing"
        return f"{said.says} is out of protocol: in {name}, {self.state}, the {said.role} {what}"

    def _end(self, state: State, by: Role | None = None) -> list[Effect]:
        self._before, self.state, self._by, self._deadline = self.state, state, by, None
        return [Ended(state)]

    def check(self) -> None:
        assert self.state in self.protocol.states() | {State.NOT_UNDERSTOOD, State.EXPIRED, State.LOST}, self.state
        assert self._deadline is None or not self.is_over
