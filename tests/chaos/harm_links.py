"""Cuts between the members of a cluster, each of which is in a namespace of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from links import HUB

if TYPE_CHECKING:
    from links import Links
    from nemesis import Harm, Nemesis

MEMBERS = "abc"


class LinkHarm:
    """``leading`` tells which member should be cut off."""

    def __init__(self, nemesis: Nemesis, links: Links | None, leading: Callable[[], Awaitable[str]]) -> None:
        self._nemesis = nemesis
        self._links = links
        self._leading = leading

    def kinds(self) -> Mapping[str, Harm]:
        return {"partition": self.partition, "one-way partition": self.one_way}

    async def _cut(self, pairs: list[tuple[str, str]], what: str) -> str:
        links, seconds = self._links, self._nemesis.for_a_while()
        assert links is not None
        self._nemesis.begins()
        for sender, receiver in pairs:
            links.cut(sender, receiver)
        await self._nemesis.hold(seconds)
        links.heal()
        return f"{what} for {seconds:.1f} s"

    async def partition(self) -> str:
        """One member from the two others, and half of the time from clients and nodes too."""
        one = await self._leading()
        others = [name for name in MEMBERS if name != one] + ([HUB] if self._nemesis.chance.random() < 0.5 else [])
        pairs = [(one, other) for other in others]
        return await self._cut(pairs + [(other, one) for other in others], f"{one} | {' '.join(others)}")

    async def one_way(self) -> str:
        """One hears the others, and they do not hear it; or the other way round."""
        one = await self._leading()
        others = [name for name in MEMBERS if name != one]
        if self._nemesis.chance.random() < 0.5:
            return await self._cut([(one, other) for other in others], f"{one} is not heard by {' '.join(others)}")
        return await self._cut([(other, one) for other in others], f"{one} does not hear {' '.join(others)}")
