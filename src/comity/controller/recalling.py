"""What a controller still knows while nobody leads: for who would rather read something old than wait. Every answer says how old
it is, and nothing is decided by it. One that leads answers so too: it may have lost the log and not know it yet."""

from __future__ import annotations

from collections.abc import Callable
from heapq import nlargest
from typing import Any

import msgspec

from comity.controller.answers import ANSWER_MAX, LIST_MAX, view
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import TooLarge
from comity.model.codec import UNREADABLE, to_json
from comity.model.ids import TaskId
from comity.model.moment import iso
from comity.model.task import Task, TaskState

RECALL = "recall"
_LISTED_BYTES = 512


class _Args(msgspec.Struct, frozen=True):
    what: str = ""
    id: str = ""
    state: TaskState | None = None
    capability: str | None = None
    limit: int = 50
    before: str = "~"


def recalled(state: Tasks, ledger: Ledger, args: bytes, age_s: float) -> bytes:
    """The answer to such a question, as JSON; ``age_s``: since when nothing was heard of a leader or the log, or, of one that
    leads, since the log last took an entry of it. ``known`` is null if it is about nothing that is remembered; a list may be
    shorter than was asked for. Raises TooLarge."""
    try:
        asked = msgspec.json.decode(args, type=_Args)
    except UNREADABLE:
        asked = _Args()
    know: Callable[[Tasks, _Args], Any] | None = _KNOW.get(asked.what)
    known = know(state, asked) if know is not None else None
    said = {"age_s": round(age_s, 3), "as_of": iso(state.time_ms), "log_head": ledger.index}
    while len(body := to_json({**said, "known": known})) > ANSWER_MAX:
        if not isinstance(known, list) or len(known) < 2:
            raise TooLarge(f"the answer would take {len(body)} bytes", limit=ANSWER_MAX)
        known = known[: len(known) // 2]
    return body


def _task(state: Tasks, args: _Args) -> dict[str, Any] | None:
    task = state.tasks.get(TaskId(args.id))
    return view(task) if task is not None else None


def _tasks(state: Tasks, args: _Args) -> list[dict[str, Any]]:
    """Of those in memory, the newest first."""

    def matches(task: Task) -> bool:
        return (
            task.spec.id < args.before
            and (args.state is None or task.state is args.state)
            and (args.capability is None or task.spec.capability == args.capability)
        )

    limit = max(1, min(args.limit, LIST_MAX))
    found = nlargest(limit, filter(matches, state.tasks.values()), key=lambda task: task.spec.id)
    return [view(task, limit=_LISTED_BYTES) for task in found]


def _stats(state: Tasks, _args: _Args) -> dict[str, Any]:
    return {
        "network": state.network,
        "leader": state.leader,
        "term": state.term,
        "tasks": {**{str(kind): count for kind, count in state.counts.items()}, "archived": state.archived},
        "nodes": {str(node): len(lease.attempts) for node, lease in state.nodes.items()},
        "dead_letters": len(state.dead.letters),
        "schedules": len(state.schedules),
    }


_KNOW = {"task": _task, "tasks": _tasks, "stats": _stats}
