"""Which faults it takes: leaves out whatever a life breaks the same promise without (Zeller's ddmin, 2002)."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import NamedTuple

from comity.sim.faults import Strike
from comity.sim.loop import SimulationError
from comity.sim.world import World

_VARIES = re.compile(r"\b[0-9a-z]{20,}\b|\d+(\.\d+)?")

Live = Callable[[list[int]], SimulationError | None]
"""Lives the life with only these faults; what it broke, if anything."""


class Shrunk(NamedTuple):
    """The fewest faults found that do it, the error they lead to, and how many lives it took to find out."""

    plan: list[Strike]
    error: SimulationError
    lives: int


def kind_of(error: SimulationError) -> str:
    """What two failures have in common if they are the same: all but numbers and ids."""
    first = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {_VARIES.sub('#', first)}"


def shrink(plan: list[Strike], live: Live, say: Callable[[str], None]) -> Shrunk | None:
    """None if the life with its whole ``plan`` breaks nothing."""
    numbers = [strike.number for strike in plan]
    error = live(numbers)
    if error is None:
        return None
    lives, part, wanted = 1, max(1, len(numbers) // 2), kind_of(error)
    while numbers:
        start, dropped = 0, False
        while start < len(numbers):
            fewer = numbers[:start] + numbers[start + part :]
            lives += 1
            found = live(fewer)
            if found is not None and kind_of(found) == wanted:
                numbers, error, dropped = fewer, found, True
                say(f"{len(numbers)} faults are enough")
            else:
                start += part
        if part == 1 and not dropped:
            break
        part = part if dropped and part == 1 else max(1, part // 2)
    return Shrunk([strike for strike in plan if strike.number in numbers], error, lives)


def shrink_seed(seed: int, *, liars: int = 0, say: Callable[[str], None]) -> Shrunk | None:
    """The life of ``seed``, with ever fewer of its faults."""

    def live(numbers: list[int]) -> SimulationError | None:
        try:
            World(seed, liars=liars, only=numbers).run()
        except SimulationError as error:
            error.__traceback__ = None
            return error
        finally:
            gc.collect()
        return None

    world = World(seed, liars=liars)
    world.loop.close()
    return shrink(world.faults.plan, live, say)
