"""What processes say to each other: items, many to a bus message. Array-encoded, tagged; tags are never reused.

A bus message is a MessagePack array of items. Its sender is known from the bus, which lets a process publish only as
itself, so no item repeats it. Times cross as what is left of them (milliseconds), never as clock readings.
"""

from __future__ import annotations

from typing import Any

import msgspec

from comity.errors import InvalidInput
from comity.model.capability import Requirements, Strategy
from comity.model.codec import UNREADABLE
from comity.model.envelope import Envelope
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.item import Item as Item
from comity.model.mail import Outgoing
from comity.model.parts import NoParts, Part, PartsEnd, PartsOffered, ReadParts
from comity.model.task import Payload, TaskFailure, TaskSpec, TaskState
from comity.model.wire_mail import Deliver, Grouped, InGroups, MailDone, MailSettled, MailTaken, SendMail, StreamOver
from comity.model.wire_talk import Misfit

BATCH_LIMIT = 512 * 1024
"""Bytes of one bus message, and of one item."""
BATCH_BYTES = 128 * 1024
"""A larger batch is cut: bounds the time that taking in one message takes, a few milliseconds."""


# A caller (client, node) to the leading controller


class SubmitTask(Item, tag=1):
    """``spec.deadline_ms`` and ``spec.not_before_ms`` are the time left here (0: none). ``queue`` False: refuse rather than wait
    for an agent. ``again`` marks a resend: its refusal would not be definite."""

    spec: TaskSpec
    queue: bool = True
    again: bool = False


class FollowTask(Item, tag=2):
    """Tell me how these tasks end (again, after a change of leader, or because someone else submitted them)."""

    tasks: tuple[TaskId, ...]


class CancelTask(Item, tag=3):
    """Answered by ``Answer`` with ``ref``."""

    ref: int
    task: TaskId
    reason: str = ""


class Ask(Item, tag=4):
    """A question of the leader: ``what`` names it, ``args`` is JSON. Answered by ``Answer`` with the same ``ref``."""

    ref: int
    what: str
    args: bytes = b"{}"


class FollowEvents(Item, tag=5):
    """Send me events for the next ``for_ms``, those after log index ``after`` first (-1: only new ones). ``task``
    narrows to one task. Repeated before it ends to go on (then with ``after`` -1); ``for_ms`` 0 stops."""

    ref: int
    after: int = -1
    for_ms: int = 15_000
    task: TaskId | None = None


class Route(Item, tag=6):
    """Which agent shall answer this live call? None of ``asked``, and on another node if possible. It counts as load until
    ``CallEnded`` (``ok`` None: that says nothing about the agent) or ``for_ms``. Answered by ``Routed``."""

    ref: int
    capability: str
    for_ms: int
    requirements: Requirements | None = None
    strategy: Strategy | None = None
    asked: tuple[AgentId, ...] = ()


class CallEnded(Item, tag=7):
    ref: int
    took_ms: float = 0.0
    ok: bool | None = None


class AddSchedule(Item, tag=8):
    """Makes or changes a schedule; ``spec`` as in ``SubmitTask``, without an id. Answered by ``Answer`` with ``ref``."""

    ref: int
    name: str
    cron: str
    zone: str
    spec: TaskSpec


class AnswerTask(Item, tag=73):
    """Answers the task's open question, if it is called ``name`` ("": whatever it is called). Answered by ``Answer`` with
    ``ref``, which must be hard to guess: it tells this answer from others'."""

    ref: int
    task: TaskId
    name: str
    answer: Payload


# The leader to a caller


class Accepted(Item, tag=20):
    """These submits are effective. ``tasks`` pairs the id submitted with the id it stands for (same key: an older one)."""

    tasks: tuple[tuple[TaskId, TaskId], ...]


class Refused(Item, tag=21):
    """A submit was refused: ``code`` as in ``comity.errors``."""

    task: TaskId
    code: str
    message: str
    details: dict[str, Any] = msgspec.field(default_factory=dict)


class Ended(Item, tag=22):
    """A task reached a terminal state. ``result`` is never ``Logged`` here; ``epoch`` is that of its last attempt, 0 if there was
    none."""

    task: TaskId
    state: TaskState
    result: Payload | None = None
    failure: TaskFailure | None = None
    epoch: int = 0

    @property
    def has_result(self) -> bool:
        """It went well, and what came of it can be read."""
        return self.state is TaskState.COMPLETED and self.failure is None


