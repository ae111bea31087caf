"""Answers those who set nodes aside, or resume them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from comity.controller.answers import Args
from comity.controller.census import Census
from comity.core.tasks import Tasks
from comity.errors import TooLarge, UnknownNode
from comity.model.ids import NodeId, ProcessId
from comity.model.task import Command, DrainNode, IsolateNode, ResumeNode

ASIDE_MAX = 10_000
REASON_MAX = 500


class Standing:
    """``effective`` waits until what was proposed before counts; ``next_entry`` for one more entry, or so many seconds."""

    def __init__(
        self,
        state: Tasks,
        census: Census,
        *,
        propose: Callable[[Command], None],
        effective: Callable[[], Awaitable[None]],
        next_entry: Callable[[float], Awaitable[None]],
        drain_timeout_s: float,
    ) -> None:
        self._state = state
        self._census = census
        self._propose = propose
        self._effective = effective
        self._next_entry = next_entry
        self._drain_timeout_s = drain_timeout_s
        self._time = asyncio.get_running_loop().time

    async def drain(self, args: Args) -> dict[str, Any]:
        """With ``wait``: answered once nothing runs there, or ``timeout_s`` is over."""
        node = self._known(args.id)
        self._propose(DrainNode(node, args.reason[:REASON_MAX]))
        await self._effective()
        until = self._time() + (self._drain_timeout_s if args.timeout_s is None else args.timeout_s)
        while args.wait and self._running(node) and node in self._state.aside and self._time() < until:
            await self._next_entry(until - self._time())
        return self._told(node)

    async def isolate(self, args: Args) -> dict[str, Any]:
        node = self._known(args.id)
        self._propose(IsolateNode(node, args.reason[:REASON_MAX]))
        await self._effective()
        return self._told(node)

    async def resume(self, args: Args) -> dict[str, Any]:
        node = self._known(args.id)
        self._propose(ResumeNode(node, args.reason[:REASON_MAX]))
        await self._effective()
        return self._told(node)

    def _known(self, name: str) -> NodeId:
        """A node that has or had a lease, or is set aside already. Raises UnknownNode, TooLarge."""
        state, node = self._state, NodeId(ProcessId(name))
        if node not in state.nodes and node not in state.ended and node not in state.aside and node not in self._census.nodes:
            raise UnknownNode(f"no node {name[:80]!r} has been here", node=name[:80])
        if node not in state.aside and len(state.aside) >= ASIDE_MAX:
            raise TooLarge(f"{ASIDE_MAX} nodes are set aside already", limit=ASIDE_MAX)
        return node

    def _running(self, node: NodeId) -> int:
        lease = self._state.nodes.get(node)
        return len(lease.attempts) if lease is not None else 0

    def _told(self, node: NodeId) -> dict[str, Any]:
        aside = self._state.aside.get(node)
        return {
            "node": node,
            "state": aside.state if aside is not None else "alive" if node in self._state.nodes else "gone",
            "reason": aside.reason if aside is not None else "",
            "since_ms": aside.since_ms if aside is not None else 0,
            "attempts": self._running(node),
        }
