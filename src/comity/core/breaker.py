"""Circuit breakers: an agent that keeps failing at a capability gets no attempts at it for a while.

    closed ── too many failures ──▶ open ── its time is over ──▶ half-open ── an attempt ──▶ probing
      ▲                              ▲                                                        │ │
      │                              └────────────── it failed: open for twice as long ───────┘ │
      └───────────────────────────────────────────── it completed ──────────────────────────────┘

Too many: ``failures`` tasks in a row, or ``share`` of those that ended within ``window_ms``, if they are twice ``failures`` at
least. A task counts once, however often it failed here: it may be the task. What is the caller's fault, what the task or the
capability says is not worth a retry, and what was only handed back, do not count: they do not tell of the agent. A node that
starts anew starts with closed ones.

Driven by what effective entries changed, and not replicated: every controller that reads the log keeps its own, so that the next
leader knows what this one knew. Only breakers of agents that failed lately are kept, and at most ``KEPT``. Times are entry times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from itertools import takewhile

import msgspec

from comity.core.changes import Change
from comity.errors import BadInput, InvalidInput
from comity.model.ids import AgentId, TaskId, node_of
from comity.model.task import Attempt, Ending, Task, TaskFailure

CLOSED, OPEN, HALF_OPEN, PROBING = "closed", "open", "half-open", "probing"
KEPT = 10_000
RESULTS = 64
"""Results kept for each: a window that holds more is judged by the latest."""

_ENDED = frozenset({
    "task.completed", "task.failed", "task.retrying", "task.requeued", "task.canceled", "task.input_required",
})  # fmt: skip
_NODE = frozenset({"node.joined", "node.evicted", "node.left"})
_HANDED_BACK = frozenset({
    Ending.REFUSED, Ending.NOT_STARTED, Ending.EVICTED, Ending.CANCELED, Ending.MOVED, Ending.INPUT_REQUIRED,
})  # fmt: skip
_CALLERS = frozenset({BadInput.code, InvalidInput.code})

Key = tuple[AgentId, str]
"""An agent and a capability."""


class BreakerPolicy(msgspec.Struct, frozen=True):
    """Opened the n-th time in a row, a breaker stays so for ``open_ms`` x 2^(n-1), at most ``longest`` times ``open_ms``."""

    failures: int = 5
    share: float = 0.5
    window_ms: int = 60_000
    open_ms: int = 5_000
    longest: int = 64


class Turn(msgspec.Struct, frozen=True):
    """A breaker's state is a new one; open ``until_ms``."""

    agent: AgentId
    capability: str
    state: str
    reason: str
    until_ms: int = 0


class Breaker:
    """Of one agent and capability. ``results``: when, and which task failed (None: it completed). ``probe``: the epoch of the
    attempt that tries it. Invariant: ``probe`` is set exactly while probing, ``trips`` exactly while not closed."""

    __slots__ = ("probe", "reason", "results", "state", "trips", "until_ms")

    def __init__(self, results: int) -> None:
        self.state = CLOSED
        self.results: deque[tuple[int, TaskId | None]] = deque(maxlen=results)
        self.trips = 0
        self.until_ms = 0
        self.probe = 0
        self.reason = ""

    @property
    def is_out(self) -> bool:
        """It may get no attempt now."""
        return self.state in (OPEN, PROBING)


