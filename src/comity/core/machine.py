"""The one shape of every machine in this folder.

A machine is told what happened (``step``) and says what to do (effects); performing an effect may bring a new event. It has
no clock, no random source, no I/O and no log of its own: time comes in as ``now`` (seconds, monotonic, of the caller's
loop), randomness as a function given at construction. So any life can be replayed from its events.
"""

from __future__ import annotations

from typing import Protocol, TypeVar

EventT = TypeVar("EventT", contravariant=True)
EffectT = TypeVar("EffectT")


class Machine(Protocol[EventT, EffectT]):
    def step(self, event: EventT, now: float) -> list[EffectT]:
        """Take in one event. Never raises for bad input from outside; raises for a broken invariant."""
        ...

    def next_deadline(self) -> float | None:
        """When ``step`` wants to be called with a ``Tick`` even if nothing happens; None: never."""
        ...

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken. Costly; tests and the simulation call it after every step."""
        ...
