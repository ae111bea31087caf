"""A machine's clock that is far ahead when a network starts: entry time would go there, and never come back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from math import inf

import pytest
from peers import LIMIT_S, World, until

from comity.controller import term
from comity.controller.controller import DAY_S, JUMP_S, Controller
from comity.errors import ClockAhead
from comity.log.memory import MemoryLog


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    yield world
    for controller in world.running:
        await controller.stop()


async def start(world: World, name: str, jump_s: float) -> Controller:
    """It leads then, or has failed."""
    controller = world.make(name, MemoryLog(world.log), jump_s)
    await controller.start()
    world.running.append(controller)
    waits = [asyncio.create_task(event.wait()) for event in (controller.led, controller.failed)]
    await asyncio.wait(waits, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
    return controller


async def test_a_clock_that_is_months_ahead_is_not_believed_without_a_word(world: World) -> None:
    await (await start(world, "k1", JUMP_S)).stop()
    before, began = len(world.log.entries), world.now()
    world.wall += 100 * DAY_S
    refused = await start(world, "k2", JUMP_S)
    assert isinstance(refused.failure, ClockAhead) and refused.leading is None
    assert "100.0 days after the network last ran (2023-11-1" in refused.failure.message
    assert "comity up --clock-is-right" in refused.failure.advice
    assert len(world.log.entries) == before, "nothing was written"
    world.wall -= 100 * DAY_S
    again = await start(world, "k3", JUMP_S)
    assert again.leading is not None and again.state.time_ms / 1000 < began + 60, "the clock was mended"


@pytest.mark.parametrize(("days", "jump_s"), [(6, JUMP_S), (100, inf)])
async def test_a_network_that_stood_still_goes_on_with_the_time(world: World, days: int, jump_s: float) -> None:
    """For less than a week by itself, for longer when it is said so."""
    await (await start(world, "k1", JUMP_S)).stop()
    world.wall += days * DAY_S
    second = await start(world, "k2", jump_s)
    assert second.leading is not None
    assert second.state.time_ms / 1000 > world.now() - 60


async def test_a_network_that_runs_tells_its_log_the_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So one in which nothing happened for weeks did not stand still."""
    monkeypatch.setattr(term, "STAMP_MS", 300)
    controller = await start(world, "k1", JUMP_S)
    began = controller.ledger.time_ms
    await until(lambda: controller.ledger.time_ms >= began + 300)
    count = controller.ledger.index
    await until(lambda: controller.ledger.index > count)
    assert controller.ledger.index == count + 1 and controller.state.time_ms >= began + 600
