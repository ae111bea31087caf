"""A watch ends when it is told to, whatever happens to its connection meanwhile; and what goes wrong in it is heard of."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from comity.errors import Corrupt, Disconnected, Unreachable
from comity.etcd.client import Etcd
from comity.etcd.network import Mark
from comity.etcd.watch import Watch
from comity.etcd.wire import Header, Kv, Range, Response, Txn, span_of
from comity.log.etcd import EtcdLog
from comity.registry.etcd import EtcdRegistry
from comity.remote.address import Where


class Server:
    """Answers nothing on a watch until ``broken``, and then breaks it. All keys have the value ``value``."""

    url = "http://h"
    where = Where(("http://h",))

    def __init__(self, value: bytes = b"0") -> None:
        self.broken = asyncio.Event()
        self.watched = asyncio.Event()
        self.error: Exception = Unreachable("the server ends")
        self.value = value

    @contextlib.asynccontextmanager
    async def stream(self, url: str, path: str, body: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        async def lines() -> AsyncIterator[bytes]:
            self.watched.set()
            await self.broken.wait()
            raise self.error
            yield b""

        yield lines()

    def leave(self, url: str) -> None:
        pass

    async def read(self, path: str, body: Any, kind: type[Any]) -> Any:
        return Range(Header(revision=7), count=0) if kind is Range else self.txn_of()

    def txn_of(self) -> Txn:
        there = Range(Header(), [Kv(b"tail", self.value)])
        return Txn(Header(), False, [Response(), Response(there), Response(Range())])

    async def txn(self, *_: Any) -> Txn:
        return self.txn_of()


@pytest.mark.parametrize("turns", range(6))
async def test_it_is_closed_in_the_moment_in_which_its_connection_breaks(turns: int) -> None:
    server = Server()
    watch = Watch(cast(Etcd, server), span_of(b"a/"), 1)
    await server.watched.wait()
    server.broken.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    async with asyncio.timeout(20):
        await watch.close()
    assert await watch.next() == []


async def test_what_nobody_thought_of_is_raised() -> None:
    server = Server()
    server.error = ValueError("nobody thought of it")
    server.broken.set()
    watch = Watch(cast(Etcd, server), span_of(b"a/"), 1)
    async with asyncio.timeout(20):
        with pytest.raises(ValueError, match="thought"):
            await watch.next()


async def test_a_registry_that_is_closed_after_the_first_answer_ends_its_watch() -> None:
    registry = EtcdRegistry(cast(Etcd, Server()), "net")
    changes = registry.watch("nodes/")
    assert await anext(changes) == []
    await registry.close()
    async with asyncio.timeout(20):
        assert [more async for more in changes] == []


async def test_a_tail_that_is_no_number_is_said_to_those_who_append() -> None:
    log = EtcdLog(cast(Etcd, Server(b"x7")), "net", Mark("id"))
    async with asyncio.timeout(20):
        for ask in (log.append(b"entry", 0), log.bounds()):
            with pytest.raises(Corrupt, match="no number"):
                await ask


async def test_whatever_goes_wrong_appenders_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server()
    log = EtcdLog(cast(Etcd, server), "net", Mark("id"))

    async def broken(*_: Any) -> Txn:
        raise ValueError("nobody thought of it")

    monkeypatch.setattr(server, "txn", broken)
    appends = [asyncio.create_task(log.append(b"entry", after)) for after in range(3)]
    await asyncio.wait(appends, timeout=20)
    assert all(isinstance(task.exception(), Disconnected) for task in appends)
