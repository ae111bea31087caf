"""A server that is restarted on purpose, with something to be done while it does not run."""

from __future__ import annotations

import asyncio
from pathlib import Path

import psutil
import pytest

from comity.embedded import EmbeddedServer
from conftest import need_server

pytestmark = pytest.mark.server


async def test_something_is_done_between_its_end_and_its_next_start(tmp_path: Path) -> None:
    need_server()
    own = await EmbeddedServer.start(tmp_path / "data", network="main", port=0)
    try:
        pid, port = own.pid, own.port
        running: list[bool] = []
        restarted = asyncio.Event()
        own.on_restart = restarted.set
        await own.restart(lambda: running.append(psutil.pid_exists(pid)))
        await asyncio.wait_for(restarted.wait(), 10)
        assert (running, own.port) == ([False], port) and psutil.pid_exists(own.pid)
        restarted.clear()

        def fails() -> None:
            raise OSError("no room")

        with pytest.raises(OSError, match="no room"):
            await own.restart(fails)
        await asyncio.wait_for(restarted.wait(), 10)
    finally:
        await own.stop()


async def test_something_is_done_before_its_first_start(tmp_path: Path) -> None:
    need_server()
    data = tmp_path / "data"
    found: list[bool] = []

    async def before(server: EmbeddedServer) -> None:
        found.append((server.data / "server.conf").exists())

    own = await EmbeddedServer.start(data, network="main", port=0, before=before)
    await own.stop()
    assert found == [False]
