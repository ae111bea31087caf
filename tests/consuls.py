"""Real Consul servers for tests."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from members import HOST, Members, free_port, need_server

QUICK: dict[str, Any] = {
    "performance": {"raft_multiplier": 1}, "session_ttl_min": "500ms", "disable_update_check": True, "leave_on_terminate": False,
}  # fmt: skip
"""Lives of ten seconds and more would make tests long; what a test sees of ``session_ttl_min`` is what the registry declares."""


class Consuls(Members):
    """See Members."""

    READY_S = 40.0

    def __init__(
        self, folder: Path, size: int = 1, *, hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = (), **settings: Any
    ) -> None:
        super().__init__(folder, size, hosts=hosts, within=within)
        self.binary = need_server("consul", "COMITY_CONSUL_SERVER")
        self.ports = [free_port(HOST) for _ in range(size)]
        self._inner = [(free_port(HOST), free_port(HOST)) for _ in range(size)]
        self._settings = {**QUICK, "retry_interval": "1s", **settings}

    @property
    def address(self) -> str:
        return f"consul://{','.join(f'{host}:{port}' for host, port in zip(self.hosts, self.ports, strict=True))}"

    def url(self, n: int = 0) -> str:
        return f"http://{self.hosts[n]}:{self.ports[n]}"

    def _words(self, n: int) -> list[str]:
        server, serf = self._inner[n]
        others = zip(self.hosts, self._inner, strict=True)
        join = [f"{host}:{other}" for k, (host, (_, other)) in enumerate(others) if k != n]
        (self._folder / "settings.json").write_text(json.dumps(self._settings | {"retry_join": join}))
        return [
            str(self.binary), "agent", "-server", f"-bootstrap-expect={len(self.ports)}", f"-node=c{n}",
            f"-bind={self.hosts[n]}", f"-client={self.hosts[n]}", f"-data-dir={self._folder / f'c{n}'}",
            f"-http-port={self.ports[n]}", f"-server-port={server}", f"-serf-lan-port={serf}", "-serf-wan-port=-1",
            "-dns-port=-1", "-grpc-port=-1", "-log-level=warn", f"-config-file={self._folder / 'settings.json'}",
        ]  # fmt: skip

    async def _is_ready(self, n: int) -> bool:
        """Whether it has a leader."""
        return await asyncio.to_thread(self._is_led, n)

    def _is_led(self, n: int) -> bool:
        try:
            self.ask("PUT", "kv/ready", b"1", n=n)
            return True
        except OSError:
            return False

    def ask(self, method: str, path: str, data: bytes = b"", n: int = 0, token: str = "") -> Any:
        request = urllib.request.Request(f"{self.url(n)}/v1/{path}", data=data or None, method=method)
        if token:
            request.add_header("X-Consul-Token", token)
        with urllib.request.urlopen(request, timeout=5) as reply:
            return json.loads(reply.read() or b"null")

    async def end_leases(self) -> int:
        """All sessions at once, before their time; how many."""
        found = await asyncio.to_thread(self.ask, "GET", "session/list")
        for one in found:
            await asyncio.to_thread(self.ask, "PUT", f"session/destroy/{one['ID']}")
        return len(found)

    async def leader(self) -> int:
        """The number of the server that leads."""
        at = await asyncio.to_thread(self.ask, "GET", "status/leader")
        return [f"{host}:{server}" for host, (server, _) in zip(self.hosts, self._inner, strict=True)].index(at)
