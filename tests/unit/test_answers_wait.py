"""Answers that need the store wait while it has no leader: whoever asks has more time than an election takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from backed import HUGE, Town, town
from peers import a_while, until

from comity.controller import archive
from comity.errors import Unreachable
from comity.store.memory import MemoryStore


class Outage:
    """Of the store: each ``read`` is in vain."""

    def __init__(self) -> None:
        self.is_on = False
        self.reads: list[str] = []


@pytest.fixture
async def here(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Town]:
    monkeypatch.setattr(archive, "AWAY_S", 3.0)
    here = await town(monkeypatch)
    yield here
    await here.controller.stop()


@pytest.fixture
def outage(here: Town, monkeypatch: pytest.MonkeyPatch) -> Outage:
    outage, get = Outage(), MemoryStore.get

    async def get_if_there(self: MemoryStore, key: str) -> AsyncIterator[bytes]:
        outage.reads.append(key)
        if outage.is_on:
            raise Unreachable("nobody serves the store")
        async for chunk in get(self, key):
            yield chunk

    monkeypatch.setattr(MemoryStore, "get", get_if_there)
    return outage


async def test_a_task_is_shown_once_the_store_is_back(here: Town, outage: Outage) -> None:
    outage.is_on = True
    asked = [asyncio.ensure_future(here.client.ask(what, id=here.archived)) for what in ("task", "why", "tasks")]
    asked += [asyncio.ensure_future(here.client.ask("task", id=here.stored)) for _ in range(2)]
    await a_while(0.5)
    assert not any(one.done() for one in asked)
    assert len(outage.reads) < 5 * len(set(outage.reads)), "each thing is tried a few times, however many ask"
    outage.is_on = False
    task, why, tasks, *stored = await asyncio.gather(*asked)
    assert task["result"] == "done" and why["state"] == "completed"
    assert here.archived in [one["id"] for one in tasks["tasks"]]
    assert [one["input"]["size"] for one in stored] == [len(HUGE)] * 2


async def test_a_store_that_stays_away_is_told_of(here: Town, outage: Outage) -> None:
    outage.is_on = True
    asked = (here.client.ask("task", id=id) for id in (here.archived, here.stored))
    assert await asyncio.gather(*asked) == ["unreachable"] * 2


async def test_nothing_waits_for_the_store_after_the_end_of_the_term(here: Town, outage: Outage) -> None:
    before = asyncio.all_tasks()
    outage.is_on = True
    for id in (here.archived, here.stored):
        asking = asyncio.ensure_future(here.client.ask("task", id=id))
        await until(lambda: bool(outage.reads))
        asking.cancel()
        outage.reads.clear()
    await here.controller.stop()
    outage.reads.clear()
    await a_while(0.5)
    assert not outage.reads and not asyncio.all_tasks() - before
