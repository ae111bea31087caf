"""Real Consul servers for tests: one, or three that are a cluster, on free ports of this machine, to be killed and paused."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from comity.ports import free_port
from etcds import HOST, need_server

QUICK: dict[str, Any] = {
    "performance": {"raft_multiplier": 1}, "session_ttl_min": "500ms", "disable_update_check": True, "leave_on_terminate": False,
}  # fmt: skip
"""Lives of ten seconds and more would make tests long; what a test sees of ``session_ttl_min`` is what the registry declares."""


class Consuls:
    """Servers in ``folder``. ``start`` them; each can be ended, paused and started again on its data. ``hosts``: the address of
    each, if not this machine's; ``within``: the words before a command that run it there."""

    def __init__(
        self, folder: Path, size: int = 1, hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = (), **settings: Any
    ) -> None:
        self.binary = need_server("consul", "COMITY_CONSUL_SERVER")
        self.hosts = list(hosts) or [HOST] * size
        self._within = list(within) or [[]] * size
        self.ports = [free_port(HOST) for _ in range(size)]
        self._inner = [(free_port(HOST), free_port(HOST)) for _ in range(size)]
        self._folder = folder
        self._settings = {**QUICK, "retry_interval": "1s", **settings}
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * size

    @property
    def address(self) -> str:
        return f"consul://{','.join(f'{host}:{port}' for host, port in zip(self.hosts, self.ports, strict=True))}"

    def url(self, n: int = 0) -> str:
        return f"http://{self.hosts[n]}:{self.ports[n]}"

    async def start(self, *which: int) -> None:
        """Those numbered, or all. Returns once they have a leader."""
        for n in which or range(len(self.ports)):
            self._begin(n)
        for n in which or range(len(self.ports)):
            await self.until_led(n)

    def _begin(self, n: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        server, serf = self._inner[n]
        others = zip(self.hosts, self._inner, strict=True)
        join = [f"{host}:{other}" for k, (host, (_, other)) in enumerate(others) if k != n]
        (self._folder / "settings.json").write_text(json.dumps(self._settings | {"retry_join": join}))
        words = [
            *self._within[n], str(self.binary), "agent", "-server", f"-bootstrap-expect={len(self.ports)}", f"-node=c{n}",
            f"-bind={self.hosts[n]}", f"-client={self.hosts[n]}", f"-data-dir={self._folder / f'c{n}'}",
            f"-http-port={self.ports[n]}", f"-server-port={server}", f"-serf-lan-port={serf}", "-serf-wan-port=-1",
            "-dns-port=-1", "-grpc-port=-1", "-log-level=warn", f"-config-file={self._folder / 'settings.json'}",
        ]  # fmt: skip
        with (self._folder / f"c{n}.log").open("ab") as log:
            self._processes[n] = subprocess.Popen(words, stdout=log, stderr=log)

    async def until_led(self, n: int) -> None:
        async with asyncio.timeout(40):
            while True:
                process = self._processes[n]
                assert process is not None
                if process.poll() is not None:
                    pytest.fail(f"consul ended: {(self._folder / f'c{n}.log').read_text()[-2000:]}")
                if await asyncio.to_thread(self._is_led, n):
                    return
                await asyncio.sleep(0.05)

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

    def signal(self, signum: signal.Signals, *which: int) -> None:
        for n in which or range(len(self.ports)):
            process = self._processes[n]
            assert process is not None
            os.kill(process.pid, signum)

    async def kill(self, *which: int) -> None:
        for n in which or range(len(self.ports)):
            process = self._processes[n]
            if process is not None:
                process.kill()
                await asyncio.to_thread(process.wait)
            self._processes[n] = None

    async def stop(self, *which: int) -> None:
        """Ask them to end, and wait for it."""
        self.signal(signal.SIGTERM, *which)
        for n in which or range(len(self.ports)):
            process = self._processes[n]
            assert process is not None
            await asyncio.to_thread(process.wait, 30)
            self._processes[n] = None

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
