"""Whoever is connected to a server that is well, but cut off from the others, finds its way to those."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from adding import user
from terminal import Terminal

import comity
from comity.bus.straying import STRAY_S
from conftest import need_server
from crossing import Crossing
from etcds import Etcds
from natses import Natses

__all__ = ["user"]

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.fixture
async def crossing() -> AsyncIterator[Crossing]:
    made = Crossing(2)
    yield made
    await made.stop()


@pytest.fixture
async def pair(tmp_path: Path, crossing: Crossing) -> AsyncIterator[Natses]:
    need_server()
    servers = Natses(tmp_path / "pair", 2, dialed=crossing.ports)
    await crossing.start(servers.peers, servers.pid)
    try:
        await servers.start()
        await servers.until_met()
        yield servers
    finally:
        await servers.close()


@pytest.mark.timeout(120)
async def test_nodes_and_clients_leave_a_server_that_is_cut_off(
    pair: Natses, crossing: Crossing, etcds: Etcds, user: Terminal
) -> None:
    near, far = pair.urls()
    here, at = ["--network", "split"], f"{etcds.address}/split"
    places = ["--log", at, "--registry", at, "--store", f"file://{user.folder}/store"]
    up = user.start("up", "--connect", near, "--http-port", "0", *here, *places)
    aside = asyncio.to_thread  # what the servers say to one another passes through this very loop
    assert (await aside(up.json))["durability"] == "verified"
    node = await aside(user.node, "adder.py", "--name", "n1", "--connect", far, *here)
    async with comity.connect(far, network="split") as net:
        assert await (await net.submit("add", {"a": 1, "b": 1})).result(30) == 2
        crossing.cut_off(1)
        began = time.monotonic()
        assert await (await net.submit("add", {"a": 2, "b": 1})).result(30) == 3
        assert time.monotonic() - began < 3 * STRAY_S
        commands = [["submit", "add", f'{{"a": {n}, "b": 1}}', "--connect", f"{near},{far}", *here] for n in range(4)]
        each = await aside(user.each, *commands)
        assert [(done.code, done.json) for done in each] == [(0, n + 1) for n in range(4)]
        crossing.heal()
        assert await (await net.submit("add", {"a": 3, "b": 1})).result(30) == 4
    assert await aside(node.stop) == 0
    assert await aside(up.stop) == 0
