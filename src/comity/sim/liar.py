"""A process with good credentials and bad intentions, or broken: it says what is not so, to everybody, as long as it may.

It can publish only as itself, as the bus sees to, but it knows everything: tasks, epochs, agents, terms. It orders nothing that
anybody may order (a cancel, a shutdown): that would be no lie.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random

import msgspec

from comity.bus.base import EVERYONE, LEADER, Address, to
from comity.core.protocols import PROTOCOLS
from comity.core.tasks import Tasks
from comity.errors import Disconnected
from comity.model import wire
from comity.model.capability import Requirements
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.task import LOG_LIMIT, Logged, Payload, Stored, TaskFailure, TaskSpec, TaskState
from comity.sim.hosts import Doors, Host, Program

EVERY_S = 0.02
NUMBERS = (0, 1, -1, 7, 2**31, 2**62, 2**63, 2**64 - 1)
FIGURES = (0.0, -1.0, 0.5, 1e300, float("nan"), float("inf"), -float("inf"))
CONTROLLERS = "topic/controllers"

Lie = tuple[Address, wire.Item]

class Liar:
    """``state`` is what the log says, ``others`` the processes it speaks to."""

    def __init__(self, me: ProcessId, state: Tasks, others: list[ProcessId], random: Random) -> None:
        self.me = me
        self.state = state
        self.others = others
        self.random = random
        self._kinds: list[Callable[[], Lie]] = [
            self._leads, self._report, self._beacon, self._submit, self._asks, self._orders, self._answers, self._speaks,
        ]  # fmt: skip

    def lie(self) -> tuple[Address, bytes]:
        """The next one: where to, and what."""
        address, item = self.random.choice(self._kinds)()
        if self.random.random() < 0.05:
            return address, self.random.randbytes(40)
        return address, wire.encode([item])

    def _attempt(self) -> tuple[TaskId, int]:
        """A task and its epoch, one that runs if there is one."""
        tasks = list(self.state.tasks.values())
        running = [task for task in tasks if task.attempt is not None]
        if not tasks or self.random.random() < 0.1:
            return TaskId(self.random.choice(["", "x" * 100_000, "0" * 24, "z" * 24, "\N{EURO SIGN}"])), self._number()
        task = self.random.choice(running or tasks)
        return task.spec.id, task.epoch + self.random.choice([0, 0, 0, 1, -1, 2**40])

    def _task(self) -> TaskId:
        return self._attempt()[0]

    def _number(self) -> int:
        return self.random.choice(NUMBERS)

    def _figure(self) -> float:
        return self.random.choice(FIGURES)

    def _other(self) -> ProcessId:
        return self.random.choice(self.others)

    def _agent(self) -> AgentId:
        return AgentId(f"{self._other()}/{self.random.choice(['picky', 'worker', 'tick', ''])}")

    def _leads(self) -> Lie:
        leader = self.random.choice([self.me, self._other()])
        return self.random.choice([CONTROLLERS, EVERYONE]), wire.Leading(abs(self._number()), leader, self._number())

    def _report(self) -> Lie:
        task, epoch = self._attempt()
        failure = TaskFailure("lie", "because", self.random.random() < 0.5)
        payloads: list[Payload] = [b"1", b'"' + b"x" * LOG_LIMIT + b'"', Logged(1, 0, 9), Stored("network/x", 9, b"")]
        item: wire.Item = self.random.choice([
            wire.Began(task, epoch), wire.Done(task, epoch, self.random.choice(payloads), self._number()),
            wire.Declined(task, epoch, "no"), wire.Failed(task, epoch, failure, self.random.random() < 0.5),
            wire.Slot(task, epoch, self.random.random() < 0.5), wire.Live(task, epoch, b'{"type":"completed"}'),
            wire.RateTask(task, self._figure()), wire.CallEnded(epoch, self._figure(), True),
            self._record(task, epoch, self.random.choice(payloads)),
        ])  # fmt: skip
        return LEADER, item

    def _record(self, task: TaskId, epoch: int, payload: Payload) -> wire.Item:
        name = self.random.choice(["part 0", "approval", "", "x" * 200])
        return self.random.choice([
            wire.StepDone(task, epoch, name, payload), wire.Checkpointed(task, epoch, self._number(), payload),
            wire.InputAsked(task, epoch, name, payload, self._number()), wire.Recall(task, epoch, "step", name),
            wire.AnswerTask(7, task, "another", payload),
        ])  # fmt: skip

    def _beacon(self) -> Lie:
        calls = {self._agent(): self._number() for _ in range(3)}
        figures = [self._figure() for _ in range(5)]
        beacon = wire.Beacon(
            self._number(), self._number(), figures[0], figures[1], figures[2], 1, 1, figures[3], figures[4], False, calls
        )
        return LEADER, self.random.choice([beacon, wire.Leaving(self._number()), wire.Pong(1)])

    def _submit(self) -> Lie:
        """One that must be refused: something is always wrong with it."""
        spec = TaskSpec(TaskId("0" * 24), "echo", b"{}", self._other())
        wrong: dict[str, object] = self.random.choice([
            {}, {"attempt_timeout_s": float("nan")}, {"start_timeout_s": self._figure()}, {"deadline_ms": 2**64 - 1},
            {"priority": -1}, {"retries": -1}, {"input": Logged(1, 0, 9)}, {"input": Stored("u1/inputs/x", 9, b"")},
            {"requirements": Requirements(cpu=float("nan"))}, {"capability": ""}, {"parent": TaskId("x")}, {"id": self._task()},
        ])  # fmt: skip
        if "id" in wrong:
            wrong["priority"] = 10
        return LEADER, wire.SubmitTask(msgspec.structs.replace(spec, **wrong), self.random.random() < 0.5, True)

    def _asks(self) -> Lie:
        what = self.random.choice(["task", "tasks", "why", "stats", "nodes", "agents", "performance", "strategy", "nothing", ""])
        args = self.random.choice([b"", b"{}", b"[]", b'{"id":7}', b'{"limit":"x"}', b'{"state":"odd"}', b"\xff", b"[" * 5000])
        item: wire.Item = self.random.choice([
            wire.Ask(self._number(), what, args), wire.FollowTask((self._task(), self._task())),
            wire.FollowEvents(self._number(), self.random.choice([-1, 0, 5, 2**62]), self._number()),
            wire.Route(self._number(), "echo", 50, Requirements(gpu=self._figure()), None, (self._agent(), AgentId("odd"))),
        ])  # fmt: skip
        return LEADER, item

    def _orders(self) -> Lie:
        (task, epoch), agent = self._attempt(), self._agent()
        item: wire.Item = self.random.choice([
            wire.Run(task, epoch, abs(self._number()), 1, agent, "echo", b'{"value":1}', 1), wire.Stop(task, epoch, "lie", 100),
            wire.Settled(((task, epoch),)), wire.Recorded(task, epoch, "step", "part 0"),
            wire.Recalled(task, epoch, "step", "part 0", b"1"), wire.Evicted(abs(self._number()), "lie"),
            wire.BeaconAck(self._number(), abs(self._number()), self._figure(), self._number()),
            wire.Control(1, self.random.choice(["update", "odd"]), b'{"agent":"picky","changes":{"tags":7}}'),
        ])  # fmt: skip
        return to(self._other()), item

    def _answers(self) -> Lie:
        task = self._task()
        item: wire.Item = self.random.choice([
            wire.Accepted(((task, task),)), wire.Refused(task, "bad-input", "lie"), wire.Ended(task, TaskState.COMPLETED, b"7"),
            wire.Answer(self._number(), "", b"{}"), wire.Routed(self._number(), self._agent()),
            wire.EventNotice(self._number(), 1, b'{"type":"task.completed","at":0}'), wire.Pong(self._number()),
        ])  # fmt: skip
        return to(self._other()), item

    def _speaks(self) -> Lie:
        """As somebody else, or wanting an answer nowhere."""
        how = self.random.choice([Performative.REQUEST, Performative.INFORM, *Performative])
        envelope = Envelope(
            id="lie", performative=how, topic="relay", body=self.random.choice([b"[]", b"\xff"]),
            sender=self.random.choice([self._agent(), self.me]), receiver=self._agent(),
            reply_to=self.random.choice(["", "*", "a b", self._other()]), in_reply_to=self.random.choice(["", "1"]),
            remaining_ms=self.random.choice([0, 50, 2**62]), protocol=self.random.choice(["", "", "fipa-tango", *PROTOCOLS]),
            conversation=self.random.choice(["", "c", "d"]),
        )  # fmt: skip
        return to(self._other()), wire.Message(envelope)

def liar(state: Callable[[], Tasks], others: list[str], until: float) -> Program:
    """A program that lies until then."""

    async def run(host: Host, doors: Doors) -> None:
        random = host.random()
        teller = Liar(ProcessId(host.name), state(), [ProcessId(other) for other in others], random)
        records = [("nodes", b"\x92\xa1\xff\x01"), ("agents", b"junk"), ("schemas", b"{")]
        for kind, value in records:
            await doors.registry.put(f"{kind}/{host.name}/0" if kind != "nodes" else f"nodes/{host.name}", value)
        while host.loop.time() < until:
            try:
                await doors.bus.send(*teller.lie())
            except Disconnected:
                return
            await asyncio.sleep(random.expovariate(1 / EVERY_S))

    return run
