"""What comes of it when agents negotiate: proposals, an award, an invitation."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

__all__ = ["Award", "Invitation", "Proposal"]


class Proposal(NamedTuple):
    """What an agent offers. ``after_s``: how long it took to say so."""

    agent: str
    body: Any
    after_s: float


class Award(NamedTuple):
    """Who did it, what it had proposed, and the result. ``proposals``: all that were acceptable, best first; ``refused``: who
    made none that was, and why."""

    agent: str
    proposal: Any
    result: Any
    proposals: tuple[Proposal, ...]
    refused: dict[str, str]


class Invitation(msgspec.Struct, frozen=True):
    """To a collaboration: what it is for, and the capabilities that whoever joins it must offer."""

    id: str
    kind: str
    description: str = ""
    requires: tuple[str, ...] = ()