class Breakers:
    """See the module."""

    def __init__(self, policy: BreakerPolicy | None = None) -> None:
        self.policy = policy or BreakerPolicy()
        self._known: dict[Key, Breaker] = {}
        self._opened: list[tuple[int, Key]] = []
        self._turns: list[Turn] = []

    def __iter__(self) -> Iterator[tuple[Key, Breaker]]:
        return iter(self._known.items())

    def of(self, agent: AgentId, capability: str) -> Breaker | None:
        """None if it did not fail lately."""
        return self._known.get((agent, capability))

    def observe(self, changes: list[Change], now_ms: int) -> list[Turn]:
        """Take in what an entry changed."""
        for change in changes:
            attempt, task = change.attempt, change.task
            if attempt is None or task is None:
                if change.kind in _NODE and change.node is not None and self._known:
                    self._forget_node(change.node)
            elif change.kind == "task.assigned":
                if self._known:
                    self._assigned(attempt, task.spec.capability)
            elif change.kind in _ENDED and (self._known or attempt.ending is not Ending.COMPLETED):
                self._ended(attempt, task, now_ms)
        return self._take_turns()

    def due(self, now_ms: int) -> list[Turn]:
        """Those that were open for long enough."""
        while self._opened and self._opened[0][0] <= now_ms:
            until_ms, key = heappop(self._opened)
            breaker = self._known.get(key)
            if breaker is not None and breaker.state == OPEN and breaker.until_ms == until_ms:
                self._turn(key, breaker, HALF_OPEN, "its time is over: one attempt may try it")
        return self._take_turns()

    def next_deadline(self) -> int | None:
        """When ``due`` has something; it may then turn out to be nothing."""
        return self._opened[0][0] if self._opened else None

    def _take_turns(self) -> list[Turn]:
        turns, self._turns = self._turns, []
        return turns

    def _turn(self, key: Key, breaker: Breaker, state: str, reason: str) -> None:
        breaker.state, breaker.reason = state, reason
        self._turns.append(Turn(*key, state, reason, breaker.until_ms if state == OPEN else 0))

    def _assigned(self, attempt: Attempt, capability: str) -> None:
        key = attempt.agent, capability
        breaker = self._known.get(key)
        if breaker is not None and breaker.state == HALF_OPEN:
            breaker.probe = attempt.epoch
            self._turn(key, breaker, PROBING, f"attempt {attempt.epoch} tries it")

    def _ended(self, attempt: Attempt, task: Task, now_ms: int) -> None:
        key = attempt.agent, task.spec.capability
        breaker = self._known.get(key)
        failed = attempt.ending is not Ending.COMPLETED and attempt.ending not in _HANDED_BACK
        counts = attempt.failure is not None and _tells_of_the_agent(attempt.failure, task)
        if breaker is not None and breaker.state != CLOSED:
            if attempt.epoch != breaker.probe:
                return  # it began before, and tells nothing new
            breaker.probe = 0
            if attempt.ending is Ending.COMPLETED:
                del self._known[key]
                self._turn(key, breaker, CLOSED, "the attempt that tried it completed")
            elif failed and counts:
                self._open(key, breaker, now_ms, f"the attempt that tried it failed: {_said(attempt)}")
            else:
                self._turn(key, breaker, HALF_OPEN, "the attempt that tried it told nothing")
        elif failed and counts:
            self._failed(key, breaker or self._new(key), attempt, task.spec.id, now_ms)
        elif breaker is not None and attempt.ending is Ending.COMPLETED:
            breaker.results.append((now_ms, None))
            self._slide(breaker, now_ms)
            if all(failed is None for _, failed in breaker.results):
                del self._known[key]

    def _failed(self, key: Key, breaker: Breaker, attempt: Attempt, task: TaskId, now_ms: int) -> None:
        self._slide(breaker, now_ms)
        if any(task == failed for _, failed in breaker.results):
            return
        policy, results = self.policy, breaker.results
        results.append((now_ms, task))
        failures = sum(failed is not None for _, failed in results)
        row = sum(1 for _ in takewhile(lambda result: result[1] is not None, reversed(results)))
        if row >= policy.failures:
            self._open(key, breaker, now_ms, f"{row} tasks in a row failed, the last with {_said(attempt)}")
        elif len(results) >= 2 * policy.failures and failures >= policy.share * len(results):
            said = f"{failures} of {len(results)} tasks failed within {policy.window_ms / 1000:g} s"
            self._open(key, breaker, now_ms, f"{said}, the last with {_said(attempt)}")

    def _slide(self, breaker: Breaker, now_ms: int) -> None:
        """Forget what is older than the window."""
        results, oldest = breaker.results, now_ms - self.policy.window_ms
        while results and results[0][0] < oldest:
            results.popleft()

    def _open(self, key: Key, breaker: Breaker, now_ms: int, reason: str) -> None:
        policy = self.policy
        for_ms = policy.open_ms * min(policy.longest, 2 ** min(breaker.trips, 20))
        breaker.trips += 1
        breaker.results.clear()
        breaker.until_ms = now_ms + for_ms
        heappush(self._opened, (breaker.until_ms, key))
        self._turn(key, breaker, OPEN, reason)

    def _new(self, key: Key) -> Breaker:
        if len(self._known) >= KEPT:
            self._forget(next(iter(self._known)), "more agents fail than are remembered")
        breaker = self._known[key] = Breaker(max(RESULTS, 2 * self.policy.failures))
        return breaker

    def _forget_node(self, node: str) -> None:
        for key in [key for key in self._known if node_of(key[0]) == node]:
            self._forget(key, f"node {node} starts anew")

    def _forget(self, key: Key, reason: str) -> None:
        breaker = self._known.pop(key)
        if breaker.state != CLOSED:
            self._turn(key, breaker, CLOSED, reason)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        opened = set(self._opened)
        for key, breaker in self._known.items():
            assert (breaker.probe > 0) == (breaker.state == PROBING), f"{key} has a probe exactly while probing"
            assert (breaker.trips > 0) == (breaker.state != CLOSED), f"{key} has tripped exactly while not closed"
            assert breaker.state != OPEN or (breaker.until_ms, key) in opened, f"{key} is open and nothing will look at it"
        assert len(self._known) <= KEPT


def _tells_of_the_agent(failure: TaskFailure, task: Task) -> bool:
    """Whether it is the agent that failed. (A node says of what its agents name in ``no_retry`` that it is not retryable.)"""
    retry = task.spec.retry
    return failure.retryable and failure.code not in _CALLERS and (retry is None or failure.code not in retry.no_retry)


def _said(attempt: Attempt) -> str:
    return attempt.failure.text if attempt.failure is not None else str(attempt.ending)
