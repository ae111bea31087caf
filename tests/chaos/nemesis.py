"""Who does the harm: faults in a seeded order, one after the other, each healed before the next one comes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import psutil
from links import HUB
from players import SERVERS, Company, Player, Server

WHOLE_S = 45.0
ASK_S = 10.0
LOOK_S = 0.2


class Fault(NamedTuple):
    """Times are seconds since the run began. ``ended``: when its cause was gone, not when the network was well again."""

    kind: str
    what: str
    began: float
    ended: float


class Nemesis:
    """``faults`` so far; ``skipped``: the kinds that cannot be had here, and why. No fault lasts longer than ``longest_s``."""

    def __init__(self, company: Company, chance: random.Random, now: Callable[[], float], longest_s: float) -> None:
        self.faults: list[Fault] = []
        self.company = company
        self.over = asyncio.Event()
        self._chance = chance
        self._now = now
        self._longest_s = longest_s
        self._began = 0.0
        self._kinds: dict[str, Callable[[], Awaitable[str]]] = {
            "leader killed": self.kill_leader,
            "log leader killed": self.kill_log_leader,
            "nats-server killed": self.kill_nats,
            "server paused": self.pause_server,
            "controller paused": self.pause_controller,
            "server restarted": self.restart,
            "node killed": self.kill_node,
            "node paused": self.pause_node,
            "nodes cut off": self.cut_nodes,
            "delay": self.delay,
            "connections dropped": self.drop,
            "partition": self.partition,
            "one-way partition": self.one_way,
            "disk full": self.fill_disk,
            "bit flipped": self.flip,
            "block truncated": self.truncate,
            "replica lost": self.lose_replica,
            "power cut": self.cut_power,
            "power cut of all": self.cut_all_power,
        }
        self.skipped = {kind: why for kind in self._kinds if (why := self._lacks(kind))}

    def _lacks(self, kind: str) -> str:
        """Why there can be no such fault here; "" if there can."""
        disk = self.company.servers["a"].disk
        if "partition" in kind and self.company.links is None:
            return "network namespaces are not allowed here"
        if kind.startswith("power cut") and disk.image is None:
            return disk.why
        if kind == "disk full" and not disk.can_fill:
            return disk.why
        return ""

    @property
    def kinds(self) -> list[str]:
        return [kind for kind in self._kinds if kind not in self.skipped]

    def order(self) -> list[str]:
        """Every kind once, in an order of its own."""
        return self._chance.sample(self.kinds, len(self.kinds))

    async def run(self, every_s: float, until: float, only: list[str] | None = None) -> None:
        """A fault every ``every_s`` seconds, or as soon as the last one is healed, until the run is so old."""
        due = self._now()
        waiting: list[str] = []
        while due < until:
            await self._hold(due - self._now())
            waiting = waiting or only or self.order()
            await self.inflict(waiting[0])
            waiting = waiting[1:]
            due = max(due + every_s, self._now())

    async def inflict(self, kind: str) -> None:
        """One fault, from beginning to healing."""
        self._began = self._now()
        what = await self._kinds[kind]()
        self.faults.append(Fault(kind, what, self._began, self._now()))
        print(f"{self._began:7.1f} s  {kind}: {what} ({self._now() - self._began:.1f} s)", flush=True)

    async def _hold(self, seconds: float) -> None:
        """So long, or until the run is over."""
        if seconds > 0:
            await asyncio.wait([asyncio.ensure_future(self.over.wait())], timeout=seconds)

    async def rest(self, seconds: float) -> None:
        """No more faults for so long."""
        await self._hold(seconds)

    def _for_a_while(self) -> float:
        return self._chance.uniform(1.0, self._longest_s)

    # Whom

    def _any_server(self) -> Server:
        return self.company.servers[self._chance.choice(SERVERS)]

    async def _status(self) -> dict[str, Any]:
        """The cluster's own view; empty if it has none now."""
        try:
            return await asyncio.wait_for(self.company.status(), ASK_S)
        except Exception as error:
            print(f"{self._now():7.1f} s  no status: {error}", flush=True)
            return {}

    async def _leading(self, of: str) -> Server:
        """Whose server leads the controllers, or the log; any if nobody does."""
        status = await self._status()
        names = [row["place"] for row in status.get("controllers", ()) if of == "controllers" and row["role"] == "leader"]
        names += [group["leader"] for group in status.get("groups", ()) if group["name"] == of]
        found = [server for name in names if (server := self.company.leaving(name)) is not None]
        return found[0] if found else self._any_server()

    async def whole(self) -> bool:
        """Wait until the cluster could lose a server; whether it came to that. What takes a copy away needs the others."""
        until = self._now() + WHOLE_S
        while self._now() < until:
            status = await self._status()
            if status.get("survives", {}).get("more", -1) >= 1 and not status["damaged"]:
                return True
            await self._hold(LOOK_S)
        return False

    # Processes

    async def _killed(self, server: Server) -> str:
        self._began = self._now()
        await server.kill()
        await self._hold(self._chance.uniform(0.0, 2.0))
        await server.start()
        return server.name

    async def kill_leader(self) -> str:
        return await self._killed(await self._leading("controllers"))

    async def kill_log_leader(self) -> str:
        return await self._killed(await self._leading("log"))

    async def kill_nats(self) -> str:
        """Only the server: its ``comity up`` starts it again."""
        server = self._any_server()
        for process in server.processes()[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        return server.name

    async def _paused(self, player: Player) -> str:
        seconds = self._for_a_while()
        self._began = self._now()
        player.pause()
        await self._hold(seconds)
        player.resume()
        return f"{player.name} for {seconds:.1f} s"

    async def pause_server(self) -> str:
        return await self._paused(await self._leading("log"))

    async def pause_controller(self) -> str:
        """Only the controller: its server goes on."""
        server, seconds = await self._leading("controllers"), self._for_a_while()
        self._began = self._now()
        controller = server.processes()[0]
        controller.suspend()
        await self._hold(seconds)
        controller.resume()
        return f"{server.name} for {seconds:.1f} s"

    async def restart(self) -> str:
        server = self._any_server()
        await server.stop()
        await server.start()
        return server.name

    async def kill_node(self) -> str:
        name = self._chance.choice(sorted(self.company.nodes))
        await self.company.nodes[name].kill()
        await self.company.hire(name)
        return name

    async def pause_node(self) -> str:
        return await self._paused(self.company.nodes[self._chance.choice(sorted(self.company.nodes))])

    # Links

    async def _proxied(self, what: str) -> str:
        seconds = self._for_a_while()
        await self._hold(seconds)
        for proxy in self.company.proxies:
            proxy.heal()
        return f"n3 and n4 {what} for {seconds:.1f} s"

    async def cut_nodes(self) -> str:
        for proxy in self.company.proxies:
            proxy.cut()
        return await self._proxied("cut off")

    async def delay(self) -> str:
        seconds = self._chance.uniform(0.05, 0.5)
        for proxy in self.company.proxies:
            proxy.delay_s = seconds
        return await self._proxied(f"{seconds:.2f} s late")

    async def drop(self) -> str:
        share = self._chance.uniform(0.02, 0.2)
        for proxy in self.company.proxies:
            proxy.drop = share
        return await self._proxied(f"lose their connections at {share:.0%} of all data")

    async def _cut(self, pairs: list[tuple[str, str]], what: str) -> str:
        links, seconds = self.company.links, self._for_a_while()
        assert links is not None
        self._began = self._now()
        for sender, receiver in pairs:
            links.cut(sender, receiver)
        await self._hold(seconds)
        links.heal()
        return f"{what} for {seconds:.1f} s"

    async def partition(self) -> str:
        """One server from the two others, and half of the time from clients and nodes too."""
        one = await self._leading(self._chance.choice(["log", "controllers"]))
        others = [name for name in SERVERS if name != one.name] + ([HUB] if self._chance.random() < 0.5 else [])
        pairs = [(one.name, other) for other in others]
        return await self._cut(pairs + [(other, one.name) for other in others], f"{one.name} | {' '.join(others)}")

    async def one_way(self) -> str:
        """One hears the others, and they do not hear it; or the other way round."""
        one = await self._leading(self._chance.choice(["log", "controllers"]))
        others = [name for name in SERVERS if name != one.name]
        if self._chance.random() < 0.5:
            return await self._cut([(one.name, other) for other in others], f"{one.name} is not heard by {' '.join(others)}")
        return await self._cut([(other, one.name) for other in others], f"{one.name} does not hear {' '.join(others)}")

    # Disks

    async def fill_disk(self) -> str:
        """A full disk stops its server's streams until it is started again: that is what an operator does, once there is room."""
        if not await self.whole():
            return "left out: the cluster was not whole"
        server, seconds = await self._leading("log"), self._for_a_while()
        self._began = self._now()
        server.disk.fill()
        await self._hold(seconds)
        server.disk.empty()
        await server.kill()
        await server.start()
        return f"{server.name} for {seconds:.1f} s"

    async def _damaged(self, harm: Callable[[Server], str]) -> str:
        if not await self.whole():
            return "left out: the cluster was not whole"
        server, kindly = self._any_server(), self._chance.random() < 0.5
        self._began = self._now()
        await (server.stop() if kindly else server.kill())  # after a kill a server reads more of its files, and mends more
        where = harm(server)
        at = self._now()
        await server.start()
        whole = await self.whole()
        after = f"{'whole' if whole else 'not whole'} {self._now() - at:.1f} s later"
        return f"{server.name} {where}, {'stopped' if kindly else 'killed'} before, {after}"

    async def flip(self) -> str:
        return await self._damaged(lambda server: server.disk.flip(self._chance))

    async def truncate(self) -> str:
        return await self._damaged(lambda server: server.disk.truncate())

    async def lose_replica(self) -> str:
        """All that a server had of the streams is gone, as when its disk is replaced. The others bring it up to date."""
        if not await self.whole():
            return "left out: the cluster was not whole"
        server = self._any_server()
        self._began = self._now()
        await server.kill()
        await asyncio.to_thread(shutil.rmtree, server.disk.data / "jetstream")
        await server.start()
        whole = await self.whole()
        return f"{server.name}, {'up to date' if whole else 'not up to date'} {self._now() - self._began:.1f} s later"

    async def _without_power(self, servers: list[Server]) -> str:
        """Stopped at one moment, copied as they are then, ended, and started on the copies."""
        self._began = self._now()
        for server in servers:
            server.pause()
        for server in servers:
            await asyncio.to_thread(server.disk.copy)
        await asyncio.gather(*(server.kill() for server in servers))
        for server in servers:
            server.disk.power_on()
        on = self._now()
        await asyncio.gather(*(server.start() for server in servers))
        return f"{' '.join(server.name for server in servers)}, taking part {self._now() - on:.1f} s after their start"

    async def cut_power(self) -> str:
        if not await self.whole():
            return "left out: the cluster was not whole"
        return await self._without_power([await self._leading("log")])

    async def cut_all_power(self) -> str:
        return await self._without_power(list(self.company.servers.values()))
