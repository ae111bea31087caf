"""Damage in the files of one server's copy of the log, and whether that copy may be given up."""

from __future__ import annotations

import asyncio
import base64
import random
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from comity.cli import mending
from comity.cli.mending import mend_before
from comity.cluster.membership import Member
from comity.cluster.rebuilding import QUARANTINE, Copies, set_aside
from comity.cluster.replica import Copy, Flaw, look
from comity.cluster.status import Held, SystemView
from comity.embedded import EmbeddedServer
from comity.errors import NotFound, ServerFailed, Unreachable
from comity.jetstream import JetStream
from comity.model.codec import ROOT_DIGEST, seal
from comity.model.task import Barrier, Entry

SUBJECT = b"cy.main.log"


def entry(index: int, size: int = 1) -> bytes:
    return seal(Entry("net", 1, ROOT_DIGEST, index, [Barrier()] * size))[0]


def record(index: int, message: bytes, headers: bytes = b"") -> bytes:
    """As nats-server 2.15 writes one."""
    body = SUBJECT + (struct.pack("<I", len(headers)) + headers if headers else b"") + message + b"checksum"
    length = 22 + len(body) | (1 << 31 if headers else 0)
    return struct.pack("<IQQH", length, index, 1_700_000_000, len(SUBJECT)) + body


def headers(index: int) -> bytes:
    return b"NATS/1.0\r\nNats-Expected-Last-Sequence: %d\r\n\r\n" % (index - 1)


def records(first: int, last: int) -> list[bytes]:
    return [record(n, entry(n, n % 5), headers(n) if n % 2 else b"") for n in range(first, last + 1)]


@pytest.fixture
def blocks(tmp_path: Path) -> list[Path]:
    """A copy with entries 1 to 30 in three blocks; the oldest has a lower number of digits than the newest."""
    folder = tmp_path / "CY_main_LOG" / "msgs"
    folder.mkdir(parents=True)
    (folder / "index.db").write_bytes(b"none of our business")
    made = [folder / "8.blk", folder / "9.blk", folder / "10.blk"]
    for number, path in enumerate(made):
        path.write_bytes(b"".join(records(10 * number + 1, 10 * number + 10)))
    return made


async def looked(blocks: list[Path], first: int = 1) -> Copy:
    sizes: list[int] = []

    async def pace(size: int) -> None:
        sizes.append(size)

    found = await look(blocks[0].parents[1], first, pace)
    if found.flaw is None and all(path.exists() for path in blocks):
        assert sum(sizes) <= sum(path.stat().st_size for path in blocks)
    return found


async def test_what_is_intact_has_no_flaw(blocks: list[Path]) -> None:
    assert await looked(blocks) == Copy(30)
    assert await looked(blocks, 0) == Copy(30)


async def test_a_copy_that_is_not_there_ends_before_its_beginning(tmp_path: Path) -> None:
    assert await looked([tmp_path / "none" / "msgs" / "1.blk"], 5) == Copy(4)


def flips(blocks: list[Path]) -> Iterator[tuple[int, int]]:
    """An entry, and a byte of its length, its index, its subject, its headers or its message, in the middle block."""
    at = 0
    for index, data in enumerate(records(11, 20), start=11):
        message = data.index(b"C1")
        for offset in [*range(12), *range(20, message), *range(message, len(data) - 8, 7)]:
            yield index, at + offset
        at += len(data)


async def test_a_flipped_bit_is_found_wherever_it_is(blocks: list[Path]) -> None:
    whole = blocks[1].read_bytes()
    chance = random.Random(7)
    for index, at in flips(blocks):
        data = bytearray(whole)
        data[at] ^= 1 << chance.randrange(8)
        blocks[1].write_bytes(data)
        found = await looked(blocks)
        assert found.flaw is not None and found.flaw.entry == index == found.last + 1, at
        assert found.flaw.place.startswith(("9.blk byte ", "10.blk byte 0"))


async def test_a_block_that_was_cut_or_is_gone_is_a_gap(blocks: list[Path]) -> None:
    data = records(11, 20)
    blocks[1].write_bytes(b"".join(data[:4]))
    assert await looked(blocks) == Copy(14, Flaw(15, "10.blk byte 0", "entry 21 follows entry 14"))
    blocks[1].write_bytes(b"".join(data[:4]) + data[4][:30])
    assert await looked(blocks) == Copy(14, Flaw(15, f"9.blk byte {sum(map(len, data[:4]))}", "what is there is no entry"))
    blocks[1].unlink()
    assert await looked(blocks) == Copy(10, Flaw(11, "10.blk byte 0", "entry 21 follows entry 10"))
    blocks[0].unlink()
    assert await looked(blocks) == Copy(0, Flaw(1, "10.blk byte 0", "entry 21 follows entry 0"))
    assert await looked(blocks, 0) == Copy(30), "it was trimmed, as far as can be told from it alone"
    assert await looked(blocks, 21) == Copy(30)


