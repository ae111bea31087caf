"""Every error Comity raises, in one tree.

    ComityError                       by itself: a fault nobody thought of
    ├── Definite                      it did not happen, and will not
    │   ├── BadInput                  the caller's value cannot be used
    │   │   ├── InvalidInput          breaks the capability's input schema
    │   │   ├── NotSerializable       cannot be written as JSON
    │   │   ├── TooLarge              above a stated limit
    │   │   ├── BadUsage              a command does not take what was typed
    │   │   └── BadSettings           a setting is missing, unknown or contradicts another
    │   ├── NotFound                  no such task, agent, node or key
    │   │   ├── UnknownTask           no task has this id, or it finished too long ago
    │   │   ├── UnknownAgent          no agent has this name or id
    │   │   ├── UnknownNode           no node of this id has a lease
    │   │   └── UnknownCapability     nobody offers it
    │   ├── NoAgent                   nobody alive can do it now, and queueing was not wanted
    │   ├── Overloaded                refused by admission control; carries retry_after_s
    │   │   └── MailboxFull               the receiver has as much mail waiting as it may have
    │   ├── ShuttingDown              the network or node refuses new work
    │   ├── Conflict                  a compare-and-set, key or name is already taken
    │   │   └── Fenced                    another attempt has the task, or it has ended
    │   ├── NotLeader                 asked a controller that does not lead
    │   ├── AccessDenied              wrong or missing credentials or permission
    │   ├── Corrupt                   stored data fails its checksum or has a hole
    │   ├── ForeignData               the data directory or log belongs to another network or version
    │   ├── ClockAhead                this machine's clock is far ahead of when the network last ran
    │   ├── AlreadyRunning            another process holds the data directory
    │   ├── DiskFull                  no room is left for what must be on the disk first
    │   ├── ServerFailed              the embedded server did not start
    │   ├── ModuleFailed              an agent module could not be imported
    │   ├── InvalidOutput             an agent's function returned what its annotation does not allow
    │   ├── Unanswered                nobody answered an attempt's question in time
    │   └── TaskError                 the task ended, and not with a result
    │       ├── TaskFailed            its attempts are used up, or the error forbids a retry
    │       │   ├── Poisoned          several nodes were lost while they had it, and it is tried no more
    │       │   └── Stuck             its last attempt showed no progress for its progress_timeout_s
    │       ├── TaskCanceled          somebody asked for its end, or its parent ended
    │       ├── TaskRejected          the network does not permit what it asks for
    │       └── DeadlineExceeded      its deadline passed first
    └── Indefinite                    it may have happened
        ├── Unreachable               no server, leader or peer answered in time
        ├── TimedOut                  no answer within the stated time
        ├── Disconnected              the connection broke in mid-operation
        ├── PeerLost                  the other side died before it answered
        ├── OutOfProtocol             the other side said what the conversation's protocol does not have
        └── TooOld                    the id lies before the de-duplication window

A *definite* error lets the caller try something else at once; after an *indefinite* one it must ask, or repeat the same
id. The one bit follows Maelstrom's protocol (definite and indefinite errors). ``Refuse`` is not an error of ours: an agent
raises it to pass a task on.
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AccessDenied", "AlreadyRunning", "BadInput", "BadSettings", "BadUsage", "ClockAhead", "ComityError", "Conflict", "Corrupt",
    "DeadlineExceeded", "Definite", "Disconnected", "DiskFull", "Fenced", "ForeignData", "Indefinite", "InvalidInput",
    "InvalidOutput", "MailboxFull", "ModuleFailed", "NoAgent", "NotFound", "NotLeader", "NotSerializable", "OutOfProtocol",
    "Overloaded", "PeerLost", "Poisoned", "Refuse", "ServerFailed", "ShuttingDown", "Stuck", "TaskCanceled", "TaskError",
    "TaskFailed", "TaskRejected", "TimedOut", "TooLarge", "TooOld", "Unanswered", "UnknownAgent", "UnknownCapability",
    "UnknownNode", "UnknownTask", "Unreachable", "by_code", "from_wire",
]  # fmt: skip


class ComityError(Exception):
    """Root of the tree. ``code`` is stable, ``advice`` says what to do, ``details`` is JSON-able context."""

    code: ClassVar[str] = "error"
    advice: ClassVar[str] = "Run with --debug and look at the log."
    definite: ClassVar[bool] = True

    def __init__(self, message: str = "", **details: Any) -> None:
        super().__init__(message or self.advice)
        self.message = message or self.advice
        self.details = details


class Definite(ComityError):
    """It did not happen and will not."""


class Indefinite(ComityError):
    """It may have happened."""

    code = "indefinite"
    definite = False


class BadInput(Definite):
    code = "bad-input"
    advice = "Correct the value and call again."


class InvalidInput(BadInput):
    code = "invalid-input"
    advice = "Compare the input with the capability's schema: comity agents show NAME."


class NotSerializable(BadInput):
    code = "not-serializable"
    advice = "Pass JSON values, dataclasses, msgspec Structs or pydantic models."


class TooLarge(BadInput):
    code = "too-large"
    advice = "Send less at once, or a reference to what is large."


class BadUsage(BadInput):
    code = "bad-usage"
    advice = "See what the command takes: comity COMMAND --help."


class BadSettings(BadInput):
    code = "bad-settings"
    advice = "Look at the named setting in comity.toml, the environment (COMITY_...) or the flags."


class NotFound(Definite):
    code = "not-found"
    advice = "List what exists and check the spelling."


class UnknownTask(NotFound):
    code = "unknown-task"
    advice = "List tasks with: comity tasks list. Finished tasks are kept for a limited time."


class UnknownAgent(NotFound):
    code = "unknown-agent"
    advice = "List agents with: comity agents list."


class UnknownNode(NotFound):
    code = "unknown-node"
    advice = "List nodes with: comity nodes list."


class UnknownCapability(NotFound):
    code = "unknown-capability"
    advice = "List what is offered with: comity agents list. Start an agent that offers it with: comity run MODULE."


class NoAgent(Definite):
    code = "no-agent"
    advice = "Start an agent that can do it, or leave out --no-queue so that the task waits."


class Overloaded(Definite):
    code = "overloaded"
    advice = "Wait for retry_after_s and submit again, add nodes, or raise max_waiting."


class MailboxFull(Overloaded):
    code = "mailbox-full"
    advice = "Wait until the receiver has taken some, see what it waits for (comity mail list), or raise max_mailbox."


class ShuttingDown(Definite):
    code = "shutting-down"
    advice = "The network is being stopped; submit again once it is up."


class Conflict(Definite):
    code = "conflict"
    advice = "Someone else changed it first; read it again."


class Fenced(Conflict):
    code = "fenced"
    advice = "Stop: what this attempt does counts no more. Another one goes on from its records."


class NotLeader(Definite):
    code = "not-leader"
    advice = "Ask the leading controller; clients do this by themselves."


class AccessDenied(Definite):
    code = "access-denied"
    advice = "Check the credentials of this context: comity context show."


class Corrupt(Definite):
    code = "corrupt"
    advice = "Stop, keep the data directory as it is, and restore from a copy; comity doctor names the place."


class ForeignData(Definite):
    code = "foreign-data"
    advice = "Point --data at this network's own directory, or at an empty one."


class AlreadyRunning(Definite):
    code = "already-running"
    advice = "A network already runs on this data directory; use it, stop it with: comity down, or choose another --data."


class ClockAhead(Definite):
    code = "clock-ahead"
    advice = "See to this machine's clock. If it is right, the network stood still for so long: comity up --clock-is-right."


class DiskFull(Definite):
    code = "disk-full"
    advice = "Make room on the disk that holds the data directory; nothing is lost. What runs goes on by itself."


class ServerFailed(Definite):
    code = "server-failed"
    advice = "Read server.log in the data directory; check the binary with: comity doctor."


class ModuleFailed(Definite):
    code = "module-failed"
    advice = "Import the module in Python to see the cause; --debug shows the traceback."


class InvalidOutput(Definite):
    code = "invalid-output"
    advice = "Correct the agent's function, or the annotation of what it returns."


class Unanswered(Definite):
    code = "unanswered"
    advice = "Submit the task again, or let it wait longer for its answer."


class TaskError(Definite):
    """A task reached a terminal state other than completed."""

    code = "task-error"
    advice = "Look at it with: comity tasks show ID."


class TaskFailed(TaskError):
    code = "task-failed"
    advice = "Look at the attempts with: comity tasks show ID."


class Poisoned(TaskFailed):
    code = "poison"
    advice = "Find out what it does to its node (memory, a crash), correct that, and replay it: comity dead replay ID."


class Stuck(TaskFailed):
    code = "stuck"
    advice = "Let the function call attempt.progress, find out what it waited for, or raise progress_timeout_s."


class TaskCanceled(TaskError):
    code = "task-canceled"
    advice = "Someone canceled it, or its parent ended."


class TaskRejected(TaskError):
    code = "task-rejected"
    advice = "The task asks for something the network does not permit; see its reason."


class DeadlineExceeded(TaskError):
    code = "deadline-exceeded"
    advice = "Give it more time, or find out what it waited for: comity tasks show ID --why."


class Unreachable(Indefinite):
    code = "unreachable"
    advice = "Is the network up (comity up)? Is the address right (comity context show)?"


class TimedOut(Indefinite):
    code = "timed-out"
    advice = "It may still happen. Ask for its state, or repeat with the same id or key."


class Disconnected(Indefinite):
    code = "disconnected"
    advice = "The connection broke; repeat with the same id or key."


class PeerLost(Indefinite):
    code = "peer-lost"
    advice = "The agent died before it answered; repeat if the call may run twice."


class OutOfProtocol(Indefinite):
    code = "out-of-protocol"
    advice = "Correct the agent that said it: docs/wire.md has the protocols."


class TooOld(Indefinite):
    code = "too-old"
    advice = "The task id is older than the de-duplication window; ask for the task before submitting it anew."


class Refuse(Exception):
    """Raised by an agent's function to pass a task on: it goes to another agent and no retry is used."""

    reason: str = "refused"

    def __init__(self, reason: object = "refused") -> None:
        super().__init__(reason)
        self.reason = str(reason)


def _tree(cls: type[ComityError]) -> list[type[ComityError]]:
    found = [cls]
    for sub in cls.__subclasses__():
        found += _tree(sub)
    return found


def by_code() -> dict[str, type[ComityError]]:
    """All error classes by their stable code: those that bring one of their own. What is derived from them for inner use has its
    parent's, and stays at home."""
    return {cls.code: cls for cls in _tree(ComityError) if "code" in vars(cls)}


def from_wire(code: str, message: str, details: dict[str, Any] | None = None) -> ComityError:
    """Build the error that a peer named by ``code``; an unknown code becomes a TaskFailed that keeps it."""
    cls = by_code().get(code)
    if cls is None:
        return TaskFailed(message, **{"code": code, **(details or {})})
    return cls(message, **(details or {}))
