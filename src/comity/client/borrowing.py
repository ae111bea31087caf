"""A verb of ``Client``: the borrower's side of the resource protocol: ask, be offered, give back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from comity.client.dialog import Dialog, Leg
from comity.core.conversations import State
from comity.core.protocols import RESOURCE
from comity.model.codec import to_json
from comity.model.envelope import Performative
from comity.model.limits import check_amount, check_name, check_seconds

if TYPE_CHECKING:
    from comity.client.client import Client


class Borrowed:
    """What is lent, until ``left_s`` is 0. The time counts from when it was asked for, so the owner counts no less."""

    def __init__(self, leg: Leg, resource: str, amount: float, until: float) -> None:
        self.owner = leg.agent
        self.resource = resource
        self.amount = amount
        self._leg = leg
        self._until = until

    @property
    def left_s(self) -> float:
        """0 if it is not ours any more: its time is over, or the owner is gone or took it back."""
        now = self._leg.dialog.talks.loop.time()
        return max(0.0, self._until - now) if self._leg.state is State.HELD else 0.0


@asynccontextmanager
async def borrow(
    client: Client, owner: str, resource: str, amount: float = 1, *, for_s: float, timeout: float | None = None
) -> AsyncGenerator[Borrowed, None]:
    """Have some of what an agent lends (``agent.lend``), for as long as the block lasts, but at most ``for_s`` seconds: then the
    owner takes it as given back. Raises NoAgent (too little is left), UnknownAgent, PeerLost, TimedOut."""
    exchange, scope = client._exchange, client._scope
    exchange.check_open()
    check_name(resource, "a resource")
    wanted = to_json({"amount": check_amount(amount, "amount"), "for_s": check_seconds(for_s, "for_s")})
    with Dialog(exchange.talks, RESOURCE, resource, sender=scope.sender, trace=scope.trace) as dialog:
        agent = await client._named(owner)
        asked_at = exchange.loop.time()
        leg = dialog.open(agent, Performative.REQUEST, wanted, client._wait_s(timeout))
        error = (await dialog.heard()).error
        if error is not None:
            raise error
        try:
            yield Borrowed(leg, resource, amount, asked_at + for_s)
        finally:
            leg.tell(Performative.INFORM)
