"""The verbs with which agents negotiate, and what comes of them. What a client can say, an agent and an attempt can, too.

    award = await net.call_for_proposals("translate", {"text": text}, rank=lambda offer: offer.body["price"])
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

if TYPE_CHECKING:
    from comity.client.borrowing import Borrowed
    from comity.client.client import Client
    from comity.client.collaborating import Collaboration

__all__ = ["Award", "Invitation", "Proposal", "Talker"]


class Proposal(NamedTuple):
    """What an agent offers. ``after_s``: how long it took to say so."""

    agent: str
    body: Any
    after_s: float


class Award(NamedTuple):
    """Who did it, what it had proposed, and the result. ``proposals``: all that were acceptable, best first; ``refused``: who
    made none that was, and why."""

    agent: str
    proposal: Any
    result: Any
    proposals: tuple[Proposal, ...]
    refused: dict[str, str]


class Invitation(msgspec.Struct, frozen=True):
    """To a collaboration: what it is for, and the capabilities that whoever joins it must offer."""

    id: str
    kind: str
    description: str = ""
    requires: tuple[str, ...] = ()


class Talker:
    """The verbs of negotiation, spoken through ``_client``."""

    __slots__ = ()

    @property
    def _client(self) -> Client:
        raise NotImplementedError

    async def call_for_proposals(
        self,
        to: str | Iterable[str],
        body: Any = None,
        *,
        deadline_s: float = 1.0,
        rank: Callable[[Proposal], float | None] | None = None,
        again: Callable[[list[Proposal]], Any] | None = None,
        repeatable: bool = False,
        topic: str = "",
        timeout: float | None = None,
    ) -> Award:
        """Let agents bid for a piece of work, and have the best of them do it (FIPA's contract net).

        ``to``: a capability, which all its active agents may bid for (``@agent.bid``), or agents, by id or name, and a
        ``topic``. Proposals count that come within ``deadline_s`` seconds; the call ends sooner if all have answered. ``rank``
        says how good one is: the lower the better, None: no deal (without it the first to come wins). ``again`` looks at the
        ranked proposals and may give the body of another round's call. The winner has ``timeout`` seconds for the work (default
        ``request_timeout_s``). If it fails, dies or is late, that is raised; unless the work is ``repeatable``: then the next
        best gets it. A bidder that dies before is out, and the others go on. Raises NoAgent (no acceptable proposal;
        ``details["refusals"]`` says why), UnknownCapability, UnknownAgent, and what the winner's work raises.
        """
        from comity.client import negotiating

        return await negotiating.call_for_proposals(
            self._client, to, body, deadline_s=deadline_s, rank=rank, again=again, repeatable=repeatable, topic=topic,
            timeout=timeout,
        )  # fmt: skip

    async def query_if(self, target: str, body: Any = None, *, topic: str = "", timeout: float | None = None) -> bool:
        """Ask whether something is so. Raises InvalidOutput if the answer is not true or false; else see ``request``."""
        from comity.client import negotiating

        return await negotiating.query_if(self._client, target, body, topic, timeout)

    async def query_ref(self, target: str, body: Any = None, *, topic: str = "", timeout: float | None = None) -> Any:
        """Ask what something is. See ``request``."""
        return await self._client.request(target, body, topic=topic, performative="query", timeout=timeout)

    def subscribe(
        self, target: str, body: Any = None, *, topic: str = "", timeout: float | None = None
    ) -> AsyncGenerator[Any, None]:
        """What an agent has to tell on a topic, as it tells it, until it has no more or you stop: leaving the loop tells it so
        (at once with ``contextlib.aclosing``). ``timeout``: for its first word. Live: what is told while the connection is broken
        is lost. Raises NoAgent (it refuses), UnknownAgent, PeerLost, TimedOut, Overloaded (10,000 words are unread), or what it
        says of its failure."""
        from comity.client import negotiating

        return negotiating.subscribe(self._client, target, body, topic, timeout)

    async def request_via(self, broker: str, capability: str, body: Any = None, *, timeout: float | None = None) -> Any:
        """Let the agent ``broker`` (``@agent.broker``) find one that offers ``capability``, pass it ``body`` and give back the
        answer. Raises UnknownCapability (it found nobody), and else as ``request``."""
        from comity.client import negotiating

        return await negotiating.request_via(self._client, broker, capability, body, timeout)

    async def ping(self, target: str, *, timeout: float | None = None) -> float:
        """How many seconds an agent's node takes to answer. Raises UnknownAgent, PeerLost, TimedOut."""
        from comity.client import negotiating

        return await negotiating.ping(self._client, target, timeout)

    def borrow(
        self, owner: str, resource: str, amount: float = 1, *, for_s: float, timeout: float | None = None
    ) -> AbstractAsyncContextManager[Borrowed]:
        """Have some of what an agent lends (``agent.lend``), for as long as the block lasts, but at most ``for_s`` seconds: then
        the owner takes it as given back. Raises NoAgent (too little is left), UnknownAgent, PeerLost, TimedOut."""
        from comity.client import borrowing

        return borrowing.borrow(self._client, owner, resource, amount, for_s, timeout)

    def invite(
        self,
        kind: str,
        agents: Iterable[str] | None = None,
        *,
        description: str = "",
        requires: Iterable[str] = (),
        deadline_s: float = 5.0,
    ) -> AbstractAsyncContextManager[Collaboration]:
        """Invite agents, by id or name, to a collaboration; without ``agents`` all that offer every capability of ``requires``.
        Each that has a function for ``collaboration.invite`` joins by returning from it, or raises Refuse. The block begins once
        all have answered or ``deadline_s`` is over; at its end the collaboration is dissolved. Raises UnknownAgent, NoAgent
        (nobody joined; ``details["refusals"]`` says why)."""
        from comity.client import collaborating

        return collaborating.invite(self._client, kind, agents, description, tuple(requires), deadline_s)
