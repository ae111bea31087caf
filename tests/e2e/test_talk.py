"""Conversations between real processes on a real server, some of which are killed in the middle of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from town import LIMIT_S, Story, Town, kill, story

from comity import Client
from comity.bus.base import to
from comity.errors import PeerLost
from comity.model.envelope import Envelope, Performative
from comity.model.wire import Message
from conftest import need_server

pytestmark = [pytest.mark.server, pytest.mark.slow]
SOON_S = 10.0
CROWD = '''
import asyncio, os
from comity import Agent, Message, Refuse
from comity.talking import Invitation

node = os.environ["NODE"]
price = float(os.environ["PRICE"])
agent = Agent(f"agent-{node}")
agent.lend("gpu", 4)
invitations = []
runs = open(os.environ["RUNS"], "a", buffering=1)

@agent.capability
async def dig(depth: int, slow_s: float = 0) -> str:
    runs.write(f"begin {depth} 0 {node}\\n")
    await asyncio.sleep(slow_s)
    return f"{node} dug {depth}"

@agent.bid("dig")
def offer(depth: int, slow_s: float = 0) -> dict:
    return {"price": price}

@agent.on("open")
def is_open(hour: int) -> bool:
    return hour > 8

if node != "ann":
    agent.join("ops")

@agent.on("who")
def who() -> str:
    return node

@agent.broker
def find(capability, found):
    return found[0]

@agent.on("news")
def news(message: Message, count: int) -> None:
    """A plain function, in a thread."""
    for number in range(count):
        message.reply(number)

@agent.on("endless")
async def endless(message: Message) -> None:
    message.reply("begun")
    await asyncio.Event().wait()

@agent.on("collaboration.invite")
def join(message: Message, invitation: Invitation) -> None:
    if invitation.kind == "mutiny":
        raise Refuse("not me")
'''


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    async with Town(tmp_path) as town:
        (tmp_path / "crew.py").write_text(CROWD)
        await town.up()
        for number, name in enumerate(("ann", "bob", "cid")):
            town.env |= {"NODE": name, "PRICE": str(number + 1)}
            await town.hire(name)
        yield town


def price(proposal: Any) -> float:
    return float(proposal.body["price"])


def agents(*nodes: str) -> list[str]:
    return [f"{node}/agent-{node}" for node in nodes]


async def test_agents_of_three_processes_negotiate_and_die(town: Town) -> None:
    net = await town.client()
    async with asyncio.timeout(LIMIT_S * 3), story(net) as told:
        await quiet_business(net)
        await deaths(net, town)
        await nonsense(net, told)


async def quiet_business(net: Client) -> None:
    """A plain client opens every protocol."""
    assert await net.request("dig", {"depth": 1}) in ("ann dug 1", "bob dug 1", "cid dug 1")
    assert await net.query_if(agents("bob")[0], 9, topic="open") and not await net.query_ref(agents("bob")[0], 3, topic="open")
    assert await net.request_via(agents("ann")[0], "dig", {"depth": 2}) in ("bob dug 2", "cid dug 2")
    award = await net.call_for_proposals("dig", {"depth": 3}, rank=price, deadline_s=LIMIT_S)
    assert award[:3] == ("ann/agent-ann", {"price": 1.0}, "ann dug 3")
    calls = iter(({"depth": 2}, {"depth": 1}))
    award = await net.call_for_proposals(
        "dig", {"depth": 3}, rank=price, again=lambda _: next(calls, None), deadline_s=LIMIT_S
    )
    assert award.result == "ann dug 1"
    assert [number async for number in net.subscribe(agents("ann")[0], 100, topic="news")] == list(range(100))
    async with net.borrow(agents("ann")[0], "gpu", 4, for_s=30) as held:
        assert held.left_s > 25
    assert await net.ping(agents("cid")[0]) < SOON_S
    async with net.invite("review", requires=("dig",), deadline_s=LIMIT_S) as group:
        assert sorted(group.members) == agents("ann", "bob", "cid")
    heard: asyncio.Queue[str] = asyncio.Queue()

    @net.on("who")
    def answer(body: str) -> None:
        heard.put_nowait(body)

    await net.broadcast(topic="who", performative="request", group="ops")
    assert {await heard.get(), await heard.get()} == {"bob", "cid"} and heard.empty()


async def deaths(net: Client, town: Town) -> None:
    """Who dies is missed by all it speaks with, soon."""
    held = asyncio.ensure_future(
        net.call_for_proposals("dig", {"depth": 5, "slow_s": 60}, rank=price, timeout=90, deadline_s=LIMIT_S)
    )
    async with (
        net.invite("review", agents("ann", "bob"), deadline_s=LIMIT_S) as group,
        aclosing(net.subscribe(agents("ann")[0], topic="endless")) as news,
    ):
        assert await anext(news) == "begun"
        while 5 not in town.runs():  # noqa: ASYNC110 - another process writes it
            await asyncio.sleep(0.01)
        assert town.runs()[5] == ["ann"]
        began = time.monotonic()
        await kill(town.nodes["ann"])
        for wait in (held, anext(news)):
            with pytest.raises(PeerLost):
                await wait
        while group.members != tuple(agents("bob")):  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.01)
        assert time.monotonic() - began < SOON_S
        print(f"all knew {time.monotonic() - began:.3f} s after the kill")
    award = await net.call_for_proposals(agents("bob", "cid"), {"depth": 5}, topic="dig", rank=price, deadline_s=LIMIT_S)
    assert award.result == "bob dug 5"


async def nonsense(net: Client, told: Story) -> None:
    """A process of ours that keeps to no protocol, and one that speaks for another."""
    exchange = net._exchange
    for sender in (net.process, "bob/agent-bob"):
        envelope = Envelope(
            id=f"odd-{sender}", performative=Performative.ACCEPT_PROPOSAL, sender=sender, receiver=agents("cid")[0],
            topic="dig", protocol="fipa-contract-net", conversation="none",
        )  # fmt: skip
        exchange.outbox.post(to("cid"), Message(envelope))
    for reason in ("no conversation", "cannot speak for"):
        event = await told.until(lambda e, word=reason: e["type"] == "message.refused" and word in e["reason"])
        assert event["told_by"] == "cid"
