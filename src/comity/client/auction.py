"""The initiator's side of a contract net (FIPA SC00029H), plain or iterated (SC00030H): call, collect, choose, award."""

from __future__ import annotations

from collections.abc import Callable
from math import isnan
from typing import TYPE_CHECKING, Any

from comity.client.dialog import Dialog, Leg
from comity.client.losses import Losses
from comity.core.conversations import State
from comity.core.protocols import CONTRACT_NET, ITERATED_CONTRACT_NET
from comity.errors import ComityError, NoAgent
from comity.model.codec import to_json
from comity.model.envelope import Performative
from comity.model.ids import AgentId
from comity.talking import Award, Proposal

if TYPE_CHECKING:
    from comity.client.exchange import Exchange
    from comity.client.terms import Scope

ROUNDS = 20
Rank = Callable[[Proposal], float | None]
Again = Callable[[list[Proposal]], Any]


class Auction:
    """``rank``: the lower the better, None: no deal; without one the first to propose wins. ``again`` looks at a round's
    proposals and gives the body of the next call, or None. ``repeatable``: if the winner fails, the next best gets it, but
    not once it has cost as many nodes as make a task poison."""

    def __init__(
        self, exchange: Exchange, scope: Scope, topic: str, *, rank: Rank | None, again: Again | None, repeatable: bool
    ) -> None:
        self._rank = rank
        self._again = again
        self._repeatable = repeatable
        self._loop = exchange.loop
        self._losses = Losses(exchange.settings.poison_nodes)
        protocol = CONTRACT_NET if again is None else ITERATED_CONTRACT_NET
        self._dialog = Dialog(exchange.talks, protocol, topic, sender=scope.sender, trace=scope.trace)
        self._proposals: dict[AgentId, Proposal] = {}
        self._refused: dict[str, str] = {}

    async def award(self, agents: list[AgentId], data: bytes, deadline_s: float, work_s: float) -> Award:
        """Raises NoAgent (nobody proposed, or nobody acceptable), or what became of the winner."""
        with self._dialog as dialog:
            for agent in agents:
                dialog.open(agent, Performative.CFP, data, deadline_s)
            await self._collect(set(agents))
            for _ in range(ROUNDS if self._again is not None else 0):
                more = self._again(self._ranked()) if self._again is not None else None
                if more is None:
                    break
                data = to_json(more)
                called = self._proposing()
                for leg in called:
                    del self._proposals[leg.agent]
                await self._collect({leg.agent for leg in called if leg.tell(Performative.CFP, data, deadline_s)})
            return await self._give(self._ranked(), work_s)

    def _proposing(self) -> list[Leg]:
        return [self._dialog.legs[agent] for agent in self._proposals if self._dialog.legs[agent].state is State.PROPOSED]

    async def _collect(self, called: set[AgentId]) -> None:
        """Until each has proposed, or will not. Each that is silent expires at the deadline."""
        began = self._loop.time()
        while called:
            leg, _, body, error = await self._dialog.heard()
            called.discard(leg.agent)
            self._note(leg, body, error, self._loop.time() - began)

    def _note(self, leg: Leg, body: Any, error: ComityError | None, after_s: float) -> None:
        if error is not None:
            self._proposals.pop(leg.agent, None)
            self._refused[leg.agent] = str(error.details.get("refused") or error.message)
        else:
            self._proposals[leg.agent] = Proposal(leg.agent, body, after_s)

    def _ranked(self) -> list[Proposal]:
        """The acceptable ones, best first."""
        ranks: dict[AgentId, float] = {}
        for leg in self._proposing():
            rank = self._rank_of(self._proposals[leg.agent])
            if rank is not None:
                ranks[leg.agent] = rank
        best = sorted(ranks, key=lambda agent: (ranks[agent], self._proposals[agent].after_s))
        return [self._proposals[agent] for agent in best]

    def _rank_of(self, proposal: Proposal) -> float | None:
        """A bidder whose proposal cannot be ranked does not spoil the auction for the others."""
        if self._rank is None:
            return 0.0
        try:
            rank = self._rank(proposal)
            if rank is not None and isnan(rank):
                raise ValueError("its rank is not a number")
        except Exception as error:  # whatever the caller's function makes of a stranger's words
            self._refused[proposal.agent] = f"its proposal cannot be ranked: {type(error).__name__}: {error}"
            return None
        return rank

    async def _give(self, ranked: list[Proposal], work_s: float) -> Award:
        if not ranked:
            said = "; ".join(f"{agent}: {reason}" for agent, reason in list(self._refused.items())[:5])
            raise NoAgent(f"no acceptable proposal{f' ({said})' if said else ''}", refusals=dict(self._refused))
        self._reject([proposal.agent for proposal in (ranked if self._repeatable else ranked[:1])])
        lost: ComityError | None = None
        for proposal in ranked if self._repeatable else ranked[:1]:
            leg = self._dialog.legs[AgentId(proposal.agent)]
            if not leg.tell(Performative.ACCEPT_PROPOSAL, to_json(proposal.body), work_s):
                continue  # it was lost, or its proposal expired, while another one worked
            try:
                result = await self._result(leg)
            except ComityError as error:
                lost = error
                self._refused[proposal.agent] = error.message
                if self._losses.are_too_many(leg.agent, error):
                    break
                continue
            return Award(proposal.agent, proposal.body, result, tuple(ranked), dict(self._refused))
        raise lost or NoAgent("whoever proposed is gone", refusals=dict(self._refused))

    def _reject(self, keep: list[str]) -> None:
        for leg in self._proposing():
            if leg.agent not in keep:
                leg.tell(Performative.REJECT_PROPOSAL)

    async def _result(self, winner: Leg) -> Any:
        while True:
            leg, _, body, error = await self._dialog.heard()
            if leg is winner:
                if error is not None:
                    raise error
                return body
            if error is not None:
                self._note(leg, body, error, 0.0)
