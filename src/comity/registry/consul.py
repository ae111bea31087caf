"""The registry as keys of Consul: ``PREFIX/NETWORK/reg/KIND/OWNER/...``. A key's revision is Consul's ``ModifyIndex``; each put
and deletion is one transaction. A node that is here is a service, too, which other users of Consul see, and find by DNS.

A record with a lifetime is locked by a session of its own, whose end takes it away. Consul ends a session twice its time to live
after it was renewed last, and takes no shorter one than ``session_ttl_min`` (10 s unless it is told): so short lives end late,
which ``lease_granularity_s`` says. Sessions have no lock-delay and no checks: a record outlives trouble of the agent it was
written to.

A watch is a query that waits. It answers with all records under the prefix, so of several changes at once it shows the last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator

from comity.consul import CheckFailed, Consul, Entry, is_at, put
from comity.errors import (
    AccessDenied,
    ComityError,
    Conflict,
    Disconnected,
    ForeignData,
    Indefinite,
    NotFound,
    TooLarge,
    Unreachable,
)
from comity.failpoints import durable
from comity.model.ids import check_token
from comity.registry.base import Change, Changes, Listing, Record, check_prefix, split
from comity.remote.endpoints import RETRY_S

SHOWN_AS = "comity"
VALUE_LIMIT = 380_000
"""Bytes of a record: Consul takes transactions of 512 KiB (``txn_max_req_len``), in base64."""
TTL_MOST_S = 86_400
WAIT_S = 5.0
"""A watch that hears nothing for so long asks again: so it notices an agent that hangs."""
MULTIPLIER = 2
"""Consul ends a session so many times its time to live after it was renewed."""

log = logging.getLogger(__name__)


class ConsulRegistry:
    """One process's door. See ``base.Registry``."""

    def __init__(self, consul: Consul, network: str) -> None:
        self._consul = consul
        self._network = check_token(network, "network")
        self._root = f"{consul.where.prefix}/{network}/reg/"
        self.lease_granularity_s = consul.ttl_min_s * MULTIPLIER
        self._leases: dict[str, tuple[str, float]] = {}
        self._closed = asyncio.Event()
        self._tells = True

    @classmethod
    async def open(cls, consul: Consul, network: str, *, create: bool, network_id: str = "") -> ConsulRegistry:
        """Over a connection that stays its owner's. ``create``: the keys are marked as those of network ``network_id``.

        Raises NotFound (there is no such network, and it is not to be made), ForeignData (another network has these keys),
        AccessDenied, and Indefinite errors.
        """
        registry = cls(consul, network)
        key = f"{consul.where.prefix}/{network}/network"
        if create:
            try:
                with durable("consul.mark"):
                    await consul.txn([is_at(key, 0), put(key, network_id.encode())])
                return registry
            except CheckFailed:
                pass
        found = await consul.entry(key)
        if found is None:
            raise NotFound(f"there is no network {network!r} under {consul.where.prefix}/ on {consul.url}", network=network)
        held = (found.value or b"").decode()
        if network_id not in ("", held):
            said = f"{key} on {consul.url} says that this is network {held}, not {network_id}"
            raise ForeignData(f"{said}: give this one another name (--network), or another prefix", key=key)
        return registry

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        name = self._name(key)
        if len(value) > VALUE_LIMIT:
            raise TooLarge(f"a record of {len(value)} bytes; Consul takes {VALUE_LIMIT}")
        check = [] if expect is None else [is_at(name, expect)]
        while True:
            lease = await self._lease(key, ttl_s)
            # To delete it first takes it out of the lock that it may be in; in one transaction nobody sees that.
            try:
                with durable("consul.record"):
                    done = await self._consul.txn([*check, {"Verb": "delete", "Key": name}, put(name, value, lease)])
                break
            except CheckFailed as error:
                if lease and "invalid session" in error.message:  # it has just come to its end
                    self._leases.pop(key, None)
                    continue
                raise Conflict(f"{key} is not at revision {expect}", key=key) from error
        await self._tell(key, ttl_s)
        return done[-1].modify_index

    async def _lease(self, key: str, ttl_s: float | None) -> str:
        """A session that lasts ``ttl_s`` from now on: the one this record has, if it can be renewed."""
        if ttl_s is None:
            return ""
        own_s = min(max(ttl_s / MULTIPLIER, self._consul.ttl_min_s), TTL_MOST_S)
        known, known_s = self._leases.get(key, ("", 0.0))
        if known_s == own_s and await self._consul.renew(known):
            return known
        lease = await self._consul.new_lease(f"{self._root}{key}", own_s)
        self._leases[key] = lease, own_s
        return lease

    async def _tell(self, key: str, ttl_s: float | None) -> None:
        """Let others see a node as a service. Without the right to (``agent:write``) nobody does. The record itself is there."""
        kind, node, *rest = split(key)
        if kind != "nodes" or rest or not self._tells:
            return
        name = f"{SHOWN_AS}-{self._network}-{node}"
        ends_s = max(60.0, 2 * (ttl_s or 60.0))
        check = {"TTL": f"{ttl_s or 3600:g}s", "Status": "passing", "DeregisterCriticalServiceAfter": f"{ends_s:g}s"}
        shown = {"ID": name, "Name": SHOWN_AS, "Tags": [self._network, node], "Meta": {"network": self._network}, "Check": check}
        try:
            await self._consul.write("agent/service/register", shown)
        except AccessDenied:
            self._tells = False
        except ComityError as error:
            log.warning("Consul does not show %s as a service: %s", node, error)

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        name = self._name(key)
        self._leases.pop(key, None)
        check = [] if expect is None else [is_at(name, expect)]
        try:
            with durable("consul.remove"):
                await self._consul.txn([*check, {"Verb": "delete", "Key": name}])
        except CheckFailed as error:
            if await self.get(key) is not None:
                raise Conflict(f"{key} is not at revision {expect}", key=key) from error
        if key.startswith("nodes/") and self._tells:
            with contextlib.suppress(AccessDenied, NotFound, Unreachable):  # another agent has it, and forgets it in time
                await self._consul.write(f"agent/service/deregister/{SHOWN_AS}-{self._network}-{key.partition('/')[2]}")

    async def get(self, key: str) -> Record | None:
        name = self._name(key)
        found = await self._consul.entry(name)
        return self._record(found) if found is not None else None

    async def list(self, prefix: str) -> Listing:
        records, revision = await self._look(prefix)
        return sorted(records, key=lambda record: record.key), revision

    async def _look(self, prefix: str, index: int = 0, wait_s: float = 0.0) -> Listing:
        check_prefix(prefix)
        self._must_be_open()
        found, revision = await self._consul.entries(self._root + prefix, index, wait_s)
        return [self._record(entry) for entry in found], revision

    async def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        check_prefix(prefix)
        known: dict[str, int] = {}
        index, first = 0, True
        while not self._closed.is_set():
            try:
                listing = await self._next(prefix, index)
            except Indefinite:
                if not self._closed.is_set():
                    await asyncio.sleep(RETRY_S)  # that Consul answers again cannot be awaited
                continue
            if listing is None:
                return
            records, now = listing
            index = now if now >= index else 0  # it fell: Consul began anew
            changes = _difference(known, records, now)
            if changes or first:
                yield changes
            first = False

    async def _next(self, prefix: str, index: int) -> Listing | None:
        """What there is once it is not as of ``index`` any more; None if the door was closed first."""
        looking = asyncio.ensure_future(self._look(prefix, index, WAIT_S if index else 0.0))
        ended = asyncio.ensure_future(self._closed.wait())
        try:
            await asyncio.wait([looking, ended], return_when=asyncio.FIRST_COMPLETED)
            return await looking if looking.done() else None
        finally:
            looking.cancel()
            ended.cancel()
            await asyncio.wait([looking, ended])

    async def close(self) -> None:
        """End the watches of this door; the connection stays its owner's."""
        self._closed.set()

    def _name(self, key: str) -> str:
        split(key)
        self._must_be_open()
        return self._root + key

    def _must_be_open(self) -> None:
        if self._closed.is_set():
            raise Disconnected("the registry is closed")

    def _record(self, entry: Entry) -> Record:
        return Record(entry.key[len(self._root) :], entry.value or b"", entry.modify_index)


def _difference(known: dict[str, int], records: list[Record], revision: int) -> Changes:
    """What changed since ``known`` was so, in the order in which it did; ``known`` then is as ``records`` are."""
    now = {record.key: record.revision for record in records}
    gone = [Change(key, None, revision) for key in known if key not in now]
    new = [Change(record.key, record.value, record.revision) for record in records if known.get(record.key) != record.revision]
    known.clear()
    known.update(now)
    return gone + sorted(new, key=lambda change: change.revision)
