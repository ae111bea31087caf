"""A node as those see it who look after the network: to be drained, isolated, resumed."""

from __future__ import annotations

from typing import Any

from comity.client.exchange import Exchange
from comity.errors import TimedOut


class NodeHandle:
    """A node, by its id. What is said of it holds until it is resumed: over its restarts, and over changes of leader. Each
    raises UnknownNode, and the Indefinite errors of a question."""

    __slots__ = ("_exchange", "id")

    def __init__(self, exchange: Exchange, id: str) -> None:
        self._exchange = exchange
        self.id = id

    async def drain(self, reason: str = "", *, wait: bool = False, timeout: float | None = None) -> dict[str, Any]:
        """Give it no new attempts; running ones finish. ``wait`` until they have: TimedOut after ``timeout`` seconds (default
        ``drain_timeout_s``); the node stays draining."""
        settings = self._exchange.settings
        limit_s = settings.drain_timeout_s if timeout is None else timeout
        args = {"id": self.id, "reason": reason, "wait": wait, "timeout_s": limit_s}
        told: dict[str, Any] = await self._exchange.ask("drain-node", args, limit_s + settings.request_timeout_s)
        if wait and told["attempts"]:
            raise TimedOut(f"{told['attempts']} attempts still run on {self.id} after {limit_s:g} s; it stays draining", **told)
        return told

    async def isolate(self, reason: str = "") -> dict[str, Any]:
        """Give it no new attempts, and move running ones now. It stays in the network, so that it can be looked at."""
        told: dict[str, Any] = await self._exchange.ask("isolate-node", {"id": self.id, "reason": reason})
        return told

    async def resume(self, reason: str = "") -> dict[str, Any]:
        """Give it attempts again."""
        told: dict[str, Any] = await self._exchange.ask("resume-node", {"id": self.id, "reason": reason})
        return told
