"""The bus on a RabbitMQ that is killed, paused, or short of memory: calls end, and all stands again."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bus_contract import Inbox, answering

from comity.amqp.connection import SILENT_S
from comity.bus.base import Bus, Link, any_of, to
from comity.bus.rabbitmq import RabbitBus
from comity.errors import Disconnected
from rabbits import Rabbits

pytestmark = [pytest.mark.server, pytest.mark.slow]
LONG_S = 60.0


async def until(link: Link, *buses: Bus) -> None:
    async with asyncio.timeout(LONG_S):
        for bus in buses:
            changed = asyncio.Event()
            bus.on_state(lambda _, changed=changed: changed.set())
            while bus.link is not link:
                changed.clear()
                await changed.wait()


async def pair(rabbit: Rabbits) -> tuple[RabbitBus, RabbitBus]:
    a, b = [await RabbitBus.connect(rabbit.url(name), process=name, departures=True, timeout_s=LONG_S) for name in "ab"]
    return a, b


@pytest.fixture
async def mortal(tmp_path: Path) -> AsyncIterator[Rabbits]:
    rabbit = Rabbits(tmp_path / "rabbit", 1, ("a", "b", "c"))
    try:
        await rabbit.start()
        yield rabbit
    finally:
        await rabbit.close()


@pytest.mark.timeout(180)
async def test_the_server_is_killed_and_comes_back(mortal: Rabbits) -> None:
    a, b = await pair(mortal)
    inbox, group, gone = Inbox(), Inbox(), Inbox()
    tasks: list[asyncio.Task[None]] = []
    a.on_departure(gone)
    await b.subscribe(to("b"), inbox)
    await b.subscribe(any_of("crew"), group)
    asking = asyncio.create_task(a.request(to("b"), b"x", 3600))
    await inbox.until(1)
    await mortal.kill()
    with pytest.raises(Disconnected):
        await asking
    await until(Link.DOWN, a, b)
    with pytest.raises(Disconnected):
        await a.send(to("b"), b"stale")
    await mortal.start()
    await until(Link.UP, a, b)
    await a.send(any_of("crew"), b"1")
    await group.until(1)
    await b.subscribe(to("b"), answering(b, tasks))
    assert await a.request(to("b"), b"y", LONG_S) == b"re:y"
    assert inbox.data == [b"x", b"y"]
    assert gone.items == []
    assert a._departures is not None
    async with asyncio.timeout(LONG_S):
        while not a._departures.line.connection.is_open:  # noqa: ASYNC110 (it tells nobody)
            await asyncio.sleep(0.05)
    c = await RabbitBus.connect(mortal.url("c"), process="c")
    await c.close()
    assert await gone.until(1) == ["c"]
    await a.close()
    await b.close()


@pytest.mark.timeout(120)
async def test_a_server_that_is_paused_is_left_in_time(rabbit: Rabbits) -> None:
    a, b = await pair(rabbit)
    inbox = Inbox()
    await b.subscribe(to("b"), inbox)
    asking = asyncio.create_task(a.request(to("b"), b"x", 3600))
    await inbox.until(1)
    rabbit.signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        with pytest.raises(Disconnected):
            await asking
        assert SILENT_S - 3 < time.monotonic() - begin < 2 * SILENT_S
        await until(Link.DOWN, a, b)
    finally:
        rabbit.signal(signal.SIGCONT)
    await until(Link.UP, a, b)
    await a.send(to("b"), b"y")
    await inbox.until(2)
    assert inbox.data == [b"x", b"y"]
    await a.close()
    await b.close()


@pytest.mark.timeout(120)
async def test_a_server_short_of_memory_takes_nothing_and_nobody_hangs(rabbit: Rabbits) -> None:
    a, b = await pair(rabbit)
    inbox = Inbox()
    await b.subscribe(to("b"), inbox)
    await rabbit.control("set_vm_memory_high_watermark", "0.00001")
    try:
        with pytest.raises(Disconnected):
            await a.request(to("b"), b"x", 3600)
        assert (a.link, b.link) == (Link.DOWN, Link.UP)
        with pytest.raises(Disconnected, match="short of memory"):
            await a.send(to("b"), b"y")
    finally:
        await rabbit.control("set_vm_memory_high_watermark", "0.4")
    await until(Link.UP, a)
    await a.send(to("b"), b"z")
    await inbox.when(lambda: inbox.data[-1:] == [b"z"])
    assert b"y" not in inbox.data
    await rabbit.control("set_vm_memory_high_watermark", "0.00001")
    try:
        asking = asyncio.create_task(a.request(to("b"), b"x", 3600))
        await until(Link.DOWN, a)
        with pytest.raises(Disconnected):
            await asking
        begin = time.monotonic()
        await a.close()
        assert time.monotonic() - begin < 10
    finally:
        await rabbit.control("set_vm_memory_high_watermark", "0.4")
    await b.close()
