"""What is measured of capabilities and of those that offer them, for who asks."""

from __future__ import annotations

from heapq import nlargest
from itertools import islice
from typing import Any

from comity.core.performance import OF_CAPABILITY, Tally
from comity.core.scheduling import Scheduling
from comity.core.strategies import Fits

LISTED = 1000
_LOOKED_AT = 5000
"""Agents, and capabilities, looked through for those to show; keeps a question from holding up the leader."""
_NOTHING = Tally(OF_CAPABILITY)


def performance(scheduling: Scheduling, capability: str | None, now_ms: int) -> dict[str, Any]:
    """Of all capabilities, those at which most was done first; or of one, and of each agent that did it."""
    if capability is None:
        names = nlargest(LISTED, islice(scheduling.capabilities(), _LOOKED_AT), key=lambda name: _tally(scheduling, name).ended)
        return {"capabilities": [of_capability(scheduling, name, now_ms) for name in names]}
    fits = scheduling.fits(capability) or Fits()
    measured = [(one, fit.tally) for one, fit in islice(fits.by_agent.items(), _LOOKED_AT) if fit.tally is not None]
    most = nlargest(LISTED, measured, key=lambda pair: pair[1].ended)
    agents = [{"id": one.id, "load": one.load, "concurrency": one.limit, **tally.figures(now_ms)} for one, tally in most]
    return {"capabilities": [of_capability(scheduling, capability, now_ms)], "agents": agents}


def busiest(scheduling: Scheduling, now_ms: int, limit: int) -> list[dict[str, Any]]:
    """The capabilities of which most end in a second."""
    names = islice(scheduling.capabilities(), _LOOKED_AT)
    worked = [name for name in names if _tally(scheduling, name).ended]
    most = nlargest(limit, worked, key=lambda name: _tally(scheduling, name).per_s(now_ms))
    return [of_capability(scheduling, name, now_ms) for name in most]


def of_capability(scheduling: Scheduling, name: str, now_ms: int) -> dict[str, Any]:
    return {
        "name": name,
        "agents": scheduling.offered(name),
        "live": scheduling.live(name),
        "strategy": str(scheduling.strategy_of(name)),
        **_tally(scheduling, name).figures(now_ms),
    }


def _tally(scheduling: Scheduling, name: str) -> Tally:
    fits = scheduling.fits(name)
    return fits.tally if fits is not None else _NOTHING
