"""The doors of a simulated process: the in-memory backends, seen through the world's links.

A message takes time, may vanish, and keeps the order that the bus promises and no other. A call of a server (log, registry,
store) may end in a time-out whether it took effect, did not, or will later; a reader of the log may lag behind it. All of it
within the doors' contracts: a program that fails here relies on something that no backend promises.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TypeVar, cast

from comity.bus.base import Address, Cancel, Delivery, Link, Receive
from comity.bus.memory import MemoryBus
from comity.errors import TimedOut
from comity.log.base import Durability, Item, Log
from comity.model.ids import ProcessId
from comity.model.task import Stored
from comity.registry.base import Changes, Listing, Record, Registry
from comity.sim.links import Links, Odds
from comity.sim.loop import Process
from comity.store.base import Store

T = TypeVar("T")
LAG_S = 5.0
"""No fault lets a reader of the log lag behind it for longer."""

Appended = Callable[[int, bytes, ProcessId], None]


class SimBus:
    """One process's end of the bus. What it hears of, it hears in its own process."""

    def __init__(self, inner: MemoryBus, process: Process, links: Links) -> None:
        self.process = inner.process
        self.inner = inner
        self._home = process
        self._links = links

    @property
    def link(self) -> Link:
        return self.inner.link

    @property
    def servers(self) -> int:
        return self.inner.servers

    def change_server(self) -> None:
        self.inner.change_server()

    async def subscribe(self, address: Address, receive: Receive) -> Cancel:
        return await self.inner.subscribe(address, receive)

    async def send(self, address: Address, data: bytes) -> None:
        self._links.trace(self.process, f"send {address}", data)
        if self._reaches():
            await self.inner.send(address, data)

    async def request(self, address: Address, data: bytes, timeout_s: float) -> bytes:
        self._links.trace(self.process, f"request {address}", data)
        if self._reaches():
            return await self.inner.request(address, data, timeout_s)
        await asyncio.sleep(timeout_s)
        raise TimedOut(f"no answer from {address} within {timeout_s} s", address=address)

    async def reply(self, delivery: Delivery, data: bytes) -> None:
        self._links.trace(self.process, f"reply {delivery.sender}", data)
        if self._reaches():
            await self.inner.reply(delivery, data)

    def on_unreachable(self, call: Callable[[Address], None]) -> None:
        self.inner.on_unreachable(lambda address: self._tell("503", call, address))

    def on_state(self, call: Callable[[Link], None]) -> None:
        self.inner.on_state(lambda link: self._tell("state", call, link))

    def on_departure(self, call: Callable[[ProcessId], None]) -> bool:
        return self.inner.on_departure(lambda process: self._tell("departure", call, process))

    async def close(self) -> None:
        await self.inner.close()

    def _reaches(self) -> bool:
        """A connection that is cut but not closed yet swallows what is sent."""
        return self.link is not Link.UP or self._links.is_open(self.process, "bus")

    def _tell(self, lane: str, call: Callable[[T], None], value: T) -> None:
        if lane != "state" and not self._links.is_open("bus", self.process):
            return
        when = self._links.arrival("bus", self.process, lane, self._links.delay("bus", self.process))
        self._links.loop.call_at(when, call, value, context=self._home.context.copy())


class Tail:
    """The log's last index over time, so that a reader may be shown an old one. One for all processes."""

    def __init__(self, links: Links, appended: Appended) -> None:
        self._links = links
        self._appended = appended
        self._times: list[float] = []

    def append(self, index: int, data: bytes, writer: ProcessId) -> None:
        if index != len(self._times) + 1:
            raise AssertionError(f"the log put an entry at {index}, after {len(self._times)}")
        self._times.append(self._links.loop.time())
        self._links.trace(writer, "append", f"{index}, {len(data)} bytes")
        self._appended(index, data, writer)
        for wrote in list(self._links.on_append):
            wrote(writer)

    def seen(self) -> int:
        """The last index that a reader sees now."""
        stale_s = self._links.odds.get("log", Odds()).stale_s
        index = len(self._times)
        if stale_s:
            horizon = self._links.loop.time() - stale_s
            while index and self._times[index - 1] > horizon:
                index -= 1
        return index


