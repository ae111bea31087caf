"""Negotiations among crashes, pauses and partitions: each ends, in time, in a result that is its winner's own, or in a typed
error; and nobody keeps what is lent, or tells news to nobody."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from contextlib import aclosing

import pytest

from comity.agent import Agent
from comity.client.client import Client
from comity.errors import ComityError
from comity.message import Message
from comity.sim import World

LIVES = 16
HARD = {"crash": 0.4, "partition": 0.3, "disconnect": 0.4, "duplicates": 0.6}
"""Faults that strike what talks; every other life has a mixture of its own."""
LATE_S = 40.0
"""An auction's three waits, one after the other, and more."""
GPUS = 4


class Crowd:
    """``ended`` counts how negotiations ended, ``telling`` holds the subscriptions that are told news at the moment."""

    def __init__(self) -> None:
        self.ended: Counter[str] = Counter()
        self.telling: set[object] = set()

    def agents(self) -> list[Agent]:
        return [self.bidder(f"b{number}", number) for number in range(3)]

    def bidder(self, name: str, price: int) -> Agent:
        agent = Agent(name)
        agent.lend("gpu", GPUS)

        @agent.capability
        async def dig(depth: int) -> list[str | int]:
            await asyncio.sleep(1.0)  # time for another bidder to die
            return [name, depth]

        @agent.bid("dig")
        async def offer(depth: int) -> dict[str, int]:
            await asyncio.sleep(0.1 * price)
            return {"price": (price + depth) % 3}

        @agent.on("news")
        async def news(message: Message) -> None:
            self.telling.add(message)
            try:
                for number in range(1_000_000):
                    message.reply(number)
                    await asyncio.sleep(0.2)
            finally:
                self.telling.discard(message)

        return agent

    async def work(self, net: Client) -> None:
        await self.somebody(net)
        for number in range(8):
            for what in (self.auction, self.listen, self.borrow):
                try:
                    async with asyncio.timeout(LATE_S):
                        await what(net, number)
                    self.ended["well"] += 1
                except ComityError as error:
                    self.ended[error.code] += 1
                except TimeoutError:
                    raise AssertionError(f"to {what.__name__} takes for ever") from None

    async def somebody(self, net: Client) -> str:
        while not (found := await net.discover("dig")):  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.1)
        return found[len(self.ended) % len(found)].id

    async def auction(self, net: Client, depth: int) -> None:
        award = await net.call_for_proposals(
            "dig", {"depth": depth}, deadline_s=1, timeout=3, rank=lambda p: float(p.body["price"]), repeatable=depth % 2 == 0
        )
        assert award.result == [award.agent.partition("/")[2], depth], award
        assert award.agent not in award.refused

    async def listen(self, net: Client, number: int) -> None:
        somebody = await self.somebody(net)
        async with aclosing(net.subscribe(somebody, topic="news", timeout=3)) as news:
            heard: set[int] = set()
            async for told in news:
                assert told not in heard
                heard.add(told)
                if told >= 5:
                    return

    async def borrow(self, net: Client, number: int) -> None:
        somebody = await self.somebody(net)
        async with net.borrow(somebody, "gpu", GPUS, for_s=2, timeout=3) as held:
            await asyncio.sleep(min(0.5, held.left_s))


def live(seed: int) -> Crowd:
    crowd = Crowd()
    World(seed, agents=crowd.agents, nodes=3, clients=2, torture_s=18.0, faults=HARD if seed % 2 else None).run(crowd.work)
    return crowd


@pytest.mark.timeout(120)
def test_every_negotiation_ends_whatever_dies() -> None:
    ended: Counter[str] = Counter()
    for seed in range(LIVES):
        ended += live(seed).ended
        gc.collect()
    assert ended["well"] > LIVES * 10, ended
    assert len(ended) > 2, ended  # faults did strike


def test_without_faults_all_is_well_and_nothing_is_left() -> None:
    crowd = Crowd()
    World(1, agents=crowd.agents, nodes=3, clients=1, torture_s=0.0, faults={}).run(crowd.work)
    assert crowd.ended == {"well": 24}
    assert not crowd.telling
