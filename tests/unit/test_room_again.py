"""A disk that is full, and has room again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest
from peers import until

from comity.cli import full_disk
from comity.cli.full_disk import FullDisk
from comity.embedded import EmbeddedServer
from comity.errors import ServerFailed

FULL = "[ERR] Filestore [CY_main_LOG] Critical write error: write 1.blk: no space left on device\n"


class Server:
    """Counts how often it was started again; the first time that fails."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.starts = 0
        (data / "server.log").write_text(f"{FULL}long ago\n")

    def says(self, line: str) -> None:
        with (self.data / "server.log").open("a") as file:
            file.write(line)

    async def restart(self, between: Callable[[], None]) -> None:
        between()
        self.starts += 1
        if self.starts == 1:
            raise ServerFailed("it does not end")


async def test_a_server_is_started_again_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "LOOK_S", 0.001)
    monkeypatch.setattr(full_disk, "AGAIN_S", 0.0)
    monkeypatch.setattr(full_disk, "ENOUGH_BYTES", 1 << 62)
    server = Server(tmp_path)
    disk = FullDisk(cast(EmbeddedServer, server))
    server.says("[INF] all is well\n")
    await until(lambda: disk._read_to == (tmp_path / "server.log").stat().st_size)
    assert not disk.is_full, "what it said before does not count"
    for starts in (1, 2):
        monkeypatch.setattr(full_disk, "ENOUGH_BYTES", 1 << 62)
        server.says(FULL)
        await until(lambda: disk.is_full)
        assert server.starts == starts - 1, "there is no room yet"
        monkeypatch.setattr(full_disk, "ENOUGH_BYTES", 0)
        await until(lambda: not disk.is_full)
        assert server.starts == starts
    (tmp_path / "server.log").write_text(FULL)
    await until(lambda: server.starts == 3)
    (tmp_path / "server.log").unlink()
    await until(lambda: disk._read_to == 0)
    await disk.close()


async def test_a_log_that_begins_anew_as_it_is_looked_at_ends_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "LOOK_S", 0.001)
    monkeypatch.setattr(full_disk, "ENOUGH_BYTES", 1 << 62)
    server = Server(tmp_path)
    disk = FullDisk(cast(EmbeddedServer, server))
    disk._read_to = 1 << 20
    (tmp_path / "server.log").unlink()
    await until(lambda: disk._read_to == 0)
    server.says(FULL)
    await until(lambda: disk.is_full)
    await disk.close()
