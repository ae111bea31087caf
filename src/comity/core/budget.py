"""A budget for retries, so that a dependency that is down is not hammered by them.

Each capability has a bucket of tokens, and each retry after a failure or time-out takes one; without one it waits, first come
first served. A first attempt at a task pays in a part of a token (``ratio``), an attempt that completes a whole one, and the
clock a token every two seconds. So while nothing succeeds, retries add ``ratio`` to the load and little more; as long as at least
half of all attempts succeed, none waits; and as soon as the dependency is back, each success lets the next retry go.
(Token buckets as in Finagle's RetryBudget and gRPC's retry throttling, which drop what we hold back.)

Leader-local: a new leader starts with a full reserve.
"""

from __future__ import annotations

from comity.model.ids import TaskId

RESERVE = 20.0
"""Tokens in a bucket at the beginning, and at most."""
DRIP_MS = 2000
BUCKETS_MAX = 10_000


class _Bucket:
    __slots__ = ("armed", "at_ms", "held", "tokens")

    def __init__(self, now_ms: int) -> None:
        self.tokens = RESERVE
        self.at_ms = now_ms
        self.held: dict[TaskId, None] = {}
        self.armed: tuple[TaskId, int] | None = None


class Budget:
    """See the module. Invariant: ``owing`` holds the tasks whose next attempt takes a token, those held back among them."""

    def __init__(self, ratio: float) -> None:
        self.owing: dict[TaskId, None] = {}
        self.ratio = ratio
        self._buckets: dict[str, _Bucket] = {}

    @property
    def held(self) -> int:
        """Retries that wait for a token."""
        return sum(len(bucket.held) for bucket in self._buckets.values())

    def is_held(self, capability: str, task_id: TaskId) -> bool:
        bucket = self._buckets.get(capability)
        return bucket is not None and task_id in bucket.held

    def _bucket(self, capability: str, now_ms: int) -> _Bucket:
        bucket = self._buckets.get(capability)
        if bucket is None:
            if len(self._buckets) >= BUCKETS_MAX:
                self._make_room()
            bucket = self._buckets[capability] = _Bucket(now_ms)
        drops, rest = divmod(max(0, now_ms - bucket.at_ms), DRIP_MS)
        bucket.tokens = min(RESERVE, bucket.tokens + drops)
        bucket.at_ms = now_ms - rest
        return bucket

    def _make_room(self) -> None:
        """Forget the bucket that is known longest, of those that hold nobody back."""
        oldest = next((name for name, bucket in self._buckets.items() if not bucket.held), None)
        if oldest is not None:
            del self._buckets[oldest]

    def waiting(self) -> tuple[set[TaskId], set[TaskId]]:
        """Those held back: who goes next of each capability, and all."""
        held = [bucket.held for bucket in self._buckets.values() if bucket.held]
        return {next(iter(tasks)) for tasks in held}, {task_id for tasks in held for task_id in tasks}

    def ended(self, capability: str, *, first: bool, completed: bool, now_ms: int) -> bool:
        """An attempt ended; ``first``: the task's first. Whether somebody waits for what it paid in."""
        bucket = self._buckets.get(capability)
        if bucket is None or not (completed or first):  # one that nobody took from is full
            return False
        bucket = self._bucket(capability, now_ms)
        bucket.tokens = min(RESERVE, bucket.tokens + self.ratio * first + completed)
        return bool(bucket.held)

    def queue(self, capability: str, task_id: TaskId, now_ms: int) -> None:
        """A task that owes is to be tried again, after those that are held back already."""
        self._bucket(capability, now_ms).held[task_id] = None

    def released(self, capability: str, now_ms: int) -> list[TaskId]:
        """Those for whom there are tokens now: they may go."""
        bucket = self._bucket(capability, now_ms)
        free = [task_id for task_id, _ in zip(bucket.held, range(int(bucket.tokens)), strict=False)]
        for task_id in free:
            bucket.tokens -= 1
            del bucket.held[task_id]
            del self.owing[task_id]
        return free

    def head(self, capability: str) -> tuple[TaskId, int] | None:
        """Who goes next, and when the clock lets it; None if that was said already."""
        bucket = self._buckets.get(capability)
        if bucket is None or not bucket.held:
            return None
        head = next(iter(bucket.held)), bucket.at_ms + DRIP_MS  # there is less than one token, or it would have gone
        if head == bucket.armed:
            return None
        bucket.armed = head
        return head

    def forget(self, capability: str, task_id: TaskId) -> bool:
        """The task has ended. Whether it was held back."""
        self.owing.pop(task_id, None)
        bucket = self._buckets.get(capability)
        return bucket is not None and bucket.held.pop(task_id, self) is None
