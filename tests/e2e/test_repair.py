"""What is out of rotation stays so, whatever happens, and nothing accepted is lost by it: real processes, a real server."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal, terminal
from town import LIMIT_S, Story, Town, kill, story

from conftest import need_server

pytestmark = pytest.mark.server
FICKLE = '''
import pathlib
from comity import Agent

bad, good = Agent("bad"), Agent("good", concurrency=2)

def broken() -> int:
    if not pathlib.Path("mended").exists():
        raise ConnectionError("the line is dead")
    return 1

bad.capability(name="call")(broken)

@good.capability(name="call")
async def call() -> int:
    return 1

agents = [bad, good]
'''


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    async with Town(tmp_path) as town:
        yield town


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path) as user:
        yield user


async def test_a_drained_node_stays_so_when_it_and_the_leader_start_again(town: Town) -> None:
    up = await town.up()
    await town.hire("n1")
    net = await town.client()
    first = await net.submit("work", {"number": 1, "seconds": 0.5})
    async with story(net) as told:
        await told.until(lambda event: event["type"] == "task.started")
        drained = await net.node("n1").drain("a new disk", wait=True)
        assert drained["attempts"] == 0 and await first.result() == 1, "what ran there ended there"
        later = await net.submit_many("work", [{"number": n, "seconds": 0.01} for n in range(2, 22)])
        await kill(up)
        await kill(town.nodes["n1"])
        await town.up()
        await town.hire("n1", "n2")
        async with asyncio.timeout(LIMIT_S):
            assert [await task.result() for task in later] == [n * n for n in range(2, 22)]
        assert {name for names in list(town.runs().values())[1:] for name in names} <= {"n2/a", "n2/b"}
        (row,) = [row for row in await net.nodes() if row["id"] == "n1"]
        assert (row["state"], row["aside"]["reason"], row["attempts"]) == ("draining", "a new disk", 0)
        await net.node("n1").resume()
        await net.node("n2").drain()
        assert await (await net.submit("work", {"number": 30, "seconds": 0.01})).result() == 900
        assert town.runs()[30][0].startswith("n1/")
        await told.until(lambda event: event["type"] == "node.resumed")


async def test_an_isolated_nodes_work_ends_elsewhere_and_once(town: Town) -> None:
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    async with story(net) as told:
        tasks = await net.submit_many("work", [town.held(n) if n < 16 else {"number": n, "seconds": 0.1} for n in range(60)])
        long = {task.id for task in tasks[:16]}
        await told.until(lambda event: event["type"] == "task.started" and event["node"] == "n1" and event["task"] in long)
        isolated = await net.node("n1").isolate("it lies")
        assert isolated["attempts"] == 0
        town.let_go()
        async with asyncio.timeout(LIMIT_S):
            assert [await task.result() for task in tasks] == [n * n for n in range(60)]
        await told.until(lambda _: len(told.count("task.completed")) == 60)
        assert set(told.count("task.completed").values()) == {1}
        moved = [event for event in told.told if event["type"] == "task.requeued"]
        assert moved and {event["reason"] for event in moved} == {"node n1 was isolated"}
        assert await net.request("n1/a", 0.0, topic="ask") == "a", "it can still be looked at"
    (row,) = [row for row in await net.nodes() if row["id"] == "n1"]
    assert (row["state"], row["reason"]) == ("isolated", "it lies")


async def test_an_agent_that_keeps_failing_rests_and_nothing_is_lost(town: Town) -> None:
    town.env |= {"COMITY_BREAKER_FAILURES": "3", "COMITY_BREAKER_OPEN_S": "0.3"}
    await town.up()
    (town.folder / "crew.py").write_text(FICKLE)
    await town.hire("n1")
    net = await town.client()
    async with story(net) as told:
        tasks = await net.submit_many("call", [None] * 60, retries=20)
        async with asyncio.timeout(LIMIT_S):
            assert [await task.result() for task in tasks] == [1] * 60
        broken = await told.until(lambda event: event["type"] == "agent.broken")
        assert (broken["agent"], broken["capability"]) == ("n1/bad", "call")
        assert "ConnectionError: the line is dead" in broken["reason"]
        (town.folder / "mended").touch()
        async with asyncio.timeout(LIMIT_S):
            while not any(event["type"] == "agent.mended" for event in told.told):
                await asyncio.gather(*[task.result() for task in await net.submit_many("call", [None] * 20)])
        assert any(event["type"] == "agent.probing" for event in told.told)


async def test_a_node_that_hangs_is_seen_by_nobody(town: Town) -> None:
    town.env["COMITY_LEASE_S"] = "20"
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    reasons: list[str] = []
    async with story(net) as told, asyncio.timeout(LIMIT_S):
        while "n2: not seen by n1 either" not in reasons:  # a witness that is late itself is not waited for
            past = len(told.told)
            town.nodes["n2"].send_signal(signal.SIGSTOP)
            try:
                reasons.append((await news(told, past, "node.unseen"))["reason"])
            finally:
                town.nodes["n2"].send_signal(signal.SIGCONT)
            await news(told, past, "node.alive")


async def news(told: Story, past: int, kind: str) -> dict[str, Any]:
    """The first such event about n2 after ``past`` others."""
    return await told.until(lambda event: event["type"] == kind and event["node"] == "n2" and event not in told.told[:past])


@pytest.mark.slow
def test_nodes_are_set_aside_by_command(user: Terminal) -> None:
    user.up()
    user.node(str(Path(__file__).parents[2] / "examples" / "hello.py"), "--name", "hello")
    drained = user.ok("nodes", "drain", "hel", "--reason", "a new disk", "--wait").json
    assert (drained["state"], drained["attempts"]) == ("draining", 0)
    task = user.ok("submit", "greet", '{"name": "Ada"}', "--no-wait").json["id"]
    assert "no live agent offers greet" in user.ok("tasks", "show", task).json["reason"]
    listed = user.ok("nodes", "list", "-o", "table").out
    assert "draining" in listed and "ago a new disk" in listed
    shown = user.ok("nodes", "show", "hello", "-o", "table").out
    assert "draining since 20" in shown and "a new disk" in shown
    assert user.ok("nodes", "isolate", "hello", "-o", "table").out == "hello is isolated; its work moved\n"
    checks = user.until(lambda found: found["healthy"], "doctor")["checks"]
    assert [check["found"] for check in checks if check["check"] == "rotation"] == ["hello is isolated"]
    assert user.ok("nodes", "resume", "hello", "-o", "table").out == "hello takes work again\n"
    assert user.ok("tasks", "watch", task).lines[-1]["type"] == "task.completed"
    told = [event["type"] for event in user.ok("events").lines if event["type"].startswith("node.") and event["index"]]
    assert told == ["node.joined", "node.draining", "node.isolated", "node.resumed"]
    assert user.comity("nodes", "drain", "nobody").error["code"] == "unknown-node"


def test_the_doctor_compares_nodes_with_the_leader(user: Terminal) -> None:
    user.up()
    user.env |= {"COMITY_BEACON_S": "1.4", "COMITY_LEASE_S": "9"}
    user.node(str(Path(__file__).parents[2] / "examples" / "hello.py"), "--name", "hello")
    fine = ("nodes' clocks", "versions", "server's disk", "room", "rotation")
    wanted = {**dict.fromkeys(fine, "ok"), "lease, beacons": "wrong"}.items()
    found = user.until(lambda found: wanted <= {one["check"]: one["verdict"] for one in found["checks"]}.items(), "doctor")
    assert not found["healthy"]
    checks = {check["check"]: check for check in found["checks"]}
    assert "hello sends one every 1.4 s" in checks["lease, beacons"]["found"]
    assert "beacon_s is 1.4 here, 0.5 there" in checks["same settings"]["found"]
