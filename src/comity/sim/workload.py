"""What the clients of a simulated life do: submit, await, ask, cancel, call; and write down what they were told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any, TypeVar

from comity.client.client import Client
from comity.client.task import Task
from comity.errors import (
    ComityError,
    Conflict,
    DeadlineExceeded,
    Definite,
    Indefinite,
    NotFound,
    TaskCanceled,
    TaskError,
    TaskFailed,
    TaskRejected,
    UnknownTask,
)
from comity.model.capability import Retry, Strategy
from comity.model.codec import digest, to_json
from comity.model.ids import TaskId
from comity.model.task import TERMINAL, TaskState
from comity.sim.checkers import Auditor, End, Violation
from comity.sim.history import History
from comity.sim.loop import Process
from comity.sim.recollection import Recollection

T = TypeVar("T")

CALL_S = 5.0
LOOKED_AT_AGAIN = 20
TIDY_S = 3.0
SLACK_S = 1.0
"""How much later than its time-out a call may end."""

_ENDS: list[tuple[type[TaskError], TaskState]] = [
    (TaskCanceled, TaskState.CANCELED),
    (TaskRejected, TaskState.REJECTED),
    (DeadlineExceeded, TaskState.FAILED),
    (TaskFailed, TaskState.FAILED),
]


class Caller:
    """One client whose calls go into ``history``; ``known`` are the tasks that any client of this life has heard of.
    ``arrives_twice``: whether the bus breaks its word and delivers twice, so that what was refused may be accepted later."""

    def __init__(
        self, client: Client, process: Process, history: History, auditor: Auditor, random: Random, known: list[str],
        arrives_twice: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.client = client
        self.random = random
        self.known = known
        self._process = process
        self._history = history
        self._auditor = auditor
        self._recollection = auditor.truth.recollection if auditor.truth is not None else Recollection()
        self._arrives_twice = arrives_twice
        self._loop = asyncio.get_running_loop()

    async def in_time(self, awaited: Awaitable[T], limit_s: float, what: str) -> T:
        """Await a call that must end by ``limit_s``, not counting the time in which its process was paused."""
        began, paused = self._loop.time(), self._process.paused_s
        try:
            return await awaited
        finally:
            took = self._loop.time() - began - (self._process.paused_s - paused)
            if took > limit_s + SLACK_S:
                raise Violation(f"{self._process.name}: {what} took {took:.1f} s, and had {limit_s:.1f} s")

    async def submit(self, capability: str, value: Any, limit_s: float, **options: Any) -> Task:
        """Raises what ``Client.submit`` raises."""
        asked = self.client.submit(capability, value, **options)
        return (await self._submitted(_one(asked), 1, limit_s, options.get("key")))[0]

    async def submit_many(self, capability: str, values: list[Any], limit_s: float) -> list[Task]:
        """Raises what ``Client.submit_many`` raises."""
        return await self._submitted(self.client.submit_many(capability, values), len(values), limit_s)

    async def _submitted(
        self, asked: Awaitable[list[Task]], count: int, limit_s: float, key: str | None = None
    ) -> list[Task]:
        now = self._loop.time
        operations = [self._history.call(self._process.name, "submit", "", key, now=now()) for _ in range(count)]
        try:
            tasks = await self.in_time(asked, limit_s, "submit")
        except ComityError as error:
            if error.definite and "task" in error.details and not self._arrives_twice():
                self._auditor.refused(TaskId(error.details["task"]), error.code)
            for operation in operations:  # the id of a task that was not accepted is never learnt: it concerns nobody
                self._history.unknown(operation, error.code, now=now())
            raise
        for operation, task in zip(operations, tasks, strict=True):
            operation.key = task.id
            self._history.returns(operation, now=now())
            self._auditor.acknowledged(task.id)
            if key is not None and self._auditor.keys.get(key) != task.id:
                raise Violation(f"key {key} stands for task {task.id} here, and for another one in the log")
            self.known.append(task.id)
        return tasks

    def replayed(self, task: TaskId) -> None:
        """A dead letter is this task now."""
        operation = self._history.call(self._process.name, "submit", task, None, now=self._loop.time())
        self._history.returns(operation, now=self._loop.time())
        self._auditor.acknowledged(task)
        self.known.append(task)

    async def result(self, task: Task, limit_s: float | None = None) -> End | None:
        """How ``task`` ended; None if that was not learnt in time."""
        try:
            return await self._history.record(self._process.name, "result", task.id, self._end(task, limit_s))
        except (Indefinite, UnknownTask):
            return None

    async def _end(self, task: Task, limit_s: float | None) -> End:
        try:
            end = End(TaskState.COMPLETED, digest(to_json(await task.result(limit_s))))
        except TaskError as error:
            end = End(next(state for kind, state in _ENDS if isinstance(error, kind)))
        except UnknownTask:
            raise
        except Definite as error:
            raise Violation(f"the result of task {task.id} is lost: {error!r}") from error
        self._auditor.told_end(task.id, end)
        return end

    async def status(self, task: Task) -> None:
        await self._view(task, "status", task.status(CALL_S))

    async def cancel(self, task: Task) -> None:
        await self._view(task, "cancel", task.cancel("not wanted any more", CALL_S))

    async def answer(self, task: Task, name: str) -> None:
        """Answer with something that nobody else says; Conflict if somebody else's counted."""
        value = self.random.getrandbits(40)
        try:
            await self.in_time(task.answer(value, name=name, timeout=CALL_S), CALL_S, "answer")
        except (Indefinite, UnknownTask):
            return
        except Conflict:
            if self._recollection.is_answered_with(task.id, name, value):
                raise Violation(f"{value} answers {name} of task {task.id}, and a client was told of a conflict") from None
            return
        self._recollection.answered(task.id, name, value)

    async def _view(self, task: Task, kind: str, asked: Awaitable[dict[str, Any]]) -> None:
        try:
            await self._history.record(
                self._process.name, kind, task.id, self.in_time(asked, CALL_S, kind),
                answer=lambda view: End(TaskState(view["state"])),
            )  # fmt: skip
        except (Indefinite, UnknownTask):
            return


