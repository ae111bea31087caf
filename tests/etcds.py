"""Real etcd servers for tests."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from members import HOST, LOOK_S, Members, free_port, need_server

QUICK = ("--heartbeat-interval=50", "--election-timeout=500")
"""A machine's own network is quick; the usual times are for others."""
STEADY = ("--election-timeout=2000",)
"""For servers that no test hurts: nobody else is elected because a disk stood still for a moment. A lease lasts for half as long
again at least, so more would be too much."""


class Etcds(Members):
    """See Members. ``dialed``: the ports at which each is dialed by the others, if not those at which it listens."""

    def __init__(
        self, folder: Path, size: int = 1, options: Sequence[str] = (), binary: Path | None = None, *,
        hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = (), dialed: Sequence[int] = (),
    ) -> None:  # fmt: skip
        super().__init__(folder, size, hosts=hosts, within=within)
        self.binary = binary or need_server("etcd", "COMITY_ETCD_SERVER")
        self.ports = [free_port(HOST) for _ in range(size)]
        self.peers = [free_port(HOST) for _ in range(size)]
        self._dialed = list(dialed) or self.peers
        self._options = [*QUICK, *options]
        self.scheme = "https" if any(option.startswith("--cert-file") for option in options) else "http"
        self._metrics = [free_port(HOST) for _ in range(size)] if self.scheme == "https" else []
        """Where each is asked whether it is well, in the clear."""

    @property
    def address(self) -> str:
        return f"etcd://{','.join(f'{host}:{port}' for host, port in zip(self.hosts, self.ports, strict=True))}"

    def url(self, n: int = 0) -> str:
        return f"{self.scheme}://{self.hosts[n]}:{self.ports[n]}"

    def _words(self, n: int) -> list[str]:
        dialed = [f"http://{host}:{port}" for host, port in zip(self.hosts, self._dialed, strict=True)]
        cluster = ",".join(f"m{k}={url}" for k, url in enumerate(dialed))
        client, peer = self.url(n), f"http://{self.hosts[n]}:{self.peers[n]}"
        return [
            str(self.binary), f"--name=m{n}", f"--data-dir={self._folder / f'm{n}'}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={dialed[n]}",
            f"--initial-cluster={cluster}", f"--initial-cluster-token={self._folder.name}", "--log-level=warn", *self._options,
            *(f"--listen-metrics-urls=http://{HOST}:{port}" for port in self._metrics[n : n + 1]),
        ]  # fmt: skip

    def _surroundings(self, n: int) -> dict[str, str]:
        return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}

    async def _is_ready(self, n: int) -> bool:
        return await asyncio.to_thread(self._is_healthy, n)

    def _is_healthy(self, n: int) -> bool:
        at = f"http://{HOST}:{self._metrics[n]}" if self._metrics else self.url(n)
        try:
            with urllib.request.urlopen(f"{at}/health", timeout=2) as reply:
                return bool(json.load(reply)["health"] == "true")
        except (OSError, ValueError):
            return False

    async def leader(self) -> int:
        """The number of the server that leads."""
        for n in self._all:
            if self.runs(n) and await asyncio.to_thread(self._leads, n):
                return n
        raise AssertionError("nobody leads")

    async def until_led(self) -> int:
        """That, once one leads: a server that stood still for a moment leads no more."""
        async with asyncio.timeout(self.READY_S):
            while True:
                try:
                    return await self.leader()
                except (AssertionError, OSError):
                    await asyncio.sleep(LOOK_S)

    def _leads(self, n: int) -> bool:
        said = self.ask("maintenance/status", {}, n)
        return bool(said["header"]["member_id"] == said.get("leader"))

    def ask(self, path: str, body: dict[str, Any], n: int = 0) -> dict[str, Any]:
        request = urllib.request.Request(f"{self.url(n)}/v3/{path}", data=json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=10) as reply:
            found: dict[str, Any] = json.load(reply)
        return found

    async def compact(self) -> None:
        """Forget all of the past."""
        nothing = base64.b64encode(b"-").decode()
        revision = (await asyncio.to_thread(self.ask, "kv/range", {"key": nothing}))["header"]["revision"]
        await asyncio.to_thread(self.ask, "kv/compaction", {"revision": revision, "physical": True})

    async def end_leases(self) -> int:
        """All at once, before their time; how many."""
        leases = (await asyncio.to_thread(self.ask, "lease/leases", {})).get("leases", [])
        for lease in leases:
            with contextlib.suppress(urllib.error.HTTPError):  # it ended by itself
                await asyncio.to_thread(self.ask, "lease/revoke", {"ID": lease["ID"]})
        return len(leases)
