"""The event stream: the log, projected. Followers get what entries changed, and live events (progress, logs) beside it."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import msgspec

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.core.changes import Change
from comity.errors import ComityError, TooLarge
from comity.model.ids import ProcessId, TaskId
from comity.model.wire import AGAIN, CURRENT, EventNotice, FollowEvents

RECENT = 32_768
"""Changes kept at hand; an older past is read back from the log."""
NOTICES = 1024
"""Events that are no entries, kept for those who come, or come back, a moment later."""
TOLD_AT_ONCE = 1000
READS, READ_AGAIN_S = 4, 0.5
"""So often a past that cannot be reached is tried, before a gap is told."""
ROUNDS = 3
FOR_MS_MAX = 120_000
FOLLOWED_AT_ONCE = 64
_encode = msgspec.json.Encoder().encode
_INTERNAL = frozenset({
    "archive.grown", "archive.dropped", "snapshot.taken", "snapshot.dropped", "task.rated", "record.dropped", "dead.emptied",
    "mail.posted", "mail.dropped",
})  # fmt: skip


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
    if change.agent is not None:
        event["agent"] = change.agent
    if change.reason:
        event["reason"] = change.reason
        if attempt is not None and attempt.failure is not None:
            event["code"] = attempt.failure.code
    return event


Past = Callable[[int, int], AsyncGenerator[tuple[int, int, list[Change]], None]]
"""``past(after, upto)``: what the entries after ``after``, to ``upto``, changed: (index, entry time, changes). It starts later
if the log does."""


class Follower:
    """Who follows. ``next`` is the first index still owed, ``sent`` how many notices were; while ``catching_up`` new entries wait
    for the past."""

    __slots__ = ("after", "catching_up", "next", "process", "ref", "sent", "task", "until")

    def __init__(self, process: ProcessId, item: FollowEvents, until: float) -> None:
        self.process = process
        self.ref = item.ref
        self.task = item.task
        self.until = until
        self.after = item.after
        self.next = item.after + 1
        self.sent = 0
        self.catching_up: asyncio.Task[None] | None = None


class Events:
    """Who follows, and what was lately. Costs nothing but a deque entry per entry while nobody follows."""

    def __init__(self, outbox: Outbox, time: Callable[[], float], past: Past) -> None:
        self._outbox = outbox
        self._time = time
        self._past = past
        self._followers: dict[tuple[ProcessId, int], Follower] = {}
        self._recent: deque[tuple[int, int, list[Change]]] = deque()
        self._notices: deque[tuple[int, bytes]] = deque(maxlen=NOTICES)  # with the entry they came after
        self.counts: Counter[str] = Counter()
        """Events since this controller leads, by type."""
        self._reading = asyncio.Lock()
        self._kept = 0  # changes in ``_recent``, and one for each entry

    def end(self) -> None:
        for key in list(self._followers):
            self._drop(key)

    def follow(self, item: FollowEvents, sender: ProcessId) -> None:
        """Begin, go on or stop. With ``after`` >= 0 the past comes first; what of it is gone is told by ``events.gap``, and its
        end by ``events.current``. Raises TooLarge for one who follows too often at a time."""
        key = (sender, item.ref)
        until = self._time() + min(item.for_ms, FOR_MS_MAX) / 1000
        known = self._followers.get(key)
        if known is not None and item.after < 0 < item.for_ms:
            known.until = until
            if known.catching_up is None:
                self._post(known, 0, CURRENT)
            return
        self._drop(key)
        if item.for_ms <= 0:
            return
        if sum(process == sender for process, _ in self._followers) >= FOLLOWED_AT_ONCE:
            raise TooLarge(f"{sender} follows events {FOLLOWED_AT_ONCE} times already", limit=FOLLOWED_AT_ONCE)
        follower = self._followers[key] = Follower(sender, item, until)
        if item.after >= 0:
            follower.catching_up = asyncio.get_running_loop().create_task(self._catch_up(follower))

    def _drop(self, key: tuple[ProcessId, int]) -> None:
        follower = self._followers.pop(key, None)
        if follower is not None and follower.catching_up is not None:
            follower.catching_up.cancel()

    async def _catch_up(self, follower: Follower) -> None:
        """Tell the past, from the log as far as it is not at hand. Who cannot be told all of it before more than is kept has
        happened again, a few times over, is told of a gap."""
        for _ in range(ROUNDS):
            if self._recent and self._recent[0][0] > follower.next:
                await self._read_past(follower, self._recent[0][0] - 1)
        while True:
            if not self._replay(follower):
                break
            await asyncio.sleep(0)
        if follower.task is None:
            for index, body in self._notices:
                if index >= follower.after:
                    self._post(follower, AGAIN, body)
        self._post(follower, 0, CURRENT)
        follower.catching_up = None

    async def _read_past(self, follower: Follower, upto: int) -> None:
        """What the log says of entries up to ``upto``; one follower at a time, for it takes as much memory as there are tasks."""
        async with self._reading:
            for left in reversed(range(READS)):
                try:
                    await self._read_once(follower, upto)
                    break
                except ComityError as error:
                    if error.definite or not left:
                        self._skip_to(follower, upto + 1, 0, error.message)
                        break
                    await asyncio.sleep(READ_AGAIN_S)  # servers that elect a leader can soon be read from again
        follower.next = max(follower.next, upto + 1)

    async def _read_once(self, follower: Follower, upto: int) -> None:
        async with aclosing(self._past(follower.next - 1, upto)) as past:
            async for index, at_ms, changes in past:
                self._skip_to(follower, index, at_ms)
                self._tell(follower, index, changes, at_ms)
                await asyncio.sleep(0)

    def _replay(self, follower: Follower) -> bool:
        """Send some of what is owed from the recent past; whether there is more."""
        told = 0
        for index, at_ms, changes in self._recent:
            if index >= follower.next:
                if told > TOLD_AT_ONCE:
                    return True
                self._skip_to(follower, index, at_ms)
                self._tell(follower, index, changes, at_ms)
                told += len(changes)
        return False

    def _skip_to(self, follower: Follower, index: int, at_ms: int, reason: str = "") -> None:
        if index > follower.next > 0:
            gap = {"type": "events.gap", "at": at_ms, "from": follower.next, "to": index - 1, "reason": reason}
            self._post(follower, 0, _encode(gap))

    def _tell(self, follower: Follower, index: int, changes: list[Change], at_ms: int) -> None:
        for change in changes:
            self._offer(follower, index, change, at_ms)
        follower.next = index + 1

    def _offer(self, follower: Follower, index: int, change: Change, at_ms: int) -> None:
        if change.kind in _INTERNAL:
            return
        about = change.task.spec.id if change.task is not None else change.task_id
        if follower.task is None or follower.task == about:
            self._post(follower, index, _encode(describe(change, at_ms)))

    def _post(self, follower: Follower, index: int, body: bytes) -> None:
        follower.sent += 1
        self._outbox.post(to(follower.process), EventNotice(follower.ref, index, body, follower.sent))

    def _current(self) -> list[Follower]:
        now = self._time()
        for key in [key for key, follower in self._followers.items() if follower.until <= now]:
            self._drop(key)
        return [follower for follower in self._followers.values() if follower.catching_up is None]

    def publish(self, index: int, at_ms: int, changes: list[Change]) -> None:
        """What the entry at ``index`` changed."""
        self._recent.append((index, at_ms, changes))
        self._kept += len(changes) + 1
        for change in changes:
            self.counts[change.kind] += 1
        while self._kept > RECENT and len(self._recent) > 1:
            self._kept -= len(self._recent.popleft()[2]) + 1
        if self._followers:
            for follower in self._current():
                self._tell(follower, index, changes, at_ms)

    def live(self, event: dict[str, Any], task: TaskId | None = None) -> None:
        """Something that is no entry: a suspicion, a refusal; or, of ``task``, progress or a log line."""
        self.counts[event["type"]] += 1
        if task is None or self._followers:
            body = _encode(event)
            if task is None:
                self._notices.append((self._recent[-1][0] if self._recent else 0, body))
            for follower in self._current():
                if follower.task is None or follower.task == task:
                    self._post(follower, 0, body)
