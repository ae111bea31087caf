"""What is asked of one agent after the other because nodes die: after so many of them it is perhaps what they die of."""

from __future__ import annotations

from comity.errors import ComityError, PeerLost
from comity.model.ids import AgentId, ProcessId, node_of


class Losses:
    """Of one call. ``poison_nodes`` as for tasks; 0: never."""

    def __init__(self, poison_nodes: int) -> None:
        self._poison_nodes = poison_nodes
        self._nodes: set[ProcessId] = set()

    def are_too_many(self, agent: AgentId, error: ComityError) -> bool:
        """Whether nobody else is to be asked after ``error`` of ``agent``."""
        if isinstance(error, PeerLost):
            self._nodes.add(node_of(agent))
        return 0 < self._poison_nodes <= len(self._nodes)