class Answer(Item, tag=23):
    """``code`` is "" if it went well, then ``body`` is JSON; else an error code, ``body`` {message, details}."""

    ref: int
    code: str
    body: bytes


class Routed(Item, tag=24):
    """``agent`` is "" if there is none; ``code`` and ``message`` say why."""

    ref: int
    agent: AgentId
    code: str = ""
    message: str = ""


class EventNotice(Item, tag=25):
    """One event for a follower: ``index`` is the log index it comes from (0 for live ones: progress, log, membership; -1 for one
    told live a moment ago, so that who has it already may leave it out), ``body`` a JSON object with at least ``type`` and ``at``
    (UTC ms). ``number`` counts those sent to this ``ref`` from 1: one left out was lost on the way."""

    ref: int
    index: int
    body: bytes
    number: int = 0


AGAIN = -1
CURRENT = b'{"type":"events.current","at":0}'
"""Body of the notice that ends the past a follower asked for, and of one that says only how many there were so far."""


class Leading(Item, tag=26):
    """Broadcast by a new leader, and to any process that asks an unfamiliar one: I lead in ``term``. ``ends`` is said to other
    controllers only: "term", I stop leading, somebody else may begin; "network", the network was shut down."""

    term: int
    leader: ProcessId
    now_ms: int
    ends: str = ""


# The leader to a node


