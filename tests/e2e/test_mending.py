"""A copy of the log that is damaged on disk: found, told of, rebuilt from the others' and never served, also if its server leads
the log. Three ``comity up`` on loopback, under load."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from test_faults import BATCH, Stream, check
from town import LIMIT_S, Story, kill, story
from trio import Trio

from comity.cluster.replica import look
from conftest import need_server

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(240)]
MENDED_S = 60.0


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    need_server()
    async with Trio(tmp_path) as trio:
        trio.env["COMITY_INSPECT_PAUSE_S"] = "1"
        yield trio


def copy_of(trio: Trio, name: str) -> Path:
    """Where server ``name`` keeps its copy of the log."""
    (found,) = (trio.folder / name / "jetstream").glob("*/streams/CY_main_LOG")
    return found


def block(trio: Trio, name: str) -> Path:
    return max(copy_of(trio, name).glob("msgs/*.blk"), key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    """Flip a bit of an entry in the first half."""
    content = path.read_bytes()
    flip_at(path, content.index(b"C1", len(content) // 4) + 25)


def flip_unseen(path: Path) -> None:
    """Flip one that only the server's own checksum covers: of the time of the record after that entry."""
    content = path.read_bytes()
    after = content.index(b"cy.main.log", content.index(b"C1", len(content) // 4))
    flip_at(path, after - 2 - 6)


def flip_at(path: Path, at: int) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


async def log_leader(trio: Trio) -> str:
    """The name of the server that leads the log."""
    status = await trio.until_whole()
    leader = next(group["leader"] for group in status["groups"] if group["name"] == "log")
    return next(name for name, up in trio.ups.items() if up.said["server"] == leader)


async def mended(trio: Trio, told: Story, name: str, began: float) -> dict[str, Any]:
    """Wait until the copy of server ``name`` was told to be damaged, and to be rebuilt; the first of these events."""
    server = trio.ups[name].said["server"]
    found = await told.until(lambda event: event["type"] == "replica.damaged" and event["server"] == server, MENDED_S)
    print(f"found after {time.perf_counter() - began:.1f} s: {found}")
    await told.until(lambda event: event["type"] == "replica.rebuilt" and event["server"] == server, MENDED_S)
    took_s = time.perf_counter() - began
    print(f"rebuilt after {took_s:.1f} s")
    assert took_s < MENDED_S
    assert found["stream"] == "CY_main_LOG" and found["place"].startswith("log entry ")
    return found


async def whole(trio: Trio) -> None:
    """Every copy is intact, and they are one."""
    await trio.until_whole()
    async with asyncio.timeout(LIMIT_S):
        while True:
            copies = [await look(copy_of(trio, name), 1, at_once) for name in "abc"]
            assert [copy.flaw for copy in copies] == [None] * 3
            if len({copy.last for copy in copies}) == 1:
                return


async def at_once(_: int) -> None:
    await asyncio.sleep(0)


async def test_a_copy_that_is_damaged_while_it_leads_the_log(trio: Trio) -> None:
    await trio.form()
    victim = await log_leader(trio)
    trio.use(next(name for name in "abc" if name != victim))
    await trio.hire("n1", "n2")
    net = await trio.client()
    async with story(net) as told:
        stream = Stream(net, 0.05)
        await stream.reaches(4 * BATCH)
        assert (await look(copy_of(trio, victim), 1, at_once)).flaw is None
        began = time.perf_counter()
        flip(block(trio, victim))
        found = await mended(trio, told, victim, began)
        assert "1.blk byte " in found["reason"]
        assert await log_leader(trio) != victim, "another one leads meanwhile"
        await stream.reaches(len(stream.accepted) + 2 * BATCH)
        await check(net, told, await stream.end())
    await whole(trio)
    (kept,) = (trio.folder / victim / "quarantine").iterdir()
    assert (await look(kept, 1, at_once)).flaw is not None, "it is kept for whoever looks into it"
    assert all(up.process.returncode is None for up in trio.ups.values())


@pytest.mark.parametrize("kindly", [True, False], ids=["stopped", "killed"])
@pytest.mark.parametrize("harm", ["bit flipped", "unseen bit flipped", "block truncated"])
async def test_a_copy_that_is_damaged_while_its_server_is_down(trio: Trio, harm: str, kindly: bool) -> None:
    """Stopped in order, a server believes in its files; killed, it reads them, and cuts them at the damage. A copy that only lost
    its end, of a server whose death left the others without a leader, is not waited with: it catches up by itself."""
    await trio.form()
    victim = await log_leader(trio)
    trio.use(next(name for name in "abc" if name != victim))
    await trio.hire("n1", "n2")
    net = await trio.client()
    async with story(net) as told:
        stream = Stream(net, 0.05)
        await stream.reaches(6 * BATCH)
        process = trio.ups[victim].process
        if kindly:
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
        else:
            await kill(process)
        path = block(trio, victim)
        size = path.stat().st_size
        if harm == "bit flipped":
            flip(path)
        elif harm == "unseen bit flipped":
            flip_unseen(path)
            assert (await look(copy_of(trio, victim), 1, at_once)).flaw is None
        else:
            os.truncate(path, size // 2)
        began = time.perf_counter()
        await trio.again(victim)
        if harm == "bit flipped" or kindly == (harm == "block truncated"):
            await mended(trio, told, victim, began)
        await stream.reaches(len(stream.accepted) + 2 * BATCH)
        await check(net, told, await stream.end())
    await whole(trio)


async def test_a_copy_is_looked_at_too_when_only_its_server_starts_again(trio: Trio) -> None:
    """Here it ended by itself, and ``comity up`` went on."""
    await trio.form()
    victim = await log_leader(trio)
    trio.use(next(name for name in "abc" if name != victim))
    await trio.hire("n1", "n2")
    net = await trio.client()
    async with story(net) as told:
        stream = Stream(net, 0.05)
        await stream.reaches(6 * BATCH)
        server = trio.ups[victim].server
        server.suspend()  # what comes later must not be written over the damage
        began = time.perf_counter()
        flip_unseen(block(trio, victim))
        server.kill()
        found = await mended(trio, told, victim, began)
        assert "it was cut after entry" in found["reason"]
        await stream.reaches(len(stream.accepted) + 2 * BATCH)
        await check(net, told, await stream.end())
    await whole(trio)
    assert trio.ups[victim].server.pid != server.pid and trio.ups[victim].process.returncode is None


async def test_a_copy_is_not_given_up_while_the_others_may_need_it(trio: Trio) -> None:
    await trio.form()
    victim = await log_leader(trio)
    away = next(name for name in "abc" if name != victim)
    trio.use(next(name for name in "abc" if name not in (victim, away)))
    await trio.hire("n1")
    net = await trio.client()
    assert await (await net.submit("work", {"number": 3, "seconds": 0.0})).result() == 9
    await kill(trio.ups[away].process)
    flip(block(trio, victim))
    async with asyncio.timeout(MENDED_S):
        while not (status := await trio.status())["damaged"]:
            print(status["survives"]["text"])
    (damaged,), out = status["damaged"], ""
    assert (damaged["server"], damaged["stream"]) == (trio.ups[victim].said["server"], "CY_main_LOG")
    async with asyncio.timeout(LIMIT_S):
        while f"the copy of CY_main_LOG on {damaged['server']} is damaged at log entry" not in out:
            code, out, _ = await trio.comity("cluster", "status", "-o", "table")
            assert code == 0
    async with asyncio.timeout(LIMIT_S):
        while f"that of CY_main_LOG on {damaged['server']} is damaged" not in out:
            code, out, _ = await trio.comity("doctor", "-o", "table")
    assert code == 1
    assert not (trio.folder / victim / "quarantine").exists()
    assert await (await net.submit("work", {"number": 4, "seconds": 0.0})).result() == 16
    async with story(net) as told:
        began = time.perf_counter()
        await trio.again(away)
        server = trio.ups[victim].said["server"]
        await told.until(lambda event: event["type"] == "replica.rebuilt" and event["server"] == server, MENDED_S)
        print(f"rebuilt {time.perf_counter() - began:.1f} s after the others were back")
    await whole(trio)
