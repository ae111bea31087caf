"""Durable mail while nodes and the server are killed: real processes, a real disk. None lost, none out of order, and what comes
again is marked."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from town import LIMIT_S, Town, kill

from comity import Client
from comity.errors import Indefinite
from conftest import need_server

pytestmark = pytest.mark.server

CREW = '''
import os
from comity import Agent, Message

got = open(os.environ["RUNS"], "a", buffering=1)

def box(number):
    agent = Agent(f"box-{number}", tags={"box"})

    @agent.on("news")
    async def news(message: Message, body: list) -> None:
        got.write(f"{message.envelope.receiver} {message.id} {message.fence} {int(message.is_repeat)} {body[0]} {body[1]}\\n")

    agent.join("boxes")
    return agent

agents = [box(number) for number in range(int(os.environ.get("BOXES", "5")))]
'''


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    async with Town(tmp_path) as town:
        (tmp_path / "crew.py").write_text(CREW)
        yield town


class Senders:
    """Each sends its mails in order, ``at_once`` under way; what is of unknown fate is sent on by the client."""

    def __init__(self, net: Client, receivers: list[str], senders: int, mails: int, at_once: int = 64) -> None:
        self.sent = 0
        self.unknown = 0
        self._net = net
        self._receivers = receivers
        self._mails = mails
        self._senders = senders
        self._at_once = at_once

    async def run(self) -> None:
        await asyncio.gather(*(self._send(sender) for sender in range(self._senders)))

    async def _send(self, sender: int) -> None:
        each = self._mails // self._senders
        for start in range(0, each, self._at_once):
            part = range(start, min(start + self._at_once, each))
            await asyncio.gather(*(self._one(sender, number) for number in part))

    async def _one(self, sender: int, number: int) -> None:
        to = self._receivers[number % len(self._receivers)]
        try:
            await self._net.send(to, [sender, number], topic="news", durable=True, ttl_s=3600)
        except Indefinite:
            self.unknown += 1
        self.sent += 1

    async def reaches(self, share: float, work: asyncio.Task[None]) -> None:
        """Until so much is sent."""
        while self.sent < self._mails * share:
            await asyncio.wait([work], timeout=0.02)
            assert not work.done() or self.sent >= self._mails * share, work.result()


async def all_taken(net: Client, limit_s: float) -> None:
    async with asyncio.timeout(limit_s):
        while True:
            try:
                if not (await net.stats())["mail"]["waiting"]:
                    return
            except Indefinite:
                continue
            await asyncio.sleep(0.1)


def judged(text: str, senders: int, mails: int, receivers: int) -> tuple[int, int]:
    """Repeats, and repeats within one life of a node (none). Raises AssertionError for what is lost or out of order."""
    past: dict[tuple[str, str], list[tuple[str, bool]]] = {}
    newest: dict[tuple[str, str], int] = {}
    seen: set[tuple[str, str]] = set()
    twice = 0
    for line in text.splitlines():
        receiver, id, fence, repeat, sender, number = line.split()
        before = past.setdefault((receiver, id), [])
        twice += any(known == fence for known, _ in before)
        assert not before or repeat == "1", f"{id} came again to {receiver}, and it is said to be the first time"
        if not before:
            assert int(number) > newest.get((receiver, sender), -1), f"{receiver}: {sender}/{number} came too late"
            newest[receiver, sender] = int(number)
            assert (sender, number) not in seen, f"{sender}/{number} is two mails"
            seen.add((sender, number))
        before.append((fence, repeat == "1"))
    each = mails // senders
    lost = [(s, n) for s in range(senders) for n in range(each) if (str(s), str(n)) not in seen]
    assert not lost, f"{len(lost)} lost, such as {lost[:5]}"
    return sum(len(lives) - 1 for lives in past.values()), twice


async def storm(town: Town, *, mails: int, senders: int, boxes: int, rounds: int, port: int) -> dict[str, int]:
    """Send while nodes and the server are killed in turn, ``rounds`` times."""
    town.env["BOXES"] = str(boxes // 2)
    up = await town.up(port)
    await town.hire("n1", "n2")
    net = await town.client()
    receivers = [f"{node}/box-{number}" for number in range(boxes // 2) for node in ("n1", "n2")]
    posts = Senders(net, receivers, senders, mails)
    work = asyncio.create_task(posts.run())
    for number in range(rounds):
        await posts.reaches((number + 1) / (rounds + 2), work)
        if number % 3 == 2:
            await kill(up)
            up = await town.up(port)
        else:
            name = f"n{1 + number % 2}"
            await kill(town.nodes[name])
            await town.hire(name)
    await work
    await all_taken(net, LIMIT_S + mails / 500)
    dead = await net.mail.dead()
    assert not dead, dead[:3]
    repeats, twice = judged((town.folder / "runs.txt").read_text(), senders, mails, len(receivers))
    return {"mails": mails, "repeats": repeats, "twice_in_one_life": twice, "unknown": posts.unknown}


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_mail_survives_nodes_and_servers_that_are_killed(town: Town, free_port: Callable[[], int]) -> None:
    found = await storm(town, mails=8000, senders=8, boxes=6, rounds=3, port=free_port())
    print(found)
    assert found["twice_in_one_life"] == 0


BOMB = """
import asyncio, os, signal
from comity import Agent

