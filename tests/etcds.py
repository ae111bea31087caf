"""Real etcd servers for tests: one, or three that are a cluster, on free ports of this machine, to be killed and paused."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from comity.ports import free_port

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
HOST = "127.0.0.1"
QUICK = ("--heartbeat-interval=50", "--election-timeout=500")
"""A machine's own network is quick; the usual times are for others."""


def find_server(program: str, variable: str) -> list[Path]:
    """All there are of ``program``, the one to use first: named by the variable, on the PATH, or fetched by ``make servers``."""
    named = os.environ.get(variable)
    usual = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    fetched = sorted((ROOT / ".servers").glob(f"*/usr/bin/{program}"), reverse=True)
    return [*map(Path, filter(None, [named])), *fetched, *map(Path, filter(None, [usual]))]


def need_server(program: str, variable: str) -> Path:
    """End the test if there is none: a failure in CI, a skip on a laptop."""
    found = find_server(program, variable)
    if found:
        return found[0]
    said = f"no {program} here: make servers (Debian, Ubuntu), or {variable}=/path/to/{program}"
    if IN_CI:
        pytest.fail(f"CI must have a server: {said}")
    pytest.skip(said)


class Etcds:
    """Servers in ``folder``. ``start`` them; each can be ended, paused and started again on its data. ``hosts``: the address of
    each, if not this machine's; ``within``: the words before a command that run it there; ``dialed``: the ports at which each is
    dialed by the others, if not those at which it listens."""

    def __init__(
        self, folder: Path, size: int = 1, options: Sequence[str] = (), binary: Path | None = None, *,
        hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = (), dialed: Sequence[int] = (),
    ) -> None:  # fmt: skip
        self.binary = binary or need_server("etcd", "COMITY_ETCD_SERVER")
        self.hosts = list(hosts) or [HOST] * size
        self.ports = [free_port(HOST) for _ in range(size)]
        self.peers = [free_port(HOST) for _ in range(size)]
        self._dialed = list(dialed) or self.peers
        self._within = list(within) or [[]] * size
        self._folder = folder
        self._options = [*QUICK, *options]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * size
        self.scheme = "https" if any(option.startswith("--cert-file") for option in options) else "http"
        self._metrics = [free_port(HOST) for _ in range(size)] if self.scheme == "https" else []
        """Where each is asked whether it is well, in the clear."""

    @property
    def address(self) -> str:
        return f"etcd://{','.join(f'{host}:{port}' for host, port in zip(self.hosts, self.ports, strict=True))}"

    def url(self, n: int = 0) -> str:
        return f"{self.scheme}://{self.hosts[n]}:{self.ports[n]}"

    async def start(self, *which: int, wait: bool = True) -> None:
        """Those numbered, or all. Returns once they have a leader (if ``wait``)."""
        for n in which or range(len(self.ports)):
            self._begin(n)
        if wait:
            for n in which or range(len(self.ports)):
                await self.until_healthy(n)

    def _begin(self, n: int) -> None:
        dialed = [f"http://{host}:{port}" for host, port in zip(self.hosts, self._dialed, strict=True)]
        cluster = ",".join(f"m{k}={url}" for k, url in enumerate(dialed))
        client, peer = self.url(n), f"http://{self.hosts[n]}:{self.peers[n]}"
        words = [
            *self._within[n], str(self.binary), f"--name=m{n}", f"--data-dir={self._folder / f'm{n}'}",
            f"--listen-client-urls={client}", f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={dialed[n]}",
            f"--initial-cluster={cluster}", f"--initial-cluster-token={self._folder.name}", "--log-level=warn", *self._options,
            *(f"--listen-metrics-urls=http://{HOST}:{port}" for port in self._metrics[n : n + 1]),
        ]  # fmt: skip
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / f"m{n}.log").open("ab") as log:
            self._processes[n] = subprocess.Popen(words, stdout=log, stderr=log, env=_surroundings())

    async def until_healthy(self, n: int) -> None:
        async with asyncio.timeout(30):
            while True:
                process = self._processes[n]
                assert process is not None
                if process.poll() is not None:
                    pytest.fail(f"etcd ended: {(self._folder / f'm{n}.log').read_text()[-2000:]}")
                if await asyncio.to_thread(self._is_healthy, n):
                    return
                await asyncio.sleep(0.05)

    def _is_healthy(self, n: int) -> bool:
        at = f"http://{HOST}:{self._metrics[n]}" if self._metrics else self.url(n)
        try:
            with urllib.request.urlopen(f"{at}/health", timeout=2) as reply:
                return bool(json.load(reply)["health"] == "true")
        except (OSError, ValueError):
            return False

    def pid(self, n: int = 0) -> int:
        process = self._processes[n]
        assert process is not None
        return process.pid

    def signal(self, signum: signal.Signals, *which: int) -> None:
        for n in which or range(len(self.ports)):
            os.kill(self.pid(n), signum)

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

    async def leader(self) -> int:
        """The number of the server that leads."""
        for n in range(len(self.ports)):
            if self._processes[n] is not None and await asyncio.to_thread(self._leads, n):
                return n
        raise AssertionError("nobody leads")

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


def _surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