async def _one(asked: Awaitable[Task]) -> list[Task]:
    return [await asked]


class Workload:
    """The jobs of one client: ``count`` in all, spread over the time ``until``."""

    def __init__(self, caller: Caller, count: int, until: float, submit_s: float) -> None:
        self.caller = caller
        self.client = caller.client
        self.random = caller.random
        self.count = count
        self.until = until
        self.submit_s = submit_s
        self._kinds: list[tuple[int, Callable[[], Awaitable[None]]]] = [
            (12, self._task),
            (3, self._keyed),
            (2, self._many),
            (5, self._someone_elses),
            (2, self._request),
            (1, self._relay),
            (1, self._broadcast),
            (1, self._watch),
            (1, self._schedule),
            (2, self._dead),
            (1, self._set_aside),
            (3, self._careful),
            (1, self._strategy),
        ]

    async def run(self) -> None:
        """Start the jobs, each at its time, and await them all."""
        loop = asyncio.get_running_loop()
        weights = [weight for weight, _ in self._kinds]
        jobs: list[asyncio.Task[None]] = []
        tidying = loop.create_task(self._bring_back())
        for number in range(self.count):
            left = self.until - loop.time()
            if left <= 0:
                break
            await asyncio.sleep(self.random.expovariate((self.count - number) / left))
            _, kind = self.random.choices(self._kinds, weights)[0]
            jobs.append(loop.create_task(self._job(kind)))
        await asyncio.gather(*jobs)
        for task in self.random.sample(self.caller.known, min(LOOKED_AT_AGAIN, len(self.caller.known))):
            await self.caller.result(self.client.task(task))
        tidying.cancel()
        await self._tidy()

    async def _tidy(self) -> None:
        """Else schedules would never end, and nodes would stay aside."""
        while True:
            try:
                await self._resume_all()
                for schedule in await self.client.schedules.list():
                    await self.client.schedules.remove(schedule["name"])
                return
            except NotFound:  # another client was quicker
                continue
            except Indefinite:
                await asyncio.sleep(self.random.random())

    async def _job(self, kind: Callable[[], Awaitable[None]]) -> None:
        """A typed error is an answer; anything else is a fault of ours."""
        try:
            await kind()
        except ComityError as error:
            if isinstance(error, Conflict):
                raise

    def _work(self) -> tuple[str, Any, dict[str, Any]]:
        """A task at random: capability, input, options."""
        random = self.random
        kind = random.choices(
            ["echo", "nap", "large", "flaky", "broken", "picky", "stuck", "family", "silent"], [5, 8, 2, 3, 1, 3, 1, 2, 2]
        )[0]
        options: dict[str, Any] = {}
        if random.random() < 0.2:
            options["priority"] = random.randrange(10)
        if random.random() < 0.1 or kind == "stuck":
            options["deadline_s"] = random.choice([0.5, 3.0, 10.0])
        if random.random() < 0.1:
            options["queue"] = False
        if random.random() < 0.1 and kind == "echo":
            options["tags"] = ["quick"]
        if random.random() < 0.1:
            options["in_s"] = random.choice([0.2, 1.0, 3.0])
        if random.random() < 0.2:
            final = random.choice([(), ("OSError",)])
            options["retry"] = Retry(random.choice([None, 2]), random.choice([0.05, 1.0]), 2.0, 2.0, final)
        if kind == "silent":
            options |= {"progress_timeout_s": random.choice([0.5, 2.0]), "attempt_timeout_s": 100.0}
        value: Any = {
            "echo": {"value": random.choice([random.randrange(1000)] * 7 + ["x" * 300_000])},
            "nap": {"seconds": random.choice([0.01, 0.3, 1.0, 3.0, 6.0])},
            "large": {"size": random.choice([500, 2000, 40_000, 300_000])},
            "flaky": {"odds": random.choice([0.2, 0.6, 0.95])},
            "broken": {"value": "x" * random.choice([1, 3000])},
            "picky": {"value": random.randrange(1000)},
            "stuck": {"stubborn": random.random() < 0.3},
            "silent": {"odds": random.choice([0.3, 0.7])},
            "family": {"children": random.choice([1, 3]), "depth": random.choice([0, 0, 1])},
        }[kind]
        return kind, value, options

    async def _task(self) -> None:
        capability, value, options = self._work()
        task = await self.caller.submit(capability, value, self.submit_s, **options)
        await self._follow_up(task)
        await self.caller.result(task)

    async def _follow_up(self, task: Task) -> None:
        roll = self.random.random()
        await asyncio.sleep(self.random.choice([0.0, 0.05, 1.0]) * self.random.random())
        if roll < 0.3:
            await self.caller.status(task)
        elif roll < 0.4:
            await self.caller.cancel(task)
        elif roll < 0.5:
            await self.caller.result(task, 0.5)

    async def _keyed(self) -> None:
        """Several clients may submit what is the same task; a client repeats until it knows."""
        key = f"key-{self.random.randrange(8)}"
        for _ in range(3):
            try:
                task = await self.caller.submit("echo", {"value": key}, self.submit_s, key=key)
                await self.caller.result(task)
                return
            except Indefinite:
                await asyncio.sleep(self.random.random())

    async def _many(self) -> None:
        values = [{"value": number} for number in range(self.random.randrange(1, 12))]
        for task in await self.caller.submit_many("echo", values, self.submit_s):
            await self.caller.result(task)

    async def _someone_elses(self) -> None:
        """Ask about a task that another client may have submitted."""
        if self.caller.known:
            task = self.client.task(self.random.choice(self.caller.known[-12:]))
            await self.caller.status(task)
            await self._follow_up(task)
            await self.caller.result(task)

    async def _careful(self) -> None:
        """A task that resumes; what it asks is answered, sometimes by two, or left."""
        random = self.random
        asks = random.random() < 0.6
        size = random.choice([10, 10, 10, 3000, 300_000])
        value = {"parts": random.randrange(1, 6), "size": size, "ask": asks}
        task = await self.caller.submit("careful", value, self.submit_s)
        answers = random.choice([0, 1, 1, 2]) if asks else 0
        view: dict[str, Any] = {"state": ""}
        while answers and view["state"] not in TERMINAL and asyncio.get_running_loop().time() < self.until:
            await asyncio.sleep(0.2 + 0.2 * random.random())
            view = await task.status(CALL_S)
            if view["state"] == TaskState.INPUT_REQUIRED:
                await asyncio.gather(*[self.caller.answer(task, "approval") for _ in range(answers)])
                break
        await self.caller.result(task)

    async def _request(self) -> None:
        repeatable, choose = self.random.random() < 0.5, self.random.choice
        asked = self.client.request(
            "echo", {"value": 7}, timeout=CALL_S, sticky=choose(["", "", "ada", "bo"]), repeatable=repeatable,
            hedge_s=choose([None, 0.05, 0.5]) if repeatable else None,
        )  # fmt: skip
        answer = await self.caller.in_time(asked, CALL_S, "request")
        if answer != 7:
            raise Violation(f"a request of 7 was answered with {answer!r}")

    async def _schedule(self) -> None:
        """Make, change or remove one of a few schedules."""
        name = f"schedule-{self.random.randrange(3)}"
        if self.random.random() < 0.3:
            await self.client.schedules.remove(name)
        else:
            cron = self.random.choice(["* * * * * *", "*/2 * * * * *", "*/5 * * * * *"])
            await self.client.schedules.add(name, cron, "echo", {"value": name}, deadline_s=30.0)

    async def _dead(self) -> None:
        """Replay some dead letters, or drop them."""
        letters = [letter["id"] for letter in await self.client.dead.list(limit=5)]
        if not letters:
            return
        letter = self.random.choice(letters)
        if self.random.random() < 0.3:
            await self.client.dead.drop(letter)
            return
        for task_id in (await self.client.dead.replay(letter)).values():
            self.caller.replayed(task_id)
            await self.caller.result(self.client.task(task_id))

    async def _relay(self) -> None:
        agents = [agent.id for agent in await self.client.discover() if agent.name in ("tick", "tock")]
        if agents:
            route = [self.random.choice(agents) for _ in range(self.random.randrange(1, 6))]
            asked = self.client.request(route[0], route[1:], topic="relay", timeout=CALL_S)
            answer = await self.caller.in_time(asked, CALL_S, "relay")
            if answer != len(route) - 1:
                raise Violation(f"a relay over {len(route)} agents was answered with {answer!r}")

    async def _broadcast(self) -> None:
        await self.client.broadcast([], topic="relay", tags=self.random.choice([(), ("quick",)]))

    async def _strategy(self) -> None:
        await self.client.set_strategy("echo", self.random.choice(list(Strategy)))

    async def _watch(self) -> None:
        """Events of a task end with its last one, and say nothing that the log does not."""
        task = await self.caller.submit("nap", {"seconds": 0.2}, self.submit_s)
        last = ""
        async for event in task.events(0):
            last = event["type"]
        end = await self.caller.result(task)
        if end is not None and last != f"task.{end.state}":
            raise Violation(f"task {task.id} is {end.state}, and its events ended with {last}")

    async def _set_aside(self) -> None:
        """Take a node out of rotation for a while."""
        rows = await self.client.nodes()
        if not rows:
            return
        node = self.client.node(self.random.choice(rows)["id"])
        await (node.isolate("a try") if self.random.random() < 0.5 else node.drain("a try"))
        await asyncio.sleep(self.random.random() * 3)
        await node.resume()

    async def _bring_back(self) -> None:
        """Resume what was left aside: by a client that died, or by an order that came late."""
        while True:
            await asyncio.sleep(max(TIDY_S, self.until - asyncio.get_running_loop().time()))
            try:
                await self._resume_all()
            except ComityError:
                continue  # the next round will

    async def _resume_all(self) -> None:
        for row in await self.client.nodes():
            if row["aside"] is not None:
                await self.client.node(row["id"]).resume()
