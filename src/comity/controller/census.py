"""Who is registered: the controller's watched copy of the registry, leading or not. It makes no decision; it only tells the
scheduler which agents exist. Whether a node may run anything is up to its lease."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import structlog

from comity.core.scheduling import Scheduling
from comity.errors import ComityError
from comity.failpoints import durable
from comity.model.capability import AgentRecord, NodeRecord
from comity.model.ids import AgentId, NodeId, ProcessId
from comity.model.published import decode_agents, decode_node
from comity.model.server import Damage, decode_server
from comity.registry.base import Change, Registry

TOLD_S = 15.0
"""A leader that dies may not have told what it learnt before: the next one tells what changed so long ago, perhaps again."""

_log = structlog.get_logger("comity.controller")


class Census:
    """Agents and nodes as registered. ``changed(kind, agent)`` hears of joins, changes and departures of agents."""

    def __init__(self, registry: Registry, scheduling: Scheduling) -> None:
        self.agents: dict[AgentId, AgentRecord] = {}
        self.nodes: dict[NodeId, NodeRecord] = {}
        self.put: Callable[[AgentRecord], None] = scheduling.put_agent
        self.remove: Callable[[AgentId], None] = scheduling.remove_agent
        self.changed: Callable[[str, AgentRecord], None] = lambda _kind, _agent: None
        self.damage: dict[tuple[str, str], Damage] = {}
        """What was found in servers' copies, by the server's name and the stream's."""
        self.damaged: Callable[[str, Damage], None] = lambda _server, _damage: None
        """Hears of changes of that, in order: also of damage that was mended before its record could be read."""
        self._changes: deque[tuple[float, str, Damage]] = deque(maxlen=64)
        self.malformed = 0
        self._registry = registry
        self.counts: dict[NodeId, dict[str, int]] = {}
        """How many agents are known of each node, by status. A node may be gone and its agents still be here."""
        self._chunks: dict[str, dict[AgentId, None]] = {}
        self._home: dict[AgentId, str] = {}  # the chunk that named it last

    def lists(self, node: NodeId, incarnation: int) -> bool:
        """Whether what this life of the node announced has been read."""
        record = self.nodes.get(node)
        return record is not None and record.incarnation == incarnation

    async def watch(self) -> None:
        """Follow the registry until cancelled."""
        async for changes in self._registry.watch(""):
            for change in changes:
                try:
                    self._take(change)
                except ComityError as error:
                    self.malformed += 1
                    _log.warning("a registry record cannot be read", key=change.key, error=error.message)
                await asyncio.sleep(0)  # a record may hold hundreds of agents

    def _take(self, change: Change) -> None:
        kind, _, rest = change.key.partition("/")
        if kind == "nodes":
            if change.value is None:
                self.nodes.pop(NodeId(ProcessId(rest)), None)
            else:
                self.nodes[NodeId(ProcessId(rest))] = decode_node(change.value)
        elif kind == "agents":
            self._take_chunk(change.key, decode_agents(change.value) if change.value is not None else [])
        elif kind == "servers":
            self._take_server(rest, decode_server(change.value).damages if change.value is not None else ())

    def _take_server(self, name: str, damages: tuple[Damage, ...]) -> None:
        said = {damage.stream for damage in damages}
        for key in [key for key in self.damage if key[0] == name and key[1] not in said]:
            del self.damage[key]
        for damage in damages:
            known = self.damage.get((name, damage.stream))
            if damage != known:
                self.damage[name, damage.stream] = damage
                found = msgspec.structs.replace(damage, mended=False)
                if damage.mended and known != found:
                    self._tell(name, found)
                self._tell(name, damage)

    def _tell(self, server: str, damage: Damage) -> None:
        self._changes.append((asyncio.get_running_loop().time(), server, damage))
        self.damaged(server, damage)

    def tell_again(self) -> None:
        """For a new leader: what is damaged now, and what changed a moment ago."""
        since = asyncio.get_running_loop().time() - TOLD_S
        recent = [(server, damage) for at, server, damage in self._changes if at >= since]
        older = [
            (name, known) for (name, _), known in self.damage.items() if not known.mended and (name, known) not in recent
        ]
        for server, damage in older + recent:
            self.damaged(server, damage)

    def damages(self) -> list[dict[str, Any]]:
        """The copies that are damaged now."""
        found = [(name, known) for (name, _), known in sorted(self.damage.items()) if not known.mended]
        return [{"server": name, "stream": known.stream, "index": known.index, "reason": known.reason} for name, known in found]

    def _take_chunk(self, key: str, records: list[AgentRecord]) -> None:
        node = key.split("/")[1]
        before = self._chunks.pop(key, {})
        now: dict[AgentId, None] = {}
        for record in records:
            if record.node != node or not record.id.startswith(f"{node}/"):
                self.malformed += 1  # a node may speak for its own agents only
                continue
            now[record.id] = None
            self._home[record.id] = key
            known = self.agents.get(record.id)
            if known == record:
                continue
            if known is not None:
                self._count(known, -1)
            self._count(record, 1)
            self.agents[record.id] = record
            self.put(record)
            self.changed("agent.changed" if known is not None else "agent.joined", record)
        if now:
            self._chunks[key] = now
        for agent in before:
            if agent not in now and self._home.get(agent) == key:
                del self._home[agent]
                record = self.agents.pop(agent)
                self._count(record, -1)
                self.remove(agent)
                self.changed("agent.left", record)

    def _count(self, agent: AgentRecord, by: int) -> None:
        counts = self.counts.setdefault(agent.node, {})
        status = str(agent.status)
        counts[status] = counts.get(status, 0) + by
        if not counts[status]:
            del counts[status]
        if not counts:
            del self.counts[agent.node]

    def by_status(self, members: Iterable[NodeId]) -> dict[str, int]:
        """How many agents ``members`` have, by status."""
        found: dict[str, int] = {}
        for node in members:
            for status, count in self.counts.get(node, {}).items():
                found[status] = found.get(status, 0) + count
        return found

    def per_node(self, node: NodeId) -> int:
        return sum(self.counts.get(node, {}).values())

    async def forget(self, node: NodeId, incarnation: int) -> None:
        """Remove what a dead node left behind, unless it is back already."""
        record = self.nodes.get(node)
        if record is not None and record.incarnation > incarnation:
            return
        keys = [key for key in self._chunks if key.split("/")[1] == node]
        for key in [*keys, f"nodes/{node}"]:
            with durable("registry.forget"):
                await self._registry.delete(key)
