"""What happens when processes die or hang, under load: real processes, a real server, a real disk. Nothing accepted is lost."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest
from town import LIMIT_S, Story, Town, kill, story

from comity import Client, Task
from comity.contexts import Context
from comity.embedded import EmbeddedServer
from comity.errors import PeerLost, UnknownAgent
from conftest import need_server

pytestmark = pytest.mark.server
BATCH = 50


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    async with Town(tmp_path) as town:
        yield town


class Stream:
    """Somebody who submits without end, until told to stop; each accepted task and its number."""

    def __init__(self, net: Client, seconds: float) -> None:
        self.accepted: dict[int, Task] = {}
        self._net = net
        self._seconds = seconds
        self._over = False
        self._work = asyncio.create_task(self._submit())

    async def _submit(self) -> None:
        number = 0
        while not self._over:
            inputs = [{"number": n, "seconds": self._seconds} for n in range(number, number + BATCH)]
            tasks = await self._net.submit_many("work", inputs)
            self.accepted.update(zip(range(number, number + BATCH), tasks, strict=True))
            number += BATCH
            await asyncio.wait([asyncio.create_task(tasks[0].result())])  # some go ahead of the workers, not all

    async def reaches(self, count: int) -> None:
        async with asyncio.timeout(LIMIT_S):
            while len(self.accepted) < count:
                await asyncio.wait([self._work], timeout=0.01)
                assert not self._work.done(), self._work.result()

    async def end(self) -> dict[int, object]:
        """Stop, and the results by number. No submit has failed."""
        self._over = True
        await self._work
        async with asyncio.timeout(LIMIT_S):
            results = await asyncio.gather(*(task.result() for task in self.accepted.values()))
        return dict(zip(self.accepted, results, strict=True))


async def check(net: Client, told: Story, results: dict[int, object]) -> None:
    """Every accepted task has the right result, and ended once."""
    assert results == {number: number * number for number in results}
    totals = (await net.stats())["totals"]
    assert (totals["submitted"], totals["completed"]) == (len(results), len(results))
    assert (totals["failed"], totals["canceled"]) == (0, 0)
    ends = told.count("task.completed")
    if len(ends) < len(results):
        await told.until(lambda _: len(told.count("task.completed")) == len(results))
    assert set(told.count("task.completed").values()) == {1}


async def test_a_killed_nodes_tasks_end_elsewhere_and_once(town: Town) -> None:
    town.env["COMITY_LEASE_S"] = "20"
    await town.up()
    await town.hire("n1", "n2", "n3")
    net = await town.client()
    async with story(net) as told:
        stream = Stream(net, 0.2)
        await stream.reaches(4 * BATCH)
        long = stream.accepted[-1] = await net.submit("work", town.held(-1))
        began = await told.until(lambda event: event["type"] == "task.started" and event["task"] == long.id)
        town.nodes[began["node"]].kill()
        killed = time.perf_counter()
        gone = await told.until(lambda event: event["type"] == "node.evicted")
        noticed_s = time.perf_counter() - killed
        town.let_go()
        at = len(stream.accepted)
        await stream.reaches(at + 4 * BATCH)
        await check(net, told, await stream.end())
    assert (gone["node"], gone["reason"]) == (began["node"], "its process is gone")
    assert noticed_s < 10.0, "not by the end of its lease"
    assert told.count("task.retrying")[long.id] + told.count("task.requeued")[long.id] > 0, "it had nothing to lose"


async def test_a_killed_server_costs_only_time(town: Town) -> None:
    up = await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    async with story(net) as told:
        stream = Stream(net, 0.02)
        await stream.reaches(4 * BATCH)
        for _ in range(2):
            (server,) = psutil.Process(up.pid).children()
            server.kill()
            await stream.reaches(len(stream.accepted) + 4 * BATCH)
        await check(net, told, await stream.end())
        stats = await net.stats()
    assert up.returncode is None
    assert (stats["nodes"]["alive"], stats["totals"]["evictions"], stats["totals"]["retries"]) == (2, 0, 0)
    assert set(map(len, town.runs().values())) == {1}, "the nodes went on: nothing had to be done again"


async def test_a_killed_network_goes_on_with_what_it_had_accepted(
    town: Town, free_port: Callable[[], int]
) -> None:
    port = free_port()
    up = await town.up(port)
    await town.hire("n1", "n2")
    net = await town.client()
    stream = Stream(net, 0.05)
    await stream.reaches(4 * BATCH)
    waiting = await net.submit("unknown_as_yet", {"text": "x" * 5000})
    await kill(up)
    at = len(stream.accepted)
    began = time.perf_counter()
    await town.up(port)
    await stream.reaches(at + BATCH)
    again_s = time.perf_counter() - began
    async with story(net) as told:
        await stream.reaches(at + 4 * BATCH)
        results = await stream.end()
        await told.until(lambda _: len(told.count("task.completed")) == len(results))
        assert set(told.count("task.completed").values()) == {1}
    assert results == {number: number * number for number in results}
    other = await town.client()
    assert (await other.task(waiting.id).status())["state"] == "submitted"
    assert (await other.stats())["totals"]["completed"] == len(results)
    assert set(map(len, town.runs().values())) == {1}, "what ran went on, and its reports counted"
    assert again_s < 15.0


@pytest.mark.slow
async def test_a_paused_nodes_reports_come_too_late_and_it_comes_back(town: Town) -> None:
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    async with story(net) as told:
        tasks = await net.submit_many("work", [town.held(n) for n in range(8)])
        await told.until(lambda _: len(told.count("task.started")) == len(tasks))
        first = await told.until(lambda event: event["type"] == "node.joined" and event["node"] == "n1")
        held = [event["task"] for event in told.told if event["type"] == "task.started" and event["node"] == "n1"]
        assert held
        stopped = time.time()
        town.nodes["n1"].send_signal(signal.SIGSTOP)
        gone = await told.until(lambda event: event["type"] == "node.evicted" and event["node"] == "n1")
        assert gone["at"] / 1000 - stopped < 15.0, "by the end of its lease"
        town.let_go()
        assert await asyncio.gather(*(task.result() for task in tasks)) == [n * n for n in range(8)]
        town.nodes["n1"].send_signal(signal.SIGCONT)
        late = await told.until(lambda event: event["type"] == "report.rejected" and event.get("node") == "n1")
        assert late["task"] in held
        await told.until(lambda event: event["type"] == "node.joined" and event["node"] == "n1" and event is not first)
        more = await net.submit_many("work", [{"number": n, "seconds": 0.2} for n in range(100, 132)])
        assert await asyncio.gather(*(task.result() for task in more)) == [n * n for n in range(100, 132)]
        await told.until(lambda _: len(told.count("task.completed")) == len(tasks) + len(more))
        assert set(told.count("task.completed").values()) == {1}
        assert [e for e in told.told if e["type"] == "task.started" and e["node"] == "n1" and e["task"] not in held]
    for task in held:
        attempts = (await net.task(task).status())["attempts"]
        assert [(a["node"], a["ending"]) for a in attempts] == [("n1", "evicted"), ("n2", "completed")]
        assert attempts[0]["epoch"] < attempts[1]["epoch"]


@pytest.mark.slow
async def test_a_node_told_to_stop_loses_nothing(town: Town) -> None:
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    async with story(net) as told:
        stream = Stream(net, 0.3)
        await stream.reaches(2 * BATCH)
        await told.until(lambda event: event["type"] == "task.started" and event["node"] == "n1")
        town.nodes["n1"].terminate()
        assert await asyncio.wait_for(town.nodes["n1"].wait(), LIMIT_S) == 0
        await told.until(lambda event: event["type"] == "node.left")
        await stream.reaches(len(stream.accepted) + 2 * BATCH)
        await check(net, told, await stream.end())
        stats = await net.stats()
    assert (stats["totals"]["retries"], stats["totals"]["evictions"]) == (0, 0)
    assert set(map(len, town.runs().values())) == {1}, "nothing began twice"


async def test_a_call_to_a_killed_node_ends_in_a_typed_error(town: Town) -> None:
    town.env["COMITY_LEASE_S"] = "20"
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    assert await net.request("n1/a", 0.0, topic="ask") == "a"
    waiting = [asyncio.create_task(net.request("n1/a", LIMIT_S, topic="ask", timeout=LIMIT_S)) for _ in range(3)]
    assert await net.request("n1/b", 0.0, topic="ask") == "b", "those before it have arrived"
    began = time.perf_counter()
    town.nodes["n1"].kill()
    for call in waiting:
        with pytest.raises(PeerLost, match="n1/a"):
            await call
    assert time.perf_counter() - began < 10.0, "not by the end of its lease"
    took_s = []
    for _ in range(5):
        began = time.perf_counter()
        with pytest.raises((PeerLost, UnknownAgent), match="n1/b"):
            await net.request("n1/b", 0.0, topic="ask", timeout=LIMIT_S)
        took_s.append(time.perf_counter() - began)
    assert min(took_s) < 1.0
    assert await net.request("n2/a", 0.0, topic="ask") == "a"


async def test_a_standby_leads_when_the_leader_is_killed(town: Town) -> None:
    server = await EmbeddedServer.start(town.data, network="main", port=0)
    try:
        context = Context(urls=(server.url,), authority=str(server.data))
        context.write_local(town.data)
        first = await town.rule(server, "k1")
        await said(first, "leads")
        second = await town.rule(server, "k2")
        await town.hire("n1", "n2")
        net = await town.client()
        async with story(net) as told:
            stream = Stream(net, 0.05)
            await stream.reaches(4 * BATCH)
            first.kill()
            killed = time.perf_counter()
            await said(second, "leads")
            led_s = time.perf_counter() - killed
            at = len(stream.accepted)
            await stream.reaches(at + 4 * BATCH)
            await check(net, told, await stream.end())
            stats = await net.stats()
        assert (stats["leader"], stats["term"], stats["nodes"]["alive"]) == ("k2", 2, 2)
        assert (stats["totals"]["evictions"], stats["totals"]["retries"]) == (0, 0)
        assert set(map(len, town.runs().values())) == {1}, "what ran went on"
        assert led_s < 15.0
        print(f"led after {led_s:.3f} s")
        for process in (*town.nodes.values(), second):
            await kill(process)
    finally:
        await server.stop()


async def said(process: asyncio.subprocess.Process, word: str) -> None:
    """Wait until a controller says it."""
    assert process.stdout is not None
    line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
    assert word in json.loads(line)
