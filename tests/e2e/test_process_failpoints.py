"""Real processes that die at a durable write under load: nothing accepted is lost, and nothing ends twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from test_faults import BATCH, Stream, check
from town import LIMIT_S, Town, story

from conftest import need_server

pytestmark = pytest.mark.server


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    async with Town(tmp_path) as town:
        yield town


async def dies(process: asyncio.subprocess.Process) -> None:
    assert await asyncio.wait_for(process.wait(), LIMIT_S) == -signal.SIGKILL


@pytest.mark.parametrize("point", ["log.append.before=kill(40)", "log.append.after=kill(40)", "jetstream.append.after=kill(40)"])
async def test_a_controller_dies_at_an_append(town: Town, free_port: Callable[[], int], point: str) -> None:
    port = free_port()
    town.env["COMITY_FAILPOINTS"] = point
    up = await town.up(port)
    del town.env["COMITY_FAILPOINTS"]
    await town.hire("n1", "n2")
    net = await town.client()
    stream = Stream(net, 0.05)
    await dies(up)
    await town.up(port)
    await stream.reaches(len(stream.accepted) + 4 * BATCH)
    async with story(net) as told:
        await check(net, told, await stream.end())


@pytest.mark.parametrize("point", ["report.post.before=kill(20)", "report.post.after=kill(20)"])
async def test_a_node_dies_at_a_report(town: Town, point: str) -> None:
    await town.up()
    town.env["COMITY_FAILPOINTS"] = point
    await town.hire("n1")
    del town.env["COMITY_FAILPOINTS"]
    await town.hire("n2")
    net = await town.client()
    async with story(net) as told:
        stream = Stream(net, 0.05)
        await dies(town.nodes["n1"])
        await told.until(lambda event: event["type"] == "node.evicted" and event["node"] == "n1")
        await stream.reaches(len(stream.accepted) + BATCH)
        await check(net, told, await stream.end())
