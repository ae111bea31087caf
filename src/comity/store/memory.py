"""The store in memory, shared by any number of doors in one event loop: for tests and the simulated world."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import msgspec

from comity.errors import Conflict, Disconnected, NotFound
from comity.model.codec import digest
from comity.model.task import Stored
from comity.store.base import check_key, check_prefix, checked, chunks_of


class Value(msgspec.Struct):
    """``expires`` is in seconds of the loop's clock; 0: never."""

    data: bytes
    digest: bytes
    expires: float


class MemoryStoreState:
    """What the doors share. A test may damage ``values``."""

    def __init__(self) -> None:
        self.values: dict[str, Value] = {}

    def find(self, key: str) -> Value | None:
        value = self.values.get(key)
        if value is not None and value.expires and asyncio.get_running_loop().time() > value.expires:
            del self.values[key]
            return None
        return value


class MemoryStore:
    """One process's door to a ``MemoryStoreState``. ``owner``: the process, if it may write under its own name only."""

    def __init__(self, state: MemoryStoreState, owner: str = "") -> None:
        self.state = state
        self._owner = owner
        self._closed = False

    async def put(self, key: str, data: bytes | AsyncIterator[bytes], *, ttl_s: float | None = None) -> Stored:
        self._open()
        check_key(key, self._owner)
        whole = data if isinstance(data, bytes) else b"".join([chunk async for chunk in data])
        mark = digest(whole)
        there = self.state.find(key)
        if there is not None and there.digest != mark:
            raise Conflict(f"{key} holds something else already", key=key)
        expires = asyncio.get_running_loop().time() + ttl_s if ttl_s is not None else 0.0
        if there is None:
            self.state.values[key] = Value(whole, mark, expires)
        elif there.expires and (not expires or expires > there.expires):
            there.expires = expires
        return Stored(key, len(whole), mark)

    async def get(self, key: str) -> AsyncIterator[bytes]:
        self._open()
        value = self.state.find(check_key(key))
        if value is None:
            raise NotFound(f"nothing is stored as {key}", key=key)
        stored = Stored(key, len(value.data), value.digest)
        async for chunk in checked(stored, chunks_of(value.data)):
            yield chunk

    async def read(self, key: str) -> bytes:
        return b"".join([chunk async for chunk in self.get(key)])

    async def delete(self, key: str) -> None:
        self._open()
        self.state.values.pop(check_key(key, self._owner), None)

    async def list(self, prefix: str) -> list[Stored]:
        self._open()
        check_prefix(prefix)
        found = []
        for key in sorted(self.state.values):
            value = self.state.find(key) if key.startswith(prefix) else None
            if value is not None:
                found.append(Stored(key, len(value.data), value.digest))
        return found

    async def close(self) -> None:
        self._closed = True

    def _open(self) -> None:
        if self._closed:
            raise Disconnected("the store is closed")
