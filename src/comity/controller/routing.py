"""Live calls to a capability: the leader picks the agent by the same strategies as for tasks, and counts the call as load
until its caller says it ended, its time is over, or the caller died."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.core.reconcile import Reconcile
from comity.errors import ComityError, NoAgent, TooLarge, UnknownCapability
from comity.model.ids import AgentId, ProcessId, node_of
from comity.model.limits import check_requirements
from comity.model.wire import CallEnded, Route, Routed

_SLACK_MS = 1000.0
"""A caller that says its call took longer than it had is not believed."""


_ASKED = 1000
_TRIES = 16


class Call(NamedTuple):
    agent: AgentId
    capability: str
    timer: asyncio.TimerHandle
    within_ms: int


class Routing:
    """Calls in flight, by caller and the caller's number for them."""

    def __init__(self, reconcile: Reconcile, outbox: Outbox, now_ms: Callable[[], int]) -> None:
        self._reconcile = reconcile
        self._outbox = outbox
        self._now_ms = now_ms
        self._calls: dict[ProcessId, dict[int, Call]] = {}
        self._at: dict[AgentId, int] = {}

    def at(self, agent: AgentId) -> int:
        """Calls in flight at ``agent``."""
        return self._at.get(agent, 0)

    def route(self, item: Route, sender: ProcessId) -> None:
        try:
            agent = self._choose(item)
        except ComityError as error:
            self._outbox.post(to(sender), Routed(item.ref, AgentId(""), error.code, error.message))
            return
        self.call_ended(CallEnded(item.ref), sender)  # a repeated question
        self._reconcile.scheduling.take(agent)
        self._at[agent] = self.at(agent) + 1
        loop = asyncio.get_running_loop()
        timer = loop.call_later(max(item.for_ms, 1) / 1000, self.call_ended, CallEnded(item.ref), sender)
        self._calls.setdefault(sender, {})[item.ref] = Call(agent, item.capability, timer, item.for_ms)
        self._outbox.post(to(sender), Routed(item.ref, agent))

    def _choose(self, item: Route) -> AgentId:
        scheduling = self._reconcile.scheduling
        check_requirements(item.requirements)
        if len(item.asked) > _ASKED:
            raise TooLarge(f"{len(item.asked)} agents were asked already; at most {_ASKED}", limit=_ASKED)
        agent = self._elsewhere(item) if item.asked else scheduling.choose(item.capability, item.requirements, item.strategy)
        if agent is not None:
            return agent
        if not scheduling.offered(item.capability):
            raise UnknownCapability(f"no agent offers {item.capability!r}, and none has that name")
        if not scheduling.live(item.capability):
            raise NoAgent(f"no live agent offers {item.capability!r} now")
        raise NoAgent(f"every live agent that offers {item.capability!r} is busy, or does not meet the requirements")

    def _elsewhere(self, item: Route) -> AgentId | None:
        """None of those asked before, which may be lost together with their nodes: on another node, if one is found soon."""
        nodes, avoid = set(map(node_of, item.asked)), item.asked
        found: AgentId | None = None
        for _ in range(_TRIES):
            agent = self._reconcile.scheduling.choose(item.capability, item.requirements, item.strategy, avoid)
            if agent is None or node_of(agent) not in nodes:
                return agent or found
            found, avoid = found or agent, (*avoid, agent)
        return found

    def call_ended(self, item: CallEnded, sender: ProcessId) -> None:
        calls = self._calls.get(sender, {})
        found = calls.pop(item.ref, None)
        if found is None:
            return
        if not calls:
            del self._calls[sender]
        agent = found.agent
        found.timer.cancel()
        if item.ok is not None and 0 <= item.took_ms <= found.within_ms + _SLACK_MS:
            scheduling = self._reconcile.scheduling
            scheduling.measured(agent, found.capability, item.took_ms, item.ok, now_ms=self._now_ms())
        self._at[agent] -= 1
        if not self._at[agent]:
            del self._at[agent]
        self._reconcile.freed(agent)

    def caller_died(self, process: ProcessId) -> None:
        for ref in list(self._calls.get(process, {})):
            self.call_ended(CallEnded(ref), process)

    def end(self) -> None:
        for calls in self._calls.values():
            for call in calls.values():
                call.timer.cancel()
