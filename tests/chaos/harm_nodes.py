"""What befalls nodes, and the links that some of them have to servers. All networks have it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nemesis import Harm, Nemesis
    from players import Crew, Player


class NodeHarm:
    def __init__(self, nemesis: Nemesis, crew: Crew) -> None:
        self._nemesis = nemesis
        self._crew = crew

    def kinds(self) -> Mapping[str, Harm]:
        return {
            "node killed": self.kill,
            "node paused": self.pause,
            "nodes cut off": self.cut,
            "delay": self.delay,
            "connections dropped": self.drop,
        }

    def any(self) -> Player:
        return self._crew.nodes[self._nemesis.chance.choice(sorted(self._crew.nodes))]

    async def kill(self) -> str:
        node = self.any()
        await node.kill()
        await self._crew.hire(node.name)
        return node.name

    async def restart(self) -> str:
        """As its owner does it, who has it finish what it has begun."""
        node = self.any()
        await node.stop()
        await self._crew.hire(node.name)
        return node.name

    async def pause(self) -> str:
        return await self._nemesis.paused(self.any())

    async def _proxied(self, what: str) -> str:
        seconds = self._nemesis.for_a_while()
        await self._nemesis.hold(seconds)
        for proxy in self._crew.proxies:
            proxy.heal()
        return f"n3 and n4 {what} for {seconds:.1f} s"

    async def cut(self) -> str:
        for proxy in self._crew.proxies:
            proxy.cut()
        return await self._proxied("cut off")

    async def delay(self) -> str:
        seconds = self._nemesis.chance.uniform(0.05, 0.5)
        for proxy in self._crew.proxies:
            proxy.delay_s = seconds
        return await self._proxied(f"{seconds:.2f} s late")

    async def drop(self) -> str:
        share = self._nemesis.chance.uniform(0.02, 0.2)
        for proxy in self._crew.proxies:
            proxy.drop = share
        return await self._proxied(f"lose their connections at {share:.0%} of all data")
