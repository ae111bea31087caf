"""The event stream: the log, projected. Followers get what entries changed, and live events (progress, logs) beside it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.core.tasks import Change
from comity.model.ids import ProcessId, TaskId
from comity.model.wire import EventNotice, FollowEvents

RECENT = 20_000
"""Changes kept to answer a follower that asks for the past."""
_encode = msgspec.json.Encoder().encode
_INTERNAL = frozenset({"archive.grown", "archive.dropped", "snapshot.taken", "snapshot.dropped", "task.rated"})


def describe(change: Change, at_ms: int) -> dict[str, Any]:
    """A change as an event: ``type``, ``at`` (UTC ms) and what it is about."""
    event: dict[str, Any] = {"type": change.kind, "at": at_ms}
    task, attempt = change.task, change.attempt
    if task is not None:
        event["task"] = task.spec.id
        event["capability"] = task.spec.capability
    elif change.task_id is not None:
        event["task"] = change.task_id
    if attempt is not None:
        event["agent"] = attempt.agent
        event["node"] = attempt.node
        event["epoch"] = attempt.epoch
    if change.node is not None:
        event["node"] = change.node
    if change.reason:
        event["reason"] = change.reason
    return event


class Follower:
    __slots__ = ("process", "ref", "task", "until")

    def __init__(self, process: ProcessId, ref: int, task: TaskId | None, until: float) -> None:
        self.process = process
        self.ref = ref
        self.task = task
        self.until = until


class Events:
    """Who follows, and what was lately. Costs nothing but a deque entry per change while nobody follows."""

    def __init__(self, outbox: Outbox, time: Callable[[], float]) -> None:
        self._outbox = outbox
        self._time = time
        self._followers: dict[tuple[ProcessId, int], Follower] = {}
        self._recent: deque[tuple[int, int, tuple[Change, ...] | bytes]] = deque(maxlen=RECENT)

    def follow(self, item: FollowEvents, sender: ProcessId) -> None:
        """Begin, go on or stop. With ``after`` >= 0 the kept past comes first; a gap in it is told by ``events.gap``."""
        key = (sender, item.ref)
        if item.for_ms <= 0:
            self._followers.pop(key, None)
            return
        follower = Follower(sender, item.ref, item.task, self._time() + item.for_ms / 1000)
        self._followers[key] = follower
        if item.after >= 0:
            oldest = next((index for index, _, _ in self._recent if index), 0)
            if oldest > item.after + 1:
                self._post(follower, 0, _encode({"type": "events.gap", "at": 0, "from": item.after + 1, "to": oldest - 1}))
            for index, at_ms, changes in self._recent:
                if index > item.after and not isinstance(changes, bytes):
                    for change in changes:
                        self._offer(follower, index, change, at_ms)

    def _offer(self, follower: Follower, index: int, change: Change, at_ms: int) -> None:
        if change.kind in _INTERNAL:
            return
        about = change.task.spec.id if change.task is not None else change.task_id
        if follower.task is None or follower.task == about:
            self._post(follower, index, _encode(describe(change, at_ms)))

    def _post(self, follower: Follower, index: int, body: bytes) -> None:
        self._outbox.post(to(follower.process), EventNotice(follower.ref, index, body))

    def _current(self) -> list[Follower]:
        now = self._time()
        for key in [key for key, follower in self._followers.items() if follower.until <= now]:
            del self._followers[key]
        return list(self._followers.values())

    def publish(self, index: int, at_ms: int, changes: list[Change]) -> None:
        """What the entry at ``index`` changed."""
        if changes:
            self._recent.append((index, at_ms, tuple(changes)))
            if self._followers:
                for follower in self._current():
                    for change in changes:
                        self._offer(follower, index, change, at_ms)

    def live(self, event: dict[str, Any], task: TaskId | None = None) -> None:
        """Something that is no entry: progress, a log line, a suspicion, a refusal."""
        if self._followers:
            body = _encode(event)
            for follower in self._current():
                if follower.task is None or follower.task == task:
                    self._post(follower, 0, body)
