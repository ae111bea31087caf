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


async def test_what_is_asked_for_while_it_is_down_is_done_before_anything_else_happens_to_it(tmp_path: Path) -> None:
    need_server()
    starts, goes_on = asyncio.Queue[None](), asyncio.Event()

    async def before(_: EmbeddedServer) -> None:
        starts.put_nowait(None)
        await goes_on.wait()

    goes_on.set()
    own = await EmbeddedServer.start(tmp_path / "data", network="main", port=0, before=before)
    try:
        await starts.get()
        goes_on.clear()
        psutil.Process(own.pid).kill()
        await asyncio.wait_for(starts.get(), 10)
        running: list[bool] = []
        asked = asyncio.create_task(own.restart(lambda: running.append(psutil.pid_exists(own.pid))))
        await asyncio.sleep(0)
        goes_on.set()
        await asyncio.wait_for(asked, 10)
        assert running == [False]
    finally:
        await own.stop()
