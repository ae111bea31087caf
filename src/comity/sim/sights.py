"""Judges what clients see of who is here: each change once and in its turn, and in the end what the registry says."""

from __future__ import annotations

from collections.abc import Callable, Collection

from comity.client import Client
from comity.directory import Seen
from comity.model.ids import AgentId, node_of
from comity.model.published import decode_agents
from comity.registry.memory import MemoryRegistryState
from comity.sim.checkers import Violation


class Sights:
    """What each client's watch told so far, by the client's name. A client that starts anew sees everything anew. What liars
    say of themselves does not count."""

    def __init__(self, registry: MemoryRegistryState, honest: Collection[str], abort: Callable[[Violation], None]) -> None:
        self._registry = registry
        self._honest = honest
        self._abort = abort
        self._seen: dict[str, tuple[Client, dict[str, None]]] = {}

    def follow(self, name: str, client: Client) -> None:
        here: dict[str, None] = {}
        self._seen[name] = client, here
        client.directory.watch(lambda changes: self._saw(name, here, changes))

    def _saw(self, name: str, here: dict[str, None], changes: list[Seen]) -> None:
        for what, record in changes:
            if (what == "joined") is (record.id in here):
                knew = "knew" if record.id in here else "did not know"
                self._abort(Violation(f"{name} was told that {record.id} {what}, and {knew} of it"))
            if what == "left":
                here.pop(record.id, None)
            else:
                here[record.id] = None

    def differ(self, name: str) -> str:
        """How what a client sees differs from what the registry says; "" if it does not."""
        client, here = self._seen.get(name, (None, {}))
        if client is None or not client.directory.is_loaded:
            return ""
        agents = self._agents()
        shown = {agent.id for agent in client.directory.discover() if node_of(agent.id) in self._honest}
        told = {AgentId(one) for one in here if "/" in one and node_of(AgentId(one)) in self._honest}
        if shown != agents or told != agents:
            return f"{name} sees {sorted(shown)} and was told of {sorted(told)}; here are {sorted(agents)}"
        return ""

    def _agents(self) -> set[AgentId]:
        nodes = {record.key.partition("/")[2] for record in self._registry.listing("nodes/")}.intersection(self._honest)
        records = [record for record in self._registry.listing("agents/") if record.key.split("/")[1] in nodes]
        return {agent.id for record in records for agent in decode_agents(record.value)}
