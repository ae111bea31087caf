"""Damaged copies of the store and the registry are found and mended like those of the log, and two damaged copies of one stream
one after the other. Three ``comity up`` on loopback."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_mending import copy_of, flip_at, log_leader, whole
from town import LIMIT_S, Story, kill, story
from trio import Trio

from comity import Client, ComityError, FileRef
from comity.jetstream import Cursor
from conftest import need_server

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(240)]
MENDED_S = 60.0
CONTENT = random.Random(5).randbytes(6_000_000)
GROUPS = {"STORE": "store", "REG": "registry"}


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    need_server()
    async with Trio(tmp_path) as trio:
        trio.env["COMITY_INSPECT_PAUSE_S"] = "1"
        yield trio


def blocks(trio: Trio, name: str, stream: str) -> list[Path]:
    (folder,) = (trio.folder / name / "jetstream").glob(f"*/streams/CY_main_{stream}/msgs")
    return sorted(folder.glob("*.blk"), key=lambda path: int(path.stem))


async def leads(trio: Trio, stream: str) -> str:
    status = await trio.until_whole()
    leader = next(group["leader"] for group in status["groups"] if group["name"] == GROUPS[stream])
    return next(name for name, up in trio.ups.items() if up.said["server"] == leader)


def harm(trio: Trio, name: str, stream: str, how: str) -> None:
    path = blocks(trio, name, stream)[0]
    if how == "bit flipped":
        other = next(up.said["server"] for other, up in trio.ups.items() if other != name)
        marks = {"STORE": CONTENT[:64], "REG": f"cy.main.reg.{other}.servers.=".encode()}  # what nobody writes again
        flip_at(path, path.read_bytes().rindex(marks[stream]) + 60)
    elif how == "block truncated":
        os.truncate(path, path.stat().st_size // 2)
    else:
        path.unlink()


async def read(net: Client, ref: FileRef, path: Path) -> bool:
    """Whether it can be read; what is read is right."""
    try:
        await net.get_file(ref, path)
    except ComityError:
        return False
    assert path.read_bytes() == CONTENT
    return True


async def mended(told: Story, server: str, stream: str, began: float) -> dict[str, Any]:
    """Wait until a copy was told to be damaged, and to be rebuilt; the first of these events."""


    async def said(kind: str) -> dict[str, Any]:
        found = await told.until(
            lambda event: event["type"] == kind and (event["server"], event["stream"]) == (server, stream), MENDED_S
        )
        print(f"{time.perf_counter() - began:.1f} s: {found}")
        return found

    found = await said("replica.damaged")
    await said("replica.rebuilt")
    assert time.perf_counter() - began < MENDED_S
    return found


@pytest.mark.parametrize(
    ("stream", "how", "when"),
    [
        ("STORE", "bit flipped", "while it leads"),
        ("STORE", "block gone", "while another leads"),
        ("STORE", "block truncated", "stopped"),
        ("REG", "bit flipped", "while it leads"),
    ],
)
async def test_a_copy_of_any_stream_is_mended(trio: Trio, stream: str, how: str, when: str) -> None:
    await trio.form()
    leader = await leads(trio, stream)
    victim = leader if when == "while it leads" else next(name for name in "abc" if name != leader)
    trio.use(next(name for name in "abc" if name != victim))
    await trio.hire("n1")
    net = await trio.client()
    path = trio.folder / "content"
    path.write_bytes(CONTENT)
    ref = await net.put_file(path)
    server = trio.ups[victim].said["server"]
    async with story(net) as told:
        if when == "stopped":
            trio.ups[victim].process.send_signal(signal.SIGINT)
            assert await trio.ups[victim].process.wait() == 0
        began = time.perf_counter()
        harm(trio, victim, stream, how)
        mending = asyncio.create_task(mended(told, server, f"CY_main_{stream}", began))
        if when == "stopped":
            await trio.again(victim)
        reads = [await read(net, ref, trio.folder / "out")]
        while not mending.done():
            reads.append(await read(net, ref, trio.folder / "out"))
        print(f"{reads.count(True)} of {len(reads)} reads")
        found = await mending
        assert found["place"].startswith("entry ")
    async with asyncio.timeout(LIMIT_S):
        while not await read(net, ref, trio.folder / "out"):
            print("not yet")
    await trio.until_whole()
    assert await (await net.submit("work", {"number": 4, "seconds": 0.0})).result() == 16
    kept = [path.name for path in (trio.folder / victim / "quarantine").iterdir()]
    assert len(kept) == 1 and kept[0].startswith(f"CY_main_{stream}-")


async def test_two_copies_damaged_at_different_entries(trio: Trio) -> None:
    """Each is whole where the other is not; the third is whole."""
    await trio.form()
    leader = await log_leader(trio)
    trio.use(leader)
    await trio.hire("n1")
    net = await trio.client()
    for number in range(60):
        await (await net.submit("work", {"number": number, "seconds": 0.0})).result()
    others = [name for name in "abc" if name != leader]
    async with story(net) as told:
        for name in others:
            await kill(trio.ups[name].process)
        began = time.perf_counter()
        for number, name in enumerate(others):
            (block,) = copy_of(trio, name).glob("msgs/*.blk")
            content = block.read_bytes()
            at = content.index(b"C1", len(content) // (4 - 2 * number))
            flip_at(block, at + 25)
        await asyncio.gather(*(trio.again(name) for name in others))
        for name in others:
            await mended(told, trio.ups[name].said["server"], "CY_main_LOG", began)
    await whole(trio)
    assert await (await net.submit("work", {"number": 4, "seconds": 0.0})).result() == 16


async def test_two_copies_damaged_at_different_entries_while_they_run(trio: Trio) -> None:
    await trio.form()
    leader = await log_leader(trio)
    intact = next(name for name in "abc" if name != leader)
    trio.use(intact)
    await trio.hire("n1")
    net = await trio.client()
    for number in range(60):
        await (await net.submit("work", {"number": number, "seconds": 0.0})).result()
    victims = [name for name in "abc" if name != intact]
    async with story(net) as told:
        began = time.perf_counter()
        for number, name in enumerate(victims):
            (block,) = copy_of(trio, name).glob("msgs/*.blk")
            content = block.read_bytes()
            flip_at(block, content.index(b"C1", len(content) // (4 - 2 * number)) + 25)
        for name in victims:
            await mended(told, trio.ups[name].said["server"], "CY_main_LOG", began)
    await whole(trio)
    assert await (await net.submit("work", {"number": 4, "seconds": 0.0})).result() == 16


async def test_a_loss_that_a_server_took_for_right_is_mended(trio: Trio) -> None:
    """It noticed it before its ``comity up`` did, and was stopped in order: its group's snapshot begins after what is lost."""
    trio.env["COMITY_INSPECT_PAUSE_S"] = "600"
    await trio.form()
    leader = await leads(trio, "STORE")
    victim = next(name for name in "ac" if name != leader)
    net = await trio.client()
    path = trio.folder / "content"
    path.write_bytes(CONTENT)
    ref = await net.put_file(path)
    own = trio.ups[victim].said["server"]
    blocks(trio, victim, "STORE")[0].unlink()
    async with trio.stream() as js, asyncio.timeout(LIMIT_S):
        shown = True
        while shown:  # until what is in its memory is forgotten
            cursor = Cursor(js, "CY_main_STORE", "cy.main.store.>", headers_only=True)
            shown = bool(await cursor.fetch(1)) or cursor.server != own
            await cursor.close()
    trio.ups[victim].process.send_signal(signal.SIGINT)
    assert await trio.ups[victim].process.wait() == 0
    trio.env["COMITY_INSPECT_PAUSE_S"] = "1"
    async with story(net) as told:
        began = time.perf_counter()
        await trio.again(victim)
        await mended(told, own, "CY_main_STORE", began)
    await trio.until_whole()
    (kept,) = (trio.folder / victim / "quarantine").iterdir()
    assert (kept / "group-msgs").is_dir()
    assert await read(net, ref, trio.folder / "out")
