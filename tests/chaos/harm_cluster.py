"""What befalls a cluster of ``comity up``: its servers and controllers, their links and their disks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import psutil
from harm_links import LinkHarm
from harm_nodes import NodeHarm

if TYPE_CHECKING:
    from nemesis import Harm, Nemesis
    from players import Company, Server

WHOLE_S = 45.0
ASK_S = 10.0
LOOK_S = 0.2


class ClusterHarm:
    def __init__(self, nemesis: Nemesis, company: Company) -> None:
        self._nemesis = nemesis
        self._company = company

    def kinds(self) -> Mapping[str, Harm]:
        """In the order by which a seed means the faults that it always meant."""
        return {
            "leader killed": self.kill_leader,
            "log leader killed": self.kill_log_leader,
            "nats-server killed": self.kill_nats,
            "server paused": self.pause_server,
            "controller paused": self.pause_controller,
            "server restarted": self.restart,
            **NodeHarm(self._nemesis, self._company.crew).kinds(),
            **LinkHarm(self._nemesis, self._company.crew.links, self._one_that_leads).kinds(),
            "disk full": self.fill_disk,
            "bit flipped": self.flip,
            "block truncated": self.truncate,
            "replica lost": self.lose_replica,
            "power cut": self.cut_power,
            "power cut of all": self.cut_all_power,
        }

    # Whom

    def _any_server(self) -> Server:
        return self._company.servers[self._nemesis.chance.choice(sorted(self._company.servers))]

    async def _status(self) -> dict[str, Any]:
        """The cluster's own view; empty if it has none now."""
        try:
            return await asyncio.wait_for(self._company.crew.status(), ASK_S)
        except Exception as error:
            print(f"{self._nemesis.now():7.1f} s  no status: {error}", flush=True)
            return {}

    async def _leading(self, of: str) -> Server:
        """Whose server leads the controllers, or the log; any if nobody does."""
        status = await self._status()
        names = [row["place"] for row in status.get("controllers", ()) if of == "controllers" and row["role"] == "leader"]
        names += [group["leader"] for group in status.get("groups", ()) if group["name"] == of]
        found = [server for name in names if (server := self._company.leaving(name)) is not None]
        return found[0] if found else self._any_server()

    async def _one_that_leads(self) -> str:
        return (await self._leading(self._nemesis.chance.choice(["log", "controllers"]))).name

    async def whole(self) -> bool:
        """Wait until the cluster could lose a server; whether it came to that. What takes a copy away needs the others."""
        until = self._nemesis.now() + WHOLE_S
        while self._nemesis.now() < until:
            status = await self._status()
            if status.get("survives", {}).get("more", -1) >= 1 and not status["damaged"]:
                return True
            await self._nemesis.hold(LOOK_S)
        return False

    # Processes

    async def _killed(self, server: Server) -> str:
        self._nemesis.begins()
        await server.kill()
        await self._nemesis.wait_a_moment()
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

    async def pause_server(self) -> str:
        return await self._nemesis.paused(await self._leading("log"))

    async def pause_controller(self) -> str:
        """Only the controller: its server goes on."""
        server, seconds = await self._leading("controllers"), self._nemesis.for_a_while()
        self._nemesis.begins()
        controller = server.processes()[0]
        controller.suspend()
        await self._nemesis.hold(seconds)
        controller.resume()
        return f"{server.name} for {seconds:.1f} s"

    async def restart(self) -> str:
        server = self._any_server()
        await server.stop()
        await server.start()
        return server.name

    # Disks

    async def fill_disk(self) -> str:
        """A full disk stops its server's streams until it is started again: that is what an operator does, once there is room."""
        if not await self.whole():
            return "left out: the cluster was not whole"
        server, seconds = await self._leading("log"), self._nemesis.for_a_while()
        self._nemesis.begins()
        server.disk.fill()
        await self._nemesis.hold(seconds)
        server.disk.empty()
        await server.kill()
        await server.start()
        return f"{server.name} for {seconds:.1f} s"

    async def _damaged(self, harm: Callable[[Server], str]) -> str:
        if not await self.whole():
            return "left out: the cluster was not whole"
        server, kindly = self._any_server(), self._nemesis.chance.random() < 0.5
        self._nemesis.begins()
        await (server.stop() if kindly else server.kill())  # after a kill a server reads more of its files, and mends more
        where = harm(server)
        at = self._nemesis.now()
        await server.start()
        whole = await self.whole()
        after = f"{'whole' if whole else 'not whole'} {self._nemesis.now() - at:.1f} s later"
        return f"{server.name} {where}, {'stopped' if kindly else 'killed'} before, {after}"

    async def flip(self) -> str:
        return await self._damaged(lambda server: server.disk.flip(self._nemesis.chance))

    async def truncate(self) -> str:
        return await self._damaged(lambda server: server.disk.truncate())

    async def lose_replica(self) -> str:
        """All that a server had of the streams is gone, as when its disk is replaced. The others bring it up to date."""
        if not await self.whole():
            return "left out: the cluster was not whole"
        server = self._any_server()
        self._nemesis.begins()
        await server.kill()
        await asyncio.to_thread(shutil.rmtree, server.disk.data / "jetstream")
        await server.start()
        whole = "up to date" if await self.whole() else "not up to date"
        return f"{server.name}, {whole} {self._nemesis.now() - self._nemesis.began:.1f} s later"

    async def _without_power(self, servers: list[Server]) -> str:
        """Stopped at one moment, copied as they are then, ended, and started on the copies."""
        self._nemesis.begins()
        for server in servers:
            server.pause()
        for server in servers:
            await asyncio.to_thread(server.disk.copy)
        await asyncio.gather(*(server.kill() for server in servers))
        for server in servers:
            server.disk.power_on()
        on = self._nemesis.now()
        await asyncio.gather(*(server.start() for server in servers))
        return f"{' '.join(server.name for server in servers)}, taking part {self._nemesis.now() - on:.1f} s after their start"

    async def cut_power(self) -> str:
        if not await self.whole():
            return "left out: the cluster was not whole"
        return await self._without_power([await self._leading("log")])

    async def cut_all_power(self) -> str:
        return await self._without_power(list(self._company.servers.values()))
