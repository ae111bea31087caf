"""The event stream, followed: of one task or of the network. What comes from the log is resumed where it broke off;
what is live is told once more to who comes back to the same leader, or comes to a new one (progress and log lines of tasks are
not)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from random import Random
from typing import Any

from comity.client.contact import Contact
from comity.client.timers import Alarm, Timers
from comity.errors import ComityError
from comity.model.codec import from_json
from comity.model.ids import TaskId
from comity.model.wire import AGAIN, CURRENT, EventNotice, FollowEvents

FOLLOW_MS = 15_000
RENEW_S = 5.0
QUEUED = 10_000
"""Events kept for a reader that is slow; past that it is resumed from the log, and live ones may be missed."""
LIVE_KNOWN = 4096
"""Live events remembered, to know them again."""


class Stream:
    """One reader's events. ``index`` is the log index it has read up to; ``at_index`` the events it has read of that
    one entry, which may come again. ``number`` is the leader's name for it, another at each resumption; ``received``
    how many notices came under that name."""

    def __init__(self, number: int, after: int, task: TaskId | None) -> None:
        self.number = number
        self.received = 0
        self.task = task
        self.index = after
        self.at_index: dict[bytes, None] = {}
        self.live: dict[bytes, None] = {}
        self.queue: deque[EventNotice] = deque()
        self.has_gap = False
        self.waiter: asyncio.Future[None] | None = None
        self.error: ComityError | None = None
        self.is_over = False
        self.is_current = after < 0
        """All of the past that was asked for has been read, as far as it was to be had."""

    def wake(self) -> None:
        if self.waiter is not None and not self.waiter.done():
            self.waiter.set_result(None)


class Streams:
    """All readers of this process."""

    def __init__(self, contact: Contact, timers: Timers, rng: Random) -> None:
        self._contact = contact
        self._timers = timers
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._open: dict[int, Stream] = {}
        self._alarm: Alarm | None = None
        self._ended: ComityError | None = None
        contact.on_renewed(self._renew)

    def open(self, after: int, task: TaskId | None = None) -> Stream:
        """Begin to follow. ``after`` -1: from now on; else what follows that log index first, as far as it is kept."""
        if self._ended is not None:
            raise self._ended
        stream = Stream(self._rng.getrandbits(53), after, task)
        self._open[stream.number] = stream
        self._follow(stream, after)
        if self._alarm is None:
            self._alarm = self._timers.after(RENEW_S, self._look)
        return stream

    def close(self, stream: Stream) -> None:
        if self._open.pop(stream.number, None) is not None and self._contact.is_up:
            self._contact.post(FollowEvents(stream.number, -1, 0, stream.task))

    def _follow(self, stream: Stream, after: int) -> None:
        if self._contact.is_up:
            self._contact.post(FollowEvents(stream.number, after, FOLLOW_MS, stream.task))
        else:
            self._contact.seek()

    def _resume(self, stream: Stream) -> None:
        """From the last entry read on, that one again: it may have been cut in the middle. What is still on its way under
        the old number counts for nothing."""
        self.close(stream)
        stream.number, stream.received = self._rng.getrandbits(53), 0
        self._open[stream.number] = stream
        stream.is_current = stream.index < 0
        self._follow(stream, max(stream.index - 1, 0) if stream.index >= 0 else -1)

    def _renew(self, lost: bool) -> None:
        for stream in list(self._open.values()):
            self._resume(stream)

    def _look(self) -> None:
        self._alarm = None
        for stream in self._open.values():
            self._follow(stream, -1)
        if self._open:
            self._alarm = self._timers.after(RENEW_S, self._look)

    def on_notice(self, item: EventNotice) -> None:
        stream = self._open.get(item.ref)
        if stream is None:
            return
        stream.received += 1
        if item.number > stream.received:
            self._resume(stream)
        elif stream.has_gap or len(stream.queue) >= QUEUED:
            stream.has_gap = True
        else:
            stream.queue.append(item)
            stream.wake()

    async def events(self, stream: Stream, *, follow: bool = True) -> AsyncIterator[dict[str, Any]]:
        """Each event once, as a dict with ``type``, ``at`` (UTC ms) and ``index`` (0: live), until ``is_over`` and the past is
        told; without ``follow``, until the past is told."""
        try:
            while True:
                while stream.queue:
                    item = stream.queue.popleft()
                    if item.body == CURRENT:
                        stream.is_current = True
                    elif self._is_new(stream, item):
                        yield {**from_json(item.body), "index": max(item.index, 0)}
                if stream.has_gap:
                    stream.has_gap = False
                    self._resume(stream)
                if stream.is_current and not follow:
                    return
                if stream.error is not None:
                    raise stream.error
                if stream.is_over and stream.is_current:
                    return
                stream.waiter = self._loop.create_future()
                await stream.waiter
        finally:
            self.close(stream)

    @staticmethod
    def _is_new(stream: Stream, item: EventNotice) -> bool:
        if item.index <= 0:
            if item.index == AGAIN and item.body in stream.live:
                return False
            stream.live[item.body] = None
            if len(stream.live) > LIVE_KNOWN:
                del stream.live[next(iter(stream.live))]
            return True
        if item.index < stream.index or (item.index == stream.index and item.body in stream.at_index):
            return False
        if item.index > stream.index:
            stream.index = item.index
            stream.at_index.clear()
        stream.at_index[item.body] = None
        return True

    def end(self, error: ComityError) -> None:
        """Every reader's stream, now and later, ends in ``error``."""
        self._ended = error
        for stream in self._open.values():
            stream.error = error
            stream.wake()
