"""One message between agents. Field names follow FIPA ACL message structure (SC00061G); times are UTC milliseconds."""

from __future__ import annotations

import enum

import msgspec

from comity.errors import BadInput


class Performative(enum.StrEnum):
    """The intent of an envelope, in FIPA ACL's words (SC00037J)."""

    REQUEST = "request"
    AGREE = "agree"
    REFUSE = "refuse"
    INFORM = "inform"
    FAILURE = "failure"
    CANCEL = "cancel"
    QUERY = "query"
    SUBSCRIBE = "subscribe"
    CFP = "cfp"
    PROPOSE = "propose"
    ACCEPT_PROPOSAL = "accept-proposal"
    REJECT_PROPOSAL = "reject-proposal"
    NOT_UNDERSTOOD = "not-understood"


def performative(word: str) -> Performative:
    """Raises BadInput."""
    if isinstance(word, Performative):
        return word
    try:
        return Performative(word)
    except ValueError:
        raise BadInput(f"no performative is called {word[:80]!r}; there are {', '.join(Performative)}") from None


class Envelope(msgspec.Struct, array_like=True, frozen=True, gc=False, kw_only=True):
    """One message. ``body`` is raw bytes of ``content_type``; ``receiver`` is an agent id, a process id, or "" for a
    broadcast, which then carries ``tags`` (all must match; empty means everyone) or the name of a ``group``.

    ``reply_by`` and ``expires_at`` are absolute on the wire's own terms: see ``remaining_ms`` on internal subjects, where a
    time crosses as what is left of it, so that clocks need not agree.
    """

    id: str
    performative: Performative
    sender: str
    receiver: str = ""
    topic: str = ""
    protocol: str = ""
    reply_to: str = ""
    conversation: str = ""
    in_reply_to: str = ""
    reply_by: int = 0
    sent_at: int = 0
    expires_at: int = 0
    content_type: str = "application/json"
    trace: str = ""
    tags: tuple[str, ...] = ()
    remaining_ms: int = 0
    body: bytes = b"null"
    group: str = ""
