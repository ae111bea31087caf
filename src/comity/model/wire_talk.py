"""What processes say to each other about conversations. Part of ``wire``; tags 105 to 114."""

from __future__ import annotations

from comity.model.item import Item


class Misfit(Item, frozen=True, tag=105):
    """A process to the leader: it refused this message, for ``reason``. The leader tells of it as ``message.refused``."""

    sender: str
    receiver: str
    performative: str
    topic: str
    protocol: str
    conversation: str
    reason: str
