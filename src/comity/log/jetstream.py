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

from comity.errors import BadSettings, Corrupt, ForeignData, Indefinite, NotFound, TooLarge
from comity.failpoints import durable
from comity.jetstream import HEADER_ROOM, Cursor, JetStream, Row
from comity.log.base import Durability, Item

NETWORK_ID, ASSERTED = "comity.network_id", "comity.durability"
"""Kept with the stream, on servers where nothing else tells."""
NEAR = 32
"""So many entries before the tail are read one by one."""
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

    network_id = ""
    """Of the network, if the stream tells: see ``adopt``."""

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
            return await cls._checked(js, network, info, durability)
        except BaseException:
            await js.close()
            raise

    @classmethod
    async def _checked(cls, js: JetStream, network: str, info: dict[str, Any], durability: Durability) -> JetStreamLog:
        if holes := info["state"].get("num_deleted", 0):  # nobody may delete an entry
            raise Corrupt(f"{holes} entries in the midst of the log are gone", stream=stream_name(network))
        is_replicated = info["config"]["num_replicas"] > 1
        if is_replicated:
            await js.watch_elections(stream_name(network))
        return cls(js, network, durability, LAG_S if is_replicated else 0.0)

    @classmethod
    async def adopt(cls, nc: Client, network: str, new_id: str, *, replicas: int = 1, asserts: str = "") -> JetStreamLog:
        """Open the network's log on servers of which nothing is known, and make it if it is missing: then the network's id is
        ``new_id``. ``asserts``: what an operator says of the servers' durability; recorded, for whoever asks later.

        Raises ForeignData (the log was made by servers of our own), and what ``open`` raises.
        """
        js = await JetStream(nc).open()
        try:
            config = stream_config(network, replicas)
            try:
                await js.stream({**config, "metadata": {NETWORK_ID: new_id}}, create=True)
            except BadSettings:  # there, with an id of its own or with settings that are no log's: the next question tells
                await js.stream(config, create=False)
            info = await js.api(f"STREAM.INFO.{stream_name(network)}")
            known = info["config"].get("metadata") or {}
            if NETWORK_ID not in known:
                raise ForeignData(f"the log of network {network!r} was not made by comity up --connect", network=network)
            if asserts and known.get(ASSERTED) != asserts:
                known = {**known, ASSERTED: asserts}
                await js.api(f"STREAM.UPDATE.{stream_name(network)}", {**info["config"], "metadata": known})
            said = known.get(ASSERTED)
            log = await cls._checked(js, network, info, Durability("asserted", said) if said else UNVERIFIED)
        except BaseException:
            await js.close()
            raise
        log.network_id = known[NETWORK_ID]
        return log

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
        first, last = await self.bounds()
        if after + 1 < first:
            raise Corrupt(f"log entry {after + 1} was trimmed away; the first is {first}", index=after + 1)
        if last - after <= NEAR:
            # Asked of the stream's leader alone. To make a consumer takes the leader of all servers too, and who campaigns
            # because a server died may wait long for a new one.
            got = await asyncio.gather(*(self._read_one(n) for n in range(after + 1, min(last, after + limit) + 1)))
            return _in_order(after, [item for items in got for item in items])
        async with self._reading:
            if self._reader is None or self._reader.after != after:
                await self._forget_reader()
                self._reader = Cursor(self._js, self._stream, self._subject, after)
            items = _in_order(after, _items(await self._reader.fetch(limit)))
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
                items = _in_order(after, _items(rows))
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


def _items(rows: list[Row]) -> list[Item]:
    return [Item(row.seq, row.data) for row in rows]


def _in_order(after: int, items: list[Item]) -> list[Item]:
    if items and items[-1].index != after + len(items):
        missing = next(n for n, item in enumerate(items, start=after + 1) if item.index != n)
        raise Corrupt(f"log entry {missing} was trimmed away or is missing", index=missing)
    return items
