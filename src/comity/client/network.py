"""Verbs of ``Client``: the network as a whole, looked at and looked after."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from functools import partial
from typing import TYPE_CHECKING, Any

from comity.client.listing import listed
from comity.client.standing import NodeHandle
from comity.model.capability import Strategy
from comity.model.capability import strategy as strategy_named
from comity.model.ids import check_task_id, node_of
from comity.model.limits import INDEX_MAX, check_timeout, check_whole
from comity.model.task import task_state

if TYPE_CHECKING:
    from comity.client.client import Client


async def events(client: Client, after: int | None = None, *, follow: bool = True) -> AsyncGenerator[dict[str, Any], None]:
    """What happens in the network, without end: dicts with ``type``, ``at`` (UTC ms) and ``index``. From now on, or
    what follows log index ``after`` first; ``events.gap`` tells of a part that the leader no longer has. Without
    ``follow`` only what has happened (``after`` 0 unless given)."""
    client._exchange.check_open()
    if after is not None:
        check_whole(after, "after", -1, INDEX_MAX)
    stream = client._exchange.streams.open(after if after is not None else -1 if follow else 0)
    async for event in client._exchange.streams.events(stream, follow=follow):
        yield event


async def stats(client: Client) -> dict[str, Any]:
    """Figures of the network: tasks, agents and nodes by state, rates, leader, log. As the leader has them at the
    moment."""
    return await _ask(client, "stats")


async def head(client: Client) -> int:
    """A log entry that is durable now, nothing known before this call being later: see ``backup``."""
    await _ask(client, "barrier")
    return int((await stats(client))["log_head"])


async def tasks(
    client: Client, *, state: str | None = None, capability: str | None = None, limit: int = 50, before: str | None = None
) -> list[dict[str, Any]]:
    """Tasks, newest first, each as ``Task.status`` has it. ``before`` a task id: the page after it. Raises BadInput (no such
    state, no id)."""
    if state is not None:
        task_state(state)
    if before is not None:
        check_task_id(before)
    return await listed(partial(_ask, client), limit, before, state=state, capability=capability)


async def nodes(client: Client) -> list[dict[str, Any]]:
    """Nodes with a lease: membership state and last figures."""
    return list((await _ask(client, "nodes"))["nodes"])


def node(client: Client, id: str) -> NodeHandle:
    """A node by its id, to be drained, isolated or resumed."""
    return NodeHandle(client._exchange, id)


async def agents(client: Client) -> list[dict[str, Any]]:
    """The busiest agents first: what is in flight at each, against what it takes at once."""
    return list((await _ask(client, "agents"))["agents"])


async def why(client: Client, id: str) -> dict[str, Any]:
    """See ``Task.why``."""
    return await client.task(id).why()


async def set_strategy(client: Client, capability: str, strategy: Strategy | str) -> None:
    """How agents are picked for tasks of ``capability`` that do not say. Raises BadInput."""
    await _ask(client, "strategy", capability=capability, strategy=strategy_named(strategy))


async def shutdown(client: Client, timeout: float | None = None) -> dict[str, Any]:
    """Announce the end to every agent, refuse submits, wait up to ``timeout`` seconds (default ``drain_timeout_s``)
    for what runs, stop. What still ran and what waits: both go on when the network is started again."""
    drain_s = 0.0 if timeout == 0 else check_timeout(timeout) or client._exchange.settings.drain_timeout_s
    wait_s = drain_s + client._exchange.settings.request_timeout_s
    answer: dict[str, Any] = await client._exchange.ask("shutdown", {"timeout_s": drain_s}, wait_s)
    return answer


async def pause(client: Client, agent: str) -> None:
    """Give an agent no new work. Raises UnknownAgent, BadInput (a name of several), PeerLost, TimedOut."""
    await _control(client, "pause", agent)


async def resume(client: Client, agent: str) -> None:
    """Give a paused agent work again. See ``pause``."""
    await _control(client, "resume", agent)


async def remove(client: Client, agent: str) -> None:
    """Make an agent leave its node. See ``pause``."""
    await _control(client, "remove", agent)


async def _ask(client: Client, what: str, **args: Any) -> dict[str, Any]:
    answer: dict[str, Any] = await client._exchange.ask(what, args)
    return answer


async def _control(client: Client, what: str, target: str) -> None:
    agent = await client._named(target)
    await client._exchange.control(node_of(agent), what, {"agent": agent})
