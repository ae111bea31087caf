"""Servers of NATS that carry messages and keep nothing, for tests."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from comity.embedded import find_binary
from comity.ports import greet
from members import HOST, LOOK_S, Members, free_port


class Natses(Members):
    """See Members. ``dialed``: the ports at which each is dialed by the others, if not those at which it listens. ``tells``:
    clients hear of the other servers."""

    def __init__(
        self, folder: Path, size: int = 1, *,
        hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = (), dialed: Sequence[int] = (),
        tells: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(folder, size, hosts=hosts, within=within)
        self.ports = [free_port(HOST) for _ in range(size)]
        self.peers = [free_port(HOST) for _ in range(size)]
        self._dialed = list(dialed) or self.peers
        self._tells = tells

    def urls(self, *ports: int) -> tuple[str, ...]:
        """Of all, unless ports of this machine are told."""
        there = [(HOST, port) for port in ports] or zip(self.hosts, self.ports, strict=True)
        return tuple(f"nats://{host}:{port}" for host, port in there)

    def _words(self, n: int) -> list[str]:
        alone = [find_binary(), "-a", self.hosts[n], "-p", str(self.ports[n])]
        if len(self._all) == 1:
            return alone
        dialed = [f"{host}:{port}" for host, port in zip(self.hosts, self._dialed, strict=True)]
        return [
            *alone, *([] if self._tells else ["--no_advertise"]), "--cluster_name", "main", "--cluster", f"nats://{self.hosts[n]}:{self.peers[n]}",
            "--cluster_advertise", dialed[n],
            "--routes", ",".join(f"nats://{other}" for k, other in enumerate(dialed) if k != n),
        ]  # fmt: skip

    async def _is_ready(self, n: int) -> bool:
        return bool(await greet(self.hosts[n], self.ports[n]))

    async def until_met(self) -> None:
        """All know of one another, and tell clients."""
        async with asyncio.timeout(self.READY_S):
            for host, port in zip(self.hosts, self.ports, strict=True):
                while len((await greet(host, port) or {}).get("connect_urls", ())) < len(self._all):  # noqa: ASYNC110 (it tells nobody)
                    await asyncio.sleep(LOOK_S)

    async def close(self) -> None:
        await self.kill()
