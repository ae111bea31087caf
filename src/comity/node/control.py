"""What a node can be told to do to its agents, and to itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from comity.errors import BadInput, NotFound
from comity.model.capability import AgentStatus
from comity.model.codec import UNREADABLE
from comity.model.limits import check_timeout
from comity.model.wire import Control as Order

if TYPE_CHECKING:
    from comity.node.node import Node


class _Args(msgspec.Struct, forbid_unknown_fields=True):
    """``agent`` by name or id; ``changes`` as for ``Agent.update``."""

    agent: str = ""
    changes: dict[str, Any] = {}
    timeout_s: float | None = None


class Control:
    def __init__(self, node: Node) -> None:
        self._node = node

    def do(self, order: Order) -> dict[str, Any]:
        """Do it; what there is to say about it, as JSON. Raises BadInput, UnknownAgent, NotFound."""
        try:
            args = msgspec.json.decode(order.args, type=_Args)
        except UNREADABLE as error:
            raise BadInput(f"{order.what}: {error}") from error
        if order.what == "drain":
            self._node.spawn(self._node.drain(check_timeout(args.timeout_s)))
            return {"node": self._node.node, "draining": True}
        agent = self._node.find(args.agent)
        if order.what == "remove":
            self._node.remove(agent)
            return {"agent": f"{self._node.node}/{agent.name}", "status": AgentStatus.LEFT}
        if order.what == "pause":
            agent.update(status=AgentStatus.PAUSED)
        elif order.what == "resume":
            agent.update(status=AgentStatus.ACTIVE)
        elif order.what == "update":
            agent.update(**args.changes)
        else:
            raise NotFound(f"a node cannot {order.what!r}; it can pause, resume, update, remove and drain")
        return {"agent": agent.id, "status": agent.status}
