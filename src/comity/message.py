"""A message, as the function that receives it has it in its hands."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from comity.model.codec import from_json
from comity.model.envelope import Envelope, Performative
from comity.model.envelope import performative as performative_named

__all__ = ["Message"]


class Message:
    """A message in the hands of the function that receives it. Times are UTC. ``is_answered``: it was replied to by ``reply``, so
    that what the function returns is not sent. Of durable mail, ``is_repeat``: the function may have had it before, when its node
    was lost in the middle; ``fence`` grows with every life of the node: pass it, and ``id``, to whatever must refuse a stale or
    second effect (0: a live message)."""

    __slots__ = ("_answer", "envelope", "fence", "is_answered", "is_repeat")

    def __init__(
        self,
        envelope: Envelope,
        answer: Callable[[Envelope, Performative, Any], None],
        *,
        fence: int = 0,
        is_repeat: bool = False,
    ) -> None:
        self.envelope = envelope
        self._answer = answer
        self.fence = fence
        self.is_repeat = is_repeat
        self.is_answered = False

    @property
    def id(self) -> str:
        return self.envelope.id

    @property
    def performative(self) -> Performative:
        return self.envelope.performative

    @property
    def topic(self) -> str:
        return self.envelope.topic

    @property
    def sender(self) -> str:
        return self.envelope.sender

    @property
    def conversation(self) -> str:
        return self.envelope.conversation

    @property
    def in_reply_to(self) -> str:
        return self.envelope.in_reply_to

    @property
    def sent_at(self) -> datetime:
        return datetime.fromtimestamp(self.envelope.sent_at / 1000, UTC)

    @property
    def body(self) -> Any:
        """The body as JSON builtins; bytes if it is not JSON by its content type. Raises InvalidInput."""
        envelope = self.envelope
        return from_json(envelope.body) if envelope.content_type == "application/json" else envelope.body

    def reply(self, body: Any = None, performative: Performative | str = Performative.INFORM) -> None:
        """Answer it now, and as often as need be, instead of returning a value. May be used from a plain function's thread."""
        self.is_answered = True
        self._answer(self.envelope, performative_named(performative), body)

    def leave(self, reason: str = "") -> None:
        """Leave the conversation that it opened: a collaboration, or a subscription of somebody. Raises Conflict (it is over)."""
        self.reply({"message": reason}, Performative.CANCEL)
