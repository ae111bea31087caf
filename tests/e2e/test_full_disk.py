"""A small disk that fills up under ``comity up``, and has room again. Linux, and leave to mount."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from town import LIMIT_S, Town

from conftest import need_server

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(120)]
MOUNTS = "mount -t tmpfs -o size=40m none"


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    allowed = shutil.which("unshare") and subprocess.run(
        ["unshare", "-m", "sh", "-c", f"{MOUNTS} {tmp_path}"], capture_output=True, check=False
    )  # fmt: skip
    if not allowed or allowed.returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    async with Town(tmp_path) as town:
        (tmp_path / "disk").mkdir()
        town.data = tmp_path / "disk" / "net"
        town.env |= {"COMITY_DATA_DIR": str(town.data), "COMITY_SUBMIT_TIMEOUT_S": "3", "COMITY_REQUEST_TIMEOUT_S": "3"}
        yield town


async def test_a_full_disk_refuses_and_goes_on_by_itself_when_there_is_room(small: Town) -> None:
    command = f'{MOUNTS} {small.folder / "disk"} && exec {sys.executable} -m comity up --port 0 --http-port 0 -o json'
    run = "import os, sys; os.execvp(sys.argv[1], sys.argv[1:])"
    up, _ = await small.start("-c", run, "unshare", "-m", "sh", "-c", command)
    disk = Path(f"/proc/{up.pid}/root{small.folder / 'disk'}")

    async def submit(size: int = 10) -> tuple[int, dict[str, Any]]:
        words = ["nsenter", "-m", "-t", str(up.pid), sys.executable, "-m", "comity", "submit", "work", "--no-wait"]
        process = await asyncio.create_subprocess_exec(
            *words, json.dumps("x" * size), env=small.env, cwd=small.folder, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
        return process.returncode or 0, json.loads((out or err).splitlines()[-1])

    assert (await submit())[0] == 0
    with pytest.raises(OSError, match="No space left"), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(1 << 12))
    async with asyncio.timeout(LIMIT_S):
        while (refused := await submit(5_000))[0] == 0 or "is full: nothing is accepted here" not in small.said():
            """The server had some room of its own, or was only slow."""
    assert refused[0] == 3 and refused[1]["error"]["code"] in ("timed-out", "unreachable")
    (disk / "filler").unlink()
    async with asyncio.timeout(LIMIT_S):
        while (await submit())[0] != 0 or "there is room at" not in small.said():
            """It is said within a second that there is room, and once more until somebody leads."""


async def test_a_start_without_room_says_that_there_is_none(small: Town) -> None:
    """However much of what a network begins with finds room."""

    async def start(left_kb: int) -> dict[str, Any]:
        disk = small.folder / "disk"
        typed = f"{sys.executable} -m comity up --port 0 --http-port 0 -o json"
        fill = f"head -c {(400 - left_kb) << 10} /dev/zero > {disk}/filler"
        process = await asyncio.create_subprocess_exec(
            "unshare", "-m", "sh", "-c", f"mount -t tmpfs -o size=400k none {disk} && {fill} && exec {typed}",
            env=small.env, cwd=small.folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, said = await asyncio.wait_for(process.communicate(), LIMIT_S)
        found: dict[str, Any] = json.loads(said.splitlines()[-1])["error"]
        return found

    for found in await asyncio.gather(*map(start, (0, 8, 20, 40))):
        said_so = found["code"] == "disk-full" or (found["code"] == "bad-settings" and "No space left" in found["message"])
        assert said_so, found
