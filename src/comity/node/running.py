"""One attempt on a node, as its handle sees it."""

from __future__ import annotations

import asyncio
from datetime import datetime
from math import inf
from typing import TYPE_CHECKING, Any

from comity.agent import Agent, Offered
from comity.client.client import Client
from comity.model.ids import TaskId
from comity.model.mail import Outgoing as OutgoingMail
from comity.model.wire import Item, Run
from comity.node.parts import Outgoing
from comity.node.resuming import Memory

if TYPE_CHECKING:
    from comity.node.attempts import Attempts


class Running:
    """One attempt on this node, as its handle sees it. ``work`` is its asyncio task; ``began_at`` is 0 until the function runs,
    ``progress_at`` until it shows progress; ``without`` says why the store, for which it waits, is away; ``ending`` is what it
    will report once it was told to stop (None: nothing)."""

    __slots__ = (
        "_attempts", "_memory", "agent", "awaits", "began_at", "deadline_at", "ending", "hosted", "is_canceled", "is_looked_at",
        "offered", "out", "progress_at", "run", "stop_at", "timer", "without", "work",
    )  # fmt: skip

    work: asyncio.Task[None]

    def __init__(self, attempts: Attempts, run: Run, hosted: Agent, offered: Offered, now: float) -> None:
        self._attempts = attempts
        self.run = run
        self.agent = run.agent
        self.hosted = hosted
        self.offered = offered
        self.deadline_at = now + run.remaining_ms / 1000 if run.remaining_ms else 0.0
        self.began_at = 0.0
        self.progress_at = 0.0
        self.stop_at = 0.0
        self.without = ""
        self.awaits = 0
        self.is_looked_at = False
        self.is_canceled = False
        self.ending: Item | None = None
        self.timer: asyncio.TimerHandle | None = None
        self.out: Outgoing | None = None
        self._memory: Memory | None = None

    @property
    def memory(self) -> Memory:
        """Made when it is used: most attempts record nothing."""
        if self._memory is None:
            self._memory = self._attempts.memory(self.run)
            if self._attempts.running.get(self.task) is not self:
                self._memory.end()
        return self._memory

    def mail(self) -> tuple[OutgoingMail, ...]:
        """What was sent since the last record."""
        return self._memory.take_mail() if self._memory is not None else ()

    def forget(self) -> None:
        """The attempt is over."""
        if self._memory is not None:
            self._memory.end()
        if self.out is not None:
            self.out.leave()

    @property
    def task(self) -> TaskId:
        return self.run.task

    @property
    def epoch(self) -> int:
        return self.run.epoch

    @property
    def number(self) -> int:
        return self.run.number

    @property
    def parent(self) -> TaskId | None:
        return self.run.parent

    @property
    def capability(self) -> str:
        return self.run.capability

    @property
    def deadline(self) -> datetime | None:
        return self._attempts.utc(self.deadline_at) if self.deadline_at else None

    def remaining_s(self) -> float:
        return max(0.0, self.due() - self._attempts.now())

    def due(self) -> float:
        """When it will be stopped, on the loop's clock: by its own time-out or the task's deadline."""
        return min(self.began_at + self.run.timeout_s if self.began_at else inf, self.deadline_at or inf)

    def tell(self, body: dict[str, Any]) -> None:
        self._attempts.tell(self, body)

    def shown_at(self, now: float) -> float:
        """When it last showed progress: a part is some, and who waits for a reader is not stuck."""
        return max(self.progress_at, self.out.shown_at(now) if self.out is not None else 0.0)

    def client(self) -> Client:
        return self._attempts.speak(self)

    def pausing(self, waits: bool) -> None:
        """Around a wait for a child: the attempt holds no slot while it waits for at least one."""
        self._attempts.pausing(self, waits)