agent = Agent("bomb")

@agent.on("news")
async def news(body: str) -> None:
    while body == "die" and not os.path.exists(os.environ["RUNS"] + ".go"):
        await asyncio.sleep(0.02)
    if body == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    with open(os.environ["RUNS"], "a") as got:
        got.write(f"{body}\\n")
"""


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_mail_that_kills_its_receiver_is_a_dead_letter_in_the_end(town: Town) -> None:
    (town.folder / "crew.py").write_text(BOMB)
    await town.up()
    net, other = await town.client(), await town.client()
    bomb = await net.send("n1/bomb", "die", topic="news", durable=True)
    await net.send("n1/bomb", "behind it", topic="news", durable=True)
    await other.send("n1/bomb", "beside it", topic="news", durable=True)
    go = town.folder / "runs.txt.go"
    for _ in range(3):
        await town.hire("n1")  # before it dies
        go.touch()
        await asyncio.wait_for(town.nodes["n1"].wait(), LIMIT_S)
        go.unlink()
    await town.hire("n1")
    await all_taken(net, LIMIT_S)
    assert [(dead["id"], dead["code"]) for dead in await net.mail.dead()] == [(bomb, "poison")]
    assert {"behind it", "beside it"} <= set((town.folder / "runs.txt").read_text().splitlines())


@pytest.mark.timeout(120)
@pytest.mark.slow
async def test_mail_and_groups_from_the_command_line(town: Town) -> None:
    await town.up()
    net = await town.client()
    id = (await said(town, "send", "n1/box-0", '["cli", 1]', "--topic", "news", "--durable")).strip('"')
    assert [one["id"] for one in json.loads(await said(town, "mail", "list"))] == [id]
    assert json.loads(await said(town, "mail", "boxes")) == [{"agent": "n1/box-0", "waiting": 1}]
    assert "has not" in await said(town, "mail", "show", id, table=True)
    await town.hire("n1")
    await all_taken(net, LIMIT_S)
    assert json.loads(await said(town, "mail", "show", id))["state"] == "delivered"
    assert "boxes" in await said(town, "groups", "list", table=True)
    assert "n1/box-0" in json.loads(await said(town, "groups", "show", "boxes"))
    await said(town, "broadcast", '["cli", 2]', "--topic", "news", "--group", "boxes", "--durable")
    await said(town, "broadcast", '["cli", 3]', "--topic", "news", "--tag", "box", "--durable", "--ttl", "60")
    gone = (await said(town, "send", "n1/box-0", "{}", "--topic", "nothing", "--durable")).strip('"')
    await all_taken(net, LIMIT_S)
    assert gone in await said(town, "mail", "dead", table=True)
    assert json.loads(await said(town, "mail", "drop", gone)) == [gone]
    await said(town, "groups", "remove", "boxes", "n1/box-0", table=True)
    assert "n1/box-0" not in await net.groups.members("boxes")
    heard = (town.folder / "runs.txt").read_text()
    assert heard.count(" cli 1\n") == 1 and heard.count(" cli 2\n") == heard.count(" cli 3\n") == 5


async def said(town: Town, *words: str, table: bool = False) -> str:
    """What a command prints."""
    form = ("-o", "table" if table else "json")
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comity", *words, *form,
        env=town.env, cwd=town.folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0, err.decode()
    return out.decode().strip()
