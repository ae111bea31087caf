"""What processes say to each other about durable mail and groups. Part of ``wire``; tags 90 to 104."""

from __future__ import annotations

import msgspec

from comity.model.ids import AgentId
from comity.model.item import Item
from comity.model.mail import Note, Outgoing


class SendMail(Item, frozen=True, gc=False, tag=90):
    """Mail ``number`` of the sender's ``stream``; answered by ``MailTaken``. Repeated until it is."""

    stream: str
    number: int
    mail: Outgoing


class MailTaken(Item, frozen=True, gc=False, tag=91):
    """The leader to a sender: the log has this stream up to ``upto``. Of those after ``after``, ``refused`` were not taken in
    (number, code, message); of those before it nothing is said."""

    stream: str
    after: int
    upto: int
    refused: tuple[tuple[int, str, str], ...] = ()


class StreamOver(Item, frozen=True, gc=False, tag=92):
    """The leader to a sender: nothing more is taken from this stream; begin another one."""

    stream: str


class Mailed(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A mail for an agent. ``left_ms``: how long it may still be taken. ``is_repeat``: it may have been given to the agent's
    function before."""

    number: int
    id: str
    note: Note
    left_ms: int
    is_repeat: bool = False


class Deliver(Item, frozen=True, gc=False, tag=93):
    """The leader to a node: mail for one of its agents, in order; ``after``: the number of the last one that was sent before (0:
    these are the first that the agent has not acknowledged). Repeated until ``MailDone``."""

    agent: AgentId
    after: int
    mails: tuple[Mailed, ...]


class MailDone(Item, frozen=True, gc=False, tag=94):
    """A node to the leader: its agents' functions returned for these mails; those in ``failed`` cannot be taken (agent, number,
    code, message). Repeated until ``MailSettled``."""

    taken: tuple[tuple[AgentId, tuple[int, ...]], ...]
    failed: tuple[tuple[AgentId, int, str, str], ...] = ()


class MailSettled(Item, frozen=True, gc=False, tag=95):
    """The leader to a node: that is durable; the node may forget it."""

    done: tuple[tuple[AgentId, tuple[int, ...]], ...]


class InGroups(Item, frozen=True, gc=False, tag=96):
    """A node to the leader: its agents join and leave groups (agent, group, whether it joins). Repeated until ``Grouped``."""

    changes: tuple[tuple[AgentId, str, bool], ...]


class Grouped(Item, frozen=True, gc=False, tag=97):
    """The leader to a node: these are durable."""

    changes: tuple[tuple[AgentId, str, bool], ...]
