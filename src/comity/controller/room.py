"""How much may wait: tasks, bytes of their inputs, and of both what one submitter may take; and how many that ended may still be
in memory. More is refused, with a time after which there is likely to be room again; what was accepted stays."""

from __future__ import annotations

from collections.abc import Callable

from comity.core.backlog import Backlog
from comity.errors import Overloaded
from comity.model.ids import ProcessId
from comity.model.task import TaskSpec

SHARE = 0.8
"""Of everything that may wait, what one submitter may take unless told otherwise: the others always find room."""
FREED = 0.1
"""A refused submit comes again when this part of what waits now has gone."""
ENDED_MAX = 100_000
"""So many that ended may be in memory before anything is refused for them, or as many as may wait."""
SOONEST_S, LATEST_S, UNKNOWN_S = 0.1, 30.0, 2.0


class Room:
    """``backlog`` is what waits by the log; ``coming`` what is under way to it. ``drain`` tells how many tasks end in a second,
    ``ended`` how many did and are not in the archive: they gather while its store is slow or away.
    The task that passes a limit of bytes is let in: none is too large to wait alone."""

    def __init__(
        self, backlog: Backlog, *, max_tasks: int, max_bytes: int, max_each: int, drain: Callable[[], float],
        ended: Callable[[], int],
    ) -> None:  # fmt: skip
        self.backlog = backlog
        self.coming = Backlog()
        self.max_tasks = max_tasks
        self.max_bytes = max_bytes
        self.max_each = min(max_each or max(1, round(SHARE * max_tasks + 0.5)), max_tasks)
        self.max_bytes_each = max(1, int(max_bytes * self.max_each / max_tasks))
        self.max_ended = max(max_tasks, ENDED_MAX)
        self.refused = {"tasks": 0, "bytes": 0, "submitter": 0, "archive": 0}
        """Refusals, by the limit that was reached."""
        self._drain = drain
        self._ended = ended

    def check(self, submitter: ProcessId) -> None:
        """Raise Overloaded if nothing more may wait, or nothing more of ``submitter``."""
        if (ended := self._ended()) >= self.max_ended:
            raise self._overloaded("archive", f"{ended:,} tasks ended and are not in the archive yet", self.max_ended)
        tasks, held = self.backlog.tasks + self.coming.tasks, self.backlog.bytes + self.coming.bytes
        if tasks < self.max_each and held < self.max_bytes_each:
            return  # so nobody has more
        if tasks >= self.max_tasks:
            raise self._overloaded("tasks", f"{tasks:,} tasks wait already", self.max_tasks)
        if held >= self.max_bytes:
            raise self._overloaded("bytes", f"{held:,} bytes of input wait already", self.max_bytes)
        (mine, my_bytes), (new, new_bytes) = self.backlog.of(submitter), self.coming.of(submitter)
        if mine + new >= self.max_each:
            raise self._overloaded("submitter", f"{mine + new:,} tasks of {submitter} wait already", self.max_each)
        if my_bytes + new_bytes >= self.max_bytes_each:
            said = f"{my_bytes + new_bytes:,} bytes of {submitter}'s wait already"
            raise self._overloaded("submitter", said, self.max_bytes_each)

    def _overloaded(self, which: str, said: str, limit: int) -> Overloaded:
        self.refused[which] += 1
        return Overloaded(said, retry_after_s=self.retry_after_s(), limit=limit, reached=which)

    def retry_after_s(self) -> float:
        """At the present pace."""
        pace = self._drain()
        if pace <= 0:
            return UNKNOWN_S
        return round(min(LATEST_S, max(SOONEST_S, FREED * self.backlog.tasks / pace)), 2)

    def take(self, spec: TaskSpec) -> None:
        """It was let in, and is under way to the log."""
        self.coming.add(spec)

    def settle(self, spec: TaskSpec) -> None:
        """It is in the log, and in the backlog if it waits."""
        self.coming.remove(spec)
