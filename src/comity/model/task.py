"""Tasks, their attempts, and the commands that change them. The log carries commands; ``core.tasks`` applies them."""

from __future__ import annotations

import enum

import msgspec

from comity.errors import BadInput
from comity.model.capability import Requirements, Retry, Strategy
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.mail import AckMail, BuryMail, DropMail, ExpireMail, JoinGroup, LeaveGroup, Posted, PostMail, SkipMail
from comity.model.payload import INLINE_LIMIT as INLINE_LIMIT
from comity.model.payload import LOG_LIMIT as LOG_LIMIT
from comity.model.payload import Logged as Logged
from comity.model.payload import Payload as Payload
from comity.model.payload import Stored as Stored
from comity.model.records import AskInput, EndWait, GiveAnswer, MoveRecord, Records, RecordStep, SaveCheckpoint


class TaskState(enum.StrEnum):
    """A2A's words, plus waiting (put back: backing off, moved or refused) and assigned."""

    SUBMITTED = "submitted"
    WAITING = "waiting"
    ASSIGNED = "assigned"
    WORKING = "working"
    INPUT_REQUIRED = "input-required"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELED = "canceled"
    REJECTED = "rejected"


def task_state(name: str) -> TaskState:
    """The state called ``name``, or BadInput naming those that exist."""
    try:
        return TaskState(name)
    except ValueError:
        raise BadInput(f"no state is called {name!r}; one of: {', '.join(TaskState)}", state=name) from None


TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELED, TaskState.REJECTED})


