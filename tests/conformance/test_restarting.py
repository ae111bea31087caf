"""A server that is restarted on purpose, with something to be done while it does not run."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import psutil
import pytest

from comity import embedded
from comity.embedded import EmbeddedServer
from comity.errors import ServerFailed
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


class Disk:
    """Under a server: while it is ``full`` (an error's number) nothing can be written; ``refused`` says how often that was so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.full = 0
        self.refused: asyncio.Queue[int] = asyncio.Queue()
        self._write = embedded.write_private
        monkeypatch.setattr(embedded, "write_private", self.write)

    def write(self, path: Path, text: str) -> None:
        if self.full:
            self.refused.put_nowait(self.full)
            raise OSError(self.full, os.strerror(self.full), str(path))
        self._write(path, text)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(embedded, "_ROOM_S", 0.01)
    monkeypatch.setattr(embedded, "_QUICK_DEATH_S", 0.0)
    monkeypatch.setattr(embedded, "_FAILURES", 1)
    return Disk(monkeypatch)


@pytest.mark.parametrize("mends", [False, True], ids=["starting", "before"])
async def test_a_server_that_dies_on_a_full_disk_is_started_again_when_there_is_room(
    tmp_path: Path, disk: Disk, mends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    need_server()

    async def before(server: EmbeddedServer) -> None:
        if mends:
            embedded.write_private(server.data / "note", "")

    own = await EmbeddedServer.start(tmp_path / "data", network="main", port=0, before=before)
    restarted = asyncio.Event()
    own.on_restart = restarted.set
    try:
        disk.full = errno.ENOSPC
        psutil.Process(own.pid).kill()
        refusals = asyncio.create_task(times(disk.refused, 3))
        ended = asyncio.create_task(own.wait())
        await asyncio.wait([refusals, ended], return_when=asyncio.FIRST_COMPLETED, timeout=10)
        assert refusals.done() and not ended.done()
        disk.full = 0
        await asyncio.wait_for(restarted.wait(), 10)
        assert psutil.pid_exists(own.pid)
        assert [record.message for record in caplog.records if "is full" in record.message] == [
            f"the disk of {own.data} is full: nats-server is started again once there is room"
        ]
    finally:
        await own.stop()
    await ended


async def times(queue: asyncio.Queue[int], count: int) -> None:
    for _ in range(count):
        await queue.get()


async def test_what_else_keeps_a_server_from_starting_is_a_failure(tmp_path: Path, disk: Disk) -> None:
    need_server()
    own = await EmbeddedServer.start(tmp_path / "data", network="main", port=0)
    try:
        disk.full = errno.EACCES
        psutil.Process(own.pid).kill()
        with pytest.raises(ServerFailed, match="Permission denied"):
            await asyncio.wait_for(own.wait(), 10)
    finally:
        await own.stop()
