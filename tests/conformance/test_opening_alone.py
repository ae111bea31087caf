"""A server that opens its files where nobody can reach it, before it takes part."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import nats
import pytest

from comity.cluster.config import Cluster
from comity.embedded import EmbeddedServer
from conftest import need_server
from members import free_port

pytestmark = pytest.mark.server


async def fill(server: EmbeddedServer, count: int) -> None:
    options = server.authority.mint("controller", "ctl").connect_options()
    nc = await nats.connect(server.url, inbox_prefix="_INBOX_ctl", connect_timeout=20, **options)
    js = nc.jetstream()
    await js.add_stream(name="CY_main_LOG", subjects=["cy.main.log"])
    for number in range(count):
        await js.publish("cy.main.log", b"%d" % number)
    await nc.close()


async def test_what_it_cuts_off_can_be_seen_before_it_serves_what_is_left(tmp_path: Path) -> None:
    need_server()
    data = tmp_path / "data"
    sizes: list[int] = []
    pids: list[int] = []

    def size() -> int:
        return sum(path.stat().st_size for path in data.glob("jetstream/*/streams/CY_main_LOG/msgs/*.blk"))

    async def before(server: EmbeddedServer) -> None:
        place, cluster = server.port, server.cluster
        sizes.append(size())
        await server.open_alone()
        sizes.append(size())
        pids.append(server.pid)
        assert (server.port, server.cluster) == (place, cluster)

    routes = Cluster("main", "s-1", 3, free_port(), ("127.0.0.1:1",))
    server = await EmbeddedServer.start(data, network="main", port=0)
    await fill(server, 10)
    os.kill(server.pid, signal.SIGKILL)
    await server.stop()
    (block,) = data.glob("jetstream/*/streams/CY_main_LOG/msgs/*.blk")
    content = bytearray(block.read_bytes())
    content[12] ^= 1  # the time of the first record
    block.write_bytes(content)
    server = await EmbeddedServer.start(data, network="main", port=0, cluster=routes, before=before)
    assert sizes[0] == len(content) > 10 * sizes[1]
    assert server.pid not in pids
    restarted = asyncio.Event()
    server.on_restart = restarted.set
    os.kill(server.pid, signal.SIGKILL)
    await asyncio.wait_for(restarted.wait(), 20)
    assert len(pids) == 2 and server.pid not in pids
    await server.stop()