class TaskSpec(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What was asked for. ``deadline_ms`` and ``not_before_ms`` are entry times (0: none); ``parent_epoch`` ties a child to its
    parent's attempt. ``retry`` says what differs from the settings; ``progress_timeout_s`` 0: none. ``replays`` names the dead
    letter that this task is another try of."""

    id: TaskId
    capability: str
    input: Payload
    submitter: ProcessId
    deadline_ms: int = 0
    priority: int = 5
    retries: int = 3
    attempt_timeout_s: float = 1800.0
    start_timeout_s: float = 10.0
    key: str = ""
    requirements: Requirements | None = None
    strategy: Strategy | None = None
    parent: TaskId | None = None
    parent_epoch: int = 0
    trace: str = ""
    not_before_ms: int = 0
    retry: Retry | None = None
    progress_timeout_s: float = 0.0
    replays: TaskId | None = None


class TaskFailure(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Why an attempt or a task ended badly. ``code`` is an error code of ``comity.errors`` or the exception's name."""

    code: str
    message: str = ""
    retryable: bool = True

    @property
    def text(self) -> str:
        """In words: an exception with its name, for many say little without (``KeyError: 'x'``); ours speak for themselves."""
        if not self.message or self.code.islower():
            return self.message or self.code
        return f"{self.code}: {self.message}"


class Ending(enum.StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    REFUSED = "refused"
    NOT_STARTED = "not-started"
    TIMED_OUT = "timed-out"
    EVICTED = "evicted"
    CANCELED = "canceled"
    STUCK = "stuck"
    MOVED = "moved"
    INPUT_REQUIRED = "input-required"


class Attempt(msgspec.Struct, array_like=True, gc=False):
    """One try, as kept in the task's record. Times are entry times in milliseconds; 0 means not yet."""

    epoch: int
    agent: AgentId
    node: ProcessId
    incarnation: int
    assigned_at: int
    started_at: int = 0
    ended_at: int = 0
    ending: Ending | None = None
    failure: TaskFailure | None = None


class Task(msgspec.Struct, array_like=True, gc=False):
    """A task's replicated record. Invariants: ``epoch`` only grows; a terminal state never changes; ``attempt`` is set
    exactly while assigned or working, and its epoch is ``epoch``; one question is open exactly while input-required.
    ``felled``: nodes that were lost while they had it."""

    spec: TaskSpec
    state: TaskState
    created_at: int
    epoch: int = 0
    retries_used: int = 0
    not_before: int = 0
    attempt: Attempt | None = None
    past: tuple[Attempt, ...] = ()
    cancel_at: int = 0
    finished_at: int = 0
    result: Payload | None = None
    failure: TaskFailure | None = None
    score: float = -1.0
    felled: tuple[ProcessId, ...] = ()
    records: Records | None = None

    @property
    def is_terminal(self) -> bool:
        return self.state in TERMINAL


# Commands: what a log entry carries. Tags are part of the log's format and never reused.


class Lead(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=1):
    """First command of a new leader's term entry."""

    controller: ProcessId


class Submit(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=2):
    spec: TaskSpec


class Assign(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=3):
    task: TaskId
    epoch: int
    agent: AgentId
    node: ProcessId
    incarnation: int


class Start(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=4):
    task: TaskId
    epoch: int


class Complete(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=5):
    """``ran_ms``: how long the attempt ran, so that a start that was never logged has its time. ``mail``: what
    it sent since its last record."""

    task: TaskId
    epoch: int
    result: Payload
    ran_ms: int = 0
    mail: tuple[Posted, ...] = ()


class Fail(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=6):
    """``not_before``: when the next attempt may start (entry time, ms), with back-off and jitter stamped by the leader.
    ``ran_ms``: as in ``Complete``; 0 if it never began, or if its start was logged anyway."""

    task: TaskId
    epoch: int
    failure: TaskFailure
    not_before: int = 0
    ending: Ending = Ending.FAILED
    ran_ms: int = 0


class Requeue(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=7):
    """Ends the current attempt without using a retry: refused, not started in time, or its node unstarted and evicted."""

    task: TaskId
    epoch: int
    ending: Ending
    reason: str = ""
    not_before: int = 0


class Cancel(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=8):
    """Cancels at once if no attempt runs, else asks it to stop; ``Canceled`` or the attempt's own end follows."""

    task: TaskId
    reason: str = ""


class Canceled(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=9):
    """Makes a cancel final: the attempt stopped, or its grace time is over."""

    task: TaskId
    reason: str = ""


class Expire(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=10):
    """The task's deadline has passed."""

    task: TaskId


class NodeUp(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=11):
    """``poison_nodes`` and ``at_work`` as in ``Evict``: a node that comes back before it was missed has lost what ran there."""

    node: ProcessId
    incarnation: int
    poison_nodes: int = 0
    at_work: tuple[tuple[AgentId, int], ...] = ()


class Evict(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=12):
    """Ends the lease of ``node``. Its attempts are requeued by the same command, so there is no moment between.
    A started attempt uses a retry (it may be what killed the node), one not started does not. A task that ran on ``poison_nodes``
    nodes when they were evicted (0: any number) is not tried again; nor is mail that was ``at_work`` there (agent, number) as
    often as that."""

    node: ProcessId
    incarnation: int
    reason: str = ""
    poison_nodes: int = 0
    at_work: tuple[tuple[AgentId, int], ...] = ()


class NodeLeft(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=13):
    node: ProcessId
    incarnation: int


class Archived(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=14):
    """Finished tasks ``ids`` are durable in store chunk ``key``; they leave replicated state. The dead letters among them are in
    ``dead_key`` too, for they are kept for another time."""

    key: str
    ids: tuple[TaskId, ...]
    finished_ms: int
    dead_key: str = ""


class Dropped(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=15):
    """Archive chunks past their retention, already deleted or about to be."""

    keys: tuple[str, ...]


class SnapshotTaken(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=16):
    """State after entry ``index`` is in store ``key``, read back and verified; ``digest`` is that entry's digest, ``time_ms`` its
    time."""

    index: int
    key: str
    digest: bytes
    time_ms: int = 0


class Moved(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=17):
    """A payload that lay in the log is now in the store, so that the log can be trimmed. ``is_result`` says which one."""

    task: TaskId
    payload: Stored
    is_result: bool = False


class Rate(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=18):
    task: TaskId
    score: float


class Barrier(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=19):
    """Changes nothing; what is applied after it is effective is no older than the question."""


class TimeJump(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=20):
    """An operator confirmed that entry time may jump to ``to_ms``."""

    to_ms: int


class Configure(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=21):
    """How agents are picked for tasks of ``capability`` that do not say."""

    capability: str
    strategy: Strategy


class Schedule(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A task to be submitted again and again. ``spec`` lacks an id, and has its deadline as time from each firing, in ms.
    ``last_ms``: when it last fired, or was made or changed: it fires at the next time after that."""

    name: str
    cron: str
    zone: str
    spec: TaskSpec
    last_ms: int = 0
    fired: int = 0


class PutSchedule(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=30):
    """Makes or changes the schedule of that name."""

    schedule: Schedule


class DropSchedule(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=31):
    name: str


class Fire(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=32):
    """The schedule is due: submits ``spec`` (its key is the schedule's name and the time) unless it fired for ``due_ms`` or a
    later time already. ``missed`` earlier times are left out."""

    name: str
    due_ms: int
    spec: TaskSpec
    missed: int = 0


class DropDead(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=33):
    """These dead letters are not kept any longer."""

    ids: tuple[TaskId, ...]


class Replay(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=34):
    """Submits ``spec`` in the place of the dead letter it names (``spec.replays``), which is none after that; void if there is no
    such letter."""

    spec: TaskSpec
class DrainNode(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=50):
    """Give ``node`` no new attempts, until ``ResumeNode``: by its id, so whenever it has a lease."""

    node: ProcessId
    reason: str = ""


class IsolateNode(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=51):
    """As ``DrainNode``, and what runs there is put back by the same command, without using a retry."""

    node: ProcessId
    reason: str = ""


class ResumeNode(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=52):
    node: ProcessId
    reason: str = ""


class Restored(msgspec.Struct, array_like=True, frozen=True, gc=False, tag=56):
    """Follows ``Lead`` in the first entry of a restored network: the log goes on from the state in store object ``base``, which
    is that of network ``origin`` after its entry ``index`` (whose digest is ``digest``), kept in ``backup``. No epoch below
    ``generation`` is current any more."""

    origin: str
    index: int
    digest: bytes
    backup: str
    generation: int
    base: Stored


Command = (
    Lead | Submit | Assign | Start | Complete | Fail | Requeue | Cancel | Canceled | Expire | NodeUp | Evict | NodeLeft
    | Archived | Dropped | SnapshotTaken | Moved | Rate | Barrier | TimeJump | Configure
    | PutSchedule | DropSchedule | Fire | DropDead | Replay
    | RecordStep | SaveCheckpoint | AskInput | GiveAnswer | EndWait | MoveRecord
    | DrainNode | IsolateNode | ResumeNode | Restored
    | PostMail | SkipMail | AckMail | BuryMail | ExpireMail | DropMail | JoinGroup | LeaveGroup
)  # fmt: skip


class Entry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One log entry. ``parent`` is the digest of the last effective entry before it; ``time_ms`` is entry time."""

    network: str
    term: int
    parent: bytes
    time_ms: int
    commands: list[Command]
