"""Copies of streams that keep the last message of a subject, compared with what another server has."""

from __future__ import annotations

import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from comity.cluster import rebuilding
from comity.cluster.rebuilding import Copies
from comity.cluster.replica import ENDS_S, Copy, Flaw, Listed, compare
from comity.cluster.status import Held, SystemView
from comity.errors import Unreachable
from comity.jetstream import JetStream, Row
from comity.model.codec import digest

NOW = 1_700_000_000.0
HEADERS = {"Comity-Digest": "", "Nats-TTL": "3600s"}


def subject(index: int) -> bytes:
    return b"cy.main.store.n1.m.%d" % index


def message(index: int) -> bytes:
    return b"%d" % index * (index % 4 * 10)


def headers(index: int) -> dict[str, str]:
    """Every fifth ends by itself."""
    return {"Comity-Digest": digest(message(index)).hex(), **({"Nats-TTL": "3600s"} if index % 5 == 0 else {})}


def record(index: int, of: int | None = None) -> bytes:
    """Message ``index`` as nats-server 2.15 writes it; ``of``: whose subject it replaces."""
    lines = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers(index).items()) + "\r\n"
    name = subject(index if of is None else of)
    body = name + struct.pack("<I", len(lines)) + lines.encode() + message(index) + b"checksum"
    return struct.pack("<IQQH", 22 + len(body) | 1 << 31, index, int(NOW * 1e9) + index, len(name)) + body


def listed(*indices: int) -> dict[int, Listed]:
    return {
        n: Listed(subject(n), int(NOW * 1e9) + n, headers(n), digest(message(n)), NOW + 3600 if n % 5 == 0 else float("inf"))
        for n in indices
    }


ALL = listed(*range(1, 31))


