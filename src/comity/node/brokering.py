"""A broker's work (FIPA SC00033H): find an agent that can do what is asked for, and pass on what it answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comity.errors import InvalidOutput, UnknownCapability
from comity.model.capability import AgentRecord, AgentStatus
from comity.model.codec import from_json, to_json

if TYPE_CHECKING:
    from comity.node.messages import Call

Choose = Callable[[str, list[AgentRecord]], AgentRecord]


class Broker:
    """``choose`` is the agent's author's own choice among those that offer it."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose

    async def relay(self, call: Call) -> bytes:
        """Raises UnknownCapability, InvalidOutput (a choice that is none), and what the chosen one raises."""
        capability, client = call.envelope.topic, call.client()
        able = await client.discover(capability, status=AgentStatus.ACTIVE)
        others = [agent for agent in able if agent.id != call.agent]
        if not others:
            raise UnknownCapability(f"{call.agent} knows nobody who offers {capability!r}", capability=capability)
        chosen: Any = self._choose(capability, others)
        if chosen not in others:
            raise InvalidOutput(f"the broker {call.agent} chose none of those who offer {capability!r}")
        return to_json(await client.request(chosen.id, from_json(call.envelope.body), topic=capability))
