"""Runs attempts and keeps what they report until the leader has it durably.

    Run ──▶ running ──▶ reported ──(Settled)──▶ forgotten
              │  Settled: another epoch counts by now, so it is fenced; Stop: it is told, and reports how it was stopped

Reports are repeated: to a new leader, after a lost connection, and every few seconds. An attempt that ends within the turn in
which it was given reports its end only; others say first that they began.
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from math import inf
from typing import Any, TypeVar

import structlog

from comity.agent import Agent, Offered
from comity.client.client import Client
from comity.errors import BadInput, Indefinite, InvalidInput, NotFound, Refuse, TooLarge
from comity.failpoints import durable
from comity.handles import Attempt
from comity.model.codec import to_json
from comity.model.ids import ProcessId, TaskId
from comity.model.task import LOG_LIMIT, Payload, Stored, TaskFailure
from comity.model.wire import (
    Began,
    Declined,
    Done,
    Failed,
    Item,
    Live,
    Progress,
    Recalled,
    Recorded,
    Run,
    Settled,
    Slot,
    Stop,
)
from comity.node.failing import MESSAGE_LIMIT, Failure, failure_of, place, said_by, traced
from comity.node.parts import Streams
from comity.node.performing import Performer, is_closing
from comity.node.resuming import Doors, Memory, suspension
from comity.node.running import Running
from comity.patience import Unready, patiently
from comity.store.base import Store

T = TypeVar("T")

REPEAT_S = 2.0
ENDED_KEPT = 20_000
LIVE_LIMIT = 64 * 1024
"""Bytes of one progress or log event."""
AWAY_S = 10.0
"""So long an attempt that has done nothing yet waits for the store."""
PROGRESS_MAX = 1000
"""Attempts in one item."""

_log = structlog.get_logger("comity.node")


class Attempts:
    """See the module. Invariants: one attempt runs for a task, of the highest epoch seen; ``unsettled`` holds the reports that
    the leader has not settled, least recently sent first."""

    def __init__(
        self,
        node: ProcessId,
        store: Store,
        performer: Performer,
        post: Callable[[Item], None],
        speak: Callable[[Running], Client],
        wall: Callable[[], float],
        *,
        streams: Streams,
        keep_s: float,
        grace_s: float,
        held: Callable[[], Awaitable[None]],
    ) -> None:
        self.running: dict[TaskId, Running] = {}
        self.unsettled: dict[tuple[TaskId, int], tuple[float, Item]] = {}
        self.lingering: set[asyncio.Task[None]] = set()
        """Attempts that are over for the network but have not returned."""
        self.quiet = asyncio.Event()
        """Set while nothing runs and nothing is unsettled."""
        self.speak = speak
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self.now = self._loop.time
        self._node = node
        self._store = store
        self._performer = performer
        self._post = post
        self._wall = wall
        self.streams = streams
        self._keep_s = keep_s
        self._grace_s = grace_s
        self._ended: OrderedDict[TaskId, int] = OrderedDict()
        self._recording: dict[Memory, None] = {}
        self._doors = Doors(performer, post, self._keep_record, self._fetch, self._is_recording, held, self.now)
        self._fresh: list[Running] = []
        self.quiet.set()

    def utc(self, at: float) -> datetime:
        """A moment of the loop's clock as UTC."""
        return datetime.fromtimestamp(self._wall(), UTC) + timedelta(seconds=at - self.now())

    # From the leader

    def knows(self, run: Run) -> bool:
        """Whether this very attempt, or a later one at its task, was given before. Then it is answered, and not run again."""
        if run.epoch <= self._ended.get(run.task, -1):
            report = self.unsettled.get((run.task, run.epoch))
            if report is not None:
                self._send(run.task, run.epoch, report[1])
            return True
        running = self.running.get(run.task)
        if running is None or running.epoch < run.epoch:
            return False
        if running.epoch == run.epoch and running.began_at and running.is_looked_at:
            self._post(Began(run.task, run.epoch))
        return True

    def begin(self, run: Run, agent: Agent, offered: Offered) -> None:
        """Start the attempt. An older one at the same task is fenced."""
        older = self.running.get(run.task)
        if older is not None:
            self._fence(older)
        running = Running(self, run, agent, offered, self.now())
        self.running[run.task] = running
        self.quiet.clear()
        running.work = self._loop.create_task(self._perform(running))
        if not self._fresh:
            self._loop.call_soon(self._loop.call_soon, self._look)  # behind the first steps of what came with this one
        self._fresh.append(running)

    def decline(self, run: Run, reason: str) -> None:
        """Hand an assignment back."""
        self._report(run.task, run.epoch, Declined(run.task, run.epoch, reason))

    def stop(self, item: Stop) -> None:
        """Stop an attempt. Without a grace time it is fenced already, and need not report."""
        running = self.running.get(item.task)
        failure = TaskFailure("task-canceled", item.reason[:MESSAGE_LIMIT], retryable=False)
        report = Failed(item.task, item.epoch, failure, canceled=True)
        if running is not None and running.epoch == item.epoch:
            if item.grace_ms > 0:
                self._stop(running, report, item.grace_ms / 1000)
            else:
                self._fence(running)
        elif running is None and item.epoch > self._ended.get(item.task, -1):
            self._over(item.task, item.epoch)
            if item.grace_ms > 0:
                self._report(item.task, item.epoch, report)

    def settled(self, item: Settled) -> None:
        """Forget reports. An attempt that was settled while it runs is fenced: another epoch counts, or the task is over."""
        for task, epoch in item.reports:
            self.unsettled.pop((task, epoch), None)
            running = self.running.get(task)
            if running is not None and running.epoch <= epoch:
                self._fence(running)
        self._rest()

    def repeat(self, *, all_of_it: bool) -> None:
        """Send again what the leader has not settled: all of it, and what runs, to a leader that may know nothing of it; else
        what is overdue."""
        before = self.now() - (0.0 if all_of_it else REPEAT_S)
        overdue = []
        for key, (sent_at, report) in self.unsettled.items():
            if sent_at > before:
                break
            overdue.append((key, report))
        for (task, epoch), report in overdue:
            self._send(task, epoch, report)
        for memory in list(self._recording):
            memory.repeat(before)
        if all_of_it:
            for task, running in self.running.items():
                if running.began_at and running.is_looked_at:
                    self._post(Began(task, running.epoch))
                if running.awaits:
                    self._post(Slot(task, running.epoch, held=False))

    # Ending them

    def abandon(self) -> None:
        """The lease is over: everything that runs is fenced, and nothing it or others reported counts."""
        for running in list(self.running.values()):
            self._fence(running)
        self.unsettled.clear()
        self._rest()

    def hand_back(self, reason: str, grace_s: float, agent: Agent | None = None) -> None:
        """Stop all that runs (of ``agent``), and give it back to go elsewhere."""
        for running in list(self.running.values()):
            if agent is None or running.hosted is agent:
                self._stop(running, Declined(running.task, running.epoch, reason), grace_s)

    def _stop(self, running: Running, ending: Item | None, grace_s: float) -> None:
        """Tell it to stop, and report ``ending`` when it has, or when ``grace_s`` is over. The first word stands."""
        if running.is_canceled:
            return
        running.is_canceled = True
        running.ending = ending
        if running.timer is not None:
            running.timer.cancel()
        if grace_s > 0:
            running.timer = self._loop.call_later(grace_s, self._finish, running, ending)
            if running.offered.signature.is_async or not running.began_at:
                running.work.cancel()
        else:
            self._finish(running, ending)

    def _fence(self, running: Running) -> None:
        running.is_canceled = True
        self._finish(running, None)

    def _finish(self, running: Running, report: Item | None) -> None:
        """It is over for the network. What it still does counts for nothing."""
        task, epoch = running.task, running.epoch
        if self.running.get(task) is not running:
            return
        del self.running[task]
        running.forget()
        if running.timer is not None:
            running.timer.cancel()
        if not running.work.done() and running.work is not asyncio.current_task():
            running.work.cancel()
            self.lingering.add(running.work)
            running.work.add_done_callback(self.lingering.discard)
        if report is not None:
            self._report(task, epoch, report)
        else:
            self._over(task, epoch)
            self._rest()

    def _report(self, task: TaskId, epoch: int, report: Item) -> None:
        self._over(task, epoch)
        self.quiet.clear()
        self._send(task, epoch, report)

    def _send(self, task: TaskId, epoch: int, report: Item) -> None:
        self.unsettled.pop((task, epoch), None)
        self.unsettled[task, epoch] = self.now(), report
        with durable("report.post"):
            self._post(report)

    def _over(self, task: TaskId, epoch: int) -> None:
        """Remember for a while that this epoch is over: a late or repeated message must not start it again."""
        self._ended[task] = max(epoch, self._ended.get(task, -1))
        if len(self._ended) > ENDED_KEPT:
            self._ended.popitem(last=False)

    def _rest(self) -> None:
        if not self.running and not self.unsettled:
            self.quiet.set()

    # Running them

    def _look(self) -> None:
        """Every attempt given in one turn has had its first step: those that still run have begun."""
        fresh, self._fresh = self._fresh, []
        for running in fresh:
            if self.running.get(running.task) is running:
                running.is_looked_at = True
                if running.began_at:
                    self._began(running)
                elif running.deadline_at and not running.is_canceled:
                    running.timer = self._loop.call_at(running.deadline_at, self._late, running)

    def _starts(self, running: Running) -> None:
        running.began_at = self.now()
        if running.is_looked_at:
            self._began(running)

    def _began(self, running: Running) -> None:
        self._post(Began(running.task, running.epoch))
        if not running.is_canceled:
            if running.timer is not None:
                running.timer.cancel()
            running.timer = self._loop.call_at(running.due(), self._late, running)

    def _late(self, running: Running) -> None:
        """Its time is up: the task's, or the attempt's own."""
        if running.deadline_at == running.due():
            failure = TaskFailure("deadline-exceeded", "its deadline passed", retryable=False)
        else:
            without = f", at last without the store ({running.without})" if running.without else ""
            failure = TaskFailure("attempt-timeout", f"ran longer than {running.run.timeout_s:g} s{without}")
        self._stop(running, Failed(running.task, running.epoch, failure), self._grace_s)

    async def _perform(self, running: Running) -> None:
        try:
            report = await self._outcome(running)
        except asyncio.CancelledError:
            failure = TaskFailure("CancelledError", "the function was canceled, not by the network")
            report = Failed(running.task, running.epoch, failure, ran_ms=self._ran_ms(running))
        self._finish(running, running.ending if running.is_canceled else report)

    async def _outcome(self, running: Running) -> Item:
        run = running.run
        try:
            if running.offered.signature.is_async:
                self._starts(running)
            try:
                data = run.input if type(run.input) is bytes else await self._fetch(run, run.input, AWAY_S)
                if run.known and running.memory.has_state:
                    await running.memory.load(AWAY_S)
            except Indefinite as error:  # nothing was done yet: another node may reach it
                return Declined(run.task, run.epoch, f"what it begins with cannot be read here: {error.message}")
            if running.offered.signature.is_stream:
                running.out = self.streams.open(run)
            output = await self._performer.perform(
                running.offered, data, lambda: Attempt(running), lambda: self._starts(running), run.no_retry, running.out
            )
            ran_ms = self._ran_ms(running)
            key = f"{self._node}/results/{run.task}/{run.epoch}"
            result: Payload = output if len(output) <= LOG_LIMIT else await self._keep(run, key, output)
            if running.out is not None:
                running.out.complete()
            return Done(run.task, run.epoch, result, ran_ms, running.mail())
        except Refuse as refusal:
            return Declined(run.task, run.epoch, said_by(refusal.reason))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # whatever the user's function raises
            if is_closing(error, running.work):
                raise
            suspended = suspension(error)
            if suspended is not None:
                return suspended.report(run, self._ran_ms(running))
            failure = failure_of(error, (*running.offered.no_retry, *run.no_retry))
            about = {"task": run.task, "agent": run.agent, "code": failure.code, "error": failure.message}
            _log.warning("an attempt failed", **about, at=place(error), exc_info=traced(error))
            return Failed(run.task, run.epoch, failure, ran_ms=self._ran_ms(running))

    async def _fetch(self, run: Run, payload: Payload, limit_s: float = inf) -> bytes:
        if not isinstance(payload, Stored):
            raise BadInput("the input is in the log, where a node cannot read")
        try:
            return await self._patiently(run, payload.key, lambda: self._store.read(payload.key), limit_s)
        except NotFound as error:  # the caller's fault; though the replica that was asked may only be behind
            raise Failure(TaskFailure(InvalidInput.code, f"its input is not in the store: {error.message}")) from error

    def _ran_ms(self, running: Running) -> int:
        return max(1, round((self.now() - running.began_at) * 1000)) if running.began_at else 0

    async def _keep(self, run: Run, key: str, output: bytes) -> Stored:
        with durable("result.put"):
            return await self._patiently(run, key, lambda: self._store.put(key, output, ttl_s=self._keep_s))

    async def _patiently(self, run: Run, key: str, call: Callable[[], Awaitable[T]], limit_s: float = inf) -> T:
        """While the attempt has time: that the store is away is no fault of the function's, and its work is not thrown away."""
        unready = Unready(_log, "the store is away; trying again", task=run.task, key=key)

        def current() -> Running | None:
            running = self.running.get(run.task)
            return running if running is not None and running.run is run and not running.is_canceled else None

        def tell(error: Indefinite, waited_s: float) -> None:
            unready(error, waited_s)
            if (running := current()) is not None:
                running.progress_at, running.without = self.now(), error.message  # it is not stuck

        found = await patiently(call, limit_s, hopeless=lambda: current() is None, tell=tell)
        if (running := current()) is not None:
            running.without = ""
        return found

    # What a running function does

    def memory(self, run: Run) -> Memory:
        """What the attempt remembers."""
        return Memory(run, self._doors)

    async def _keep_record(self, run: Run, data: bytes, number: int) -> Stored:
        return await self._keep(run, f"{self._node}/records/{run.task}/{run.epoch}-{number}", data)

    def _is_recording(self, memory: Memory, yes: bool) -> None:
        if yes:
            self._recording[memory] = None
        else:
            self._recording.pop(memory, None)

    def recorded(self, item: Recorded) -> None:
        running = self.running.get(item.task)
        if running is not None and running.epoch == item.epoch:
            running.progress_at = self.now()
            running.memory.on_recorded(item)

    def recalled(self, item: Recalled) -> None:
        running = self.running.get(item.task)
        if running is not None and running.epoch == item.epoch:
            running.memory.on_recalled(item)

    def tell(self, running: Running, body: dict[str, Any]) -> None:
        """A live event of the attempt. Raises NotSerializable, TooLarge."""
        data = to_json(body)
        if len(data) > LIVE_LIMIT:
            raise TooLarge(f"a live event of {len(data)} bytes; the limit is {LIVE_LIMIT}", limit=LIVE_LIMIT)
        running.progress_at = self.now()
        if threading.get_ident() == self._thread:
            self._live(running, data)
        else:
            self._loop.call_soon_threadsafe(self._live, running, data)

    def _live(self, running: Running, data: bytes) -> None:
        if self.running.get(running.task) is running:
            self._post(Live(running.task, running.epoch, data))

    def progress(self, since: float) -> list[Progress]:
        """What attempts with a progress timeout have shown since then. Who awaits a child is not stuck: the child may be."""
        now = self.now()
        made: list[tuple[TaskId, int, int]] = []
        for task, running in self.running.items():
            if running.run.progress_timeout_s:
                shown_at = now if running.awaits else running.shown_at(now)
                if shown_at > since:
                    made.append((task, running.epoch, round((now - shown_at) * 1000)))
        return [Progress(tuple(made[at : at + PROGRESS_MAX])) for at in range(0, len(made), PROGRESS_MAX)]

    def pausing(self, running: Running, waits: bool) -> None:
        running.progress_at = self.now()
        running.awaits += 1 if waits else -1
        if running.awaits == (1 if waits else 0) and self.running.get(running.task) is running:
            self._post(Slot(running.task, running.epoch, held=not waits))
