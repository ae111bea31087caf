"""The interaction protocols, as tables. Six are FIPA's (http://www.fipa.org/specs/), two are ours, in the same shape.

FIPA's query-if and query-ref are both ``query`` here, and the proxy of its brokering is a ``request``. A publisher that has
nothing more to say ends a subscription with ``cancel``: FIPA knows only its failure. Where a conversation has no deadline, an
``agree`` now and then says that it stands; if it does not any more at the other side, the answer ends it here.
"""

from __future__ import annotations

from collections.abc import Mapping

from comity.core.conversations import Protocol, Role, Rule, State
from comity.model.envelope import Performative

_I, _P = Role.INITIATOR, Role.PARTICIPANT
_START, _ASKED, _AGREED = State.START, State.ASKED, State.AGREED
_PROPOSED, _ACCEPTED, _SUBSCRIBED = State.PROPOSED, State.ACCEPTED, State.SUBSCRIBED
_P_ = Performative


def _asking(says: Performative) -> list[Rule]:
    """Ask, and get one answer. To agree first is left to the participant."""
    return [
        Rule(_START, _I, says, _ASKED),
        Rule(_ASKED, _P, _P_.REFUSE, State.REFUSED),
        Rule(_ASKED, _P, _P_.AGREE, _AGREED),
        Rule(_ASKED, _P, _P_.INFORM, State.DONE),
        Rule(_ASKED, _P, _P_.FAILURE, State.FAILED),
        Rule(_AGREED, _P, _P_.INFORM, State.DONE),
        Rule(_AGREED, _P, _P_.FAILURE, State.FAILED),
    ]


_NEGOTIATION = [
    Rule(_START, _I, _P_.CFP, _ASKED),
    Rule(_ASKED, _P, _P_.REFUSE, State.REFUSED),
    Rule(_ASKED, _P, _P_.FAILURE, State.FAILED),
    Rule(_ASKED, _P, _P_.PROPOSE, _PROPOSED),
    Rule(_PROPOSED, _I, _P_.REJECT_PROPOSAL, State.REJECTED),
    Rule(_PROPOSED, _I, _P_.ACCEPT_PROPOSAL, _ACCEPTED),
    Rule(_ACCEPTED, _P, _P_.INFORM, State.DONE),
    Rule(_ACCEPTED, _P, _P_.FAILURE, State.FAILED),
    Rule(_ACCEPTED, _P, _P_.REFUSE, State.REFUSED),
]
"""FIPA's bidder cannot fail before it proposes, nor refuse what it proposed. Ours can say so, which ends it sooner."""

REQUEST = Protocol("fipa-request", "FIPA SC00026H", _asking(_P_.REQUEST))
QUERY = Protocol("fipa-query", "FIPA SC00027H", _asking(_P_.QUERY))
CONTRACT_NET = Protocol("fipa-contract-net", "FIPA SC00029H", _NEGOTIATION)
ITERATED_CONTRACT_NET = Protocol(
    "fipa-iterated-contract-net", "FIPA SC00030H", [*_NEGOTIATION, Rule(_PROPOSED, _I, _P_.CFP, _ASKED)]
)
BROKERING = Protocol("fipa-brokering", "FIPA SC00033H", _asking(_P_.REQUEST))
SUBSCRIBE = Protocol(
    "fipa-subscribe",
    "FIPA SC00035H",
    [
        Rule(_START, _I, _P_.SUBSCRIBE, _ASKED),
        Rule(_ASKED, _P, _P_.REFUSE, State.REFUSED),
        Rule(_ASKED, _P, _P_.FAILURE, State.FAILED),
        Rule(_ASKED, _P, _P_.AGREE, _SUBSCRIBED),
        Rule(_ASKED, _P, _P_.INFORM, _SUBSCRIBED),
        Rule(_SUBSCRIBED, _P, _P_.INFORM, _SUBSCRIBED),
        Rule(_SUBSCRIBED, _P, _P_.AGREE, _SUBSCRIBED),
        Rule(_SUBSCRIBED, _P, _P_.FAILURE, State.FAILED),
        Rule(_SUBSCRIBED, _P, _P_.CANCEL, State.DONE),
    ],
)
RESOURCE = Protocol(
    "comity-resource",
    "docs/wire.md",
    [
        Rule(_START, _I, _P_.REQUEST, _ASKED),
        Rule(_ASKED, _P, _P_.REFUSE, State.REFUSED),
        Rule(_ASKED, _P, _P_.FAILURE, State.FAILED),
        Rule(_ASKED, _P, _P_.PROPOSE, State.HELD),
        Rule(State.HELD, _I, _P_.INFORM, State.DONE),
        Rule(State.HELD, _P, _P_.CANCEL, State.CANCELED),
    ],
)
"""An offer holds from the moment it is made until its reply_by, or until the initiator says (inform) that it is released."""
COLLABORATION = Protocol(
    "comity-collaboration",
    "docs/wire.md",
    [
        Rule(_START, _I, _P_.PROPOSE, _ASKED),
        Rule(_ASKED, _P, _P_.REFUSE, State.REFUSED),
        Rule(_ASKED, _P, _P_.REJECT_PROPOSAL, State.REFUSED),
        Rule(_ASKED, _P, _P_.FAILURE, State.FAILED),
        Rule(_ASKED, _P, _P_.ACCEPT_PROPOSAL, State.JOINED),
        Rule(State.JOINED, _I, _P_.INFORM, State.JOINED),
        Rule(State.JOINED, _P, _P_.AGREE, State.JOINED),
        Rule(State.JOINED, _P, _P_.CANCEL, State.DONE),
    ],
)
"""Invite (propose), join (accept-proposal), leave (the member's cancel); the initiator's cancel dissolves it."""

PROTOCOLS: Mapping[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        REQUEST, QUERY, SUBSCRIBE, CONTRACT_NET, ITERATED_CONTRACT_NET, BROKERING, RESOURCE, COLLABORATION,
    )
}  # fmt: skip
_PLAIN = {_P_.REQUEST: REQUEST, _P_.QUERY: QUERY, _P_.SUBSCRIBE: SUBSCRIBE, _P_.CFP: CONTRACT_NET}
_ANSWERS = {says: protocol.may_say(_ASKED, _P) for says, protocol in _PLAIN.items()}


def may_answer(asked: Performative, says: Performative) -> bool:
    """Whether ``says`` can be the first answer to a message outside of any named protocol."""
    answers = _ANSWERS.get(asked)
    return answers is None or says in answers
