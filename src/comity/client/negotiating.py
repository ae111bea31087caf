"""Verbs of ``Client`` with which agents negotiate.

    award = await net.call_for_proposals("translate", {"text": text}, rank=lambda offer: offer.body["price"])
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any

from comity.bus.base import to as at
from comity.client.auction import Again, Auction, Rank
from comity.client.dialog import Dialog
from comity.client.terms import name_of
from comity.core.conversations import Protocol, State
from comity.core.protocols import BROKERING, SUBSCRIBE
from comity.errors import BadInput, InvalidOutput, NoAgent, UnknownCapability
from comity.model.capability import AgentStatus
from comity.model.codec import to_json
from comity.model.envelope import Performative
from comity.model.ids import AgentId, node_of
from comity.model.limits import check_seconds, check_text
from comity.model.wire import Ping
from comity.talking import Award

if TYPE_CHECKING:
    from comity.client.client import Client

BIDDERS = 1000
"""Agents called at most; of more, those that happen to come first by a draw."""


async def call_for_proposals(
    client: Client,
    to: str | Iterable[str],
    body: Any = None,
    *,
    deadline_s: float = 1.0,
    rank: Rank | None = None,
    again: Again | None = None,
    repeatable: bool = False,
    topic: str = "",
    timeout: float | None = None,
) -> Award:
    """Let agents bid for a piece of work, and have the best of them do it (FIPA's contract net).

    ``to``: a capability, which all its active agents may bid for (``@agent.bid``), or agents, by id or name, and a ``topic``.
    Proposals count that come within ``deadline_s`` seconds; the call ends sooner if all have answered. ``rank`` says how good
    one is: the lower the better, None: no deal (without it the first to come wins). ``again`` looks at the ranked proposals and
    may give the body of another round's call. The winner has ``timeout`` seconds for the work (default ``request_timeout_s``).
    If it fails, dies or is late, that is raised; unless the work is ``repeatable``: then the next best gets it. A bidder that
    dies before is out, and the others go on. Raises NoAgent (no acceptable proposal; ``details["refusals"]`` says why),
    UnknownCapability, UnknownAgent, and what the winner's work raises.
    """
    exchange = client._exchange
    exchange.check_open()
    check_seconds(deadline_s, "deadline_s")
    data, work_s = to_json(body), client._wait_s(timeout)
    if isinstance(to, str):
        agents = await offering(client, to)
        topic = topic or name_of(to)[0]
    else:
        agents = [await client._named(agent) for agent in to]
        if not topic:
            raise BadInput("agents are called by name to bid for a topic: say which", option="topic")
    auction = Auction(exchange, client._scope, topic, rank=rank, again=again, repeatable=repeatable)
    left_s = client._left_s(work_s, client._scope.deadline)
    return await auction.award(list(dict.fromkeys(agents)), data, client._left_s(deadline_s, client._scope.deadline), left_s)


async def offering(client: Client, capability: str) -> list[AgentId]:
    """Active agents that offer it. Raises UnknownCapability, NoAgent."""
    name = name_of(capability)[0]
    found = await client.discover(capability)
    active = [agent.id for agent in found if agent.status is AgentStatus.ACTIVE]
    if not found:
        raise UnknownCapability(f"no agent offers {capability!r}", capability=name)
    if not active:
        raise NoAgent(f"no agent that offers {capability!r} is active", capability=name)
    if len(active) > BIDDERS:
        client._exchange.talks.messages.shuffle(active)
    return active[:BIDDERS]


async def query_if(
    client: Client, target: str, body: Any = None, *, topic: str = "", timeout: float | None = None
) -> bool:
    """Ask whether something is so. Raises InvalidOutput if the answer is not true or false; else see ``request``."""
    answer = await client.request(target, body, topic=topic, performative=Performative.QUERY, timeout=timeout)
    if not isinstance(answer, bool):
        raise InvalidOutput(f"{target} was asked whether it is so, and answered neither true nor false", agent=target)
    return answer


async def query_ref(client: Client, target: str, body: Any = None, *, topic: str = "", timeout: float | None = None) -> Any:
    """Ask what something is. See ``request``."""
    return await client.request(target, body, topic=topic, performative=Performative.QUERY, timeout=timeout)


async def subscribe(
    client: Client, target: str, body: Any = None, *, topic: str = "", timeout: float | None = None
) -> AsyncGenerator[Any, None]:
    """What an agent has to tell on a topic, as it tells it, until it has no more or you stop: leaving the loop tells it so (at
    once with ``contextlib.aclosing``). ``timeout``: for its first word. Live: what is told while the connection is broken is
    lost. Raises NoAgent (it refuses), UnknownAgent, PeerLost, TimedOut, Overloaded (10,000 words are unread), or what it says of
    its failure."""
    with _dialog(client, SUBSCRIBE, topic) as dialog:
        agent = await client._named(target)
        leg = dialog.open(agent, Performative.SUBSCRIBE, to_json(body), client._wait_s(timeout))
        while True:
            _, says, told, error = await dialog.heard()
            if error is not None:
                raise error
            if says is Performative.INFORM:
                yield told
            elif leg.state is State.DONE:
                return


async def request_via(
    client: Client, broker: str, capability: str, body: Any = None, *, timeout: float | None = None
) -> Any:
    """Let the agent ``broker`` (``@agent.broker``) find one that offers ``capability``, pass it ``body`` and give back the
    answer. Raises UnknownCapability (it found nobody), and else as ``request``."""
    name_of(capability)
    wait_s = client._left_s(client._wait_s(timeout), client._scope.deadline)
    with _dialog(client, BROKERING, capability) as dialog:
        agent = await client._named(broker)
        dialog.open(agent, Performative.REQUEST, to_json(body), wait_s)
        while True:
            _, says, answer, error = await dialog.heard()
            if error is not None:
                raise error
            if says is Performative.INFORM:
                return answer


async def ping(client: Client, target: str, *, timeout: float | None = None) -> float:
    """How many seconds an agent's node takes to answer. Raises UnknownAgent, PeerLost, TimedOut."""
    exchange = client._exchange
    exchange.check_open()
    agent = await client._named(check_text(target, "target"))
    number, began = exchange.calls.number(), exchange.loop.time()
    await exchange.calls.ask(at(node_of(agent)), Ping(number), number, client._wait_s(timeout), f"ping of {agent}")
    return exchange.loop.time() - began


def _dialog(client: Client, protocol: Protocol, topic: str) -> Dialog:
    client._exchange.check_open()
    scope = client._scope
    return Dialog(client._exchange.talks, protocol, topic, sender=scope.sender, trace=scope.trace)