@pytest.mark.parametrize("left", [1, 25, 60])
async def test_an_end_that_is_not_wholly_written_is_no_flaw(blocks: list[Path], left: int) -> None:
    data = records(21, 30)
    blocks[2].write_bytes(b"".join(data[:-1]) + data[-1][:left])
    assert await looked(blocks) == Copy(29, torn=f"10.blk byte {sum(map(len, data[:-1]))}")


async def test_what_was_trimmed_may_be_anything(blocks: list[Path]) -> None:
    data = records(1, 10)
    data[3] = data[3][:-20] + bytes(20)
    blocks[0].write_bytes(b"".join(data))
    assert (await looked(blocks, 5)).flaw is None
    found = await looked(blocks, 4)
    assert found.flaw is not None and found.flaw.entry == 4


async def test_a_block_that_the_disk_does_not_give_back_is_a_flaw(blocks: list[Path]) -> None:
    blocks[1].unlink()
    blocks[1].mkdir()  # reading it fails, as of a bad sector
    assert await looked(blocks) == Copy(10, Flaw(11, "9.blk", "it cannot be read: Is a directory"))


async def test_marks_of_deletions_are_no_entries(blocks: list[Path]) -> None:
    marks = record(5 | 1 << 62, b"") + record(31 | 1 << 63, b"")
    blocks[2].write_bytes(b"".join(records(21, 30)) + marks + b"".join(records(31, 33)))
    assert await looked(blocks) == Copy(33)


# Giving a copy up


