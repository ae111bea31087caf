"""Constant load: so many tasks a second, whatever happens to those before them. Each call is written down."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from comity import Client, Task
from comity.errors import (
    ComityError,
    DeadlineExceeded,
    Definite,
    Indefinite,
    TaskCanceled,
    TaskError,
    TaskFailed,
    TaskRejected,
)
from comity.model.codec import digest, to_json
from comity.model.task import TaskState
from comity.sim.checkers import End
from comity.sim.history import History

RATE = 40.0
"""Tasks a second; with their results, views and cancellations more than twice as many calls."""
AT_ONCE = 20_000
"""Tasks that are waited for at most: a network that stands still must not cost all memory."""
VIEW_S = 10.0
RETRIES = 100
"""A task is hit by many faults and must outlive them all."""
ENDS: list[tuple[type[TaskError], TaskState]] = [
    (TaskCanceled, TaskState.CANCELED),
    (TaskRejected, TaskState.REJECTED),
    (DeadlineExceeded, TaskState.FAILED),
    (TaskFailed, TaskState.FAILED),
]


class Job(msgspec.Struct):
    """One task from the caller's side. Times are seconds since the run began; None: not (yet)."""

    number: int
    asked: float
    accepted: float | None = None
    ended: float | None = None
    task: str = ""
    state: str = ""
    result: Any = None
    error: str = ""
    repeats: int = 0
    """How often the caller had to ask again: each time it had been told an indefinite error."""


class Said(NamedTuple):
    """What an agent wrote down before it returned."""

    epoch: int
    mark: str


class Load:
    """``jobs`` in the order in which they were asked for. Clients take turns."""

    def __init__(self, clients: list[Client], chance: random.Random) -> None:
        self.jobs: list[Job] = []
        self.history = History()
        self.calls: list[float] = []
        """When each call ended that was answered."""
        self._clients = clients
        self._chance = chance
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._open: set[asyncio.Task[None]] = set()
        self._over = asyncio.Event()
        self._giving_up = False
        self._work = asyncio.create_task(self._ask())

    def now(self) -> float:
        return self._loop.time() - self._began

    async def _ask(self) -> None:
        due = self._loop.time()
        while not self._over.is_set():
            due += 1 / RATE
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            if len(self._open) < AT_ONCE:
                job = Job(len(self.jobs), self.now())
                self.jobs.append(job)
                task = asyncio.create_task(self._do(job, self._clients[job.number % len(self._clients)]))
                self._open.add(task)
                task.add_done_callback(self._open.discard)

    async def reaches(self, ended: int, limit_s: float) -> None:
        """Until so many tasks have ended. Raises TimeoutError."""
        async with asyncio.timeout(limit_s):
            while sum(job.ended is not None for job in self.jobs) < ended:  # noqa: ASYNC110 - looked at once, at the start
                await asyncio.sleep(0.05)

    async def stop(self) -> float:
        """Ask for nothing more; when that was."""
        self._over.set()
        await self._work
        return self.now()

    async def settle(self, limit_s: float) -> int:
        """Wait for what is still open, at most so long; how many jobs are left without an end."""
        if self._open:
            await asyncio.wait(list(self._open), timeout=limit_s)
        self._giving_up = True
        left = list(self._open)
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return len(left)

    async def _do(self, job: Job, client: Client) -> None:
        dice = self._chance.random()
        seconds = 1.0 if dice < 0.1 else 0.02
        text = "x" * self._chance.choice([10, 200, 3000, 40_000]) if dice > 0.9 else ""
        task = await self._submit(job, client, {"number": job.number, "seconds": seconds, "text": text})
        if task is None:
            return
        if dice < 0.03:
            await self._view(job, task, "cancel")
        elif dice < 0.2:
            await self._view(job, task, "status")
        await self._result(job, task)

    async def _submit(self, job: Job, client: Client, given: dict[str, Any]) -> Task | None:
        """Until it is known to be accepted or refused. A key makes every repetition the same task."""
        operation = self.history.call(client.process, "submit", "", job.number, now=self.now())
        while True:
            try:
                task = await client.submit("work", given, key=f"job-{job.number}", retries=RETRIES)
                break
            except Indefinite as error:
                job.repeats += 1
                job.error = error.code
                if self._giving_up:
                    self.history.unknown(operation, error.code, now=self.now())
                    return None
            except Definite as error:
                job.error = error.code
                self.history.returns(operation, error=error.code, now=self.now())
                return None
        job.accepted, job.task, job.error = self.now(), task.id, ""
        operation.key = task.id
        self.history.returns(operation, now=self.now())
        self.calls.append(self.now())
        return task

    async def _view(self, job: Job, task: Task, kind: str) -> None:
        asked = task.cancel("not wanted any more", VIEW_S) if kind == "cancel" else task.status(VIEW_S)
        try:
            await self.history.record("views", kind, task.id, asked, answer=lambda view: End(TaskState(view["state"])))
            self.calls.append(self.now())
        except ComityError as error:
            job.error = error.code

    async def _result(self, job: Job, task: Task) -> None:
        try:
            await self.history.record("results", "result", task.id, self._end(job, task))
            self.calls.append(self.now())
        except ComityError as error:
            job.error = error.code

    async def _end(self, job: Job, task: Task) -> End:
        try:
            job.result = await task.result()
            end = End(TaskState.COMPLETED, digest(to_json(job.result)))
        except TaskError as error:
            job.error = error.code
            end = End(next(state for kind, state in ENDS if isinstance(error, kind)))
        job.ended, job.state = self.now(), str(end.state)
        return end


def read_ledger(path: Path) -> dict[str, list[Said]]:
    """What agents wrote down, by task."""
    found: dict[str, list[Said]] = {}
    for line in path.read_text().splitlines():
        words = line.split()
        if len(words) == 3:  # one that was killed while it wrote has not returned anything
            found.setdefault(words[0], []).append(Said(int(words[1]), words[2]))
    return found
