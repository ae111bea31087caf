"""The registry in memory, shared by any number of doors in one event loop: for tests and the simulated world."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from comity.errors import Conflict, Disconnected
from comity.registry.base import Change, Changes, Listing, Record, check_prefix, split


class MemoryRegistryState:
    """The records behind the doors. Time is the event loop's."""

    def __init__(self) -> None:
        self.revision = 0
        self.records: dict[str, Record] = {}
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._watches: list[_Watch] = []

    def put(self, key: str, value: bytes, ttl_s: float | None) -> int:
        self.revision += 1
        self.records[key] = Record(key, value, self.revision)
        self._forget_end(key)
        if ttl_s is not None:
            self._ends[key] = asyncio.get_running_loop().call_later(ttl_s, self.remove, key)
        self._tell(Change(key, value, self.revision))
        return self.revision

    def remove(self, key: str) -> None:
        self.revision += 1
        del self.records[key]
        self._forget_end(key)
        self._tell(Change(key, None, self.revision))

    def listing(self, prefix: str) -> list[Record]:
        return [self.records[key] for key in sorted(self.records) if key.startswith(prefix)]

    def open(self, prefix: str) -> _Watch:
        watch = _Watch(prefix, [Change(record.key, record.value, record.revision) for record in self.listing(prefix)])
        self._watches.append(watch)
        return watch

    def end(self, watch: _Watch) -> None:
        if watch in self._watches:
            self._watches.remove(watch)
            watch.ended = True
            watch.changed.set()

    def _forget_end(self, key: str) -> None:
        timer = self._ends.pop(key, None)
        if timer is not None:
            timer.cancel()

    def _tell(self, change: Change) -> None:
        for watch in self._watches:
            if change.key.startswith(watch.prefix):
                watch.pending.append(change)
                watch.changed.set()


class _Watch:
    def __init__(self, prefix: str, pending: Changes) -> None:
        self.prefix = prefix
        self.pending = pending
        self.changed = asyncio.Event()
        self.ended = False

    def take(self) -> Changes:
        changes, self.pending = self.pending, []
        self.changed.clear()
        return changes


class MemoryRegistry:
    """One process's door to a ``MemoryRegistryState``. See ``base.Registry``."""

    lease_granularity_s = 0.0

    def __init__(self, state: MemoryRegistryState) -> None:
        self._state = state
        self._watches: list[_Watch] = []
        self._closed = False

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None, expect: int | None = None) -> int:
        split(key)
        state = self._open()
        record = state.records.get(key)
        if expect is not None and expect != (record.revision if record else 0):
            raise Conflict(f"{key} is not at revision {expect}", key=key)
        return state.put(key, value, ttl_s)

    async def delete(self, key: str, *, expect: int | None = None) -> None:
        split(key)
        state = self._open()
        record = state.records.get(key)
        if record is None:
            return
        if expect is not None and expect != record.revision:
            raise Conflict(f"{key} is not at revision {expect}", key=key)
        state.remove(key)

    async def get(self, key: str) -> Record | None:
        split(key)
        return self._open().records.get(key)

    async def list(self, prefix: str) -> Listing:
        state = self._open()
        return state.listing(check_prefix(prefix)), state.revision

    async def watch(self, prefix: str) -> AsyncGenerator[Changes, None]:
        state = self._open()
        watch = state.open(check_prefix(prefix))
        self._watches.append(watch)
        try:
            yield watch.take()
            while True:
                await watch.changed.wait()
                if watch.ended:
                    return
                yield watch.take()
        finally:
            state.end(watch)
            self._watches.remove(watch)

    async def close(self) -> None:
        self._closed = True
        for watch in self._watches:
            self._state.end(watch)

    def _open(self) -> MemoryRegistryState:
        if self._closed:
            raise Disconnected("the registry is closed")
        return self._state
