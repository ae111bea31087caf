"""Who does the harm: faults in a seeded order, one after the other, each healed before the next one comes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple, Protocol

from players import Player

Harm = Callable[[], Awaitable[str]]
"""Does one fault, from beginning to healing, and says to whom."""


class Fault(NamedTuple):
    """Times are seconds since the run began. ``ended``: when its cause was gone, not when the network was well again."""

    kind: str
    what: str
    began: float
    ended: float


class Victims(Protocol):
    """A network to be harmed."""

    def harm(self, nemesis: Nemesis) -> Mapping[str, Harm]:
        """All kinds of faults that it knows."""

    def lacks(self, kind: str) -> str:
        """Why there can be no such fault here; "" if there can."""


class Nemesis:
    """``faults`` so far; ``skipped``: the kinds that cannot be had here, and why. No fault lasts longer than ``longest_s``."""

    def __init__(self, victims: Victims, chance: random.Random, now: Callable[[], float], longest_s: float) -> None:
        self.faults: list[Fault] = []
        self.over = asyncio.Event()
        self.chance = chance
        self.now = now
        self._longest_s = longest_s
        self.began = 0.0
        self._kinds = victims.harm(self)
        self.skipped = {kind: why for kind in self._kinds if (why := victims.lacks(kind))}

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in self._kinds if kind not in self.skipped]

    def order(self) -> list[str]:
        """Every kind once, in an order of its own."""
        return self.chance.sample(self.kinds, len(self.kinds))

    async def run(self, every_s: float, until: float, only: list[str] | None = None) -> None:
        """A fault every ``every_s`` seconds, or as soon as the last one is healed, until the run is so old."""
        due = self.now()
        waiting: list[str] = []
        while due < until:
            await self.hold(due - self.now())
            waiting = waiting or [kind for kind in only or self.order() if kind not in self.skipped]
            await self.inflict(waiting[0])
            waiting = waiting[1:]
            due = max(due + every_s, self.now())

    async def inflict(self, kind: str) -> None:
        """One fault, from beginning to healing."""
        self.begins()
        what = await self._kinds[kind]()
        self.faults.append(Fault(kind, what, self.began, self.now()))
        print(f"{self.began:7.1f} s  {kind}: {what} ({self.now() - self.began:.1f} s)", flush=True)

    async def rest(self, seconds: float) -> None:
        """No more faults for so long."""
        await self.hold(seconds)

    # For those who do a fault

    def begins(self) -> None:
        """It begins only now: before, somebody had to be found."""
        self.began = self.now()

    async def hold(self, seconds: float) -> None:
        """So long, or until the run is over."""
        if seconds > 0:
            await asyncio.wait([asyncio.ensure_future(self.over.wait())], timeout=seconds)

    async def wait_a_moment(self) -> None:
        """As long as it takes somebody to start again what has died."""
        await self.hold(self.chance.uniform(0.0, 2.0))

    def for_a_while(self) -> float:
        return self.chance.uniform(1.0, self._longest_s)

    async def paused(self, player: Player, seconds: float = 0.0) -> str:
        """``player`` stands still for so long, or for a while."""
        seconds = seconds or self.for_a_while()
        self.begins()
        player.pause()
        await self.hold(seconds)
        player.resume()
        return f"{player.name} for {seconds:.1f} s"
