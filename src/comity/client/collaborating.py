"""A verb of ``Client``: the organiser's side of a collaboration: invite, see who joins and leaves, tell the members, dissolve."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec

from comity.client.dialog import Dialog, Heard
from comity.core.conversations import State
from comity.core.protocols import COLLABORATION
from comity.errors import BadInput, NoAgent
from comity.model.codec import to_json
from comity.model.envelope import Performative
from comity.model.ids import AgentId
from comity.model.limits import check_line, check_name, check_seconds
from comity.talking import Invitation

if TYPE_CHECKING:
    from comity.client.client import Client

INVITE, JOIN, LEAVE = "collaboration.invite", "collaboration.join", "collaboration.leave"


class Collaboration:
    """``members`` changes as they leave, or are lost; each is told who joined and who left. ``declined``: who did not join, or
    left, and why."""

    def __init__(self, invitation: Invitation, dialog: Dialog) -> None:
        self.id = invitation.id
        self.kind = invitation.kind
        self.description = invitation.description
        self.requires = invitation.requires
        self.declined: dict[str, str] = {}
        self._dialog = dialog

    @property
    def members(self) -> tuple[AgentId, ...]:
        return tuple(leg.agent for leg in self._dialog.legs.values() if leg.state is State.JOINED)

    def tell(self, body: Any, *, topic: str = "collaboration.news") -> None:
        """Tell every member something; live. Raises NotSerializable, TooLarge."""
        data = to_json(body)
        for leg in self._dialog.legs.values():
            if leg.state is State.JOINED:
                leg.tell(Performative.INFORM, data, topic=topic)

    async def _assemble(self, invited: set[AgentId]) -> None:
        """Until each has answered."""
        while invited:
            heard = await self._dialog.heard()
            invited.discard(heard.leg.agent)
            self._note(heard)

    async def _follow(self) -> None:
        while True:
            self._note(await self._dialog.heard())

    def _note(self, heard: Heard) -> None:
        agent, error = heard.leg.agent, heard.error
        if heard.says is Performative.ACCEPT_PROPOSAL:
            self._tell_of(JOIN, agent)
        else:
            if error is None:
                left = heard.body.get("message") if isinstance(heard.body, dict) else None
            else:
                left = error.details.get("refused") or error.message
            if heard.leg.state is not State.REFUSED and heard.leg.state is not State.EXPIRED:
                self._tell_of(LEAVE, agent)
            self.declined[agent] = str(left or "left")

    def _tell_of(self, topic: str, agent: AgentId) -> None:
        self.tell({"id": self.id, "agent": agent, "members": self.members}, topic=topic)


@asynccontextmanager
async def invite(
    client: Client,
    kind: str,
    agents: Iterable[str] | None = None,
    *,
    description: str = "",
    requires: Iterable[str] = (),
    deadline_s: float = 5.0,
) -> AsyncGenerator[Collaboration, None]:
    """Invite agents, by id or name, to a collaboration; without ``agents`` all that offer every capability of ``requires``. Each
    that has a function for ``collaboration.invite`` joins by returning from it, or raises Refuse. The block begins once all have
    answered or ``deadline_s`` is over; at its end the collaboration is dissolved. Raises UnknownAgent, NoAgent (nobody joined;
    ``details["refusals"]`` says why)."""
    exchange, scope = client._exchange, client._scope
    exchange.check_open()
    check_seconds(deadline_s, "deadline_s")
    required = tuple(requires)
    named = await _invited(client, agents, required)
    dialog = Dialog(exchange.talks, COLLABORATION, INVITE, sender=scope.sender, trace=scope.trace)
    invitation = Invitation(
        dialog.id, check_name(kind, "a collaboration"), check_line(description, "description", 2000), required
    )
    collaboration = Collaboration(invitation, dialog)
    with dialog:
        data = msgspec.json.encode(invitation)
        for agent in named:
            dialog.open(agent, Performative.PROPOSE, data, deadline_s)
        await collaboration._assemble(set(named))
        if not collaboration.members:
            raise NoAgent(f"nobody joined the {kind}", refusals=dict(collaboration.declined))
        following = asyncio.ensure_future(collaboration._follow())
        try:
            yield collaboration
        finally:
            following.cancel()


async def _invited(client: Client, agents: Iterable[str] | None, requires: tuple[str, ...]) -> list[AgentId]:
    """Raises BadInput, UnknownAgent, NoAgent."""
    if agents is not None:
        return list(dict.fromkeys([await client._named(agent) for agent in agents]))
    if not requires:
        raise BadInput("say whom to invite: agents, or the capabilities they must offer (requires)")
    able = [{agent.id for agent in await client.discover(capability)} for capability in requires]
    found = sorted(set.intersection(*able))
    if not found:
        raise NoAgent(f"no agent offers {', '.join(requires)}")
    return found
