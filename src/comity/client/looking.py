"""Verbs of ``Client``: who is here, and what can be done."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Unpack

from comity.client.terms import name_of
from comity.directory import Seen
from comity.finding import Conditions
from comity.model.capability import AgentRecord

if TYPE_CHECKING:
    from comity.client.client import Client


async def discover(
    client: Client, capability: str = "", *, order_by: str = "id", limit: int | None = None, **conditions: Unpack[Conditions]
) -> list[AgentRecord]:
    """Agents that meet all ``conditions`` (see ``comity.finding.Conditions``), from the watched copy of the registry;
    ``directory.age_s`` tells how old that is. ``order_by`` id or name; load, the least first; or, of a capability, latency
    (p50), throughput or success as the network measured them: the best first, those not measured last. Raises BadInput."""
    await client.directory.ready(client._exchange.settings.request_timeout_s)
    return await client._exchange.finding.discover(capability, order_by, limit, conditions)


async def capabilities(client: Client) -> list[dict[str, Any]]:
    """What can be done here, by name: versions, description, agents, and what the network measured (latency p50 and p95
    in ms, how many end in a second, which share succeeds; None: not yet)."""
    await client.directory.ready(client._exchange.settings.request_timeout_s)
    return await client._exchange.finding.capabilities()


async def describe(client: Client, name: str) -> dict[str, Any]:
    """One of ``capabilities``, with its schemas, an example input, and its agents with their figures. Raises
    UnknownCapability."""
    await client.directory.ready(client._exchange.settings.request_timeout_s)
    return await client._exchange.finding.describe(name)


async def performance(client: Client, capability: str) -> dict[str, dict[str, Any]]:
    """What the network measured of each agent at a capability, by the agent's id: see ``capabilities``."""
    return await client._exchange.finding.measured(name_of(capability)[0])


async def watch(client: Client) -> AsyncGenerator[Seen, None]:
    """Agents and nodes that join, change or leave, from now on; none is missed while servers or connections are away. Ends
    in Disconnected."""
    await client.directory.ready(client._exchange.settings.request_timeout_s)
    queue: asyncio.Queue[Seen | Exception] = asyncio.Queue()

    def put(changes: list[Seen]) -> None:
        for change in changes:
            queue.put_nowait(change)

    end = client.directory.watch(put, queue.put_nowait)
    try:
        while True:
            seen = await queue.get()
            if isinstance(seen, Exception):
                raise seen
            yield seen
    finally:
        end()
