"""Buses on a real server, each behind a cable of its own."""

from __future__ import annotations

import asyncio
import sys
import time

from bus_contract import Inbox
from cable import Cable

from comity.bus.base import Bus, Link, to


class CabledWorld:
    """See ``bus_contract.World``. Whoever makes a bus says which cable is its own."""

    def __init__(self) -> None:
        self._cables: dict[Bus, Cable] = {}

    def cable(self, bus: Bus) -> Cable:
        return self._cables[bus]

    async def cut(self, bus: Bus) -> None:
        await self._cables[bus].cut()
        await until(bus, Link.DOWN)

    async def mend(self, bus: Bus) -> None:
        await self._cables[bus].mend()
        await until(bus, Link.UP)

    async def close(self) -> None:
        for bus, cable in self._cables.items():
            await bus.close()
            await cable.cut()


async def until(bus: Bus, link: Link) -> None:
    states = Inbox()
    bus.on_state(states)
    await states.when(lambda: bus.link is link)


async def sees_deaths(a: Bus, code: str, *words: str) -> None:
    """``code`` is a process ``b`` that greets ``a``. When it is killed, ``a`` sees it leave, and then that nobody is there."""
    gone, nobody, heard = Inbox(), Inbox(), Inbox()
    took_s: list[float] = []
    a.on_departure(gone)
    a.on_unreachable(nobody)
    await a.subscribe(to("a"), heard)
    for turn in range(3):
        peer = await asyncio.create_subprocess_exec(sys.executable, "-c", code, *words)
        await heard.until(turn + 1)
        await a.send(to("b"), b"are you there")
        begin = time.monotonic()
        peer.kill()
        assert (await gone.until(turn + 1))[turn] == "b"
        seen = time.monotonic()
        await a.send(to("b"), b"and now")
        assert (await nobody.until(turn + 1))[turn] == to("b")
        took_s.append(max(seen - begin, time.monotonic() - seen))
        await peer.wait()
    assert min(took_s) < 0.25, "a busy machine is not what is looked at"
