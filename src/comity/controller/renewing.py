"""A large input stands in the store under the key of whoever submitted it, and expires: it is kept for ``every_ms`` of waiting,
and ``keep_ms`` after that, counted from the submit. A task may wait longer. So as long as it is not over, its input is written
anew each ``every_ms``, under a key of the network's own, with all of that time before it. None of these needs to be deleted."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush

import structlog

from comity.core.tasks import Tasks
from comity.errors import Corrupt, NotFound
from comity.failpoints import durable
from comity.model.ids import TaskId, task_time_ms
from comity.model.payload import Stored
from comity.model.task import Command, Moved, Task
from comity.store.base import Store

OWN, KEPT = "network/", "network/kept/"
"""Where they are; the last part of a key is the entry time when it was written."""
EVERY_MS = 7 * 86_400_000
"""At most so long between two."""
AGAIN_MS = 60_000
"""One that cannot be read may be readable after so long: a damaged copy is rebuilt meanwhile."""

_log = structlog.get_logger("comity.controller")


class Renewing:
    """Tasks with large inputs, by when these are to be written anew. ``propose`` takes commands."""

    def __init__(self, state: Tasks, store: Store, propose: Callable[[Command], None], every_ms: int, keep_ms: int) -> None:
        self._state = state
        self._store = store
        self._propose = propose
        self._every_ms = min(every_ms, EVERY_MS)
        self._keep_ms = keep_ms
        self._queue: list[tuple[int, TaskId]] = []

    def begin(self) -> None:
        """A new term: look at every task."""
        found = [(self._due_ms(task), task.spec.id) for task in list(self._state.tasks.values()) if _expires(task)]
        heapify(found)
        self._queue = found

    def look(self, task: Task) -> None:
        """It was submitted."""
        if _expires(task):
            heappush(self._queue, (self._due_ms(task), task.spec.id))

    def is_due(self, now_ms: int) -> bool:
        return bool(self._queue) and self._queue[0][0] <= now_ms

    async def renew(self, now_ms: int) -> int:
        """Write the inputs anew whose turn it is; how many there were."""
        count = 0
        while self.is_due(now_ms):
            was_due_ms, task_id = heappop(self._queue)
            task = self._state.tasks.get(task_id)
            if task is None or not _expires(task):
                continue
            again_ms = was_due_ms
            try:
                again_ms = await self._write(task, now_ms)
                count += 1
            finally:
                if again_ms:
                    heappush(self._queue, (again_ms, task_id))
        return count

    async def _write(self, task: Task, now_ms: int) -> int:
        """When to do it again; 0: never."""
        theirs = task.spec.input
        assert isinstance(theirs, Stored)
        key = f"{KEPT}{task.spec.id}-{now_ms}"
        try:
            with durable("input.renew"):
                stored = await self._store.put(key, self._store.get(theirs.key), ttl_s=(self._every_ms + self._keep_ms) / 1000)
        except NotFound:  # its time was over; the attempt that needs it will be told
            return 0
        except Corrupt as error:
            _log.warning("a large input cannot be kept now", task=task.spec.id, error=error.message)
            return now_ms + AGAIN_MS
        self._propose(Moved(task.spec.id, stored))
        return now_ms + self._every_ms

    def _due_ms(self, task: Task) -> int:
        assert isinstance(task.spec.input, Stored)
        key = task.spec.input.key
        if key.startswith(KEPT):
            return int(key.rpartition("-")[2]) + self._every_ms
        return task_time_ms(task.spec.id) + self._every_ms if task.spec.replays is None else 1


def _expires(task: Task) -> bool:
    """Whether its input is of those, and is still needed. What lay in the log once stays by itself."""
    given = task.spec.input
    return type(given) is Stored and not task.is_terminal and (given.key.startswith(KEPT) or not given.key.startswith(OWN))

