"""The log as keys of etcd: ``PREFIX/NETWORK/log/entry/INDEX`` and ``.../tail``. One transaction compares the tail, puts entries
and moves the tail; so a door that has several appends waiting sends them together, and one is under way at a time.

The tail is asked for by a transaction too, which goes through etcd's own log: that answer is never stale. A read that finds
nothing asks for it. Trimming deletes; etcd frees the room when it compacts (``--auto-compaction-retention``), and gives it back
to the disk when it is defragmented. Trimming works on an etcd that is full, too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import NamedTuple

import msgspec

from comity.errors import BadSettings, ComityError, Conflict, Corrupt, Disconnected, Indefinite, NotFound, TooLarge
from comity.etcd.client import Etcd
from comity.etcd.network import Mark, adopt, belong, is_missing, keys_of, mark_key
from comity.etcd.watch import Watch
from comity.etcd.wire import Compacted, Kv, Txn, get, put, span_of
from comity.failpoints import durable
from comity.log.base import Durability, Item
from comity.remote.endpoints import RETRY_S

ENTRY_LIMIT = 1024 * 1024
GROUP_BYTES = 1024 * 1024
GROUP_MOST = 100
"""Entries in one transaction; etcd takes 128 operations and 1.5 MiB (``--max-txn-ops``, ``--max-request-bytes``)."""
PAGE_BYTES = 4 * 1024 * 1024
PAGE_LEAST, PAGE_MOST = 16, 256
"""Entries in one answer; as many as have some ``PAGE_BYTES``, going by those before."""
TRIM_MOST = 500
"""Entries deleted at once: etcd does nothing else meanwhile, and 50,000 took it 1.7 s."""
SYNCS = "etcd_disk_wal_fsync_duration_seconds_count"
SYNCED_S = 2.0
UNVERIFIED = Durability("unverified", "it is not known whether all servers of etcd wait for the disk before they acknowledge")


class _Append(NamedTuple):
    entry: bytes
    after: int
    done: asyncio.Future[int]

class EtcdLog:
    """One process's door. See ``base.Log``."""

    entry_limit = ENTRY_LIMIT
    lag_s = 0.0

    def __init__(self, etcd: Etcd, network: str, mark: Mark) -> None:
        self.network_id = mark.id
        self._etcd = etcd
        self._asserted = mark.asserted
        root = f"{keys_of(etcd, network)}log/"
        self._tail = f"{root}tail".encode()
        self._none = f"{root}none".encode()
        self._entries = f"{root}entry/".encode()
        self._page = PAGE_LEAST
        self._waiting: deque[_Append] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._followers: dict[Watch, None] = {}
        self._closed = False

    @classmethod
    async def open(
        cls, etcd: Etcd, network: str, *, create: bool, network_id: str = "", new_id: str = "", asserts: str = ""
    ) -> EtcdLog:
        """Over a connection that stays its owner's. It must be that of network ``network_id`` ("": any); ``create`` it if it is
        missing, with that id, or ``new_id``. ``asserts``: what an operator says of the servers' durability, recorded.

        Raises NotFound (no such log, and not to be made), ForeignData (another network's), Corrupt (its keys are gone),
        BadSettings (the servers take smaller requests than it needs), AccessDenied, and Indefinite errors.
        """
        if create and not network_id:
            mark = await adopt(etcd, network, new_id)
        else:
            mark = await belong(etcd, network, create=create, network_id=network_id)
        log = cls(etcd, network, mark)
        if create:
            await log._begin(mark, mark_key(etcd, network), asserts)
        await log.bounds()
        return log

    async def _begin(self, mark: Mark, key: bytes, asserts: str) -> None:
        """Make what is missing, and see that the servers take the largest group of entries."""
        asserted = asserts or mark.asserted
        now = msgspec.structs.replace(mark, has_log=True, asserted=asserted)
        kept = put(key, msgspec.json.encode(now))
        if now != mark:
            begun = ([], [kept]) if mark.has_log else ([is_missing(self._tail)], [put(self._tail, b"0"), kept])
            with durable("etcd.begin"):
                await self._etcd.txn(*begun)
        self._asserted = asserted
        never = {"key": self._none, "target": "VERSION", "result": "GREATER", "version": "0"}
        keys = [self._none + b"%d" % n for n in range(GROUP_MOST)]
        try:
            await self._etcd.txn([never], [*(put(name, b"") for name in keys), put(self._none, bytes(ENTRY_LIMIT))])
        except TooLarge as error:
            said = f"{error.message}: it needs the usual --max-request-bytes (1572864) and --max-txn-ops (128), or more"
            raise BadSettings(said, setting="doors") from error

    async def append(self, entry: bytes, after: int) -> int:
        self._must_be_open()
        if len(entry) > self.entry_limit:
            raise TooLarge(f"an entry of {len(entry)} bytes; the limit is {self.entry_limit}")
        loop = asyncio.get_running_loop()
        append = _Append(entry, after, loop.create_future())
        self._waiting.append(append)
        if self._sending is None:
            self._sending = loop.create_task(self._send())
        return await append.done

    async def _send(self) -> None:
        """One group after the other, as long as any waits."""
        group: list[_Append] = []
        try:
            while self._waiting:
                group = self._take()
                if group:
                    self._tell(group, await self._put(group))
        except ComityError as error:  # whether this group is there is not known, and the others had to follow it
            self._fail(group, error)
        except Exception as error:
            self._fail(group, Disconnected(f"the log could not be written: {error!r}"))
            raise
        except asyncio.CancelledError:
            self._fail(group, Disconnected("the log is closed"))
            raise
        finally:
            self._sending = None

    def _take(self) -> list[_Append]:
        """Those that wait and follow one another, as many as fit into one transaction."""
        group: list[_Append] = []
        size = 0
        while self._waiting and len(group) < GROUP_MOST:
            append = self._waiting[0]
            size += len(append.entry)
            if group and (size > GROUP_BYTES or append.after != group[-1].after + 1):
                break
            self._waiting.popleft()
            if not append.done.done():
                group.append(append)
        return group

    async def _put(self, group: list[_Append]) -> Txn:
        first, last = group[0].after, group[-1].after + 1
        compare = [{"key": self._tail, "target": "VALUE", "result": "EQUAL", "value": b"%d" % first}]
        entries = [put(self._key(append.after + 1), append.entry) for append in group]
        with durable("etcd.append"):
            return await self._etcd.txn(compare, [*entries, put(self._tail, b"%d" % last)], [get(self._tail)])

    def _tell(self, group: list[_Append], found: Txn) -> None:
        """Those of a refused group that would fit now go on waiting, in front."""
        if found.succeeded:
            for append in group:
                if not append.done.done():
                    append.done.set_result(append.after + 1)
            return
        tail = _number(found)
        while group and group[0].after != tail:
            append = group.pop(0)
            if not append.done.done():
                error = Conflict(f"the log's tail is {tail}, not {append.after}", after=append.after, last=tail)
                append.done.set_exception(error)
        self._waiting.extendleft(reversed(group))

    def _fail(self, group: list[_Append], error: ComityError) -> None:
        for append in [*group, *self._waiting]:
            if not append.done.done():
                append.done.set_exception(error)
        self._waiting.clear()

    async def bounds(self) -> tuple[int, int]:
        self._must_be_open()
        # To delete nothing changes nothing, but goes through etcd's log as a write does.
        barrier = {"request_delete_range": {"key": self._none}}
        first = {"request_range": {**span_of(self._entries), "limit": "1", "keys_only": True}}
        found = await self._etcd.read("kv/txn", {"success": [barrier, get(self._tail), first]}, Txn)
        last = _number(found)
        kept = found.responses[2].response_range
        return (self._index(kept.kvs[0]) if kept is not None and kept.kvs else last + 1), last

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        self._must_be_open()
        items, _ = await self._read(after, limit)
        if not items:
            first, last = await self.bounds()
            if after + 1 < first:
                raise _gone(after + 1)
            if after < last:  # the tail is never stale, and what is read now will not be older
                items, _ = await self._read(after, limit)
        return items

    async def _read(self, after: int, limit: int) -> tuple[list[Item], int]:
        """Items, and the revision of which they are."""
        span = {**span_of(self._entries), "key": self._key(after + 1)}
        found = await self._etcd.range(**span, limit=min(limit, self._page))
        items = self._in_order(after, found.kvs)
        if items:
            size = sum(len(item.data) for item in items) // len(items)
            self._page = max(PAGE_LEAST, min(PAGE_MOST, PAGE_BYTES // max(1, size)))
        return items, found.header.revision

    async def follow(self, after: int) -> AsyncIterator[list[Item]]:
        while not self._closed:
            items, revision = await self._patiently(after)
            if items:
                after = items[-1].index
                yield items
            if items or self._closed:
                continue
            watch = Watch(self._etcd, span_of(self._entries), revision + 1, puts_only=True)
            self._followers[watch] = None
            try:
                while events := await watch.next():
                    items = self._in_order(after, [event.kv for event in events])
                    after = items[-1].index
                    yield items
            except Compacted:
                continue
            finally:
                self._followers.pop(watch, None)
                await watch.close()

    async def _patiently(self, after: int) -> tuple[list[Item], int]:
        while True:
            try:
                items, revision = await self._read(after, PAGE_MOST)
                if not items and after + 1 < (await self.bounds())[0]:
                    raise _gone(after + 1)
                return items, revision
            except Indefinite:
                if self._closed:
                    return [], 0
                await asyncio.sleep(RETRY_S)  # that etcd answers again cannot be awaited

    async def trim(self, upto: int) -> None:
        self._must_be_open()
        first, last = await self.bounds()
        end = min(upto, last) + 1
        for start in range(first, end, TRIM_MOST):
            span = {"key": self._key(0), "range_end": self._key(min(start + TRIM_MOST, end))}
            with durable("etcd.trim"):
                await self._etcd.txn([], [{"request_delete_range": span}])

    async def durability(self) -> Durability:
        """Verified if each server counts one more wait for the disk when something is written: one that was told not to wait
        (``--unsafe-no-fsync``) does not count."""
        if self._asserted:
            return Durability("asserted", self._asserted)
        loop = asyncio.get_running_loop()
        try:
            members = {endpoint.member for endpoint in await self._etcd.survey() if not endpoint.fault}
            if len(members) < await self._etcd.members():
                return UNVERIFIED
            before = await self._syncs()
            await self.bounds()
            until = loop.time() + SYNCED_S
            while any(now <= was for was, now in zip(before, await self._syncs(), strict=True)):
                if loop.time() > until:
                    return UNVERIFIED
                await asyncio.sleep(RETRY_S)  # a server may be behind the others
        except ComityError as error:
            return Durability("unverified", f"{UNVERIFIED.reason}: {error.message}")
        return Durability("verified", f"each server of etcd ({len(members)}) waits for the disk, as its metrics show")

    async def _syncs(self) -> list[float]:
        """How often each server has waited for the disk."""
        texts = await asyncio.gather(*(self._etcd.metrics(url) for url in self._etcd.where.urls))
        return [_count(text) for text in texts]

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait([self._sending])
        for watch in list(self._followers):
            await watch.close()

    def _must_be_open(self) -> None:
        if self._closed:
            raise Disconnected("the log is closed")

    def _key(self, index: int) -> bytes:
        return self._entries + b"%016x" % index

    def _index(self, kv: Kv) -> int:
        return int(kv.key[len(self._entries) :], 16)

    def _in_order(self, after: int, kvs: list[Kv]) -> list[Item]:
        items = [Item(self._index(kv), kv.value) for kv in kvs]
        for expected, item in enumerate(items, start=after + 1):
            if item.index != expected:
                raise _gone(expected)
        return items


def _gone(index: int) -> Corrupt:
    return Corrupt(f"log entry {index} was trimmed away or is missing", index=index)


def _number(found: Txn) -> int:
    """The tail, of whichever answer has it."""
    for said in found.responses:
        if said.response_range is not None and said.response_range.kvs:
            value = said.response_range.kvs[0].value
            if not value.isdigit():
                raise Corrupt(f"the log's tail in etcd is no number: {value[:20]!r}", index=0)
            return int(value)
    raise Corrupt("the log's tail is gone from etcd: its keys were removed", index=0)


def _count(metrics: str) -> float:
    found = [line.rpartition(" ")[2] for line in metrics.splitlines() if line.startswith(SYNCS)]
    if not found:
        raise NotFound(f"its metrics have no {SYNCS}")
    return float(found[0])
