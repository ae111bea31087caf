"""Agents are found, watched and called while processes and servers die: real processes, a real server."""

from __future__ import annotations

import asyncio
import json
import shlex
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from terminal import Terminal, terminal
from town import LIMIT_S, Town

from comity import Client
from comity.errors import PeerLost
from comity.model.capability import AgentRecord
from conftest import need_server, pause

pytestmark = pytest.mark.server


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    async with Town(tmp_path) as town:
        yield town


async def begun(town: Town, number: int) -> str:
    """The node at which a call runs, once it does."""
    async with asyncio.timeout(LIMIT_S):
        while number not in town.runs():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
    return town.runs()[number][-1].partition("/")[0]


class Watcher:
    """Everybody who is here, as a watch tells it."""

    def __init__(self, net: Client) -> None:
        self.here: set[str] = set()
        self.told: list[tuple[str, str]] = []
        self._news = asyncio.Event()
        self._work = asyncio.create_task(self._follow(net))

    async def _follow(self, net: Client) -> None:
        async for what, record in net.watch():
            if isinstance(record, AgentRecord):
                assert (record.id in self.here) == (what != "joined"), (what, record.id)
                (self.here.discard if what == "left" else self.here.add)(record.id)
                self.told.append((what, record.id))
                self._news.set()

    async def until(self, true: Callable[[], bool]) -> None:
        async with asyncio.timeout(LIMIT_S):
            while not true():
                await self._news.wait()
                self._news.clear()

    async def stop(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])


@pytest.mark.slow
async def test_a_watch_misses_nothing_when_servers_are_killed(town: Town) -> None:
    up = await town.up()
    net, other = await town.client(), await town.client()
    await net.discover()
    watcher = Watcher(net)
    await town.hire("n1")
    await watcher.until(lambda: watcher.here == {"n1/a", "n1/b"})
    for hired, fired in (("n2", "n1"), ("n3", "n2")):
        (server,) = psutil.Process(up.pid).children()
        server.kill()
        town.nodes[fired].kill()  # while nobody can hear of it
        await town.hire(hired)
        expected = {f"{hired}/a", f"{hired}/b"}
        await watcher.until(lambda expected=expected: watcher.here == expected)  # type: ignore[misc]
    joined = [agent for what, agent in watcher.told if what == "joined"]
    left = [agent for what, agent in watcher.told if what == "left"]
    assert sorted(joined) == [f"n{n}/{name}" for n in (1, 2, 3) for name in "ab"], "each once"
    assert sorted(left) == [f"n{n}/{name}" for n in (1, 2) for name in "ab"]
    assert {agent.id for agent in await other.discover()} == watcher.here
    await watcher.stop()


@pytest.mark.slow
async def test_a_repeatable_call_outlives_its_node_and_any_other_does_not(town: Town) -> None:
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    for number, repeatable in ((1, True), (2, False)):
        work = town.held(number) if repeatable else {"number": number, "seconds": 600.0}
        call = asyncio.create_task(net.request("work", work, repeatable=repeatable))
        node = await begun(town, number)
        town.nodes[node].kill()
        if repeatable:
            town.let_go()
            assert await asyncio.wait_for(call, LIMIT_S) == 1
            assert len({agent.partition("/")[0] for agent in town.runs()[1]}) == 2
            await town.nodes[node].wait()
            await town.hire(node)
        else:
            with pytest.raises(PeerLost):
                await asyncio.wait_for(call, LIMIT_S)
    assert len(town.runs()[2]) == 1


@pytest.mark.slow
async def test_a_hedged_call_does_not_wait_for_a_node_that_hangs(town: Town) -> None:
    town.env["COMITY_LEASE_S"] = "20"
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    call = asyncio.create_task(net.request("work", town.held(3), repeatable=True, hedge_s=0.3))
    node = await begun(town, 3)
    await pause(town.nodes[node].pid)
    town.let_go()
    try:
        assert await asyncio.wait_for(call, 15.0) == 9, "before its node is given up"
    finally:
        town.nodes[node].send_signal(signal.SIGCONT)
    assert {agent.partition("/")[0] for agent in town.runs()[3]} == {"n1", "n2"}
    measured = await net.performance("work")
    assert [row["success"] for row in measured.values() if row["samples"]] == [1.0]


@pytest.mark.slow
async def test_a_key_goes_to_one_agent_and_the_catalogue_tells_what_was_measured(town: Town) -> None:
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    for number in range(10, 20):
        await net.request("work", {"number": number, "seconds": 0.0}, sticky="ada")
        task = await net.submit("work", {"number": number + 100, "seconds": 0.0}, sticky="ada")
        await task.result()
    agents = {agent for runs in town.runs().values() for agent in runs}
    assert len(agents) == 1
    (row,) = await net.capabilities()
    assert (row["name"], row["agents"], row["active"], row["samples"], row["success"]) == ("work", 4, 4, 20, 1.0)
    assert 0 < row["p50_ms"] <= row["p95_ms"] < 10_000
    assert row["per_s"] > 0
    best = (await net.discover("work", order_by="latency"))[0]
    assert {best.id} == agents
    assert (await net.stats())["per_capability"][0]["name"] == "work"


