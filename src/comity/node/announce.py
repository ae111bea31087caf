"""Keeps the registry's picture of this node true: its own record, its agents in chunks, their capabilities once by hash.

    nodes/NODE            renewed every few seconds; while it is gone, readers take the agents for gone
    agents/NODE/CHUNK     up to 100 agents; only a chunk in which something changed is written again
    schemas/NODE/HASH     before the first chunk that names it

What should be there is derived from the agents; what was written is remembered with its revision. Writing goes on until both
agree, so a failed or lost write, or a record that somebody else removed, mends itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import NamedTuple

import structlog

from comity.agent import Agent
from comity.errors import ComityError, Conflict, Disconnected, Indefinite
from comity.failpoints import durable
from comity.model.capability import NodeRecord
from comity.model.ids import ProcessId
from comity.model.published import encode_agents, encode_node
from comity.registry.base import Registry

CHUNK = 100
VALUE_LIMIT = 512 * 1024
"""Bytes of one record; a chunk above it is split."""
NODE_TTL_S = 30.0
TTL_S = 3600.0
"""Of chunks and schemas: they mean nothing without their node, and who evicts a node removes them."""
PACE_S = 0.005
"""Pause between two rounds of writing, in which changes gather; as long as the last round took, if that was longer."""
RETRY_S = 0.5
WRITES = {"nodes": "node.put", "agents": "agents.put", "schemas": "schemas.put"}
CHECK_AGAIN_S = 2.0

_log = structlog.get_logger("comity.node")


class Written(NamedTuple):
    revision: int
    at: float


class Announcer:
    """``record`` gives the node's record as it should be now. ``announced`` is set while everything is written. ``fail`` is told
    of a fault that ends the writing."""

    def __init__(
        self, node: ProcessId, registry: Registry, record: Callable[[], NodeRecord], fail: Callable[[Exception], None]
    ) -> None:
        self.announced = asyncio.Event()
        self.failure: ComityError | None = None
        """Why the last round of writing failed, if it did."""
        self._loop = asyncio.get_running_loop()
        self._node = node
        self._registry = registry
        self._record = record
        self._fail = fail
        self._chunks: dict[int, dict[str, Agent]] = {}
        self._chunk_of: dict[str, int] = {}
        self._open: dict[int, None] = {}
        self._next_chunk = 0
        self._written: dict[str, Written] = {}
        self._dirty: dict[str, None] = {self._node_key: None}
        self._check_at = 0.0
        """When to compare with what the registry has; at once when starting, for a former life may have left something."""
        self._wake = asyncio.Event()
        self._work: asyncio.Task[None] | None = None

    @property
    def _node_key(self) -> str:
        return f"nodes/{self._node}"

    def _chunk_key(self, chunk: int) -> str:
        return f"agents/{self._node}/{chunk}"

    def start(self) -> None:
        self._work = self._loop.create_task(self._guarded())

    # What should be there

    def put(self, agent: Agent) -> None:
        """It is new, or its record changed."""
        chunk = self._chunk_of.get(agent.name)
        if chunk is None:
            chunk = next(iter(self._open), self._next_chunk)
            self._next_chunk = max(self._next_chunk, chunk + 1)
            members = self._chunks.setdefault(chunk, {})
            members[agent.name] = agent
            self._chunk_of[agent.name] = chunk
            self._open[chunk] = None
            if len(members) >= CHUNK:
                del self._open[chunk]
        self._touch(self._chunk_key(chunk))

    def remove(self, agent: Agent) -> None:
        chunk = self._chunk_of.pop(agent.name)
        del self._chunks[chunk][agent.name]
        self._open[chunk] = None
        self._touch(self._chunk_key(chunk))

    def changed(self) -> None:
        """The node's own record changed."""
        self._touch(self._node_key)

    def check(self) -> None:
        """Somebody may have removed what was written: look now, and once more a little later (they may be at it)."""
        self._check_at = 0.0
        self.changed()

    def _touch(self, key: str) -> None:
        self._dirty[key] = None
        self.announced.clear()
        self._wake.set()

    # Writing it

    async def _guarded(self) -> None:
        try:
            await self._run()
        except Exception as error:  # a node that nobody would see any more must say so
            self._fail(error)

    async def _run(self) -> None:
        while True:
            began = self._loop.time()
            try:
                await self._round()
                self.failure = None
                pause_s = max(PACE_S, self._loop.time() - began)
                if not self._dirty:
                    self.announced.set()
            except ComityError as error:
                is_known = self.failure is not None and self.failure.code == error.code
                self.failure = error
                pause_s = RETRY_S
                say = _log.debug if is_known or isinstance(error, Disconnected) else _log.warning  # of a lost link others tell
                say("cannot announce", node=self._node, code=error.code, error=error.message)
            await asyncio.sleep(pause_s)
            timer = self._loop.call_at(self._next_renewal(), self._wake.set)
            if not self._dirty:
                await self._wake.wait()
            timer.cancel()
            self._wake.clear()

    def _next_renewal(self) -> float:
        written = self._written.get(self._node_key)
        renewal = written.at + NODE_TTL_S / 3 if written is not None else self._loop.time()
        return min(renewal, self._check_at) if self._check_at else renewal

    async def _round(self) -> None:
        """One pass over what is missing, changed or due to be renewed. The node's record comes last."""
        now = self._loop.time()
        if now >= self._check_at:
            await self._compare()
            self._check_at = now + CHECK_AGAIN_S if not self._check_at else float("inf")
        for key, written in self._written.items():
            if now >= written.at + (NODE_TTL_S if key == self._node_key else TTL_S) / 3:
                self._dirty[key] = None
        for key in [key for key in self._dirty if key != self._node_key]:
            await self._write(key)
        if self._node_key in self._dirty:
            await self._renew()

    async def _renew(self) -> None:
        """Put the node's record in the place of the last one. If that is gone, more may be."""
        written = self._written.get(self._node_key)
        try:
            await self._put(self._node_key, encode_node(self._record()), NODE_TTL_S, expect=written and written.revision)
        except Conflict:
            del self._written[self._node_key]
            self.check()

    async def _write(self, key: str) -> None:
        kind, _, name = key.split("/")
        if kind == "schemas":
            data = next((o.data for a in self._agents() for o in a.offered.values() if o.offer.schema == name), None)
        else:
            data = await self._chunk(int(name))
        if data is not None:
            await self._put(key, data, TTL_S)
        else:
            del self._dirty[key]
            await self._delete(key)
            self._written.pop(key, None)

    async def _chunk(self, chunk: int) -> bytes | None:
        """The chunk's record, once the schemas it names are there; None if it is empty."""
        members = self._chunks.get(chunk)
        if not members:
            self._chunks.pop(chunk, None)
            self._open.pop(chunk, None)
            return None
        for agent in list(members.values()):
            for offered in agent.offered.values():
                key = f"schemas/{self._node}/{offered.offer.schema}"
                if key not in self._written:
                    await self._put(key, offered.data, TTL_S)
        node = self._record()
        data = encode_agents([agent.record(self._node, node.region, node.zone) for agent in members.values()])
        if len(data) > VALUE_LIMIT and len(members) > 1:
            self._split(chunk)
            return await self._chunk(chunk)
        return data

    def _split(self, chunk: int) -> None:
        """Move half of a chunk whose record is too large to a new one; neither takes in more."""
        members = list(self._chunks[chunk].items())
        new, self._next_chunk = self._next_chunk, self._next_chunk + 1
        self._chunks[chunk] = dict(members[: len(members) // 2])
        self._chunks[new] = dict(members[len(members) // 2 :])
        self._chunk_of.update(dict.fromkeys(self._chunks[new], new))
        self._open.pop(chunk, None)
        self._touch(self._chunk_key(new))

    async def _put(self, key: str, data: bytes, ttl_s: float, *, expect: int | None = None) -> None:
        """What changes while this is under way makes the key dirty anew."""
        at = self._loop.time()
        self._dirty.pop(key, None)
        try:
            with durable(WRITES[key.partition("/")[0]]):
                revision = await self._registry.put(key, data, ttl_s=ttl_s, expect=expect)
        except ComityError:
            self._dirty[key] = None
            raise
        self._written[key] = Written(revision, at)

    async def _delete(self, key: str) -> None:
        with durable("registry.delete"):
            await self._registry.delete(key)

    def _agents(self) -> list[Agent]:
        return [agent for members in self._chunks.values() for agent in members.values()]

    async def _compare(self) -> None:
        """Make dirty what the registry does not have as we wrote it, or has though it should not."""
        found: dict[str, int] = {}
        for prefix in (f"agents/{self._node}/", f"schemas/{self._node}/"):
            records, _ = await self._registry.list(prefix)
            found.update((record.key, record.revision) for record in records)
        node = await self._registry.get(self._node_key)
        if node is not None:
            found[self._node_key] = node.revision
        for key in [*found, *(key for key in self._written if key not in found)]:
            written = self._written.get(key)
            if written is None or written.revision != found.get(key):
                self._written.pop(key, None)
                self._dirty[key] = None

    async def close(self) -> None:
        """Take everything out of the registry, the node first. What cannot be removed expires."""
        if self._work is not None:
            self._work.cancel()
            await asyncio.gather(self._work, return_exceptions=True)
        self.announced.clear()
        for key in sorted(self._written, key=lambda key: key != self._node_key):
            try:
                await self._delete(key)
            except ComityError as error:
                tell = _log.info if isinstance(error, Indefinite) else _log.warning
                tell("cannot deregister", key=key, code=error.code, error=error.message)
                return
