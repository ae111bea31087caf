"""What the tests add to asyncio: a connection that comes as its server ends is closed, and does not fail a later test."""

from __future__ import annotations

import asyncio
import gc
import socket


async def test_a_connection_that_comes_as_its_server_ends_is_closed() -> None:
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    with socket.create_connection(server.sockets[0].getsockname(), timeout=20) as client:
        for _ in range(2):  # it is taken, and not yet given to anybody
            await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        assert await asyncio.to_thread(client.recv, 1) == b""
    gc.collect()
