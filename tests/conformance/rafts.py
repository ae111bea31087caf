"""Members of the built-in Raft in this process, over real TCP, each on a disk of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec

from comity.core.raft_events import Timing
from comity.log.raft import RaftLog
from comity.raft.server import RaftServer
from members import free_port

TIMING = Timing(election_s=0.3, heartbeat_s=0.05)
PATIENCE_S = 20.0


class Rafts:
    """``servers`` are the members that run, by id."""

    def __init__(self, folder: Path, count: int = 3, cluster: str = "net", timing: Timing = TIMING) -> None:
        self.folder = folder
        self.cluster = cluster
        self.timing = timing
        self.addresses: dict[str, str] = {}
        self.servers: dict[str, RaftServer] = {}
        self.doors: list[RaftLog] = []
        for number in range(count):
            self.give_address(f"m{number + 1}")
        self.founders = dict(self.addresses)

    def give_address(self, id: str) -> None:
        self.addresses[id] = f"127.0.0.1:{free_port()}"

    async def start(self, *ids: str, **options: Any) -> None:
        for id in ids or self.founders:
            if id not in self.addresses:
                self.give_address(id)
            about = {"cluster": self.cluster, "members": self.founders if id in self.founders else None} | options
            address = self.addresses[id]
            self.servers[id] = await RaftServer.start(self.folder / id, id=id, listen=address, timing=self.timing, **about)

    async def stop(self, id: str) -> None:
        await self.servers.pop(id).close()

    async def door(self, **options: Any) -> RaftLog:
        door = await RaftLog.open(list(self.addresses.values()), self.cluster, **options)
        self.doors.append(door)
        return door

    async def join(self, network: str, **options: Any) -> RaftLog:
        door = await RaftLog.join(list(self.addresses.values()), self.cluster, network, **options)
        self.doors.append(door)
        return door

    async def leader(self) -> str:
        """Who leads, once somebody does."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                for id, server in self.servers.items():
                    if server.member.raft.leading is not None:
                        return id
                await asyncio.sleep(0.01)

    async def lead_on(self, election_s: float = 30.0) -> None:
        """Whoever leads does not cease to, though the machine may stand still for seconds; nor does another follow soon."""
        await self.leader()
        for server in self.servers.values():
            server.member.raft.state.timing = msgspec.structs.replace(self.timing, election_s=election_s)

    async def elect_soon(self) -> None:
        """The leader is to go, and another one to follow. Returns once each of the others has heard of the leader since."""
        await self.lead_on(self.timing.election_s)
        others = [raft for server in self.servers.values() if (raft := server.member.raft).leading is None]
        async with asyncio.timeout(PATIENCE_S):
            latest_s = 2 * self.timing.election_s
            while any(raft._deadline > raft.state.now + latest_s for raft in others):  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.01)

    async def close(self) -> None:
        for door in self.doors:
            await door.close()
        for server in self.servers.values():
            await server.close()
