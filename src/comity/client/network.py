"""The verbs of a client that look at the network, and look after it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from comity.client.exchange import Exchange
from comity.client.listing import listed
from comity.client.standing import NodeHandle
from comity.client.task import Task
from comity.model.capability import Strategy
from comity.model.capability import strategy as strategy_named
from comity.model.ids import AgentId, check_task_id, node_of
from comity.model.limits import INDEX_MAX, check_timeout, check_whole
from comity.model.task import task_state


class Network:
    """A part of ``Client``, in a file of its own for its length."""

    __slots__ = ()

    _exchange: Exchange

    async def _named(self, target: str) -> AgentId:
        raise NotImplementedError

    def task(self, id: str) -> Task:
        raise NotImplementedError

    async def events(self, after: int | None = None, *, follow: bool = True) -> AsyncGenerator[dict[str, Any], None]:
        """What happens in the network, without end: dicts with ``type``, ``at`` (UTC ms) and ``index``. From now on, or
        what follows log index ``after`` first; ``events.gap`` tells of a part that the leader no longer has. Without
        ``follow`` only what has happened (``after`` 0 unless given)."""
        self._exchange.check_open()
        if after is not None:
            check_whole(after, "after", -1, INDEX_MAX)
        stream = self._exchange.streams.open(after if after is not None else -1 if follow else 0)
        async for event in self._exchange.streams.events(stream, follow=follow):
            yield event

    async def stats(self) -> dict[str, Any]:
        """Figures of the network: tasks, agents and nodes by state, rates, leader, log. As the leader has them at the
        moment."""
        return await self._ask("stats")

    async def head(self) -> int:
        """A log entry that is durable now, nothing known before this call being later: see ``backup``."""
        await self._ask("barrier")
        return int((await self.stats())["log_head"])

    async def tasks(
        self, *, state: str | None = None, capability: str | None = None, limit: int = 50, before: str | None = None
    ) -> list[dict[str, Any]]:
        """Tasks, newest first, each as ``Task.status`` has it. ``before`` a task id: the page after it. Raises BadInput (no such
        state, no id)."""
        if state is not None:
            task_state(state)
        if before is not None:
            check_task_id(before)
        return await listed(self._ask, limit, before, state=state, capability=capability)

    async def nodes(self) -> list[dict[str, Any]]:
        """Nodes with a lease: membership state and last figures."""
        return list((await self._ask("nodes"))["nodes"])

    def node(self, id: str) -> NodeHandle:
        """A node by its id, to be drained, isolated or resumed."""
        return NodeHandle(self._exchange, id)

    async def agents(self) -> list[dict[str, Any]]:
        """The busiest agents first: what is in flight at each, against what it takes at once."""
        return list((await self._ask("agents"))["agents"])

    async def why(self, id: str) -> dict[str, Any]:
        """See ``Task.why``."""
        return await self.task(id).why()

    async def set_strategy(self, capability: str, strategy: Strategy | str) -> None:
        """How agents are picked for tasks of ``capability`` that do not say. Raises BadInput."""
        await self._ask("strategy", capability=capability, strategy=strategy_named(strategy))

    async def shutdown(self, timeout: float | None = None) -> dict[str, Any]:
        """Announce the end to every agent, refuse submits, wait up to ``timeout`` seconds (default ``drain_timeout_s``)
        for what runs, stop. What still ran and what waits: both go on when the network is started again."""
        drain_s = 0.0 if timeout == 0 else check_timeout(timeout) or self._exchange.settings.drain_timeout_s
        wait_s = drain_s + self._exchange.settings.request_timeout_s
        answer: dict[str, Any] = await self._exchange.ask("shutdown", {"timeout_s": drain_s}, wait_s)
        return answer

    async def pause(self, agent: str) -> None:
        """Give an agent no new work. Raises UnknownAgent, BadInput (a name of several), PeerLost, TimedOut."""
        await self._control("pause", agent)

    async def resume(self, agent: str) -> None:
        """Give a paused agent work again. See ``pause``."""
        await self._control("resume", agent)

    async def remove(self, agent: str) -> None:
        """Make an agent leave its node. See ``pause``."""
        await self._control("remove", agent)

    async def _ask(self, what: str, **args: Any) -> dict[str, Any]:
        answer: dict[str, Any] = await self._exchange.ask(what, args)
        return answer

    async def _control(self, what: str, target: str) -> None:
        agent = await self._named(target)
        await self._exchange.control(node_of(agent), what, {"agent": agent})
