"""A watch on keys of etcd that outlives its connections and servers, and notices silence.

The server that is watched is asked for a linearizable read when it has said nothing for a while: one that hangs, or is cut off
from the others, does not answer, and the watch goes on elsewhere, from the revision where it was.
"""

from __future__ import annotations

import asyncio
from typing import Any

from comity.errors import AccessDenied, ComityError, Indefinite, Unreachable
from comity.etcd.client import Etcd
from comity.etcd.wire import Compacted, Event, Line, Range, decode, meant
from comity.remote.endpoints import RETRY_S

SILENCE_S = 2.0
_AHEAD = 16
"""So many answers are taken before they are asked for."""

Events = list[Event]


class Watch:
    """Of the keys in ``span`` from ``revision`` on; of their deletion too, unless ``puts_only``."""

    def __init__(self, etcd: Etcd, span: dict[str, Any], revision: int, *, puts_only: bool = False) -> None:
        self._etcd = etcd
        self._keys = span
        self._wanted = {**span, "filters": ["NODELETE"]} if puts_only else span
        self._revision = revision
        self._heard = 0.0
        self._queue: asyncio.Queue[Events | ComityError] = asyncio.Queue(_AHEAD)
        self._ended = asyncio.Event()
        self._work = asyncio.get_running_loop().create_task(self._run())

    async def next(self) -> Events:
        """Events that came together, in order; none: it is closed. Raises Compacted, AccessDenied and other definite errors."""
        if self._ended.is_set():
            return []
        ended = asyncio.ensure_future(self._ended.wait())
        got = asyncio.ensure_future(self._queue.get())
        try:
            await asyncio.wait([ended, got, self._work], return_when=asyncio.FIRST_COMPLETED)
            if not got.done() and self._work.done() and not self._work.cancelled():
                self._work.result()  # a fault of ours must not end as silence
            found = got.result() if got.done() else []
        finally:
            ended.cancel()
            got.cancel()
        if isinstance(found, ComityError):
            raise found
        return found

    async def close(self) -> None:
        self._ended.set()
        self._work.cancel()
        await asyncio.wait([self._work])

    async def _run(self) -> None:
        try:
            while True:
                url = self._etcd.url
                try:
                    await self._follow(url)
                except Indefinite:
                    self._etcd.leave(url)
                    await asyncio.sleep(RETRY_S)  # that another server answers cannot be awaited
        except ComityError as error:
            await self._queue.put(error)

    async def _follow(self, url: str) -> None:
        loop = asyncio.get_running_loop()
        self._heard = loop.time()
        reading = loop.create_task(self._read(url))
        try:
            while not reading.done():
                await asyncio.wait([reading], timeout=SILENCE_S)
                if loop.time() - self._heard >= SILENCE_S:
                    await self._etcd.ask(url, "kv/range", {**self._keys, "limit": "1", "keys_only": True}, Range)
                    self._heard = loop.time()
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)  # its end must not hide that we are to end

    async def _read(self, url: str) -> None:
        body = {"create_request": {**self._wanted, "start_revision": str(self._revision)}}
        async with self._etcd.stream(url, "watch", body) as lines:
            async for line in lines:
                self._heard = asyncio.get_running_loop().time()
                if line:
                    await self._take(url, decode(url, line, Line))
        raise Unreachable(f"{url} ended the watch", url=url)

    async def _take(self, url: str, line: Line) -> None:
        if line.error is not None:
            raise meant(url, line.error)
        told = line.result
        if told is None:
            return
        self._etcd.heard(url, told.header)
        if told.canceled:
            if told.compact_revision:
                raise Compacted(f"revision {self._revision} was compacted away; {told.compact_revision} is the oldest", url=url)
            if "permission denied" in told.cancel_reason:
                raise AccessDenied(f"{url}: {told.cancel_reason}", url=url)
            self._etcd.sign_out()
            raise Unreachable(f"{url} ended the watch: {told.cancel_reason}", url=url)
        if told.events:
            await self._queue.put(told.events)
            self._revision = told.events[-1].kv.mod_revision + 1
