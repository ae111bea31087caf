"""Durable mail between agents, and the commands that carry it. The log carries commands; ``core.mail`` applies them.

A sender's process writes its mail in one *stream*, numbered from 1 without a gap: so a repeated mail is the same mail, and mail
is in the log in the order in which it was sent. Mail sent inside an attempt is part of the command that records the attempt's
next step, checkpoint or end.
"""

from __future__ import annotations

import msgspec

from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.payload import Payload

BODY_LIMIT = 1024
"""Bytes of a body that a mail may carry; a larger one goes to the store first."""
IN_FLIGHT = 4096
"""Mails of one stream that may be under way."""
REFUSED_KEPT = 2 * IN_FLIGHT
"""Of a stream's last mails is known which were refused."""
AT_ONCE = 100
"""Mails that one step, checkpoint or end of an attempt may send."""
SENT_BYTES = 96 * 1024
"""Of all these mails together; they share an entry with what is recorded."""
RECEIVERS_BYTES = 256 * 1024
"""Of the receivers' ids in one mail; in those of one record together, a quarter of it."""


class Note(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a mail says. Names as in ``Envelope``; ``body`` is JSON, never ``Logged``; ``sent_at`` UTC ms by the sender's clock.
    ``is_direct``: to one agent, who has a function for it or the mail is dead; others pass by who does not listen."""

    sender: str
    topic: str
    performative: str
    body: Payload
    conversation: str = ""
    in_reply_to: str = ""
    trace: str = ""
    sent_at: int = 0
    is_direct: bool = True


class Outgoing(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A mail on its way to the leader. ``to`` is an agent's id, the name of one agent, a capability; ``group`` a group's name;
    neither: every agent that has all ``tags``. ``ttl_ms`` 0: as long as the network keeps mail."""

    note: Note
    to: str = ""
    group: str = ""
    tags: tuple[str, ...] = ()
    ttl_ms: int = 0


class Posted(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A mail as the log has it: the leader has written down who receives it, and until when it is kept (entry time). ``lost``:
    those who cannot have it, and why (an error's code): dead letters from the start."""

    note: Note
    receivers: tuple[AgentId, ...]
    until_ms: int
    lost: tuple[tuple[str, str], ...] = ()


class Letter(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A mail as replicated state keeps it. ``number`` grows with every mail of the network; ``left``: who has not acknowledged it
    yet, and is neither dead to it."""

    number: int
    id: str
    note: Note
    receivers: tuple[AgentId, ...]
    left: tuple[AgentId, ...]
    at_ms: int
    until_ms: int


class DeadMail(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A mail that ``receiver`` will not get, and why. ``receiver`` may be what nobody was found for."""

    number: int
    id: str
    receiver: str
    note: Note
    code: str
    message: str
    dead_ms: int


class Stream(msgspec.Struct, array_like=True, gc=False):
    """Where a process's stream stands: ``last`` is the highest number that the log has, ``refused`` what became of the refused
    ones among the last ``REFUSED_KEPT`` (code and message)."""

    id: str
    last: int
    used_ms: int
    refused: dict[int, tuple[str, str]] = {}


# Commands. Tags are part of the log's format and never reused.


class PostMail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=60):
    """Mail ``number`` of ``process``'s stream."""

    process: ProcessId
    stream: str
    number: int
    mail: Posted


class SkipMail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=61):
    """It was refused, and uses its number all the same."""

    process: ProcessId
    stream: str
    number: int
    code: str
    message: str


class AckMail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=62):
    """Functions of these agents have returned, for mails of these numbers."""

    taken: tuple[tuple[AgentId, tuple[int, ...]], ...]


class BuryMail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=63):
    """``agent`` cannot take mail ``number``: a dead letter."""

    agent: AgentId
    number: int
    code: str
    message: str


class ExpireMail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=64):
    """The time of these is over: dead letters of whoever has not taken them."""

    numbers: tuple[int, ...]


class DropMail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=65):
    """Keep these mails and dead letters no longer."""

    ids: tuple[str, ...]


class JoinGroup(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=66):
    group: str
    agent: AgentId


class LeaveGroup(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=67):
    group: str
    agent: AgentId


def size_of_mail(mail: Outgoing) -> int:
    """Bytes it takes, about."""
    note = mail.note
    texts = (note.sender, note.topic, note.conversation, note.in_reply_to, note.trace, mail.to, mail.group, *mail.tags)
    return 64 + len(note.body if isinstance(note.body, bytes) else b"") + sum(len(text.encode()) for text in texts)


def mail_id(stream: str, number: int) -> str:
    return f"{stream}-{number}"


def attempt_mail_id(task: TaskId, record: str, number: int) -> str:
    """Of the ``number``-th mail that was committed with ``record``: the same whichever attempt sent it."""
    return f"{task}/{record}/{number}"