class Known(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A record of an earlier attempt: ``kind`` is step, checkpoint, answer or unanswered. ``payload`` None: ask (``Recall``)."""

    kind: str
    name: str
    size: int
    payload: Payload | None = None


class Run(Item, tag=40):
    """An assignment. ``remaining_ms`` until the task's deadline (0: none). ``timeout_s`` bounds the attempt from its start.
    ``known`` is what earlier attempts left. A node refuses a term lower than it has seen and an incarnation that is not its
    own."""

    task: TaskId
    epoch: int
    term: int
    incarnation: int
    agent: AgentId
    capability: str
    input: Payload
    number: int
    remaining_ms: int = 0
    timeout_s: float = 1800.0
    submitter: ProcessId = ProcessId("")
    parent: TaskId | None = None
    trace: str = ""
    progress_timeout_s: float = 0.0
    no_retry: tuple[str, ...] = ()
    known: tuple[Known, ...] = ()


class Stop(Item, tag=41):
    """Stop this attempt: canceled, timed out or moved. After ``grace_ms`` it is fenced whatever it does."""

    task: TaskId
    epoch: int
    reason: str
    grace_ms: int = 0


class Settled(Item, tag=42):
    """These reports are durable (or void: an old epoch); the node may forget them."""

    reports: tuple[tuple[TaskId, int], ...]


class BeaconAck(Item, tag=43):
    """Renews the node's lease from the moment beacon ``seq`` was sent. ``known`` False: announce yourself again. ``aside``: how
    an operator set the node aside ("": not). ``listed``: the leader has read the node's record of this life in the registry, and
    so its agents, which are written before."""

    seq: int
    term: int
    lease_s: float
    now_ms: int
    known: bool = True
    aside: str = ""
    listed: bool = True


class Evicted(Item, tag=44):
    """Your lease was ended: stop every attempt, come back with a higher incarnation."""

    incarnation: int
    reason: str


class Recorded(Item, tag=45):
    """A step's result or a checkpoint is durable; or it was refused, for ``code`` and ``message``."""

    task: TaskId
    epoch: int
    kind: str
    name: str
    code: str = ""
    message: str = ""


class Recalled(Item, tag=46):
    """Answers ``Recall``; ``payload`` is never ``Logged``."""

    task: TaskId
    epoch: int
    kind: str
    name: str
    payload: Payload | None = None
    code: str = ""
    message: str = ""


# A node to the leader


class Beacon(Item, tag=60):
    """Twice a second; constant size. ``lag_s`` is the event loop's worst lag since the last one; ``cpu`` the process's use of one
    core (1.0 = all of it); ``calls`` live calls now running at its agents, by agent, those not zero; ``wall_ms`` the
    node's own clock (since 1970), by which it is told how far that is off; ``was_away``: what was sent to it since its last
    acknowledged beacon may not have come."""

    seq: int
    incarnation: int
    lag_s: float
    cpu: float
    memory_mb: float
    running: int
    agents: int
    host_cpu_free: float = 0.0
    host_memory_free_mb: float = 0.0
    draining: bool = False
    calls: dict[AgentId, int] = msgspec.field(default_factory=dict)
    wall_ms: int = 0
    was_away: bool = False


class Began(Item, tag=61):
    task: TaskId
    epoch: int


class Done(Item, tag=62):
    task: TaskId
    epoch: int
    result: Payload
    ran_ms: int
    mail: tuple[Outgoing, ...] = ()


class Failed(Item, tag=63):
    task: TaskId
    epoch: int
    failure: TaskFailure
    canceled: bool = False
    ran_ms: int = 0


class Declined(Item, tag=64):
    """The agent refuses, or the node cannot run it (no such agent, draining, old term): it goes elsewhere, no retry used."""

    task: TaskId
    epoch: int
    reason: str


class Slot(Item, tag=65):
    """A running attempt lets go of its slot (it awaits children) or takes it back."""

    task: TaskId
    epoch: int
    held: bool


class Live(Item, tag=66):
    """A live event of an attempt (progress, log, part): never an entry. ``body`` is a JSON object with ``type``."""

    task: TaskId
    epoch: int
    body: bytes


class Leaving(Item, tag=67):
    """A clean departure: all attempts have ended or are handed back."""

    incarnation: int


class RateTask(Item, tag=68):
    """How good a finished task's result was, 0 to 1."""

    task: TaskId
    score: float


class Progress(Item, tag=27):
    """Before a beacon: which attempts with a progress timeout made progress that no acknowledged beacon told of (task, epoch, how
    many milliseconds ago)."""

    made: tuple[tuple[TaskId, int, int], ...]


class StepDone(Item, tag=69):
    """Record this result; answered by ``Recorded``."""

    task: TaskId
    epoch: int
    name: str
    result: Payload
    mail: tuple[Outgoing, ...] = ()


class Checkpointed(Item, tag=70):
    """Save this state, the attempt's ``number``-th; answered by ``Recorded`` with the number as name."""

    task: TaskId
    epoch: int
    number: int
    state: Payload
    mail: tuple[Outgoing, ...] = ()


class InputAsked(Item, tag=71):
    """The attempt has ended to wait for an answer, for ``timeout_ms`` (0: for ever)."""

    task: TaskId
    epoch: int
    name: str
    ask: Payload
    timeout_ms: int = 0
    ran_ms: int = 0
    mail: tuple[Outgoing, ...] = ()


class Recall(Item, tag=72):
    """What does this record hold? Answered by ``Recalled``."""

    task: TaskId
    epoch: int
    kind: str
    name: str


# Between agents, and to everyone


class Message(Item, tag=80):
    envelope: Envelope


class Control(Item, tag=81):
    """Asks a node to do something to its agents: ``what`` is pause, resume, remove, update, drain; answered by ``Answer``."""

    ref: int
    what: str
    args: bytes = b"{}"


class Ping(Item, tag=82):
    ref: int


class Pong(Item, tag=83):
    ref: int


Any_ = (
    SubmitTask | FollowTask | CancelTask | Ask | FollowEvents | Route | CallEnded | AddSchedule
    | Accepted | Refused | Ended | Answer | Routed | EventNotice | Leading
    | Run | Stop | Settled | BeaconAck | Evicted
    | Recorded | Recalled
    | Beacon | Began | Done | Failed | Declined | Slot | Live | Leaving | RateTask | Progress
    | StepDone | Checkpointed | InputAsked | Recall | AnswerTask
    | Message | Control | Ping | Pong
    | PartsOffered | ReadParts | Part | PartsEnd | NoParts | Misfit
    | SendMail | MailTaken | StreamOver | Deliver | MailDone | MailSettled | InGroups | Grouped
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Any_])


def encode(items: list[Item]) -> bytes:
    return _encoder.encode(items)


def encode_one(item: Item) -> bytes:
    """One item's bytes, to be joined by ``join``."""
    return _encoder.encode(item)


def join(encoded: list[bytes]) -> bytes:
    """Items encoded one by one as one message (MessagePack ``array 32`` header and the items)."""
    return b"\xdd" + len(encoded).to_bytes(4, "big") + b"".join(encoded)


def decode(data: bytes) -> list[Any_]:
    """The items of a bus message; InvalidInput for foreign bytes."""
    try:
        return _decoder.decode(data)
    except UNREADABLE as error:
        raise InvalidInput(f"not a message of Comity's: {error}") from error
