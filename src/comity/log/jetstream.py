"""The log as a JetStream stream: one message an entry, its sequence the index, Raft inside the servers.

Compare-and-append is ``Nats-Expected-Last-Sequence``, never ``Nats-Expected-Last-Msg-Id``: one mismatch of that wedged a
replicated stream. Reads come from one replica and may lag; nothing here decides on a read.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from nats.aio.client import Client

from comity.errors import Corrupt, Indefinite, NotFound, TooLarge
from comity.failpoints import durable
from comity.jetstream import HEADER_ROOM, Cursor, JetStream, Row
from comity.log.base import Durability, Item

LAG_S = 10.0
"""A replica that was cut off, or leads no longer and does not know it yet, may show an old tail for as long."""
UNVERIFIED = Durability(
    "unverified", "it is not known whether the servers wait for the disk (sync_interval: always) before they acknowledge"
)


def stream_name(network: str) -> str:
    return f"CY_{network}_LOG"


def subject(network: str) -> str:
    return f"cy.{network}.log"


def stream_config(network: str, replicas: int) -> dict[str, Any]:
    return {
        "name": stream_name(network),
        "subjects": [subject(network)],
        "retention": "limits",
        "storage": "file",
        "num_replicas": replicas,
        "discard": "new",
        "max_msgs": -1,
        "max_bytes": -1,
        "max_age": 0,
        "max_msgs_per_subject": -1,
        "deny_delete": True,
        "allow_direct": False,
        "allow_rollup_hdrs": False,
        "persist_mode": "default",
    }


class JetStreamLog:
    """One process's door to the stream ``CY_<network>_LOG``."""

    def __init__(self, js: JetStream, network: str, durability: Durability, lag_s: float) -> None:
        self.lag_s = lag_s
        self.entry_limit = js.nc.max_payload - HEADER_ROOM
        self._js = js
        self._stream = stream_name(network)
        self._subject = subject(network)
        self._durability = durability
        self._reader: Cursor | None = None
        self._reading = asyncio.Lock()
        self._followers: dict[Cursor, None] = {}

    @classmethod
    async def open(
        cls, nc: Client, network: str, *, create: bool, replicas: int = 1, durability: Durability = UNVERIFIED
    ) -> JetStreamLog:
        """Open the network's log over a connection that stays its owner's.

        ``durability``: what the caller knows of the servers: an ordinary account cannot ask a server for its
        ``sync_interval``. Raises NotFound (no such log, and not to be made), BadSettings (the stream is not kept as a log must
        be), Corrupt (it has holes), AccessDenied, and Indefinite errors.
        """
        js = await JetStream(nc).open()
        try:
            info = await js.stream(stream_config(network, replicas), create=create)
            if holes := info["state"].get("num_deleted", 0):  # nobody may delete an entry
                raise Corrupt(f"{holes} entries in the midst of the log are gone", stream=stream_name(network))
        except BaseException:
            await js.close()
            raise
        return cls(js, network, durability, LAG_S if info["config"]["num_replicas"] > 1 else 0.0)

    async def append(self, entry: bytes, after: int) -> int:
        if len(entry) > self.entry_limit:
            raise TooLarge(f"an entry of {len(entry)} bytes; the limit is {self.entry_limit}")
        with durable("jetstream.append"):
            return await self._js.publish(self._subject, entry, {"Nats-Expected-Last-Sequence": str(after)})

    async def bounds(self) -> tuple[int, int]:
        state = (await self._js.api(f"STREAM.INFO.{self._stream}"))["state"]
        return max(1, state["first_seq"]), state["last_seq"]

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        if limit == 1:
            return await self._read_one(after + 1)
        async with self._reading:
            if self._reader is None or self._reader.after != after:
                await self._forget_reader()
                self._reader = Cursor(self._js, self._stream, self._subject, after)
            items = _in_order(after, await self._reader.fetch(limit))
        if not items:
            await self._check_kept(after)
        return items

    async def follow(self, after: int) -> AsyncIterator[list[Item]]:
        cursor = Cursor(self._js, self._stream, self._subject, after)
        self._followers[cursor] = None
        try:
            with contextlib.suppress(Indefinite):  # out of reach now: the first row will tell as well
                await self._check_kept(after)
            while rows := await cursor.next():
                items = _in_order(after, rows)
                after = items[-1].index
                yield items
        finally:
            self._followers.pop(cursor, None)
            await cursor.close()

    async def trim(self, upto: int) -> None:
        # A purge beyond the tail would move the tail.
        _, last = await self.bounds()
        with durable("jetstream.purge"):
            await self._js.api(f"STREAM.PURGE.{self._stream}", {"seq": min(upto, last) + 1})

    async def durability(self) -> Durability:
        return self._durability

    async def close(self) -> None:
        for cursor in list(self._followers):
            await cursor.close()
        await self._forget_reader()
        await self._js.close()

    async def _forget_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()

    async def _read_one(self, index: int) -> list[Item]:
        try:
            answer = await self._js.api(f"STREAM.MSG.GET.{self._stream}", {"seq": index})
        except NotFound:
            await self._check_kept(index - 1)
            return []
        return [Item(index, base64.b64decode(answer["message"].get("data", "")))]

    async def _check_kept(self, after: int) -> None:
        """Raise Corrupt if the entry following ``after`` was trimmed away."""
        first, _ = await self.bounds()
        if after + 1 < first:
            raise Corrupt(f"log entry {after + 1} was trimmed away; the first is {first}", index=after + 1)


def _in_order(after: int, rows: list[Row]) -> list[Item]:
    items = [Item(row.seq, row.data) for row in rows]
    if items and items[-1].index != after + len(items):
        missing = next(n for n, item in enumerate(items, start=after + 1) if item.index != n)
        raise Corrupt(f"log entry {missing} was trimmed away or is missing", index=missing)
    return items
