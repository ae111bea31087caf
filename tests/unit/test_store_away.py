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
from comity.errors import Disconnected, TaskCanceled, TaskFailed, Unreachable
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
    outage.begin(20.0, 28.0)
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
        (27.0, lambda: net.client.submit("measure", {"text": LARGE})),
        (2.0, lambda: net.client.request("n1/a", {"text": LARGE}, topic="measure", timeout=2.0)),
        (27.0, lambda: net.client.send("n1/a", LARGE, topic="note", durable=True)),
        (2.7, lambda: net.client.task("t" * 24).answer(LARGE, timeout=3.0)),
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


@staged
async def test_a_result_that_waits_is_not_stuck(stage: Stage, outage: Outage) -> None:
    net = await Net(stage).up(n1=[clerk([])])
    outage.begin(20.0)
    assert await (await net.client.submit("write", progress_timeout_s=3.0)).result() == LARGE
    await net.down()


@staged
async def test_what_cannot_begin_here_goes_elsewhere(stage: Stage, outage: Outage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One node cannot read the store, the other can."""
    runs: list[str] = []
    net = await Net(stage).up(n1=[clerk(runs)])
    read = MemoryStore.get

    async def get_but_there(self: MemoryStore, key: str) -> AsyncIterator[bytes]:
        if self is stage.nodes[0].attempts._store:
            raise Unreachable("no way from here")
        async for chunk in read(self, key):
            yield chunk

    monkeypatch.setattr(MemoryStore, "get", get_but_there)
    task = await net.client.submit("measure", {"text": LARGE})
    await until(lambda: task.id in stage.nodes[0].attempts.running)
    await net.join("n2", [clerk(runs)])
    began = now()
    assert await task.result() == len(LARGE)
    assert now() - began < 15.0 and runs == ["measure"]
    first, second = (await task.status())["attempts"]
    assert (first["ending"], second["node"]) == ("refused", "n2")
    assert any("no way from here" in event.get("reason", "") for event in [each async for each in task.events(after=0)])
    await net.down()


@staged
async def test_a_time_out_while_a_result_waits_says_what_it_waited_for(stage: Stage, outage: Outage) -> None:
    net = await Net(stage).up(n1=[clerk([])])
    outage.begin(100.0)
    with pytest.raises(TaskFailed, match=r"without the store \(nobody serves the store"):
        await (await net.client.submit("write", attempt_timeout_s=5.0, retries=0)).result()
    await net.down()


@staged
async def test_an_attempt_that_is_over_keeps_nothing(stage: Stage, outage: Outage) -> None:
    """Its function gives what it has when it is told to stop."""
    agent = Agent("a")

    @agent.capability
    async def linger() -> str:
        try:
            await asyncio.sleep(1000.0)
        except asyncio.CancelledError:
            return LARGE
        return ""

    net = await Net(stage).up(n1=[agent])
    outage.begin(1000.0)
    task = await net.client.submit("linger")
    attempts = stage.nodes[0].attempts
    await until(lambda: any(running.began_at for running in attempts.running.values()))
    await asyncio.sleep(0.5)
    await task.cancel()
    await until(lambda: not attempts.running)
    stopped_at = now()
    await until(lambda: not attempts.lingering)
    assert now() - stopped_at < 1.0
    with pytest.raises(TaskCanceled):
        await task.result()
    await net.down()
