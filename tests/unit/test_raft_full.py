"""The built-in Raft has no room on any disk: who appends hears that for now it cannot, and a controller goes on afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf
from pathlib import Path
from typing import cast

import pytest
from peers import LIMIT_S, World, until

from comity.errors import DiskFull, Indefinite, Unreachable
from comity.log.memory import MemoryLog
from comity.log.raft import RaftLog
from comity.model import wire
from comity.raft.records import Record
from comity.raft.server import RaftServer, ThreadDisk
from members import free_port


@pytest.fixture
async def address(tmp_path: Path) -> AsyncIterator[str]:
    """Of the only member."""
    address = f"127.0.0.1:{free_port()}"
    server = await RaftServer.start(tmp_path / "m1", cluster="net", id="m1", listen=address, members={"m1": address})
    yield address
    await server.close()


async def door(address: str, create: bool) -> RaftLog:
    log = await RaftLog.join([address], "net", "main", create=create, new_id="net", answer_s=LIMIT_S)
    log._answer_s = 2.0
    return log


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Whether there is no ``room``."""
    said, save = {"room": True}, ThreadDisk.save

    async def limited(self: ThreadDisk, records: list[Record]) -> None:
        if not said["room"]:
            raise DiskFull("no room is left", path="the folder")
        await save(self, records)

    monkeypatch.setattr(ThreadDisk, "save", limited)
    return said


async def until_refused(log: RaftLog, after: int) -> Exception:
    """What an append fails with once the member knows that it has no room."""
    async with asyncio.timeout(LIMIT_S * 2):
        while True:
            try:
                await log.append(b"no room", after)
            except Unreachable as error:
                return error
            except Indefinite as error:
                print(f"under way: {error.message}")


async def test_an_append_without_room_is_refused_for_now(address: str, full: dict[str, bool]) -> None:
    log = await door(address, True)
    _, last = await log.bounds()
    full["room"] = False
    error = await until_refused(log, last)
    assert "no room is left" in str(error)
    await log.close()


async def test_a_controller_goes_on_when_there_is_room_again(address: str, full: dict[str, bool]) -> None:
    log, other = await door(address, True), await door(address, False)
    world = World()
    controller = world.make("k1", cast(MemoryLog, log), inf)
    await controller.start()
    try:
        await asyncio.wait_for(controller.led.wait(), LIMIT_S)
        client = await world.peer("c1")
        first = await client.submit()
        full["room"] = False
        late = client.spec()
        await client.say(wire.SubmitTask(late))
        await until(lambda: controller.leading is None)
        await until_refused(other, (await other.bounds())[1])
        full["room"] = True
        await asyncio.wait_for(controller.led.wait(), LIMIT_S)
        assert controller.failure is None
        assert await client.state(first) == "submitted"
        await client.submit(task=late.id)
    finally:
        full["room"] = True
        await controller.stop()
        await log.close()
        await other.close()
