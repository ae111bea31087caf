"""The first entry of a network made from a backup: what this network goes on from, and above which epochs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from comity.core.changes import Change
from comity.model.ids import epoch
from comity.model.task import Ending, Restored

if TYPE_CHECKING:
    from comity.core.tasks import Tasks


def _restored(state: Tasks, command: Restored, index: int, _ordinal: int) -> None:
    """Nothing runs any more, and nobody is here: that was in the network this one is a copy of."""
    if index != 1:
        return
    state.origin, state.generation, state.snapshots = command, max(state.generation, command.generation), []
    state.changes.append(Change("network.restored", reason=f"from {command.backup}, of network {command.origin}"))
    for node, lease in list(state.nodes.items()):
        for task_id in list(lease.attempts):
            state.put_back(task_id, Ending.EVICTED, "it ran in the network that this one was restored from")
        state.end_lease(node, lease, "restored")


APPLIERS: dict[type, Callable[[Tasks, Any, int, int], None]] = {Restored: _restored}


def check(state: Tasks) -> str:
    """Which invariant is broken; "" if none is."""
    if state.origin is not None and state.next_epoch() <= epoch(state.origin.generation, 0):
        return "are above those of the network restored from"
    return ""
