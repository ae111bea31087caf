"""A live call to a capability: the leader says which agent shall answer it, and the call goes there.

An agent that refuses is passed over. One that dies before it answers has perhaps done it, so another is asked only if the call is
``repeatable``, and not once it has cost as many nodes as make a task poison. Such a call may also have a second agent asked after
``hedge_s`` without an answer (Dean & Barroso, "The tail at scale", 2013). The first answer counts, the other call is called off.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from comity.bus.base import LEADER
from comity.client.exchange import Exchange
from comity.client.losses import Losses
from comity.client.terms import name_of, needs
from comity.errors import (
    BadInput,
    ComityError,
    Disconnected,
    Indefinite,
    NoAgent,
    PeerLost,
    ShuttingDown,
    UnknownAgent,
    UnknownCapability,
    from_wire,
)
from comity.model.capability import Requirements, Strategy
from comity.model.capability import strategy as strategy_named
from comity.model.ids import AgentId
from comity.model.limits import check_seconds
from comity.model.wire import CallEnded, Route, Routed

GONE = (PeerLost, UnknownAgent, ShuttingDown)
"""What is said of an agent that is not there any more."""
_NO_ANSWER = (*GONE, NoAgent, UnknownCapability, Indefinite)
_NOT_ITS_FAULT = (BadInput, NoAgent, ShuttingDown, Disconnected)

Call = Callable[[AgentId], Awaitable[Any]]


def check_repeats(repeatable: bool, hedge_s: float | None, *, named: bool) -> None:
    """Raise BadInput for what cannot be meant. ``named``: the target is one agent."""
    if hedge_s is not None:
        check_seconds(hedge_s, "hedge_s")
        if not repeatable:
            raise BadInput("hedge_s asks a second agent: say repeatable=True if it may be done twice", option="hedge_s")
    if repeatable and named:
        raise BadInput("repeatable is for calls to a capability: there is no other such agent to ask", option="repeatable")


class LiveCall:
    """``target`` is a capability, maybe with versions; ``until`` is on the loop's clock. Raises BadInput."""

    def __init__(
        self,
        exchange: Exchange,
        target: str,
        until: float,
        *,
        strategy: Strategy | str | None,
        requirements: Requirements | None,
        sticky: str,
        repeatable: bool = False,
    ) -> None:
        self.capability, versions = name_of(target)
        self._exchange = exchange
        self._until = until
        self._how = strategy_named(strategy) if strategy is not None else None
        self._wanted = needs(requirements, (), versions, sticky)
        self._repeatable = repeatable
        self._asked: dict[AgentId, None] = {}
        self._losses = Losses(exchange.settings.poison_nodes)

    async def answer(self, call: Call, hedge_s: float | None = None) -> Any:
        """What ``call`` to an agent gives. Raises what the agent says, NoAgent, UnknownCapability, PeerLost, TimedOut."""
        if hedge_s is None:
            return await self._one(call)
        calls = [asyncio.ensure_future(self._one(call))]
        try:
            await asyncio.wait(calls, timeout=hedge_s)
            if not calls[0].done():
                calls.append(asyncio.ensure_future(self._one(call)))
            return await _first_answer(calls)
        finally:
            for other in calls:
                other.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    async def agent(self) -> AgentId:
        """Whom to tell something that is not answered. Raises NoAgent, UnknownCapability, TimedOut."""
        asked: list[AgentId] = []
        await self._routed(_say_nothing, asked)
        return asked[0]

    async def _one(self, call: Call) -> Any:
        """Ask one agent after another, until one answers."""
        lost: ComityError | None = None
        asked: list[AgentId] = []
        while True:
            count = len(asked)
            try:
                return await self._routed(call, asked)
            except NoAgent as refusal:
                if len(asked) == count:
                    raise (lost or refusal) from None
                if "refused" not in refusal.details:
                    raise  # it was done, and found nobody itself
                lost = lost or refusal
            except GONE as gone:
                if len(asked) == count or not self._repeatable or self._losses.are_too_many(asked[-1], gone):
                    raise
                lost = gone

    async def _routed(self, call: Call, asked: list[AgentId]) -> Any:
        """Let the leader pick an agent that was not asked yet, note it in ``asked``, and call it. It counts as load until this
        returns."""
        exchange, loop = self._exchange, self._exchange.loop
        left_s = max(self._until - loop.time(), 0.001)
        ref = exchange.calls.number()
        route = Route(ref, self.capability, max(1, round(left_s * 1000)), self._wanted, self._how, tuple(self._asked))
        began, ok = 0.0, None
        try:
            routed: Routed = await exchange.calls.ask(LEADER, route, ref, left_s, f"route to {self.capability}")
            if not routed.agent:
                raise from_wire(routed.code, routed.message, {"capability": self.capability})
            if routed.agent in self._asked:
                raise NoAgent(f"nobody but {routed.agent} can do it now, and that was asked", capability=self.capability)
            self._asked[routed.agent] = None
            asked.append(routed.agent)
            began = loop.time()
            value = await call(routed.agent)
            ok = None if call is _say_nothing else True
            return value
        except ComityError as error:
            ok = None if isinstance(error, _NOT_ITS_FAULT) or not began else False
            raise
        finally:
            took_ms = (loop.time() - began) * 1000 if began else 0.0
            exchange.contact.post(CallEnded(ref, took_ms, ok))


async def _say_nothing(agent: AgentId) -> None:
    """What is only told is not measured."""


async def _first_answer(calls: Sequence[asyncio.Future[Any]]) -> Any:
    """The first answer, an error that the agent names included; if there is none, why the first call got none."""
    waiting = set(calls)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for call in (call for call in calls if call in done):
            if not isinstance(call.exception(), _NO_ANSWER):
                return call.result()
    return calls[0].result()
