"""A watched copy of the registry: who is here, what they offer, and what an input must look like.

The copy is a hint. It may be a moment old, so nothing is decided by it: it answers ``discover``, finds the node behind
a name, and lets a bad input be refused before it travels.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import islice
from typing import Any, Literal, NamedTuple, Unpack

import jsonschema_rs

from comity.errors import Disconnected, InvalidInput, TimedOut
from comity.finding import Conditions, Index, Wanted
from comity.model.capability import AgentRecord, Capability, NodeRecord
from comity.model.codec import from_json, to_json
from comity.model.ids import AgentId, ProcessId, node_of
from comity.model.published import decode_agents, decode_capability, decode_node
from comity.registry.base import Change, Registry

__all__ = ["Directory", "Seen", "Sight"]

Sight = Literal["joined", "changed", "left"]


class Seen(NamedTuple):
    """One change: an agent or a node joined, changed or left (then ``record`` is the last one known)."""

    what: Sight
    record: AgentRecord | NodeRecord


class Watcher(NamedTuple):
    tell: Callable[[list[Seen]], None]
    end: Callable[[Exception], None] | None


class Directory:
    """Loads itself from ``registry`` when it is first asked for (``ready``) and then follows it until ``close``.

    Invariants: ``_index`` holds the agents listed in ``_chunks``, each as its ``_home`` chunk has it. An agent is shown only
    while its node's record is there.
    """

    def __init__(self, registry: Registry, time: Callable[[], float]) -> None:
        self._registry = registry
        self._time = time
        self.nodes: dict[ProcessId, NodeRecord] = {}
        self.malformed = 0
        self._index = Index()
        self._agents = self._index.agents
        self._chunks: dict[str, dict[AgentId, None]] = {}
        self._home: dict[AgentId, str] = {}
        self._offered: dict[str, dict[str, int]] = {}  # capability -> schema hash -> how many agents offer it so
        self._schemas: dict[str, dict[str, Capability]] = {}  # by hash, then by the registry key that says so
        self._validators: dict[str, Validator | None] = {}
        self._watchers: dict[int, Watcher] = {}
        self._watch_number = 0
        self._heard_at = float("-inf")
        self._loaded: asyncio.Future[None] | None = None
        self._follow: asyncio.Task[None] | None = None

    # The copy

    @property
    def is_loaded(self) -> bool:
        """Whether the copy is complete and still follows the registry."""
        return self._loaded is not None and self._loaded.done() and self._loaded.exception() is None

    @property
    def is_followed(self) -> bool:
        """Whether the registry is being followed, or was until something went wrong."""
        return self._follow is not None

    @property
    def age_s(self) -> float:
        """Seconds since the registry last said anything; infinite before the first word."""
        return self._time() - self._heard_at

    def start(self) -> None:
        """Begin to follow the registry, if that has not begun."""
        if self._follow is None:
            loop = asyncio.get_running_loop()
            self._loaded = loop.create_future()
            self._follow = loop.create_task(self._run())

    async def load(self, timeout_s: float) -> bool:
        """Wait for the first list, at most so long; whether the copy is complete now."""
        self.start()
        assert self._loaded is not None
        await asyncio.wait([self._loaded], timeout=timeout_s)
        return self.is_loaded

    async def ready(self, timeout_s: float) -> None:
        """Wait until all that was registered when it was first asked for is here. Raises TimedOut, or what ended the
        watch."""
        if not await self.load(timeout_s):
            assert self._loaded is not None
            if self._loaded.done():
                self._loaded.result()
            raise TimedOut(f"the registry did not answer within {timeout_s:g} s")

    async def close(self) -> None:
        if self._follow is not None:
            self._follow.cancel()
            await asyncio.gather(self._follow, return_exceptions=True)

    async def _run(self) -> None:
        assert self._loaded is not None
        try:
            async for changes in self._registry.watch(""):
                self._heard_at = self._time()
                for change in changes:
                    self.apply([change])
                    await asyncio.sleep(0)  # a record may hold hundreds of agents: others have their turn
                if not self._loaded.done():
                    self._loaded.set_result(None)
            raise Disconnected("the registry was closed")
        except asyncio.CancelledError:
            self._end(Disconnected("the connection was closed"))
            raise
        except Exception as error:  # whoever waits is told, now or when it asks
            self._end(error)

    def _end(self, error: Exception) -> None:
        assert self._loaded is not None
        if self._loaded.done():
            self._loaded = asyncio.get_running_loop().create_future()
        self._loaded.set_exception(error)
        self._loaded.exception()
        for watcher in list(self._watchers.values()):
            if watcher.end is not None:
                watcher.end(error)

    def apply(self, changes: list[Change]) -> None:
        """Take in what changed and tell the watchers, once for the whole batch. A record that cannot be read counts as
        gone."""
        self._heard_at = self._time()
        seen: list[Seen] = []
        for change in changes:
            kind, _, rest = change.key.partition("/")
            try:
                if kind == "nodes":
                    self._put_node(ProcessId(rest), change.value, seen)
                elif kind == "agents":
                    self._put_chunk(change.key, change.value, seen)
                elif kind == "schemas":
                    self._put_schema(change.key, change.value)
            except InvalidInput:
                self.malformed += 1
        if seen:
            for watcher in list(self._watchers.values()):
                watcher.tell(seen)

    def _put_node(self, node: ProcessId, value: bytes | None, seen: list[Seen]) -> None:
        old = self.nodes.get(node)
        if value is None:
            if old is not None:
                seen += [Seen("left", agent) for agent in self._index.having("node", node)]
                seen.append(Seen("left", self.nodes.pop(node)))
            return
        new = decode_node(value)
        self.nodes[node] = new
        if old is None:
            seen.append(Seen("joined", new))
            seen += [Seen("joined", agent) for agent in self._index.having("node", node)]
        elif new != old:
            seen.append(Seen("changed", new))

    def _put_chunk(self, key: str, value: bytes | None, seen: list[Seen]) -> None:
        old = self._chunks.get(key, {})
        node = ProcessId(key.split("/")[1])
        try:
            agents = decode_agents(value) if value is not None else []
        except InvalidInput:
            self.malformed += 1
            agents = []
        new = {agent.id: agent for agent in agents if node_of(agent.id) == node}
        for agent_id in old:
            if agent_id not in new and self._home.get(agent_id) == key:
                self._drop(self._agents[agent_id], seen)
        for agent_id, agent in new.items():
            self._home[agent_id] = key
            known = self._agents.get(agent_id)
            if known is None or known != agent:
                self._add(agent, known, seen)
        if new:
            self._chunks[key] = dict.fromkeys(new)
        else:
            self._chunks.pop(key, None)

    def _add(self, agent: AgentRecord, known: AgentRecord | None, seen: list[Seen]) -> None:
        if known is not None:
            self._withdraw(known)
        self._index.put(agent)
        for offer in agent.offers:
            hashes = self._offered.setdefault(offer.name, {})
            hashes[offer.schema] = hashes.get(offer.schema, 0) + 1
        if node_of(agent.id) in self.nodes:
            seen.append(Seen("joined" if known is None else "changed", agent))

    def _drop(self, agent: AgentRecord, seen: list[Seen]) -> None:
        del self._home[agent.id]
        self._withdraw(self._index.remove(agent.id))
        if node_of(agent.id) in self.nodes:
            seen.append(Seen("left", agent))

    def _withdraw(self, agent: AgentRecord) -> None:
        for offer in agent.offers:
            hashes = self._offered[offer.name]
            hashes[offer.schema] -= 1
            if not hashes[offer.schema]:
                _forget(self._offered, offer.name, offer.schema)

    def _put_schema(self, key: str, value: bytes | None) -> None:
        name = key.rpartition("/")[2]
        if value is not None:
            self._schemas.setdefault(name, {})[key] = decode_capability(value)
        else:
            _forget(self._schemas, name, key)
            if name not in self._schemas:
                self._validators.pop(name, None)

    def watch(
        self, tell: Callable[[list[Seen]], None], end: Callable[[Exception], None] | None = None
    ) -> Callable[[], None]:
        """``tell(changes)`` after every batch, and ``end(error)`` when there is nothing more to follow. The result ends it."""
        self._watch_number += 1
        number = self._watch_number
        self._watchers[number] = Watcher(tell, end)
        return lambda: self._watchers.pop(number, None) and None

    # What it answers

    def offers(self, capability: str) -> bool:
        """Whether any agent, of any status, offers it."""
        return capability in self._offered

    def agent(self, agent: AgentId) -> AgentRecord | None:
        return self._agents.get(agent) if node_of(agent) in self.nodes else None

    def named(self, name: str) -> list[AgentRecord]:
        """Agents called ``name``, by id."""
        return [agent for agent in self._index.having("name", name) if node_of(agent.id) in self.nodes]

    def capability(self, name: str, schema: str = "") -> Capability | None:
        """The full description of a capability (of that schema hash, or as any agent offers it), if it is known
        here."""
        hashes = [schema] if schema else self._offered.get(name, ())
        return next((found for h in hashes for found in self._schemas.get(h, {}).values() if found.name == name), None)

    def is_offered(self, capability: str) -> bool:
        """Whether an agent that is here offers it."""
        return self._index.is_had("capability", capability, self.nodes)

    def capabilities(self) -> list[str]:
        """What agents that are here offer, by name."""
        return sorted(name for name in self._offered if self.is_offered(name))

    def discover(self, capability: str = "", *, limit: int | None = None, **given: Unpack[Conditions]) -> list[AgentRecord]:
        """Agents that meet every condition given (see ``Conditions``), by id; the first ``limit`` of them. ``capability`` may
        carry versions (``review>=1.2``). Raises BadInput for a bad version range, status or need."""
        return list(islice(self._index.find(Wanted(capability, given), self.nodes), limit))

    # Inputs

    def validators(self, capability: str) -> list[Validator]:
        """One for each schema under which ``capability`` is offered; none if any of them is not known here."""
        found = []
        for schema in self._offered.get(capability, ()):
            if schema not in self._validators:
                known = next(iter(self._schemas.get(schema, {}).values()), None)
                if known is None:
                    return []
                self._validators[schema] = Validator.of(known)
            validator = self._validators[schema]
            if validator is None:
                return []
            found.append(validator)
        return found

    def encode(self, capability: str, inputs: list[Any]) -> list[bytes]:
        """Inputs as JSON, checked against the schemas known here. Raises NotSerializable, InvalidInput."""
        payloads = [to_json(value) for value in inputs]
        checks = self.validators(capability)
        if checks:
            for value, payload in zip(inputs, payloads, strict=True):
                check_input(checks, value, payload)
        return payloads


def check_input(validators: list[Validator], value: Any, data: bytes) -> None:
    """Raise InvalidInput if ``value`` (``data`` is its JSON) passes none of ``validators``."""
    first: InvalidInput | None = None
    for validator in validators:
        error = validator.error(value, data)
        if error is None:
            return
        first = first or error
    if first is not None:
        raise first


class Validator:
    """Checks inputs against one capability's input schema (JSON Schema 2020-12), by the rules of ``model.signature``:
    an object holds the arguments, anything else is the value of the only parameter, null is no arguments if none is
    required."""

    def __init__(self, check: Any, only: str, needs_some: bool) -> None:
        self._check = check
        self._only = only
        self._needs_some = needs_some

    @classmethod
    def of(cls, capability: Capability) -> Validator | None:
        """None if there is nothing to check against: no schema, or a broken one, which its node will tell of."""
        schema = capability.input_schema
        if not schema:
            return None
        try:
            check = jsonschema_rs.validator_for(schema)
        except (ValueError, jsonschema_rs.ValidationError):
            return None
        parameters = schema.get("properties", {})
        return cls(check, next(iter(parameters)) if len(parameters) == 1 else "", bool(schema.get("required")))

    def error(self, value: Any, data: bytes) -> InvalidInput | None:
        """What is wrong with ``value`` (``data`` is its JSON), naming the place, or None."""
        if not isinstance(value, _BUILTIN):
            value = from_json(data)
        try:
            if self._check.is_valid(self._arguments(value)):
                return None
        except ValueError:  # holds a dataclass, bytes or the like
            value = from_json(data)
        try:
            self._check.validate(self._arguments(value))
        except jsonschema_rs.ValidationError as error:
            path = "/".join(str(part) for part in error.instance_path)
            hint = f"; an object holds the arguments by name, here {self._only!r}" if self._only and not path else ""
            return InvalidInput(f"input{'/' + path if path else ''}: {error.message}{hint}", path=path)
        return None

    def _arguments(self, value: Any) -> Any:
        if isinstance(value, dict):
            return value
        if value is None and not self._needs_some:
            return {}
        return {self._only: value} if self._only else value


_BUILTIN = (dict, list, tuple, str, int, float, type(None))


def _forget(index: dict[Any, dict[Any, Any]], key: Any, item: Any) -> None:
    """Take ``item`` out of ``index[key]``, and the key with its last item."""
    held = index.get(key)
    if held is not None:
        held.pop(item, None)
        if not held:
            del index[key]
