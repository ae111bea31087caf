"""The registry as keys of etcd: ``PREFIX/NETWORK/reg/KIND/OWNER/...``. A key's revision is etcd's own, of its last change; puts
and deletions that expect one are transactions. A record with a lifetime is bound to a lease of its own, which each put renews.

What watches read is the records themselves, so there is no index to fall behind. etcd's leases end late (its least is two seconds
at the usual settings) and begin anew when another of its servers comes to lead.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

from comity.errors import Conflict, Disconnected, Indefinite, NotFound
from comity.etcd.client import Etcd
from comity.etcd.network import belong, is_missing, keys_of
from comity.etcd.watch import Watch
from comity.etcd.wire import Compacted, Event, Kv, Lease, Range, put, span_of
from comity.failpoints import durable
from comity.registry.base import Change, Changes, Listing, Record, check_prefix, split
from comity.remote.endpoints import RETRY_S

PAGE = 1000
"""Records in one answer of a list."""


class _Lease(NamedTuple):
    id: int
    ttl_s: int


class EtcdRegistry:
    """One process's door. See ``base.Registry``."""

    lease_granularity_s = 2.0

    def __init__(self, etcd: Etcd, network: str) -> None:
        self._etcd = etcd
        self._root = f"{keys_of(etcd, network)}reg/".encode()
        self._leases: dict[str, _Lease] = {}
        self._watching: dict[Watch, None] = {}
        self._closed = False

    @classmethod
    async def open(cls, etcd: Etcd, network: str, *, create: bool, network_id: str = "") -> EtcdRegistry:
        """Over a connection that stays its owner's. ``create``: the keys are marked as those of network ``network_id``.

        Raises NotFound (there is no such network, and it is not to be made), ForeignData (another network has these keys),
        AccessDenied, and Indefinite errors.
        """
        await belong(etcd, network, create=create, network_id=network_id)
        return cls(etcd, network)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        name = self._name(key)
        compare = [] if expect is None else [_is_at(name, expect)]
        while True:
            lease = await self._lease(key, ttl_s)
            try:
                with durable("etcd.record"):
                    found = await self._etcd.txn(compare, [put(name, value, lease)])
            except NotFound:  # the lease has just come to its end
                self._leases.pop(key, None)
                continue
            if not found.succeeded:
                raise Conflict(f"{key} is not at revision {expect}", key=key)
            return found.header.revision

    async def _lease(self, key: str, ttl_s: float | None) -> int:
        """A lease that lasts ``ttl_s`` from now on: the one this record has, if it can be renewed."""
        if ttl_s is None:
            return 0
        whole_s = math.floor(ttl_s) + 1
        known = self._leases.get(key)
        if known is not None and known.ttl_s == whole_s and await self._etcd.renew(known.id) > 0:
            return known.id
        granted = await self._etcd.write("lease/grant", {"TTL": str(whole_s)}, Lease)
        self._leases[key] = _Lease(granted.ID, whole_s)
        return granted.ID

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        name = self._name(key)
        self._leases.pop(key, None)
        compare = [] if expect is None else [_is_at(name, expect)]
        with durable("etcd.remove"):
            found = await self._etcd.txn(
                compare, [{"request_delete_range": {"key": name}}], [{"request_range": {"key": name, "keys_only": True}}]
            )
        if not found.succeeded and any(said.response_range and said.response_range.kvs for said in found.responses):
            raise Conflict(f"{key} is not at revision {expect}", key=key)

    async def get(self, key: str) -> Record | None:
        found = await self._etcd.range(self._name(key))
        return self._record(found.kvs[0]) if found.kvs else None

    async def list(self, prefix: str) -> Listing:
        while True:
            try:
                return await self._pages(self._span(prefix))
            except Compacted:  # it took longer than the past is kept
                continue

    async def _pages(self, span: dict[str, Any]) -> Listing:
        found: list[Record] = []
        revision = 0
        while True:
            body = {**span, "limit": str(PAGE), "revision": str(revision)}
            page = await self._etcd.read("kv/range", body, Range)
            revision = revision or page.header.revision
            found += map(self._record, page.kvs)
            if not page.more:
                return found, revision
            span = {**span, "key": page.kvs[-1].key + b"\0"}

    async def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        span = self._span(prefix)
        known: dict[str, int] = {}
        first = True
        while True:
            try:
                records, revision = await self.list(prefix)
            except Indefinite:
                if self._closed:
                    return
                await asyncio.sleep(RETRY_S)  # that etcd answers again cannot be awaited
                continue
            changes = _difference(known, records, revision)
            if changes or first:
                yield changes
            first = False
            if self._closed:
                return
            watch = Watch(self._etcd, span, revision + 1)
            self._watching[watch] = None
            try:
                while events := await watch.next():
                    yield [self._change(known, event) for event in events]
            except Compacted:
                continue
            finally:
                del self._watching[watch]
                await watch.close()

    async def close(self) -> None:
        """End the watches of this door; the connection stays its owner's."""
        self._closed = True
        for watch in list(self._watching):
            await watch.close()

    def _name(self, key: str) -> bytes:
        split(key)
        self._must_be_open()
        return self._root + key.encode()

    def _span(self, prefix: str) -> dict[str, Any]:
        check_prefix(prefix)
        self._must_be_open()
        return span_of(self._root + prefix.encode())

    def _must_be_open(self) -> None:
        if self._closed:
            raise Disconnected("the registry is closed")

    def _record(self, kv: Kv) -> Record:
        return Record(kv.key[len(self._root) :].decode(), kv.value, kv.mod_revision)

    def _change(self, known: dict[str, int], event: Event) -> Change:
        record = self._record(event.kv)
        if event.is_gone:
            known.pop(record.key, None)
            return Change(record.key, None, record.revision)
        known[record.key] = record.revision
        return Change(record.key, record.value, record.revision)


def _difference(known: dict[str, int], records: list[Record], revision: int) -> Changes:
    """What changed since ``known`` was so, which then is as ``records`` are."""
    now = {record.key: record.revision for record in records}
    gone = [Change(key, None, revision) for key in known if key not in now]
    new = [Change(record.key, record.value, record.revision) for record in records if known.get(record.key) != record.revision]
    known.clear()
    known.update(now)
    return gone + new


def _is_at(name: bytes, revision: int) -> dict[str, Any]:
    if not revision:
        return is_missing(name)
    return {"key": name, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
