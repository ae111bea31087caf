"""Members of the built-in Raft in this process, over real TCP, each on a disk of its own."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

from comity.core.raft_events import Timing
from comity.log.raft import RaftLog
from comity.raft.server import RaftServer

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
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.addresses[id] = f"127.0.0.1:{probe.getsockname()[1]}"

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

    async def close(self) -> None:
        for door in self.doors:
            await door.close()
        for server in self.servers.values():
            await server.close()