LAB = '''
import os
from dataclasses import dataclass
from pathlib import Path
from comity import Agent

@dataclass
class Sample:
    name: str
    weights: list[float]

def lab(name, gpu):
    agent = Agent(name, tags={"lab"}, region="eu", labels={"floor": name[-1]}, resources={"gpu": gpu})

    @agent.capability(version="1.4")
    async def analyse(sample: Sample, times: int) -> dict[str, float]:
        """Weigh a sample."""
        return {"total": sum(sample.weights) * times}

    @agent.health
    async def how():
        return not Path(os.environ["ILL"]).exists() or name != "lab-1"

    return agent

agents = [lab("lab-1", 0), lab("lab-2", 2)]
'''


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path_factory.mktemp("lab")) as user:
        user.env |= {"ILL": str(user.folder / "ill"), "COMITY_HEALTH_S": "0.1"}
        (user.folder / "lab.py").write_text(LAB)
        user.up()
        user.node("lab.py", "--name", "n1")
        yield user


def found(user: Terminal, *words: str) -> list[str]:
    rows: list[dict[str, Any]] = user.ok("agents", "find", *words).json
    return [row["id"] for row in rows]


def test_agents_are_found_by_what_they_have(user: Terminal) -> None:
    assert found(user, "analyse>=1.2", "--tag", "lab", "--region", "eu") == ["n1/lab-1", "n1/lab-2"]
    assert found(user, "--need", "gpu=1") == ["n1/lab-2"]
    assert found(user, "--label", "floor=1", "--any-tag", "lab", "--any-tag", "x") == ["n1/lab-1"]
    assert found(user, "analyse>=2") == []
    assert user.comity("agents", "find", "--need", "gpu").error["code"] == "bad-input"
    assert user.comity("agents", "find", "--need", "gpu=few").error["code"] == "bad-input"
    assert user.comity("agents", "find", "--order-by", "latency").error["code"] == "bad-input"


def test_the_example_call_of_a_capability_can_be_typed(user: Terminal) -> None:
    (row,) = user.ok("capabilities", "list").json
    assert (row["name"], row["versions"], row["agents"], row["description"]) == ("analyse", ["1.4"], 2, "Weigh a sample.")
    known = user.ok("capabilities", "show", "analyse").json
    program, *words = shlex.split(known["call"])
    assert program == "comity"
    assert user.ok(*words).json == {"total": 1.5}
    shown = user.ok("capabilities", "show", "analyse", "-o", "table").out
    for text in ("Weigh a sample.", "{sample: Sample, times: integer}", "for example", known["call"], "p50", "n1/lab-1"):
        assert text in shown
    assert user.comity("capabilities", "show", "nothing").error["code"] == "unknown-capability"
    value = json.dumps(known["example"])
    asked = user.ok("send", "analyse", value, "--repeatable", "--hedge", "5", "--sticky", "ada", "--strategy", "power_of_two")
    assert asked.json == {"total": 1.5}
    best = user.ok("agents", "find", "analyse", "--order-by", "latency", "--limit", "1").json
    assert best[0]["samples"] >= 1
    assert "analyse" in user.ok("stats", "-o", "table").out


def test_an_agent_that_is_ill_is_seen_so_and_gets_no_work_until_it_is_well(user: Terminal) -> None:
    def are_ill(*agents: str) -> None:
        user.until(lambda rows: [row["id"] for row in rows] == [*agents], "agents", "find", "--status", "unhealthy")

    watching, ill = user.start("agents", "watch", timely=True), user.folder / "ill"
    assert found(user, "--status", "active") == ["n1/lab-1", "n1/lab-2"]
    while watching.is_silent:  # it does not say when it has begun to watch
        ill.touch()
        are_ill("n1/lab-1")
        ill.unlink()
        are_ill()
    ill.touch()
    changed = watching.until(lambda seen: seen.get("status") == "unhealthy")
    assert (changed["what"], changed["id"]) == ("changed", "n1/lab-1")
    are_ill("n1/lab-1")
    user.until(lambda numbers: numbers["agents"] == {"active": 1, "unhealthy": 1}, "stats")  # the leader sees it by itself
    value = json.dumps({"sample": {"name": "x", "weights": [1]}, "times": 2})
    refused = user.comity("submit", "analyse", value, "--require", "agent=n1/lab-1", "--no-queue")
    assert refused.error["code"] == "no-agent"
    ill.unlink()
    assert watching.until(lambda seen: seen.get("status") == "active")["id"] == "n1/lab-1"
    assert user.ok("submit", "analyse", value, "--require", "agent=n1/lab-1").json == {"total": 2.0}
    assert watching.stop() == 130
