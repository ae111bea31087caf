"""What should happen next, as commands: observed state against desired state.

The leader asks three questions: what shall ride with these new submits (``ride``), which waiting tasks can go to which
agents now (``plan``), and whose time is up (``due``). It tells what came of it by handing in every change of the replicated
state (``observe``). Nothing here is replicated: a new leader calls ``rebuild`` and knows the same.

Waiting tasks lie in queues, one for each distinct demand (capability, requirements, strategy, agents to avoid), so that a
task nobody can take never stands before one that somebody could. Within a demand, and between demands on one capability,
order is by rank = created − priority x ``aging_ms``: higher priority first, then oldest, and a task that has waited ``aging_ms``
longer counts as one priority higher. A rank never changes, so the queues are plain heaps.

Times are entry times in milliseconds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from heapq import heappop, heappush

import msgspec

from comity.core.breaker import Breakers
from comity.core.budget import Budget
from comity.core.changes import Change
from comity.core.expiry import ATTEMPT, DEADLINE, GRACE, PROGRESS, READY, START, WAIT, called_for
from comity.core.family import cancels, is_orphan
from comity.core.policy import Policy
from comity.core.refusals import Refusals
from comity.core.rotation import Rotation
from comity.core.scheduling import Scheduling
from comity.core.tasks import Tasks
from comity.core.waiting import LOOKS, Demand, Entry, Heap, Waiting
from comity.core.watch import Watch, timeout_ms
from comity.model.capability import AgentRecord
from comity.model.ids import AgentId, NodeId, TaskId, node_of
from comity.model.task import (
    Assign,
    Attempt,
    Cancel,
    Command,
    Ending,
    Task,
    TaskSpec,
    TaskState,
)

_OPEN = (TaskState.SUBMITTED, TaskState.WAITING)
_CHARGED = (Ending.FAILED, Ending.TIMED_OUT)
"""Endings whose retry takes a token of the budget. A lost node says nothing about what the function depends on."""
DUE_MAX = 4096
"""Timers looked at in one go."""


_encode = msgspec.msgpack.Encoder().encode


class Reconcile:
    """See the module. Invariant: ``reserved`` holds exactly the tasks with an assignment under way to the log, each with
    the one slot it took in ``scheduling``; a running attempt holds one slot unless it is in ``released``."""

    def __init__(
        self,
        state: Tasks,
        scheduling: Scheduling,
        policy: Policy,
        random: Callable[[], float],
        breakers: Breakers | None = None,
    ) -> None:
        self.state = state
        self.scheduling = scheduling
        self.rotation = Rotation(breakers or Breakers(), scheduling, self._freed)
        self.policy = policy
        self.reserved: dict[TaskId, AgentId] = {}
        self.released: dict[TaskId, int] = {}
        self.budget = Budget(policy.retry_budget)
        self.watch = Watch()
        self.paused = False
        """Give out nothing new: the network shuts down."""
        self.on_choice: Callable[[TaskId, int, AgentId, Demand | TaskSpec], None] | None = None
        self._random = random
        self._waiting: dict[str, Waiting] = {}
        self._dirty: dict[str, None] = {}
        self._timers: Heap[tuple[int, int, TaskId, int]] = Heap(self._is_live)
        self._refusals = Refusals(policy.refusal_ms)
        self._proposals: deque[Command] = deque()
        self._next_epoch = state.next_epoch()
        self._now_ms = state.time_ms

    # What is observed

    def put_agent(self, agent: AgentRecord) -> None:
        self.scheduling.put_agent(agent)
        self.rotation.put_agent(agent)
        self._freed(agent.id)

    def remove_agent(self, agent: AgentId) -> None:
        self.scheduling.remove_agent(agent)

    def set_node(self, node: NodeId, eligible: bool, cpu_free: float = 0.0, memory_free_mb: float = 0.0) -> None:
        """A node's agents may, or may no longer, be given attempts."""
        self.scheduling.set_node(node, eligible=eligible, cpu_free=cpu_free, memory_free_mb=memory_free_mb)

    def wake(self) -> None:
        """Every waiting task is looked at again: agents or nodes changed in a way that concerns many."""
        for capability in self.scheduling.capabilities():
            waiting = self._waiting.get(capability)
            if waiting is not None:
                waiting.wake()
                self._dirty[capability] = None

    def _freed(self, agent: AgentId) -> None:
        record = self.scheduling.record(agent)
        for offer in record.offers if record is not None else ():
            waiting = self._waiting.get(offer.name)
            if waiting is not None:
                waiting.freed(agent)
                self._dirty[offer.name] = None

    def freed(self, agent: AgentId) -> None:
        """A slot of ``agent`` is given back."""
        self.scheduling.give(agent)
        self._freed(agent)

    def slot(self, task_id: TaskId, token: int, held: bool) -> None:
        """An attempt lets go of its slot while it awaits children, or takes it back (over the limit if need be)."""
        task = self.state.current(task_id, token)
        if task is None or task.attempt is None or held == (task_id not in self.released):
            return
        if held:
            del self.released[task_id]
            self.scheduling.take(task.attempt.agent)
        else:
            self.released[task_id] = token
            self.freed(task.attempt.agent)

    def observe(self, changes: list[Change]) -> None:
        """Take in what an effective entry changed."""
        self._now_ms = max(self._now_ms, self.state.time_ms)
        self.rotation.observe(changes, self.state.time_ms)
        for change in changes:
            seen = _OBSERVERS.get(change.kind)
            if seen is not None and change.task is not None:
                seen(self, change.task, change)
            elif change.kind == "assignment.void" and change.task_id is not None:
                self._void(change.task_id, change.task)

    def _submitted(self, task: Task, change: Change) -> None:
        spec = task.spec
        if spec.deadline_ms:
            self._timer(spec.deadline_ms, DEADLINE, spec.id, 0)
        if spec.not_before_ms > self._now_ms:
            self._timer(spec.not_before_ms, READY, spec.id, 0)
        elif spec.id not in self.reserved:
            self._push(task)
        if spec.parent is not None and is_orphan(self.state, spec):
            self._proposals.append(Cancel(spec.id, f"its parent {spec.parent} ended"))

    def _assigned(self, task: Task, change: Change) -> None:
        self.reserved.pop(task.spec.id, None)
        self.rotation.settled(task.spec.id)
        if task.spec.start_timeout_s and change.attempt is not None:
            due = change.attempt.assigned_at + int(task.spec.start_timeout_s * 1000)
            self._timer(due, START, task.spec.id, task.epoch)

    def _void(self, task_id: TaskId, task: Task | None) -> None:
        """An assignment came too late to count: its node is gone, or the task."""
        agent = self.reserved.pop(task_id, None)
        self.rotation.settled(task_id)
        if agent is not None:
            self.freed(agent)
            if task is not None and task.state in _OPEN:
                self._push(task)

    def _started(self, task: Task, change: Change) -> None:
        due = self.state.time_ms + int(task.spec.attempt_timeout_s * 1000) + self.policy.attempt_slack_ms
        self._timer(due, ATTEMPT, task.spec.id, task.epoch)
        if timeout_ms(task):
            self._timer(self.watch.began(task, self.state.time_ms), PROGRESS, task.spec.id, task.epoch)

    def _canceling(self, task: Task, change: Change) -> None:
        self._timer(self.state.time_ms + self.policy.cancel_grace_ms, GRACE, task.spec.id, task.epoch)
        self._cancel_children(task.spec.id, None)

    def _put_back(self, task: Task, change: Change) -> None:
        self._attempt_ended(task, change)
        if change.attempt is not None and change.attempt.ending in (Ending.REFUSED, Ending.NOT_STARTED):
            self._refusals.note(task.spec.id, change.attempt)
        self._cancel_children(task.spec.id, task.epoch)
        self._wait(task)

    def _wait(self, task: Task) -> None:
        """It was put back, and is to be given out again when its time has come and the retry budget allows."""
        if task.past and task.past[-1].ending in _CHARGED:
            self.budget.owing[task.spec.id] = None
        if task.not_before > self._now_ms:
            self._timer(task.not_before, READY, task.spec.id, task.epoch)
        else:
            self._ready(task)

    def _ready(self, task: Task) -> None:
        if task.spec.id not in self.budget.owing:
            self._push(task)
        else:
            self.budget.queue(task.spec.capability, task.spec.id, self._now_ms)
            self._release(task.spec.capability)

    def _release(self, capability: str) -> None:
        """Retries that were held back go, as far as the budget allows; look again when it allows the next."""
        for task_id in self.budget.released(capability, self._now_ms):
            self._push(self.state.tasks[task_id])
        head = self.budget.head(capability)
        if head is not None:
            self._timer(head[1], READY, head[0], self.state.tasks[head[0]].epoch)

    def _asking(self, task: Task, change: Change) -> None:
        self._attempt_ended(task, change)
        self._cancel_children(task.spec.id, task.epoch)
        self._await_answer(task)

    def _await_answer(self, task: Task) -> None:
        """Nothing to do until somebody answers, or the time for it is over."""
        records = task.records
        name = records.asked() if records is not None else None
        if records is not None and name is not None and (until := records.questions[name].until_ms):
            self._timer(until, WAIT, task.spec.id, task.epoch)

    def _answered(self, task: Task, change: Change) -> None:
        self._push(task)

    def _finished(self, task: Task, change: Change) -> None:
        self._attempt_ended(task, change)
        self._refusals.forget(task.spec.id)
        if self.budget.forget(task.spec.capability, task.spec.id):
            self._release(task.spec.capability)
        if task.state is not TaskState.COMPLETED:
            self._cancel_children(task.spec.id, None)

    def _attempt_ended(self, task: Task, change: Change) -> None:
        attempt = change.attempt
        if attempt is None:
            return
        if attempt.ending in (Ending.COMPLETED, Ending.FAILED, Ending.TIMED_OUT) and attempt.started_at:
            ran_ms = attempt.ended_at - attempt.started_at
            done = attempt.ending is Ending.COMPLETED
            self.scheduling.measured(attempt.agent, task.spec.capability, float(ran_ms), done, now_ms=self._now_ms)
        self.watch.ended(task.spec.id, attempt.node)
        first = task.retries_used == (1 if change.kind == "task.retrying" else 0)
        completed = attempt.ending is Ending.COMPLETED
        if self.budget.ended(task.spec.capability, first=first, completed=completed, now_ms=self._now_ms):
            self._release(task.spec.capability)
        if self.released.pop(task.spec.id, None) is None:
            self.freed(attempt.agent)

    def stuck(self, node: NodeId, now_ms: int) -> list[Command]:
        """The ends of attempts at ``node`` that are stuck, now that it has sent a beacon."""
        commands: list[Command] = []
        for task_id in self.watch.overdue(node):
            task = self.state.tasks[task_id]
            verdict = self.watch.verdict(task, now_ms)
            if isinstance(verdict, int):
                self._timer(verdict, PROGRESS, task_id, task.epoch)
            else:
                commands.append(verdict)
        return commands

    def _rated(self, task: Task, change: Change) -> None:
        attempt = change.attempt
        if attempt is not None and attempt.ending is Ending.COMPLETED:
            self.scheduling.rated(attempt.agent, task.spec.capability, task.score)

    def _cancel_children(self, parent: TaskId, token: int | None) -> None:
        self._proposals.extend(cancels(self.state, parent, token))

    # What should be

    def _push(self, task: Task) -> None:
        spec = task.spec
        avoid, needs = self._refusals.lately(spec.id, self._now_ms), spec.requirements
        key = (spec.capability, _encode(needs) if needs is not None else b"", spec.strategy, avoid)
        waiting = self._waiting.get(spec.capability)
        if waiting is None:
            waiting = self._waiting[spec.capability] = Waiting()
        demand = waiting.demands.get(key)
        if demand is None:
            demand = Demand(key, needs, self._waits)
            waiting.add(demand)
        since = max(task.created_at, spec.not_before_ms)
        demand.heap.push((since - spec.priority * self.policy.aging_ms, spec.id))
        waiting.look_at(demand)
        self._dirty[spec.capability] = None
        if avoid:  # refusals are forgotten; then it may go to the same agents again
            self._timer(self._now_ms + self.policy.refusal_ms, READY, spec.id, task.epoch)

    def _waits(self, entry: Entry) -> bool:
        task = self.state.tasks.get(entry[1])
        return task is not None and task.state in _OPEN and entry[1] not in self.reserved

    def ride(self, spec: TaskSpec) -> Assign | None:
        """An assignment to go into the same entry as ``spec``'s submit, if an agent is free and nobody waits before it."""
        if self.paused or spec.capability in self._waiting or spec.not_before_ms > self._now_ms:
            return None
        agent = self.scheduling.choose(spec.capability, spec.requirements, spec.strategy)
        return self._reserve(spec.id, agent, spec) if agent is not None else None

    def plan(self, room: int) -> list[Command]:
        """Up to ``room`` assignments of waiting tasks, and whatever else the observed changes call for. Looks at a few demands
        only; see ``is_behind``."""
        commands: list[Command] = []
        if self.scheduling.is_behind:
            self.scheduling.catch_up()
            self.wake()
        while self._proposals and len(commands) < room:
            commands.append(self._proposals.popleft())
        looks = LOOKS
        while self._dirty and looks > 0 and len(commands) < room and not self.paused:
            capability = next(iter(self._dirty))
            del self._dirty[capability]
            waiting = self._waiting[capability]
            demands = waiting.take(looks)
            looks -= len(demands) + 1
            self._plan_demands(waiting, demands, commands, room)
            if waiting.is_dirty:
                self._dirty[capability] = None  # behind the others
            elif not waiting.demands:
                del self._waiting[capability]
        return commands

    @property
    def is_behind(self) -> bool:
        """``plan`` has more to do, now."""
        return bool(self._proposals) or (bool(self._dirty) and not self.paused) or self.scheduling.is_behind

    def _plan_demands(self, waiting: Waiting, demands: list[Demand], commands: list[Command], room: int) -> None:
        heads: list[tuple[Entry, int]] = []
        for number, demand in enumerate(demands):
            self._line_up(waiting, demand, number, heads)
        while heads:
            _, number = heads[0]
            demand = demands[number]
            agent = self.scheduling.choose(demand.capability, demand.needs, demand.strategy, demand.avoid)
            if agent is not None and len(commands) >= room:
                for _, left in heads:
                    waiting.look_at(demands[left])
                return
            heappop(heads)
            if agent is not None:
                commands.append(self._reserve(demand.heap.pop()[1], agent, demand))
                self._line_up(waiting, demand, number, heads)

    def _line_up(self, waiting: Waiting, demand: Demand, number: int, heads: list[tuple[Entry, int]]) -> None:
        first = demand.heap.first()
        if first is not None:
            heappush(heads, (first, number))
        elif demand.heap:
            waiting.look_at(demand)
        else:
            waiting.remove(demand)

    def _reserve(self, task_id: TaskId, agent: AgentId, why: Demand | TaskSpec) -> Assign:
        self.scheduling.take(agent)
        self.reserved[task_id] = agent
        self.rotation.reserved(task_id, agent, why.capability)
        token = self._next_epoch
        self._next_epoch += 1
        node = node_of(agent)
        lease = self.state.nodes.get(node)
        if self.on_choice is not None:
            self.on_choice(task_id, token, agent, why)
        return Assign(task_id, token, agent, node, lease.incarnation if lease is not None else 0)

    def pause_ms(self, task: Task) -> int:
        """Milliseconds until its next attempt, with jitter."""
        return self.policy.pause_ms(task.spec.retry, task.retries_used, self._random())

    # Whose time is up

    def _timer(self, due: int, kind: int, task_id: TaskId, token: int) -> None:
        self._timers.push((due, kind, task_id, token))

    def _is_live(self, timer: tuple[int, int, TaskId, int]) -> bool:
        _, kind, task_id, token = timer
        task = self.state.tasks.get(task_id)
        if task is None or task.is_terminal:
            return False
        return kind == DEADLINE or task.epoch == token

    def next_deadline(self) -> int | None:
        """Entry time (ms) at which ``due`` has something; it may then turn out to be nothing."""
        timer, turn_ms = self._timers.lowest(), self.rotation.next_deadline()
        if timer is None or turn_ms is None:
            return timer[0] if timer is not None else turn_ms
        return min(timer[0], turn_ms)

    def due(self, now_ms: int, room: int = 1 << 30) -> list[Command]:
        """Up to ``room`` commands that the passing of time calls for."""
        commands: list[Command] = []
        self._now_ms = max(self._now_ms, now_ms)
        self.rotation.due(now_ms)
        for _ in range(DUE_MAX):
            timer = self._timers.lowest()
            if timer is None or timer[0] > now_ms or len(commands) >= room:
                break
            self._timers.pop()
            if self._is_live(timer):
                self._expired(timer[1], self.state.tasks[timer[2]], commands, now_ms)
        return commands

    def _expired(self, kind: int, task: Task, commands: list[Command], now_ms: int) -> None:
        if kind == READY:
            if task.attempt is None and task.spec.id not in self.reserved:
                self._ready(task)
        elif kind == PROGRESS:
            again = self.watch.look(task, now_ms) if task.attempt is not None else None
            if again is not None:
                self._timer(again, PROGRESS, task.spec.id, task.epoch)
        else:
            command = called_for(kind, task, now_ms + self.pause_ms(task) if kind == ATTEMPT else 0)
            if command is not None:
                commands.append(command)

    # Starting afresh

    def rebuild(self) -> None:
        """Forget all that was under way and derive everything from the replicated state."""
        self.reserved.clear()
        self.released.clear()
        self._waiting.clear()
        self._dirty.clear()
        self._timers = Heap(self._is_live)
        self._refusals.clear()
        self._proposals.clear()
        self.budget = Budget(self.policy.retry_budget)
        self.watch = Watch()
        self.scheduling.clear_load()
        self.rotation.rebuild()
        self._next_epoch = self.state.next_epoch()
        for task in self.state.tasks.values():
            if task.is_terminal:
                continue
            if task.spec.deadline_ms:
                self._timer(task.spec.deadline_ms, DEADLINE, task.spec.id, 0)
            if task.spec.parent is not None and is_orphan(self.state, task.spec):
                self._proposals.append(Cancel(task.spec.id, f"its parent {task.spec.parent} ended"))
            for past in task.past:
                if past.ending is Ending.REFUSED:
                    self._refusals.note(task.spec.id, past)
            if task.attempt is not None:
                self._resume(task, task.attempt)
            elif task.state is TaskState.INPUT_REQUIRED:
                self._await_answer(task)
            else:
                self._wait(task)

    def _resume(self, task: Task, attempt: Attempt) -> None:
        """Times of a running attempt start afresh: the leader before may have been away for long."""
        self.scheduling.take(attempt.agent)
        if task.cancel_at:
            self._timer(self.state.time_ms + self.policy.cancel_grace_ms, GRACE, task.spec.id, task.epoch)
        if attempt.started_at:
            self._started(task, Change("task.started", task, attempt))
        elif task.spec.start_timeout_s:
            due = self.state.time_ms + int(task.spec.start_timeout_s * 1000)
            self._timer(due, START, task.spec.id, task.epoch)

    def check(self) -> None:
        """Raise AssertionError if a waiting task is in no queue and has no timer that would put it there, or if
        somebody is benched who should not be."""
        self.rotation.check()
        queued = {task_id for w in self._waiting.values() for d in w.demands.values() for _, task_id in d.heap}
        timed = {timer[2] for timer in self._timers if timer[1] == READY}
        heads, held = self.budget.waiting()
        known = queued | timed | set(self.reserved) | held
        if not heads <= timed:
            raise AssertionError(f"{heads - timed} wait for the retry budget and nothing will ever look at them")
        for task_id, task in self.state.tasks.items():
            if task.state in _OPEN and task_id not in known:
                raise AssertionError(f"{task_id} waits and nothing will ever look at it")


_OBSERVERS: dict[str, Callable[[Reconcile, Task, Change], None]] = {
    "task.submitted": Reconcile._submitted,
    "task.assigned": Reconcile._assigned,
    "task.started": Reconcile._started,
    "task.canceling": Reconcile._canceling,
    "task.retrying": Reconcile._put_back,
    "task.requeued": Reconcile._put_back,
    "task.input_required": Reconcile._asking,
    "task.answered": Reconcile._answered,
    "task.unanswered": Reconcile._answered,
    "task.completed": Reconcile._finished,
    "task.failed": Reconcile._finished,
    "task.canceled": Reconcile._finished,
    "task.rated": Reconcile._rated,
}
