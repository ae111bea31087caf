"""A server's seat in its cluster: what it comes to know of the others, it writes down."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from peers import until

from comity.cli import seat as seats
from comity.cli.place import Place
from comity.cli.seat import SERVERS, Seat
from comity.cluster import membership
from comity.cluster.config import Cluster
from comity.cluster.membership import Member
from comity.model.server import ServerRecord
from comity.registry.memory import MemoryRegistry, MemoryRegistryState

OTHER = "nats://127.0.0.1:4302"


class Disk:
    """Under a seat: while it is full neither the member nor what ``changed`` writes can be written."""

    def __init__(self, data: Path) -> None:
        self.is_full = False
        self.refusals = 0
        self.contexts: list[tuple[str, ...]] = []
        self.data = data
        self._write = membership.write_private

    def write(self, path: Path, text: str) -> None:
        self.need_room()
        self._write(path, text)

    def need_room(self) -> None:
        if self.is_full:
            self.refusals += 1
            raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(seats, "ROOM_S", 0.01)
    return Disk(tmp_path)


@pytest.fixture
def registry() -> MemoryRegistry:
    return MemoryRegistry(MemoryRegistryState())


@pytest.fixture
async def seat(disk: Disk, registry: MemoryRegistry) -> AsyncIterator[Seat]:
    cluster = Cluster("main", "s-1", 3, 6222)
    server: Any = SimpleNamespace(data=disk.data, url="nats://127.0.0.1:4222", cluster=cluster, notes=[])
    seat = Seat(server, Place(member=Member(cluster="main", member="s-1", size=3, tls=False, route_port=6222)), "1")

    def changed() -> None:
        disk.need_room()
        disk.contexts.append(seat.member.urls)

    seat.changed = changed
    seat.announce(registry)
    await until(lambda: len(disk.contexts) == 1)
    yield seat
    await seat.close()


async def put(registry: MemoryRegistry, name: str = "s-2", port: int = 6302) -> None:
    record = ServerRecord(f"127.0.0.1:{port}", f"nats://127.0.0.1:{port - 2000}", "1", ())
    await registry.put(f"{SERVERS}{name}", msgspec.json.encode(record))


@pytest.mark.parametrize("at_fault", ["member", "context"])
async def test_another_server_that_becomes_known_while_the_disk_is_full_is_written_down_when_there_is_room(
    seat: Seat, disk: Disk, registry: MemoryRegistry, at_fault: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if at_fault == "member":
        monkeypatch.setattr(membership, "write_private", disk.write)
    disk.is_full = True
    await put(registry)
    await until(lambda: disk.refusals >= 3)
    assert seat.member.urls == ("nats://127.0.0.1:4222", OTHER), "it is known all the same"
    await put(registry, "s-3", 6303)
    await until(lambda: len(seat._known) == 3)
    disk.is_full = False
    await until(lambda: len(disk.contexts) == 2)
    assert disk.contexts[1] == seat.member.urls == ("nats://127.0.0.1:4222", OTHER, "nats://127.0.0.1:4303")
    assert Member.load(disk.data) == seat.member
    assert len([record for record in caplog.records if "cannot be written down" in record.message]) == 1
    await put(registry, "s-3", 6304)
    await until(lambda: len(disk.contexts) == 3)


async def test_a_seat_is_left_whole_whatever_went_wrong(seat: Seat, disk: Disk, registry: MemoryRegistry) -> None:
    closed: list[str] = []

    async def close() -> None:
        closed.append("view")

    view: Any = SimpleNamespace(close=close)
    seat._view = view

    def changed() -> None:
        raise RuntimeError("nobody thought of it")

    seat.changed = changed
    await put(registry)
    await until(lambda: any(task.done() for task in seat._tasks))
    with pytest.raises(RuntimeError, match="nobody thought of it"):
        await seat.close()
    assert closed == ["view"]