class Servers:
    """Answers as JetStream does. ``entries`` of the log's leader, ``copies`` as the servers tell of their own."""

    def __init__(self) -> None:
        self.leader = "s1"
        self.others = {"s2": True, "s3": True}
        self.entries = {index: entry(index) for index in range(3, 10)}
        self.copies = {"s1": Held(9, 0), "s2": Held(9, 0), "s3": Held(9, 0)}

    async def held(self, stream: str, expect: int) -> dict[str, Held]:
        assert (stream, expect) == ("CY_main_LOG", 3)
        return self.copies

    async def api(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        if name == "STREAM.INFO.CY_main_LOG":
            rows = [{"name": name, "current": is_current} for name, is_current in self.others.items()]
            state = {"first_seq": min(self.entries), "last_seq": max(self.entries)}
            return {"cluster": {"leader": self.leader, "replicas": rows}, "state": state}
        assert name == "STREAM.MSG.GET.CY_main_LOG" and body is not None
        if body["seq"] not in self.entries:
            raise NotFound("no message found")
        return {"message": {"data": base64.b64encode(self.entries[body["seq"]]).decode()}}

    async def obstacle(self, index: int = 5, known: int = 9, member: str = "s3", broken: Iterable[str] = ()) -> str:
        copies = Copies(cast(JetStream, self), cast(SystemView, self), "main", member, 3)
        return await copies.obstacle(Flaw(index, "1.blk byte 0", "it fails its checksum"), known, broken)


async def test_a_copy_is_given_up_only_for_others_that_have_all_of_it() -> None:
    servers = Servers()
    assert await servers.obstacle() == ""
    assert await servers.obstacle(1) == "", "an entry that is trimmed now is needed by nobody"
    assert await servers.obstacle(10) == "", "so is what comes after all that is known"
    assert "no other server leads" in await servers.obstacle(member="s1")
    assert "s1, which leads the log, has gaps, or ends before entry 11" in await servers.obstacle(known=11)
    servers.entries[5] = servers.entries[5][:-1] + b"\0"
    assert "s1, which leads the log, cannot read entry 5 either" in await servers.obstacle()
    del servers.entries[5]
    assert "cannot read entry 5 either" in await servers.obstacle()
    servers.copies["s2"] = Held(8, 0)
    assert await servers.obstacle() == "only 1 of the other servers has all of the log, and 2 must"
    assert "cannot read entry 5 either" in await servers.obstacle(known=8)
    servers.others["s2"] = False
    assert "only 1 of the other servers" in await servers.obstacle(known=8)
    servers.copies["s1"] = Held(9, 1)
    assert "s1, which leads the log, has gaps" in await servers.obstacle()
    servers.leader = ""
    assert "no other server leads" in await servers.obstacle()


async def test_what_is_not_known_is_not_given_up_on() -> None:
    class Silent(Servers):
        async def api(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
            raise Unreachable("nobody answers")

    with pytest.raises(Unreachable):
        await Silent().obstacle()


def test_the_last_copy_that_was_set_aside_is_kept(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / "CY_main_LOG").mkdir()
        (tmp_path / "CY_main_LOG" / f"{number}.blk").touch()
        set_aside(tmp_path / "CY_main_LOG", tmp_path)
        assert not (tmp_path / "CY_main_LOG").exists()
    (kept,) = (tmp_path / QUARANTINE).iterdir()
    assert [path.name for path in kept.iterdir()] == ["1.blk"]
    assert kept.name.startswith("CY_main_LOG-")


class Stopped:
    """A server that does not run; its copy of the log is damaged."""

    def __init__(self, data: Path) -> None:
        self.data, self.network = data, "main"
        self.open_alone: Callable[[], Awaitable[None]]
        self.authority = SimpleNamespace(account=SimpleNamespace(public="A"))
        self.copy = data / "jetstream" / "A" / "streams" / "CY_main_LOG"
        (self.copy / "msgs").mkdir(parents=True)
        content = bytearray(b"".join(records(7, 9)))
        content[len(content) // 2] ^= 1
        (self.copy / "msgs" / "1.blk").write_bytes(b"".join(records(3, 6)))
        (self.copy / "msgs" / "2.blk").write_bytes(content)


async def test_what_a_server_cut_is_known_at_the_next_start_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the process ended between the cut and the look at it."""
    server, others = Stopped(tmp_path), Servers()
    block = server.copy / "msgs" / "2.blk"
    block.write_bytes(b"".join(records(7, 9)))

    async def cut_and_die() -> None:
        block.write_bytes(b"".join(records(7, 8)))
        raise ServerFailed("killed")

    async def open_alone() -> None:
        assert (tmp_path / mending.OPENING).read_text() == "9\n"

    @asynccontextmanager
    async def from_others(*_: Any) -> AsyncIterator[Copies]:
        yield Copies(cast(JetStream, others), cast(SystemView, others), "main", "s3", 3)

    monkeypatch.setattr(mending, "_from_others", from_others)
    member, embedded = cast(Member, SimpleNamespace(member="s3", size=3)), cast(EmbeddedServer, server)
    server.open_alone = cut_and_die
    with pytest.raises(ServerFailed):
        await mend_before(member, embedded)
    server.open_alone = open_alone
    found = await mend_before(member, embedded)
    assert found is not None and (found.index, found.reason) == (9, "what its server found: it was cut after entry 8, of 9")
    assert not server.copy.exists() and not (tmp_path / mending.OPENING).exists()


async def test_a_copy_that_takes_long_to_read_is_mended_before_its_server_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, others = Stopped(tmp_path), Servers()

    @asynccontextmanager
    async def from_others(*_: Any) -> AsyncIterator[Copies]:
        yield Copies(cast(JetStream, others), cast(SystemView, others), "main", "s3", 3)

    async def slow(_: int) -> None:
        asyncio.get_running_loop().call_later(0.05, (over := asyncio.Event()).set)
        await over.wait()

    monkeypatch.setattr(mending, "_from_others", from_others)
    monkeypatch.setattr(mending, "_at_once", slow)
    monkeypatch.setattr(mending, "LOOK_S", 0.01)
    monkeypatch.setattr(mending, "OTHERS_S", 10.0)
    found = await mend_before(cast(Member, SimpleNamespace(member="s3", size=3)), cast(EmbeddedServer, server))
    assert found is not None and found.stream == "CY_main_LOG" and not found.mended
    assert not server.copy.exists() and [path.name[:11] for path in (tmp_path / QUARANTINE).iterdir()] == ["CY_main_LOG"]


async def test_two_damaged_copies_are_mended_one_after_the_other() -> None:
    """Each of their servers may know of its own damage before the other does; the third is whole."""
    servers = Servers()
    assert await servers.obstacle(broken=["s2"]) == "only 1 of the other servers has all of the log, and 2 must"
    servers.others = {"s3": True, "s2": True}
    assert await servers.obstacle(member="s2", broken=["s3"]) == "", "the first by name"
    servers.copies["s3"] = Held(9, 1)
    assert await servers.obstacle(member="s2") == "", "its server knows of it"
    servers.copies["s3"] = Held(8, 0)
    assert "only 1 of the other servers" in await servers.obstacle(member="s2"), "it is only late"
    servers.copies["s3"] = Held(9, 0)
    servers.others["s3"] = False
    assert "only 1 of the other servers" in await servers.obstacle(member="s2", broken=["s3"]), "it is not there"
    servers.leader, servers.others = "s3", {"s1": True, "s2": True}
    assert "s3, which leads the log, has gaps" in await servers.obstacle(member="s2", broken=["s3"])
