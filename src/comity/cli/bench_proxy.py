"""A TCP proxy with faults: it delays what passes, cuts connections, or lets nothing through any more."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

CHUNK = 65_536
Pipe = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Proxy:
    """From ``listener`` to ``host``:``port``. Faults concern connections that are there and those to come:

    delay_s   each piece of data arrives so much later, give or take a half
    drop      the chance that a connection is cut when a piece of data passes
    is_cut    nothing passes, and nobody is told (new connections are taken and left alone)
    """

    def __init__(self, listener: socket.socket, host: str, port: int, chance: random.Random | None = None) -> None:
        self.delay_s = 0.0
        self.drop = 0.0
        self.passed = 0
        self._open = asyncio.Event()
        self._open.set()
        self._listener = listener
        self._target = (host, port)
        self._chance = chance or random.Random()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    async def start(self) -> None:
        self._server = await asyncio.start_server(self.serve, sock=self._listener)

    def cut(self) -> None:
        self._open.clear()

    def heal(self) -> None:
        self.delay_s = self.drop = 0.0
        self._open.set()

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.suppress(asyncio.CancelledError):  # stopped
            await self._join((reader, writer))

    async def _join(self, near: Pipe) -> None:
        writers = [near[1]]
        try:
            await self._open.wait()
            far = await asyncio.open_connection(*self._target)
            writers.append(far[1])
            ways = [asyncio.ensure_future(self._pump(near[0], far[1])), asyncio.ensure_future(self._pump(far[0], near[1]))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            return  # the server is not there: neither is the connection
        finally:
            for writer in writers:
                writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One way, until an end or a fault. A piece in delay holds back those behind it, as a slow line does."""
        while data := await reader.read(CHUNK):
            await asyncio.sleep(self.delay_s * self._chance.uniform(0.5, 1.5))
            await self._open.wait()
            if self._chance.random() < self.drop:
                return
            self.passed += len(data)
            writer.write(data)
            await writer.drain()