class SimLog:
    """One process's way to the log."""

    def __init__(self, inner: Log, process: Process, links: Links, tail: Tail) -> None:
        self.entry_limit = inner.entry_limit
        self.lag_s = LAG_S
        self._inner = inner
        self._process = process
        self._links = links
        self._tail = tail

    async def append(self, entry: bytes, after: int) -> int:
        async def put() -> int:
            index = await self._inner.append(entry, after)
            self._tail.append(index, entry, ProcessId(self._process.name))
            return index

        return await self._call(put, is_write=True, what=f"append after {after}")

    async def bounds(self) -> tuple[int, int]:
        async def ends() -> tuple[int, int]:
            first, last = await self._inner.bounds()
            return first, max(first - 1, min(last, self._tail.seen()))

        return await self._call(ends)

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        async def entries() -> list[Item]:
            items = await self._inner.read(after, limit)
            seen = self._tail.seen()
            return [item for item in items if item.index <= seen]

        return await self._call(entries)

    def follow(self, after: int) -> AsyncIterator[list[Item]]:
        return _coming(self._inner.follow(after), self._links, self._process, "log")

    async def trim(self, upto: int) -> None:
        await self._call(lambda: self._inner.trim(upto), is_write=True, what=f"trim up to {upto}")

    async def durability(self) -> Durability:
        return await self._call(self._inner.durability)

    async def close(self) -> None:
        """The log itself belongs to the world."""

    async def _call(self, action: Callable[[], Awaitable[T]], *, is_write: bool = False, what: str = "") -> T:
        return await self._links.call(self._process, "log", action, is_write=is_write, what=what)


class SimRegistry:
    """One process's way to the registry."""

    def __init__(self, inner: Registry, process: Process, links: Links) -> None:
        self.lease_granularity_s = inner.lease_granularity_s
        self._inner = inner
        self._process = process
        self._links = links

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        return await self._call(lambda: self._inner.put(key, value, ttl_s=ttl_s, expect=expect), f"put {key}")

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        await self._call(lambda: self._inner.delete(key, expect=expect), f"delete {key}")

    async def get(self, key: str) -> Record | None:
        return await self._call(lambda: self._inner.get(key))

    async def list(self, prefix: str) -> Listing:
        return await self._call(lambda: self._inner.list(prefix))

    def watch(self, prefix: str) -> AsyncIterator[Changes]:
        return _coming(self._inner.watch(prefix), self._links, self._process, "registry")

    async def close(self) -> None:
        """The registry itself belongs to the world."""

    async def _call(self, action: Callable[[], Awaitable[T]], what: str = "") -> T:
        return await self._links.call(self._process, "registry", action, is_write=bool(what), what=what)


class SimStore:
    """One process's way to the store."""

    def __init__(self, inner: Store, process: Process, links: Links) -> None:
        self._inner = inner
        self._process = process
        self._links = links

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, ttl_s: float | None = None) -> Stored:
        whole = data if isinstance(data, bytes) else await self._sent(data)
        return await self._call(lambda: self._inner.put(key, whole, ttl_s=ttl_s), f"put {key}")

    async def _sent(self, data: AsyncIterator[bytes]) -> bytes:
        """Chunks go one after the other, and each takes its time."""
        chunks = []
        async for chunk in data:
            chunks.append(chunk)
            slow_s = self._links.odds.get("store", Odds()).slow_s / 20
            await asyncio.sleep(self._links.delay(self._process.name, "store") + slow_s)
        return b"".join(chunks)

    async def get(self, key: str) -> AsyncIterator[bytes]:
        async def chunks() -> list[bytes]:
            return [chunk async for chunk in self._inner.get(key)]

        for chunk in await self._call(chunks):
            yield chunk

    async def read(self, key: str) -> bytes:
        return await self._call(lambda: self._inner.read(key))

    async def delete(self, key: str) -> None:
        await self._call(lambda: self._inner.delete(key), f"delete {key}")

    async def list(self, prefix: str) -> list[Stored]:
        return await self._call(lambda: self._inner.list(prefix))

    async def close(self) -> None:
        """The store itself belongs to the world."""

    async def _call(self, action: Callable[[], Awaitable[T]], what: str = "") -> T:
        return await self._links.call(self._process, "store", action, is_write=bool(what), what=what)


async def _coming(inner: AsyncIterator[T], links: Links, process: Process, place: str) -> AsyncIterator[T]:
    """What a server sends of itself, each item as late as it gets to ``process``."""
    async with aclosing(cast(AsyncGenerator[T, None], inner)) as items:
        async for item in items:
            await links.until_open(place, process.name)
            when = links.arrival(place, process.name, "answer", links.delay(place, process.name))
            await asyncio.sleep(when - links.loop.time())
            yield item
