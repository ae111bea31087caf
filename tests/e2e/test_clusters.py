"""Clusters as a user runs them: three ``comity up`` on loopback, faults and planned stops under load."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from test_faults import BATCH, Stream, check
from town import LIMIT_S, kill, story
from trio import Trio

import comity
from comity import Client
from comity.cli.cluster import new_token
from comity.cli.place import take_place
from comity.cluster.membership import Member
from comity.config import Settings
from comity.embedded import find_binary
from comity.errors import AccessDenied, ComityError, Conflict, Indefinite
from conftest import need_server

pytestmark = [pytest.mark.server, pytest.mark.slow, pytest.mark.timeout(180)]
ORPHAN_S = 4
ORPHANED_S = ORPHAN_S + 5
"""After so long without a majority the leader has given way, and the nodes that heard it only have stopped their work."""


@pytest.fixture
async def trio(tmp_path: Path) -> AsyncIterator[Trio]:
    need_server()
    async with Trio(tmp_path) as trio:
        yield trio


class Waits:
    """Somebody who asks for one thing after the other, and notes how long the longest took to be accepted."""

    def __init__(self, net: Client) -> None:
        self.longest_s = 0.0
        self._net = net
        self._over = False
        self._work = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        while not self._over:
            began = time.perf_counter()
            await self._net.submit("work", {"number": -1, "seconds": 0.0})
            self.longest_s = max(self.longest_s, time.perf_counter() - began)

    async def end(self) -> float:
        self._over = True
        await self._work
        return self.longest_s


async def refused(trio: Trio, token: str, kind: type[ComityError], words: str) -> None:
    """One that joins with ``token`` is told no, in these words."""
    settings = Settings(data_dir=trio.folder / "d", port=0)
    with pytest.raises(kind, match=words):
        await take_place(settings, servers=None, token=token)
    assert not settings.data_dir.exists()


async def test_a_killed_leader_costs_seconds_and_no_task(trio: Trio) -> None:
    await trio.form()
    code, out, err = await trio.comity(*trio.typed("d")[2:], "--join", trio.tokens[0])
    assert (code, out, json.loads(err)["error"]["code"]) == (4, "", "access-denied")
    known = Member.load(trio.folder / "a")
    assert known is not None
    await refused(trio, trio.tokens[1], AccessDenied, "used already")
    await refused(trio, new_token(trio.folder / "a", known, -1.0), AccessDenied, "expired")
    await refused(trio, new_token(trio.folder / "b", Member.load(trio.folder / "b") or known), Conflict, "all its 3 servers")
    victim = trio.leading(await trio.until_whole())
    trio.use(next(name for name in "abc" if name != victim))
    await trio.lead_log_elsewhere(victim)
    await trio.hire("n1", "n2")
    net = await trio.client()
    async with story(net) as told:
        stream = Stream(net, 0.05)
        await stream.reaches(4 * BATCH)
        at = len(stream.accepted)
        killed = time.perf_counter()
        await kill(trio.ups[victim].process)
        await stream.reaches(at + 2 * BATCH)
        stop_s = time.perf_counter() - killed
        status = await trio.until(lambda status: len(status["controllers"]) == 2 and status["survives"]["more"] == 0)
        assert status["term"] >= 2
        await trio.again(victim)
        await stream.reaches(len(stream.accepted) + 4 * BATCH)
        await check(net, told, await stream.end())
    await trio.until_whole(controllers=3)
    print(f"stopped for {stop_s:.2f} s")
    assert stop_s < 5.0, "the log's leader lives: it takes a new controller, not an election of the servers"


async def last_known(trio: Trio, *words: str) -> str:
    """What is said of tasks without a leader, by a controller that answers within its half second."""
    async with asyncio.timeout(LIMIT_S):
        while (said := await trio.comity("tasks", *words, "--last-known"))[0]:
            assert "no controller answers" in said[2], said
    assert said[2] == ""
    return said[1]


async def test_without_a_majority_nothing_is_accepted_and_what_was_goes_on_when_it_is_back(trio: Trio) -> None:
    trio.env["COMITY_ORPHAN_S"] = str(ORPHAN_S)
    await trio.form()
    left = trio.leading(await trio.until_whole())  # it goes on to believe that it leads
    first, second = sorted(trio.ups.keys() - {left})
    trio.use(left)
    await trio.hire("n1")
    loaded = Settings.load({"data_dir": trio.data, "submit_timeout_s": 6.0}, env={}, cwd=trio.folder)
    async with comity.connect(settings=loaded) as net:
        long = await net.submit("work", {"number": 1, "seconds": 600.0})
        while 1 not in trio.runs():
            await asyncio.wait([asyncio.create_task(long.status())])
        waiting = await net.submit("work", {"number": 2, "seconds": 0.0}, in_s=6.0)
        for name in (first, second):
            await kill(trio.ups[name].process)
        cut = time.time()
        with pytest.raises(Indefinite):
            await net.submit("work", {"number": 3, "seconds": 0.0})
        known: dict[str, Any] = {"age_s": 0.0}
        while known["age_s"] < ORPHANED_S:
            known = json.loads(await last_known(trio, "list", "-o", "json"))
            assert {task["id"] for task in known["known"]} == {long.id, waiting.id}
            assert 0 < known["age_s"] < time.time() - cut + 8
        out = await last_known(trio, "show", long.id, "-o", "table")
        assert "this was known" in out and "working" in out
        await trio.again(first)
        assert await waiting.result(timeout=LIMIT_S) == 4
        async with asyncio.timeout(LIMIT_S):
            while len(trio.runs()[1]) < 2:  # the node stopped it by itself, and handed it back
                await asyncio.wait([asyncio.create_task(long.status())])
        await long.cancel()


async def test_servers_restart_in_turn_and_clients_see_a_delay_only(trio: Trio) -> None:
    """With TLS, as beyond loopback. Each server hands over what it leads before it stops."""
    await trio.form("--listen", "127.0.0.1")
    await trio.until_whole()
    await trio.hire("n1", "n2")
    net = await trio.client()
    async with story(net) as told:
        stream, waits = Stream(net, 0.2), Waits(net)
        for name in "abc":
            began = time.perf_counter()
            if name == "a":
                code, _, err = await trio.comity("down", "--member", "--data", str(trio.folder / name))
                assert code == 0, err
            else:
                trio.ups[name].process.send_signal(signal.SIGINT)  # as Ctrl-C does
            assert await trio.ups[name].process.wait() == 0
            down_s = time.perf_counter() - began
            await trio.again(name)
            await trio.until_whole(name)
            print(f"{name} left within {down_s:.2f} s, and the cluster was whole after {time.perf_counter() - began:.2f} s")
            await stream.reaches(len(stream.accepted) + BATCH)
        longest_s = await waits.end()
        results = await stream.end()
        await told.until(lambda _: len(told.count("task.completed")) >= len(results))
        totals = (await net.stats())["totals"]
    assert results == {number: number * number for number in results}
    assert (totals["failed"], totals["canceled"], totals["evictions"]) == (0, 0, 0)
    assert totals["submitted"] == totals["completed"]
    assert {number for number, by in trio.runs().items() if len(by) > 1} <= {-1}, "nothing ran twice"
    print(f"longest wait {longest_s:.2f} s")
    assert longest_s < 5.0
    code, _, err = await trio.comity("down", "--timeout", "1")
    assert code == 0, err
    assert [await up.process.wait() for up in trio.ups.values()] == [0, 0, 0], "all its servers stop"


async def test_a_server_that_is_gone_for_good_gives_its_place_to_another(trio: Trio) -> None:
    await trio.form()
    await trio.until_whole()
    await trio.hire("n1", "n2")
    gone = trio.ups["c"].said["server"]
    known = Member.load(trio.folder / "c")
    assert known is not None
    route = f"{known.host}:{known.route_port}"
    net = await trio.client()
    async with story(net) as told:
        stream = Stream(net, 0.05)
        await stream.reaches(2 * BATCH)
        code, _, err = await trio.comity("cluster", "forget", gone, "-o", "json")
        assert (code, json.loads(err)["error"]["code"]) == (6, "conflict")
        assert "runs: stop it first" in err
        await kill(trio.ups["c"].process)
        at = len(stream.accepted)
        async with asyncio.timeout(LIMIT_S):
            while (said := await trio.comity("cluster", "forget", gone[:-1], "-o", "json"))[0]:
                assert json.loads(said[2])["error"]["code"] in ("conflict", "unreachable", "timed-out"), said[2]
                print(said[2])
        assert json.loads(said[1]) == {"forgotten": gone}
        status = await trio.until(lambda status: len(status["groups"]) == 4)
        assert {replica["server"] for group in status["groups"] for replica in group["replicas"]} == {
            trio.ups[name].said["server"] for name in "ab"
        }
        await stream.reaches(at + 2 * BATCH)
        code, _, err = await trio.comity("cluster", "forget", gone, "-o", "json")
        assert (code, json.loads(err)["error"]["code"]) == (5, "not-found"), "it is forgotten"
        code, out, err = await trio.comity("cluster", "invite", "-o", "json")
        assert code == 0, err
        await trio.launch("d", "--join", json.loads(out)["token"])
        status = await trio.until_whole()
        places = {trio.ups[name].said["server"] for name in "abd"}
        current = {group["name"]: {r["server"] for r in group["replicas"] if r["current"]} for group in status["groups"]}
        assert current == dict.fromkeys(("log", "registry", "store", "servers"), places)
        await stream.reaches(len(stream.accepted) + 2 * BATCH)
        await check(net, told, await stream.end())
    code, _, err = await trio.comity(*trio.typed("c")[2:])
    assert (code, json.loads(err.splitlines()[-1])["error"]["code"]) == (1, "foreign-data"), "it was forgotten"
    async with asyncio.timeout(LIMIT_S):
        while any(route in (trio.folder / name / "cluster.json").read_text() for name in "abd"):  # noqa: ASYNC110
            await asyncio.sleep(0.05)  # a file tells nobody


FOREIGN = """
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: {store} }}
accounts {{
  APP: {{ jetstream: enabled, users: [{{user: app, password: secret}}] }}
}}
"""


async def test_somebody_elses_server_needs_nothing_of_ours(trio: Trio, free_port: Callable[[], int]) -> None:
    port = free_port()
    (trio.folder / "foreign.conf").write_text(FOREIGN.format(port=port, store=json.dumps(str(trio.folder / "js"))))
    server = await asyncio.create_subprocess_exec(
        find_binary(), "-c", str(trio.folder / "foreign.conf"), stderr=asyncio.subprocess.DEVNULL
    )
    try:
        url = f"nats://app:secret@127.0.0.1:{port}"
        words = ("-m", "comity", "up", "--connect", url, "--http-port", "0", "-o", "json")
        first, said = await trio.start(*words)
        assert (said["durability"], said["data"]) == ("unverified", None)
        assert "secret" not in json.dumps(said)
        trio.env |= {"COMITY_URLS": url}
        await trio.hire("n1")
        async with comity.connect(url) as net, comity.connect(url) as other:
            many = await net.submit_many("work", [{"number": n, "seconds": 0.01} for n in range(20)])
            assert [await task.result() for task in many] == [n * n for n in range(20)]
            assert (await net.stats())["log_durability"] == "unverified"
            second, said = await trio.start(*words, "--assert-durable")
            assert said["durability"] == "asserted"
            await kill(first)
            task = await other.submit("work", {"number": 7, "seconds": 0.01})
            assert await task.result(timeout=LIMIT_S) == 49
            stats = await net.stats()
            assert stats["term"] >= 2 and stats["log_durability"] == "asserted"
            assert "an operator" in stats["log_durability_reason"]
            await net.shutdown(1.0)
        assert await asyncio.wait_for(second.wait(), LIMIT_S) == 0
        assert server.returncode is None, "it is not ours to stop"
        code, _, err = await trio.comity("up", "--connect", url, "--ca", str(trio.folder / "foreign.conf"), "-o", "json")
        assert code == 2 and "not a certificate" in err
    finally:
        await kill(server)


PRINTERS = """
import asyncio, os
from comity import Agent, Attempt