@pytest.fixture
def blocks(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "CY_main_STORE" / "msgs"
    folder.mkdir(parents=True)
    made = [folder / "8.blk", folder / "9.blk", folder / "10.blk"]
    for number, path in enumerate(made):
        path.write_bytes(b"".join(record(n) for n in range(10 * number + 1, 10 * number + 11)))
    return made


async def pace(_: int) -> None:
    """As fast as can be."""


async def compared(blocks: list[Path], others: dict[int, Listed] = ALL, now: float = NOW) -> Copy:
    return await compare(blocks[0].parents[1], others, now, pace)


async def test_what_another_server_has_too_is_whole(blocks: list[Path]) -> None:
    assert await compared(blocks) == Copy(30)
    assert await compared(blocks, {}) == Copy(30)
    assert await compared(blocks, listed(2, 29)) == Copy(30), "what it has no more may be anything"
    assert await compared(blocks, ALL | listed(31, 32)) == Copy(30), "what comes after all that is here is on its way"


def flips() -> Iterator[tuple[int, int]]:
    """A message, and a byte of its record in the middle block, but for the server's own checksum."""
    at = 0
    for index in range(11, 21):
        size = len(record(index))
        for offset in range(0, size - 8, 3):
            yield index, at + offset
        at += size


async def test_a_flipped_bit_is_found_wherever_it_is(blocks: list[Path]) -> None:
    """But in the name of a header that does not matter."""
    whole, chance, found = blocks[1].read_bytes(), random.Random(3), 0
    for index, at in flips():
        data = bytearray(whole)
        data[at] ^= 1 << chance.randrange(8)
        blocks[1].write_bytes(data)
        copy = await compared(blocks)
        harmless = b"NATS/1.0\r\n" in whole[at - 10 : at + 14] or b"\r\n\r\n" in whole[at - 4 : at + 5]
        assert harmless or (copy.flaw is not None and copy.flaw.entry == index), (index, at)
        found += copy.flaw is not None
    assert found > 100


async def test_what_is_missing_is_found_however_it_went(blocks: list[Path]) -> None:
    data = [record(n) for n in range(11, 21)]
    blocks[1].write_bytes(b"".join(data[:3]) + data[3][:30])
    at = sum(map(len, data[:3]))
    assert await compared(blocks) == Copy(30, Flaw(14, f"9.blk byte {at}", "what is there is no entry"))
    blocks[1].write_bytes(b"".join(data[:5] + data[6:]))
    assert await compared(blocks) == Copy(30, Flaw(16, "its blocks", "it is not there"))
    blocks[1].unlink()
    assert await compared(blocks) == Copy(30, Flaw(11, "its blocks", "it is not there"))
    blocks[1].mkdir()
    assert await compared(blocks) == Copy(30, Flaw(11, "9.blk", "it cannot be read: Is a directory"))


async def test_what_went_by_itself_or_was_replaced_is_not_missing(blocks: list[Path]) -> None:
    blocks[1].write_bytes(b"".join(record(n) for n in range(11, 21) if n not in (15, 20)))
    assert (await compared(blocks)).flaw == Flaw(15, "its blocks", "it is not there")
    assert (await compared(blocks, now=NOW + 3601 - ENDS_S)).flaw is None, "its time is over"
    blocks[1].write_bytes(b"".join(record(n) for n in range(11, 21) if n != 14))
    assert (await compared(blocks)).flaw == Flaw(14, "its blocks", "it is not there")
    with blocks[2].open("ab") as file:
        file.write(record(31, of=14))
    assert (await compared(blocks)).flaw is None, "a newer one is here"


# What another server has


class Lists:
    """A cursor over what ``servers`` have, one after the other."""

    servers: tuple[str, ...] = ("s3", "s3", "s1")
    made = 0

    def __init__(self, *_: Any, headers_only: bool) -> None:
        Lists.made += 1
        self.server = self.servers[(Lists.made - 1) % len(self.servers)]
        self.is_read = False
        size = {"Nats-Msg-Size": "9", "Nats-Expected-Last-Subject-Sequence": "0"} if headers_only else {}
        self.row = Row(7, "cy.main.store.n1.m.7", b"" if headers_only else message(7), {**headers(7), **size}, 5)

    async def fetch(self, _: int) -> list[Row]:
        was_read, self.is_read = self.is_read, True
        return [] if was_read else [self.row]

    async def close(self) -> None:
        return None


@pytest.mark.parametrize("door", ["store", "registry"])
async def test_another_servers_copy_is_listed(monkeypatch: pytest.MonkeyPatch, door: str) -> None:
    monkeypatch.setattr(rebuilding, "Cursor", Lists)
    monkeypatch.setattr(Lists, "made", 0)
    copies = Copies(cast(JetStream, None), cast(SystemView, None), "main", "s3", 3, door)
    assert await copies._listed(pace) == {7: Listed(subject(7), 5, headers(7), digest(message(7)))}
    assert Lists.made == 3, "our own says nothing of what we lack"
    monkeypatch.setattr(Lists, "servers", ("s3",))
    with pytest.raises(Unreachable):
        await copies._listed(pace)


async def test_a_copy_that_lacks_some_of_the_store_is_not_whole() -> None:
    class Servers:
        def __init__(self) -> None:
            self.copies = {"s1": Held(90, 70, 20), "s2": Held(90, 70, 20), "s3": Held(90, 72, 18)}

        async def held(self, _stream: str, _expect: int) -> dict[str, Held]:
            return self.copies

        async def api(self, name: str, _body: object = None) -> dict[str, Any]:
            if "INFO" in name:
                rows = [{"name": name, "current": True} for name in ("s2", "s3")]
                return {"cluster": {"leader": "s1", "replicas": rows}, "state": {"first_seq": 1, "last_seq": 90}}
            return {"message": {}}

    servers = Servers()
    copies = Copies(cast(JetStream, servers), cast(SystemView, servers), "main", "s3", 3, "store")
    flaw = Flaw(7, "its blocks", "it is not there")
    assert await copies.obstacle(flaw, 90) == ""
    servers.copies["s2"] = Held(90, 71, 19)
    assert "only 1 of the other servers has all of the store" in await copies.obstacle(flaw, 90)
    servers.copies["s1"], servers.copies["s2"] = servers.copies["s2"], servers.copies["s1"]
    assert "the copy of s1, which leads the store, has gaps" in await copies.obstacle(flaw, 90)
