"""Large records stand in the store under the key of the node or client that wrote them, and only for so long as results are kept.
A task may wait longer than that for an answer: what it still needs becomes the network's own, and stays until the task ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import NotFound
from comity.failpoints import durable
from comity.model.ids import TaskId
from comity.model.payload import Stored
from comity.model.records import MoveRecord, Place
from comity.model.task import Command, Task
from comity.store.base import Store

MOVED = "network/payload/"
"""Payloads that are the network's own: they lay in the log once, or were adopted."""
ADOPT_AFTER_MS = 600_000
"""Most tasks have ended by then."""
RECORDED = frozenset({"task.step", "task.checkpoint", "task.input_required", "task.answered"})
"""Changes after which ``look`` may find something."""


class Adopting:
    """Tasks with records that others stored, oldest first. ``propose`` takes commands."""

    def __init__(self, state: Tasks, store: Store, ledger: Ledger, propose: Callable[[Command], None]) -> None:
        self._state = state
        self._store = store
        self._ledger = ledger
        self._propose = propose
        self._queue: deque[tuple[int, TaskId]] = deque()

    def begin(self) -> None:
        """A new term: look at every task."""
        for task in list(self._state.tasks.values()):
            self.look(task)

    def look(self, task: Task) -> None:
        """Take note of what was recorded."""
        if next(_foreign(task), None) is not None:
            self._queue.append((self._state.time_ms + ADOPT_AFTER_MS, task.spec.id))

    def is_due(self, now_ms: int) -> bool:
        return bool(self._queue) and self._queue[0][0] <= now_ms

    async def adopt(self, now_ms: int) -> int:
        """Copy the records of the tasks whose turn it is; how many there were."""
        due = dict.fromkeys(task_id for at_ms, task_id in self._queue if at_ms <= now_ms)
        count = 0
        for task in [self._state.tasks[task_id] for task_id in due if task_id in self._state.tasks]:
            for place, theirs in list(_foreign(task)):
                key = f"{MOVED}{task.spec.id}-{place.kind}-{self._ledger.index}-{count}-{self._state.term}"
                try:
                    with durable("record.adopt"):
                        stored = await self._store.put(key, self._store.get(theirs.key))
                except NotFound:
                    continue  # its time was over; the attempt that needs it will be told
                self._propose(MoveRecord(task.spec.id, place.kind, place.name, theirs, stored))
                count += 1
        while self.is_due(now_ms):
            self._queue.popleft()
        return count


def _foreign(task: Task) -> Iterator[tuple[Place, Stored]]:
    if task.records is not None:
        for place, payload in task.records.payloads():
            if isinstance(payload, Stored) and not payload.key.startswith(MOVED):
                yield place, payload
