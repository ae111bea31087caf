"""Keeps agents whose breaker is open out of rotation, for the capability that fails; one attempt at a time tries a half-open
one."""

from __future__ import annotations

from collections.abc import Callable

from comity.core.breaker import OPEN, Breaker, Breakers, Key, Turn
from comity.core.changes import Change
from comity.core.scheduling import Scheduling
from comity.model.capability import AgentRecord
from comity.model.ids import AgentId, TaskId
from comity.model.moment import iso


class Rotation:
    """``freed`` hears that an agent may take more than before; ``on_turn`` of every change of a breaker. Invariant: benched is
    who is out, and who has the assignment that will try it under way to the log (``_reserved``, by task)."""

    def __init__(self, breakers: Breakers, scheduling: Scheduling, freed: Callable[[AgentId], None]) -> None:
        self.breakers = breakers
        self.on_turn: Callable[[Turn], None] = lambda _turn: None
        self._scheduling = scheduling
        self._freed = freed
        self._reserved: dict[TaskId, Key] = {}

    def observe(self, changes: list[Change], now_ms: int) -> None:
        """Take in what an effective entry changed."""
        self._turned(self.breakers.observe(changes, now_ms))

    def due(self, now_ms: int) -> None:
        self._turned(self.breakers.due(now_ms))

    def next_deadline(self) -> int | None:
        return self.breakers.next_deadline()

    def _turned(self, turns: list[Turn]) -> None:
        for turn in turns:
            self._place((turn.agent, turn.capability))
            self.on_turn(turn)

    def _place(self, key: Key) -> None:
        breaker = self.breakers.of(*key)
        out = breaker is not None and (breaker.is_out or key in self._reserved.values())
        self._scheduling.bench(*key, why_out(breaker) if breaker is not None and out else "")
        if not out:
            self._freed(key[0])

    def reserved(self, task: TaskId, agent: AgentId, capability: str) -> None:
        """An assignment is under way to the log."""
        breaker = self.breakers.of(agent, capability)
        if breaker is not None and breaker.trips:
            self._reserved[task] = agent, capability
            self._place((agent, capability))

    def settled(self, task: TaskId) -> None:
        """It is effective, or void."""
        key = self._reserved.pop(task, None)
        if key is not None:
            self._place(key)

    def put_agent(self, agent: AgentRecord) -> None:
        """The agent came, or changed."""
        for offer in agent.offers:
            breaker = self.breakers.of(agent.id, offer.name)
            if breaker is not None and breaker.is_out:
                self._scheduling.bench(agent.id, offer.name, why_out(breaker))

    def rebuild(self) -> None:
        self._reserved.clear()
        for key in self._scheduling.benched():
            self._scheduling.bench(*key, "")
        for key, breaker in self.breakers:
            if breaker.is_out:
                self._scheduling.bench(*key, why_out(breaker))

    def check(self) -> None:
        """Raise AssertionError if who is benched is not who should be."""
        self.breakers.check()
        for agent, capability in self._scheduling.benched():
            breaker = self.breakers.of(agent, capability)
            known = breaker is not None and (breaker.is_out or (agent, capability) in self._reserved.values())
            assert known, f"{agent} is benched for {capability} and its breaker is not open"


def why_out(breaker: Breaker) -> str:
    if breaker.state == OPEN:
        return f"its breaker is open until {iso(breaker.until_ms)} ({breaker.reason})"
    return "its breaker is half-open, and one attempt tries it"
