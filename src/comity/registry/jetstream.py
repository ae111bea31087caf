"""The registry as a JetStream stream that keeps one message a subject: plain publishes with compare-and-set and a lifetime.

The key ``KIND/OWNER/REST...`` is the subject ``cy.NET.reg.OWNER.KIND.REST...`` (``=`` stands for no rest), so that permissions
can be given by owner. A revision is a sequence of the stream. A deletion is a message that says so, and vanishes in time.

The server could leave marks where a lifetime ended, but only in a stream that allows roll-ups, and there any process that may
write one record may wipe out all (``Nats-Rollup: all``). So a watch keeps the time of each lifetime itself, and asks the
server about a record whose time has come.
"""

from __future__ import annotations

import asyncio
import base64
import heapq
import math
import re
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

from nats.aio.client import Client

from comity.errors import Conflict, Disconnected, Indefinite, NotFound
from comity.failpoints import durable
from comity.jetstream import PULL_ROWS, Cursor, JetStream, Row
from comity.registry.base import Change, Changes, Listing, Record, check_prefix, split

GONE_FOR_S = 60
"""How long a deletion can be read. A watch that hears nothing for as long lists everything again much earlier."""
CHECK_S = 0.25
"""A watch asks about a record so long after its lifetime, and again if the server still has it."""
RETRY_S = 0.05

_GONE = "Nats-Marker-Reason"
_TTL = "Nats-TTL"
_EXPECT = "Nats-Expected-Last-Subject-Sequence"
_SECONDS = re.compile(r"(\d+)s")

Rows = list[Row]


def stream_name(network: str) -> str:
    return f"CY_{network}_REG"


def stream_config(network: str, replicas: int) -> dict[str, Any]:
    return {
        "name": stream_name(network),
        "subjects": [f"cy.{network}.reg.>"],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "old",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": 1,
        "allow_msg_ttl": True,
        "deny_delete": True,
        "deny_purge": True,
        "allow_rollup_hdrs": False,
        "allow_direct": False,
        "persist_mode": "default",
    }


class JetStreamRegistry:
    """One process's door to the stream ``CY_<network>_REG``. See ``base.Registry``."""

    lease_granularity_s = 1.0

    def __init__(self, js: JetStream, network: str) -> None:
        self._js = js
        self._stream = stream_name(network)
        self._prefix = f"cy.{network}.reg."
        self._watching: dict[Cursor, None] = {}
        self._closed = False

    @classmethod
    async def open(cls, nc: Client, network: str, *, create: bool, replicas: int = 1) -> JetStreamRegistry:
        """Open the network's registry over a connection that stays its owner's; ``create`` it if it is missing.

        Raises NotFound (it is missing, and not to be made), BadSettings (the stream is not kept as a registry must be),
        AccessDenied, and Indefinite errors.
        """
        js = await JetStream(nc).open()
        try:
            await js.stream(stream_config(network, replicas), create=create)
        except BaseException:
            await js.close()
            raise
        return cls(js, network)

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        headers = {} if ttl_s is None else {_TTL: f"{max(1, math.ceil(ttl_s))}s"}
        return await self._write(key, value, headers, expect)

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        try:
            await self._write(key, b"", {_GONE: "Remove", _TTL: f"{GONE_FOR_S}s"}, expect)
        except Conflict:
            if await self.get(key) is not None:
                raise

    async def _write(self, key: str, value: bytes, headers: dict[str, str], expect: int | None) -> int:
        subject = self._subject(key)
        expected = expect
        while True:
            if expected is not None:
                headers[_EXPECT] = str(expected)
            try:
                with durable("jetstream.remove" if _GONE in headers else "jetstream.record"):
                    return await self._js.publish(subject, value, headers or None)
            except Conflict as error:
                last = await self._last(subject) if expect == 0 else None
                if expect != 0 or (last is not None and not _is_gone(last)):
                    raise Conflict(f"{key} is not at revision {expect}", key=key) from error
                expected = last.seq if last is not None else 0  # the note of a deletion is in the way

    async def get(self, key: str) -> Record | None:
        row = await self._last(self._subject(key))
        return Record(key, row.data, row.seq) if row is not None and not _is_gone(row) else None

    async def list(self, prefix: str) -> Listing:
        cursor = self._cursor(prefix)
        try:
            view = _View(prefix, len(self._prefix))
            view.replace(await self._read(view, cursor), asyncio.get_running_loop().time())
        finally:
            await cursor.close()
        return sorted(view.records.values(), key=lambda record: record.key), view.revision

    async def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        loop = asyncio.get_running_loop()
        view = _View(prefix, len(self._prefix))
        first = True
        while not self._closed:
            cursor = self._cursor(prefix)
            self._watching[cursor] = None
            try:
                changes = view.replace(await self._read(view, cursor), loop.time())
                if changes or first:
                    yield changes
                    first = False
                while True:
                    changes = view.take(await _next(cursor, view.deadline), loop.time())
                    for record in view.due(loop.time()):
                        row = await self._last(self._subject(record.key))
                        changes += view.checked(record, row, loop.time())
                    if changes:
                        yield changes
            except Indefinite:
                if self._js.nc.is_closed and not self._closed:
                    raise
                await asyncio.sleep(RETRY_S)  # the client has no event for the return of its connection
            finally:
                del self._watching[cursor]
                await cursor.close()

    async def close(self) -> None:
        """End the watches of this door; the connection stays its owner's."""
        self._closed = True
        for cursor in list(self._watching):
            await cursor.close()
        await self._js.close()

    def _subject(self, key: str) -> str:
        kind, owner, *rest = split(key)
        return f"{self._prefix}{owner}.{kind}.{'.'.join(rest) or '='}"

    def _cursor(self, prefix: str) -> Cursor:
        """From the beginning of the stream, over all that may start with ``prefix``."""
        kind, *rest = check_prefix(prefix).split("/")
        if not rest:
            subject = ">"
        elif len(rest) == 1:
            subject = f"*.{kind}.>"
        else:
            subject = f"{rest[0]}.{kind}.>"
        return Cursor(self._js, self._stream, self._prefix + subject, mends=False)

    async def _read(self, view: _View, cursor: Cursor) -> Rows:
        """All rows there are; the stream's tail and the server's clock go into ``view`` first."""
        info = await self._js.api(f"STREAM.INFO.{self._stream}")
        view.revision = max(view.revision, info["state"]["last_seq"])
        view.server_time = datetime.fromisoformat(info["ts"]).timestamp()
        rows: Rows = []
        while batch := await cursor.fetch(PULL_ROWS):
            rows += batch
        return rows

    async def _last(self, subject: str) -> Row | None:
        """The message of a subject, as the stream's leader knows it."""
        try:
            answer = await self._js.api(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject})
        except NotFound:
            return None
        found = answer["message"]
        lines = base64.b64decode(found.get("hdrs", "")).decode().split("\r\n")[1:]
        headers = {name: value.strip() for name, _, value in (line.partition(":") for line in lines) if name}
        return Row(found["seq"], subject, base64.b64decode(found.get("data", "")), headers, 0)


