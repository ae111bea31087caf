"""What passes between the members of a cluster on this machine, so that one can be cut off from the others without any rights.

Each member is dialed at a port of ours. Who dials is told by whose socket it is.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial

import psutil

from comity.cli.bench_proxy import Proxy

HOST = "127.0.0.1"


class Crossing:
    """Between ``size`` members: ``ports`` are those at which they are to dial one another."""

    def __init__(self, size: int) -> None:
        self._listeners = [socket.create_server((HOST, 0)) for _ in range(size)]
        self.ports = [int(listener.getsockname()[1]) for listener in self._listeners]
        self._servers: list[asyncio.Server] = []
        self._lines: dict[tuple[int, int], Proxy] = {}
        self._pid: Callable[[int], int] = lambda _: 0

    async def start(self, targets: list[int], pid: Callable[[int], int]) -> None:
        """Pass on to ``targets``, the ports at which members listen. ``pid`` tells which process a member is."""
        self._pid = pid
        for to, (listener, port) in enumerate(zip(self._listeners, targets, strict=True)):
            self._lines |= {(by, to): Proxy(listener, HOST, port) for by in range(len(targets)) if by != to}
            self._servers.append(await asyncio.start_server(partial(self._join, to), sock=listener))

    async def _join(self, to: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        by = self._whose(writer.get_extra_info("peername")[1])
        if (by, to) in self._lines:
            await self._lines[by, to].serve(reader, writer)
        else:  # it has ended already
            writer.transport.abort()

    def _whose(self, port: int) -> int:
        for member in range(len(self.ports)):
            try:
                if any(known.laddr.port == port for known in psutil.Process(self._pid(member)).net_connections("tcp4")):
                    return member
            except (psutil.NoSuchProcess, AssertionError):
                continue
        return -1

    def cut_off(self, member: int) -> None:
        """Nothing passes between it and the others any more, and nobody is told."""
        for ends, line in self._lines.items():
            if member in ends:
                line.cut()

    def heal(self) -> None:
        for line in self._lines.values():
            line.heal()

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for line in self._lines.values():
            await line.stop()
        for listener in self._listeners:  # also of one that never started
            listener.close()
