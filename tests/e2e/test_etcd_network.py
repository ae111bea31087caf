"""Networks whose log and registry are in etcd, or whose registry is in Consul, typed as a user types it."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from adding import add, user, verdicts
from terminal import Terminal

import comity
from comity.embedded import find_binary
from consuls import Consuls
from etcds import Etcds

__all__ = ["user"]

pytestmark = pytest.mark.server


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Etcds]:
    servers = Etcds(tmp_path / "trio", 3)
    await servers.start()
    yield servers
    await servers.kill()


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_network_on_etcd_outlives_its_servers_and_its_own_end(trio: Etcds, user: Terminal) -> None:
    places = ["--log", trio.address, "--registry", trio.address, "--store", f"file://{user.folder}/store"]
    up, facts = user.up(*places)
    assert facts["durability"] == "verified"
    node = user.node("adder.py", "--name", "n1")
    add(user, 1)
    elsewhere = ["--connect", facts["url"], "--credentials", str(user.data / "client.creds"), "--data", str(user.folder / "none")]
    add(user, 2, *elsewhere)  # a controller tells where the registry is

    await trio.kill(await trio.until_led())
    began = time.monotonic()
    add(user, 3)
    assert time.monotonic() - began < 10

    def is_short_of_one(status: dict[str, Any]) -> bool:
        log = next(group for group in status["groups"] if group["name"] == "log, registry")
        up = sorted(replica["up"] for replica in log["replicas"])
        return up == [False, True, True] and status["survives"]["more"] == 0

    assert user.until(is_short_of_one, "cluster", "status")
    assert not user.until(lambda found: verdicts(found, "etcd").count("wrong") == 1, "doctor")["healthy"]
    await trio.start(*(n for n in range(3) if not trio.runs(n)))

    assert up.stop() == 0
    again, facts = user.up()  # it remembers where its log is
    assert facts["open_tasks"] == 0
    add(user, 4)
    assert user.until(lambda found: found["healthy"], "doctor")
    made = user.ok("backup", "create", "--to", str(user.folder / "kept")).json
    assert made["index"] > 0
    assert node.stop() == 0
    assert again.stop() == 0

    moved = ["--data", str(user.folder / "moved"), "--network", "moved"]
    user.ok("backup", "restore", "--from", str(user.folder / "kept"), *moved, "--log", trio.address)
    assert user.comity("stats", *moved[:2]).error["code"] == "unreachable"  # it was not started yet
    third, _ = user.up(*moved)
    stats = user.ok("stats", *moved).json
    assert (stats["totals"]["completed"], "entry" in stats["restored_from"]) == (4, True)
    (controller,) = user.until(lambda status: status["controllers"], "cluster", "status", *moved)["controllers"]
    assert controller["doors"].keys() == {"log"}
    assert third.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_nothing_accepted_is_lost_while_etcds_servers_die_and_hang(
    trio: Etcds, user: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    up, _ = user.up("--log", trio.address, "--registry", trio.address)
    user.node("adder.py", "--name", "n1", timely=True)
    user.node("adder.py", "--name", "n2", timely=True)
    monkeypatch.setenv("COMITY_DATA_DIR", str(user.data))
    ended: dict[int, float] = {}
    gaps: list[float] = []

    async def submit(net: comity.Client, start: int) -> None:
        n = start
        while len(gaps) < 3:
            task = await net.submit("add", {"a": n, "b": 1}, key=f"k{n}")
            assert await task.result() == n + 1
            ended[n] = time.monotonic()
            n += 16

    async def more(count: int) -> None:
        wanted = len(ended) + count
        async with asyncio.timeout(30):
            while len(ended) < wanted:  # noqa: ASYNC110 (sixteen submitters count)
                await asyncio.sleep(0.01)

    async with comity.connect() as net:
        submitting = asyncio.gather(*(submit(net, start) for start in range(16)))
        await more(100)
        for fault in ("leader killed", "follower paused", "leader paused"):
            leader = await trio.until_led()
            victim = (leader + 1) % 3 if "follower" in fault else leader
            began = time.monotonic()
            if "killed" in fault:
                await trio.kill(victim)
            else:
                trio.signal(signal.SIGSTOP, victim)
            await more(200)
            after = sorted(at for at in ended.values() if at > began)
            gaps.append(max(b - a for a, b in zip([began, *after], after, strict=False)))
            if "killed" in fault:
                await trio.start(victim)
            else:
                trio.signal(signal.SIGCONT, victim)
        await submitting
        totals = (await net.stats())["totals"]
        assert totals["completed"] == totals["submitted"] == len(ended)
    assert max(gaps) < 10, gaps
    assert up.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_a_controller_on_servers_of_others_takes_over(trio: Etcds, user: Terminal) -> None:
    places = ["--log", trio.address, "--registry", trio.address]
    first, facts = user.up(*places)
    user.node("adder.py", "--name", "n1")
    standby = user.start("up", "--connect", facts["url"], "--http-port", "0", *places)
    assert standby.json()["durability"] == "verified"
    add(user, 1)
    first.signal(signal.SIGSTOP)
    try:
        add(user, 2)
        known = user.until(lambda status: status["controllers"], "cluster", "status")["controllers"]
        assert {controller["role"] for controller in known} == {"leader"}
    finally:
        first.signal(signal.SIGCONT)
    add(user, 3)
    assert standby.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_network_that_needs_no_jetstream(etcds: Etcds, user: Terminal, free_port: Callable[[], int]) -> None:
    """A node that was there before any controller asks until one tells where all is."""
    url = f"nats://127.0.0.1:{free_port()}"
    server = subprocess.Popen([find_binary(), "-a", "127.0.0.1", "-p", url.rpartition(":")[2]], stderr=subprocess.DEVNULL)
    here = ["--connect", url, "--network", "plain"]
    try:
        listening = await nats.connect(url)
        asked = await listening.subscribe("cy.plain.topic.controllers.>")
        node = user.start("run", "adder.py", "--name", "n1", *here)
        await asked.next_msg(30.0)
        await listening.close()
        up = user.start(
            "up", *here, "--http-port", "0", "--log", etcds.address, "--registry", etcds.address,
            "--store", f"file://{user.folder}/store",
        )  # fmt: skip
        assert up.json()["durability"] == "verified"
        assert node.json()["node"] == "n1"
        add(user, 1, *here)
        status = user.until(lambda status: status["leader"] and len(status["notes"]) <= 1, "cluster", "status", *here)
        assert [group["name"] for group in status["groups"]] == ["log, registry"]
        assert node.stop() == 0
        assert up.stop() == 0
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow
async def test_a_registry_in_consul(tmp_path: Path, user: Terminal) -> None:
    servers = Consuls(tmp_path / "consul")
    await servers.start()
    try:
        up, facts = user.up("--registry", servers.address)
        node = user.node("adder.py", "--name", "n1")
        add(user, 1)
        creds = str(user.data / "client.creds")
        add(user, 2, "--connect", facts["url"], "--credentials", creds, "--data", str(user.folder / "none"))
        user.until(lambda status: "c0" in json.dumps(status), "cluster", "status")
        assert user.until(lambda found: verdicts(found, "consul") == ["ok"], "doctor")["healthy"]
        async with asyncio.timeout(20):
            while not (passing := servers.ask("GET", "health/service/comity?passing")):  # noqa: ASYNC110 (it is asked)
                await asyncio.sleep(0.05)
        assert [row["Service"]["ID"] for row in passing] == ["comity-main-n1"]
        assert node.stop() == 0
        assert servers.ask("GET", "health/service/comity?passing") == []
        assert up.stop() == 0
    finally:
        await servers.kill()


def test_what_cannot_be_is_refused(user: Terminal, free_port: Callable[[], int]) -> None:
    def refusal(*words: str, env: dict[str, str] | None = None) -> tuple[str, str]:
        *told, last = user.comity("up", "--port", "0", *words, "--output", "json", env=env).err.splitlines()
        assert all("cannot begin yet" in line for line in told)  # a server that is not there may be starting too
        error = json.loads(last)["error"]
        return error["code"], error["message"]

    nowhere = f"etcd://127.0.0.1:{free_port()}"
    cases: list[tuple[list[str], dict[str, str], str, str]] = [
        (["--log", "http://h"], {}, "bad-settings", "the log can be at etcd://"),
        (["--store", "gs://h"], {}, "bad-settings", "the store can be at file://"),
        (["--servers", "3", "--log", nowhere], {}, "bad-settings", "a cluster of own servers"),
        (["--log", nowhere], {"COMITY_FSYNC": "false"}, "bad-settings", "without fsync"),
        (["--registry", nowhere], {}, "unreachable", "no etcd answers"),
        ([], {"COMITY_DOORS": "bus=amqp://h"}, "bad-settings", "'bus' is no door"),
    ]
    for n, (words, env, code, why) in enumerate(cases):
        found, message = refusal("--data", str(user.folder / f"d{n}"), *words, env=env)
        assert (found, why in message) == (code, True), message


async def test_a_network_is_not_moved_in_place(etcds: Etcds, user: Terminal) -> None:
    up, _ = user.up()
    assert up.stop() == 0
    error = user.comity("up", "--port", "0", "--log", etcds.address, "--output", "json").error
    assert (error["code"], "To move" in error["message"]) == ("bad-settings", True)