class _View:
    """What a watch has said of the records under ``prefix``, and when their lifetimes end.

    ``revision`` is the last one heard of, ``server_time`` the server's clock (seconds UTC) when the records were last listed.
    """

    def __init__(self, prefix: str, skip: int) -> None:
        self.records: dict[str, Record] = {}
        self.revision = 0
        self.server_time = 0.0
        self._prefix = prefix
        self._skip = skip
        self._ends: list[tuple[float, str, int]] = []

    @property
    def deadline(self) -> float | None:
        """When to look for records that are ``due``, in the event loop's time."""
        return self._ends[0][0] if self._ends else None

    def replace(self, rows: Rows, now: float) -> Changes:
        """These rows are all there are: the difference to what was said before."""
        before, self.records = self.records, {}
        self._ends.clear()
        for row in rows:
            self._take(row, now - (self.server_time - row.time_ns / 1e9))
        gone = [Change(key, None, self.revision) for key in before if key not in self.records]
        new = [
            Change(record.key, record.value, record.revision)
            for record in self.records.values()
            if record.key not in before or before[record.key].revision != record.revision
        ]
        return gone + new

    def take(self, rows: Rows, now: float) -> Changes:
        """These rows are new."""
        return [change for row in rows if (change := self._take(row, now)) is not None]

    def due(self, now: float) -> list[Record]:
        """Records whose lifetime should have ended by now."""
        found: dict[str, Record] = {}
        while self._ends and self._ends[0][0] <= now:
            _, key, revision = heapq.heappop(self._ends)
            record = self.records.get(key)
            if record is not None and record.revision == revision:
                found[key] = record
        return list(found.values())

    def checked(self, record: Record, row: Row | None, now: float) -> Changes:
        """A ``due`` record was looked up. What replaced it comes by itself; what is still there is looked up again."""
        if row is not None:
            heapq.heappush(self._ends, (now + CHECK_S, record.key, record.revision))
            return []
        del self.records[record.key]
        return [Change(record.key, None, self.revision)]

    def _take(self, row: Row, stored_at: float) -> Change | None:
        self.revision = max(self.revision, row.seq)
        owner, kind, *rest = [*row.subject[self._skip :].split("."), ""]
        key = "/".join([kind, owner, *rest[:-1]]).removesuffix("/=")
        if not rest or not key.startswith(self._prefix):
            return None
        if _is_gone(row):
            return Change(key, None, row.seq) if self.records.pop(key, None) is not None else None
        self.records[key] = Record(key, row.data, row.seq)
        lifetime = _SECONDS.fullmatch((row.headers or {}).get(_TTL, ""))
        if lifetime is not None:
            heapq.heappush(self._ends, (stored_at + int(lifetime[1]) + CHECK_S, key, row.seq))
        return Change(key, row.data, row.seq)


def _is_gone(row: Row) -> bool:
    return row.headers is not None and _GONE in row.headers


async def _next(cursor: Cursor, deadline: float | None) -> Rows:
    """The next rows; none if ``deadline`` (event loop's time) comes first."""
    try:
        async with asyncio.timeout_at(deadline):
            rows = await cursor.next()
    except TimeoutError:
        return []
    if not rows:
        raise Disconnected("the reader was closed")
    return rows
