"""A cable between a client and a server that can be cut and mended, one per client."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit


class Cable:
    """Forwards TCP to ``url``. While it is cut, connections are closed and refused. While it is clogged, nothing passes."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._server: asyncio.Server | None = None
        self._port = 0
        self._ends: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._open = asyncio.Event()
        self._open.set()

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self._port}"

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    def lead_to(self, url: str) -> None:
        """From the next connection on."""
        self._target = urlsplit(url)

    def clog(self) -> None:
        self._open.clear()

    def clear(self) -> None:
        self._open.set()

    async def cut(self) -> None:
        """Also ends a clog; what was in it is lost."""
        if self._server is not None:
            self._server.close()
            for end in self._ends:
                end.transport.abort()
            self._ends.clear()
            self._open.set()
            if self._tasks:
                await asyncio.wait(self._tasks)
            await self._server.wait_closed()
            self._server = None

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._ends.append(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
            self._ends.append(far_writer)
            await asyncio.gather(self._pour(reader, far_writer), self._pour(far_reader, writer))
        except OSError:
            writer.transport.abort()  # nobody there: a client that was left to wait would run into its time-out

    async def _pour(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65536):
                await self._open.wait()
                target.write(data)
                await target.drain()
        except OSError:
            pass  # the other direction ends too
        finally:
            target.transport.abort()


@contextlib.asynccontextmanager
async def two_ways(url: str) -> AsyncIterator[list[str]]:
    """Addresses of one server that look like two."""
    cables = [Cable(url), Cable(url)]
    for cable in cables:
        await cable.mend()
    yield [cable.url for cable in cables]
    for cable in cables:
        await cable.cut()
