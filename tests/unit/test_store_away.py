"""The store is away for a while, as when its servers elect a leader: what goes by it waits, and nothing is thrown away."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from node_stage import Stage, staged_on, until
from stand_in import ground
from test_node_network import Net

from comity import Agent, Attempt
from comity.errors import Disconnected, Unreachable
from comity.model.payload import Stored
from comity.model.task import TaskState
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore

staged = staged_on(VirtualLoop)
LARGE = "x" * 600_000


def now() -> float:
    return asyncio.get_running_loop().time()


class Outage:
    """Of all doors to the store: nothing can be put for some seconds, and nothing got for some, or as many."""

    def __init__(self) -> None:
        self.puts_again = self.gets_again = 0.0

    def begin(self, puts_s: float, gets_s: float | None = None) -> None:
        self.puts_again = now() + puts_s
        self.gets_again = now() + (puts_s if gets_s is None else gets_s)


def check(again: float) -> None:
    if now() < again:
        raise Unreachable("nobody serves the store: without a leader")


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    outage, put, get = Outage(), MemoryStore.put, MemoryStore.get

    async def put_if_there(self: MemoryStore, *args: Any, **how: Any) -> Stored:
        check(outage.puts_again)
        return await put(self, *args, **how)

    async def get_if_there(self: MemoryStore, key: str) -> AsyncIterator[bytes]:
        check(outage.gets_again)
        async for chunk in get(self, key):
            yield chunk

    monkeypatch.setattr(MemoryStore, "put", put_if_there)
    monkeypatch.setattr(MemoryStore, "get", get_if_there)
    return outage


def clerk(runs: list[str]) -> Agent:
    agent = Agent("a")

    @agent.capability
    async def write() -> str:
        runs.append("write")
        return LARGE

    @agent.capability
    async def measure(text: str) -> int:
        runs.append("measure")
        return len(text)

    @agent.capability
    async def ask(attempt: Attempt) -> int:
        return len(await attempt.wait_for("text", as_type=str))

    @agent.on("note")
    async def note(body: str) -> None:
        runs.append(f"note of {len(body)}")

    return agent


@staged
async def test_a_finished_result_waits_and_is_worked_out_once(stage: Stage, outage: Outage) -> None:
    runs: list[str] = []
    net = await Net(stage).up(n1=[clerk(runs)])
    outage.begin(20.0)
    task = await net.client.submit("write")
    assert await task.result() == LARGE
    assert runs == ["write"] and len((await task.status())["attempts"]) == 1
    await net.down()


@staged
async def test_a_large_input_is_submitted_and_fetched_late(stage: Stage, outage: Outage) -> None:
    runs: list[str] = []
    net = await Net(stage).up(n1=[clerk(runs)])
    outage.begin(20.0, 40.0)
    task = await net.client.submit("measure", {"text": LARGE})
    assert await task.result() == len(LARGE)
    assert runs == ["measure"] and len((await task.status())["attempts"]) == 1
    await net.down()


@staged
async def test_answers_mail_and_requests_wait_too(stage: Stage, outage: Outage) -> None:
    runs: list[str] = []
    net = await Net(stage).up(n1=[clerk(runs)])
    client = net.client
    task = await client.submit("ask")
    await until(lambda: [known.state for known in net.controller.state.tasks.values()] == [TaskState.INPUT_REQUIRED])
    outage.begin(20.0)
    await task.answer(LARGE)
    assert await task.result() == len(LARGE)
    outage.begin(20.0)
    await client.send("n1/a", LARGE, topic="note", durable=True)
    await until(lambda: runs == [f"note of {len(LARGE)}"])
    outage.begin(20.0)
    assert await client.request("n1/a", {"text": LARGE}, topic="measure") == len(LARGE)
    await net.down()


async def test_files_wait_too(outage: Outage, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"content")
    async with ground() as g:
        client = await g.client()
        outage.begin(1.5, 3.0)
        ref = await client.put_file(path)
        assert (await client.get_file(ref, tmp_path / "copy")).read_bytes() == b"content"


@staged
async def test_a_call_ends_with_what_keeps_it_when_its_time_is_up(stage: Stage, outage: Outage) -> None:
    net = await Net(stage).up(n1=[clerk([])])
    outage.begin(1000.0)
    calls: list[tuple[float, Callable[[], Any]]] = [
        (30.0, lambda: net.client.submit("measure", {"text": LARGE})),
        (2.0, lambda: net.client.request("n1/a", {"text": LARGE}, topic="measure", timeout=2.0)),
        (30.0, lambda: net.client.send("n1/a", LARGE, topic="note", durable=True)),
        (3.0, lambda: net.client.task("t" * 24).answer(LARGE, timeout=3.0)),
    ]
    for limit_s, call in calls:
        began = now()
        with pytest.raises(Unreachable, match="nobody serves the store"):
            await call()
        assert now() - began == pytest.approx(limit_s, abs=0.5)
    await net.down()


@staged
async def test_a_client_that_was_closed_does_not_go_on_trying(stage: Stage, outage: Outage) -> None:
    net = await Net(stage).up(n1=[clerk([])])
    outage.begin(1000.0)
    submitting = asyncio.create_task(net.client.submit("measure", {"text": LARGE}))
    await asyncio.sleep(1.0)
    await net.client.close()
    closed_at = now()
    with pytest.raises((Unreachable, Disconnected)):
        await submitting
    assert now() - closed_at < 1.0
    await net.down()
