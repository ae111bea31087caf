"""Who is here and what can be done, in the order that is asked for: from the watched copy of the registry, with what the leader
measured."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, cast

import msgspec

from comity.client.terms import name_of, words
from comity.directory import Directory
from comity.errors import BadInput, UnknownCapability
from comity.finding import Conditions
from comity.model.capability import AgentRecord, AgentStatus, Capability, parse_version
from comity.model.codec import to_json
from comity.model.example import example

FRESH_S = 1.0
"""What the leader said so long ago is not asked for again."""
_KEPT = 256
ORDERS = ("id", "name", "load", "latency", "throughput", "success")
_BY = {"latency": ("p50_ms", 1.0), "throughput": ("per_s", -1.0), "success": ("success", -1.0)}


class Finding:
    """``ask`` the leader; ``time`` is the loop's clock."""

    def __init__(self, directory: Directory, ask: Callable[..., Awaitable[Any]], time: Callable[[], float]) -> None:
        self._directory = directory
        self._ask = ask
        self._time = time
        self._told: dict[tuple[str, str], tuple[float, Any]] = {}

    async def discover(self, capability: str, order_by: str, limit: int | None, given: Conditions) -> list[AgentRecord]:
        """See ``Client.discover``."""
        if order_by not in ORDERS:
            raise BadInput(f"agents cannot be ordered by {order_by!r}; one of: {', '.join(ORDERS)}", option="order_by")
        if order_by in _BY and not capability:
            raise BadInput(f"{order_by} is that of a capability: say which", option="order_by")
        for tags in ("tags", "any_tags"):
            if tags in given:
                given = cast("Conditions", {**given, tags: words(given[tags])})
        if order_by == "id":
            return self._directory.discover(capability, limit=limit, **given)
        found = self._directory.discover(capability, **given)
        if order_by == "name":
            found.sort(key=lambda agent: agent.name)
        elif order_by == "load":
            loads = {row["id"]: row["load"] for row in (await self._fresh("agents"))["agents"]}
            found.sort(key=lambda agent: loads.get(agent.id, 0))
        else:
            figure, sign = _BY[order_by]
            figures = await self.measured(name_of(capability)[0])
            values = {agent: row[figure] * sign for agent, row in figures.items() if row[figure] is not None}
            found.sort(key=lambda agent: values.get(agent.id, inf))
        return found[:limit]

    async def measured(self, capability: str) -> dict[str, dict[str, Any]]:
        """What the network measured of each agent that did it."""
        return {row["id"]: row for row in (await self._fresh("performance", capability=capability))["agents"]}

    async def _fresh(self, what: str, **args: str) -> Any:
        key = (what, args.get("capability", ""))
        at, answer = self._told.get(key, (-inf, None))
        if self._time() - at > FRESH_S:
            answer = await self._ask(what, args)
            self._told.pop(key, None)
            self._told[key] = (self._time(), answer)
            if len(self._told) > _KEPT:
                del self._told[next(iter(self._told))]
        return answer

    async def capabilities(self) -> list[dict[str, Any]]:
        """See ``Client.capabilities``."""
        figures = {row["name"]: row for row in (await self._fresh("performance"))["capabilities"]}
        return [self._row(name, figures.get(name, {})) for name in self._directory.capabilities()]

    def _row(self, name: str, figures: dict[str, Any]) -> dict[str, Any]:
        agents = self._directory.discover(name)
        versions = {offer.version for agent in agents for offer in agent.offers if offer.name == name}
        known = self._newest(name, agents)
        return {
            "name": name,
            "versions": sorted(versions, key=_by_number),
            "description": known.description if known is not None else "",
            "agents": len(agents),
            "active": sum(agent.status is AgentStatus.ACTIVE for agent in agents),
            "strategy": figures.get("strategy"),
            **{figure: figures.get(figure) for figure in ("p50_ms", "p95_ms", "per_s", "success", "samples")},
        }

    async def describe(self, name: str) -> dict[str, Any]:
        """See ``Client.describe``."""
        offering = self._directory.discover(name)
        known = self._newest(name, offering)
        if known is None:
            raise UnknownCapability(f"no agent offers {name!r}", capability=name)
        told = await self._fresh("performance", capability=name)
        measured = {row["id"]: row for row in told["agents"]}
        agents = [
            {"id": agent.id, "status": str(agent.status), **measured.get(agent.id, {})}
            for agent in offering
        ]
        return {
            **self._row(name, told["capabilities"][0]),
            "input_schema": known.input_schema,
            "output_schema": known.output_schema,
            "limits": _limits(known),
            **self._example(known),
            "by_agent": agents,
        }

    def _newest(self, name: str, agents: list[AgentRecord]) -> Capability | None:
        """As the newest version has it."""
        offers = (offer for agent in agents for offer in agent.offers if offer.name == name)
        newest = max(offers, key=lambda offer: _by_number(offer.version), default=None)
        return self._directory.capability(name, newest.schema) if newest is not None else None

    def _example(self, known: Capability) -> dict[str, Any]:
        """An input that its agents take; none if none could be made."""
        made = example(known.input_schema) if known.input_schema else {}
        try:
            self._directory.encode(known.name, [made])
        except BadInput:
            return {}
        return {"example": msgspec.json.decode(to_json(made))}


def _limits(known: Capability) -> dict[str, Any]:
    """What its author said of attempts at it."""
    said = {name: getattr(known, name) for name in ("retries", "attempt_timeout_s", "start_timeout_s", "progress_timeout_s")}
    return {name: value for name, value in said.items() if value is not None}


def _by_number(version: str) -> tuple[int, ...]:
    try:
        return parse_version(version)
    except BadInput:
        return ()