runs = open(os.environ["RUNS"], "a", buffering=1)
agent = Agent("a", concurrency=8)

@agent.capability
async def draw(attempt: Attempt, number: int, sketch: str = "") -> str:
    runs.write(f"begin {number} {attempt.epoch} {attempt.agent}\\n")
    await asyncio.sleep(0.2)
    return sketch or "x" * 300_000
"""


async def test_while_the_store_elects_a_leader_nothing_is_worked_out_twice(trio: Trio) -> None:
    """The log has its leader all the time: tasks go on being given to agents, whose results have nowhere to go."""
    await trio.form()
    (trio.folder / "crew.py").write_text(PRINTERS)
    async with trio.stream() as js, asyncio.timeout(LIMIT_S):
        while True:
            led = {group["name"]: group["leader"] for group in (await trio.until_whole())["groups"]}
            if led["store"] != led["log"]:
                break
            await js.api("STREAM.LEADER.STEPDOWN.CY_main_STORE")
    named = {up.said["server"]: name for name, up in trio.ups.items()}
    trio.use(named[led["log"]])
    await trio.hire("n1")
    net = await trio.client()
    tasks = [await net.submit("draw", {"number": number}) for number in range(60)]
    for task in tasks[:16]:
        await task.result(LIMIT_S)
    await kill(trio.ups[named[led["store"]]].process)
    sketch = "y" * 300_000
    tasks += await asyncio.gather(*(net.submit("draw", {"number": number, "sketch": sketch}) for number in range(60, 64)))
    assert {len(await task.result(LIMIT_S)) for task in tasks} == {300_000}
    assert {number: len(runs) for number, runs in trio.runs().items()} == dict.fromkeys(range(64), 1)
