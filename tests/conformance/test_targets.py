"""Where backups lie: a folder, and a bucket of a real server that speaks S3, which keep the same promises."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from pathlib import Path

import pytest

from buckets import BUCKET, refusing, surround
from comity.backup import manifest
from comity.backup.pieces import Piece, Writer, read
from comity.backup.targets import FolderTarget, Target, open_target
from comity.errors import AccessDenied, BadInput, BadSettings, Conflict, Corrupt, NotFound, Unreachable


@pytest.fixture(params=["folder", "s3"])
def where(request: pytest.FixtureRequest, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "folder":
        return str(tmp_path / "there")
    surround(monkeypatch, s3)
    return f"s3://{BUCKET}/{tmp_path.name}"


@pytest.fixture
def target(where: str) -> Target:
    return open_target(where, create=True)


async def test_what_is_put_is_there(target: Target) -> None:
    for data in (b"", b"x", os.urandom(3_000_000)):
        piece = Piece.of(data)
        await target.put(piece.name, data)
        await target.put(piece.name, data)
        assert await read(target, piece, "it") == data
        assert (await target.list("pieces/"))[piece.name] == piece.size


async def test_lists_are_by_folder_at_any_depth(target: Target) -> None:
    assert await target.list("pieces/") == {}
    for name in ("pieces/ab/abcd", "pieces/cd/cdef", "manifests/a.json"):
        await target.put(name, name.encode())
    assert await target.list("pieces/") == {"pieces/ab/abcd": 14, "pieces/cd/cdef": 14}
    assert await manifest.names(target) == ["a"]


async def test_what_is_not_a_piece_is_written_once(target: Target) -> None:
    await target.put("manifests/a.json", b"1")
    with pytest.raises(Conflict, match=r"manifests/a\.json"):
        await target.put("manifests/a.json", b"2")
    assert await target.get("manifests/a.json") == b"1"


async def test_what_is_not_there_is_said(target: Target) -> None:
    with pytest.raises(NotFound, match=r"manifests/a\.json"):
        await target.get("manifests/a.json")
    with pytest.raises(Corrupt, match="missing"):
        await read(target, Piece.of(b"x"), "it")


async def test_pieces_that_are_there_are_not_written_again(target: Target) -> None:
    first = Writer(target, await target.list("pieces/"), ())
    piece = await first.put(b"some bytes")
    await first.put(b"some bytes")
    assert (first.wrote, first.wrote_bytes, first.reused) == (1, 10, 1)
    second = Writer(target, await target.list("pieces/"), ())
    assert await second.put(b"some bytes") == piece
    assert (second.wrote, second.reused) == (0, 1)
    await target.put(piece.name, b"cut")
    third = Writer(target, await target.list("pieces/"), ())
    await third.put(b"some bytes")
    assert third.wrote == 1, "a piece of another size is written again"
    assert await read(target, piece, "it") == b"some bytes"


async def test_many_at_once(target: Target) -> None:
    names = [f"pieces/{n:02}/{n:04}" for n in range(40)]
    await asyncio.gather(*(target.put(name, name.encode()) for name in names))
    assert await asyncio.gather(*map(target.get, names)) == [name.encode() for name in names]
    assert sorted(await target.list("pieces/")) == names


async def test_files_are_their_owners_only_and_half_written_ones_are_not_listed(tmp_path: Path) -> None:
    target = FolderTarget(tmp_path / "there")
    await target.put("pieces/ab/abcd", b"x")
    modes = [path.stat().st_mode for path in (tmp_path / "there").rglob("*")]
    assert not any(stat.S_IMODE(mode) & 0o077 for mode in modes)
    (tmp_path / "there" / "pieces" / "ab" / ".half").write_bytes(b"y")
    assert await target.list("pieces/") == {"pieces/ab/abcd": 1}


async def test_a_folder_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unreachable, match="the backup's folder"):
        await FolderTarget(tmp_path / "file").put("pieces/ab/abcd", b"x")
    with pytest.raises(NotFound, match="nowhere"):
        open_target(str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match="ftp"):
        open_target("ftp://somewhere/x")
    with pytest.raises(BadInput, match="no bucket"):
        open_target("s3://")


async def test_a_bucket_that_cannot_be_used_is_said(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    surround(monkeypatch, s3)
    with pytest.raises(NotFound, match="s3://missing/"):
        await open_target("s3://missing/x").put("manifests/a.json", b"x")
    with pytest.raises(NotFound, match="no bucket"):
        await open_target("s3://missing/x").list("pieces/")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(BadSettings, match=r"comity\[s3\]"):
        open_target("s3://missing/x")


async def test_refusals_and_silence_of_a_server_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    async with refusing(monkeypatch):
        with pytest.raises(AccessDenied, match="s3://backups/x"):
            await open_target("s3://backups/x").get("manifests/a.json")
    with pytest.raises(Unreachable, match="s3://backups/x"):
        await open_target("s3://backups/x").get("manifests/a.json")
