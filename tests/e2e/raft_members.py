"""Members of a built-in Raft as processes, typed as a user types them, to be killed and paused."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from terminal import Running, Terminal

from comity.cli.raft_looks import leader_of, rows
from comity.raft.survey import survey
from members import free_port

PATIENCE_S = 20.0


class RaftMembers:
    """m1, m2 and m3 of ``cluster``, each with its folder beside the user's others."""

    def __init__(self, user: Terminal, count: int = 3, cluster: str = "main") -> None:
        self.user = user
        self.cluster = cluster
        self.addresses = {f"m{n + 1}": f"127.0.0.1:{free_port()}" for n in range(count)}
        self.running: dict[str, Running] = {}

    @property
    def address(self) -> str:
        return f"raft://{','.join(self.addresses.values())}/{self.cluster}"

    @property
    def founders(self) -> str:
        return ",".join(f"{id}={address}" for id, address in self.addresses.items())

    def words(self, member: str, **other: str) -> list[str]:
        """What is typed for ``member``, unless some of it is to be ``other``."""
        said = {"id": member, "members": self.founders, "cluster": self.cluster} | other
        options = [word for name, value in said.items() for word in (f"--{name}", value)]
        return ["raft", "serve", str(self.user.folder / f"{self.cluster}-{member}"), *options]

    def start(self, *ids: str) -> None:
        """Those, or all. Returns once they take part."""
        begun = {id: self.user.start(*self.words(id), timely=True) for id in ids or self.addresses}
        for id, running in begun.items():
            assert running.json()["id"] == id
        self.running |= begun

    def kill(self, id: str) -> None:
        running = self.running.pop(id)
        running.signal(signal.SIGKILL)
        running.wait()

    async def see(self) -> list[dict[str, Any]]:
        return rows(await survey(list(self.addresses.values()), self.cluster, None))

    async def leader(self) -> str:
        async with asyncio.timeout(PATIENCE_S):
            while not (id := leader_of(await self.see())):  # noqa: ASYNC110 (it is asked, it does not tell)
                await asyncio.sleep(0.02)
            return id
