"""Clears away agents whose node is gone. An eviction does so by itself; this is for nodes that went otherwise: before they were
ever admitted, or while nobody could write to the registry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from comity.controller.census import Census
from comity.model.ids import NodeId

LOOK_S = 5.0
GRACE_S = 15.0
"""A node that starts writes its agents down before its own record, and holds a lease once the leader has heard it."""


class Vanished:
    """``members``: nodes with a lease. ``forget`` is told of a node that has had agents in the registry for ``GRACE_S``, but
    neither a lease nor a record of its own, which a living one renews. One that is wrongly forgotten announces itself again."""

    def __init__(self, census: Census, members: Mapping[NodeId, Any], forget: Callable[[NodeId], None]) -> None:
        self._census = census
        self._members = members
        self._forget = forget
        self._since: dict[NodeId, float] = {}
        self._look_at = 0.0

    def look(self, now: float) -> None:
        """Called a few times a second."""
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        known = self._census.nodes
        strangers = [node for node in self._census.counts if node not in self._members and node not in known]
        self._since = {node: self._since.get(node, now) for node in strangers}
        for node, since in self._since.items():
            if now - since >= GRACE_S:
                self._forget(node)
