"""What tests of negotiations share: agents that bid, strangers that speak by hand, and what the network tells."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from test_node_network import Net

from comity.agent import Agent
from comity.errors import Refuse
from comity.model.envelope import Performative
from comity.sim.loop import VirtualLoop
from comity.talking import Proposal


def bidder(name: str, price: float, *, slow_s: float = 0.0, work_s: float = 0.0, says: Any = None) -> Agent:
    """It offers to dig, and asks ``price`` for that, or says something else. Its work is its name."""
    agent = Agent(name)

    @agent.capability
    async def dig(depth: int) -> str:
        await asyncio.sleep(work_s)
        if depth > 100:
            raise ValueError("too deep")
        return f"{name} dug {depth}"

    @agent.bid("dig")
    async def offer(depth: int) -> Any:
        await asyncio.sleep(slow_s)
        if depth < 0:
            raise Refuse("not upwards")
        return says or {"price": price}

    return agent


def price(proposal: Proposal) -> float:
    return float(proposal.body["price"])


def open_at(net: Net) -> int:
    return sum(len(node.messages.conversing) for node in net.stage.nodes)


@asynccontextmanager
async def events(net: Net) -> AsyncGenerator[list[dict[str, Any]], None]:
    """What the network tells while the block lasts."""
    seen: list[dict[str, Any]] = []

    async def follow() -> None:
        async for event in net.client.events():
            seen.append(event)

    following = asyncio.ensure_future(follow())
    await net.client.stats()
    assert isinstance(asyncio.get_running_loop(), VirtualLoop)
    await asyncio.sleep(0.1)
    try:
        yield seen
    finally:
        following.cancel()


def refusals(seen: list[dict[str, Any]]) -> list[str]:
    return [event["reason"] for event in seen if event["type"] == "message.refused"]


CFP: dict[str, Any] = {"performative": "cfp", "topic": "dig", "protocol": "fipa-contract-net", "conversation": "c"}


def by_hand(says: str, **fields: Any) -> dict[str, Any]:
    given = {**CFP, **fields, "performative": Performative(says)}
    return {name: value for name, value in given.items() if value is not None}
