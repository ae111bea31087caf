"""Real etcd servers for tests: one, or three that are a cluster, on free ports of this machine, to be killed and paused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import urllib.request
from collections.abc import Sequence
from pathlib import Path

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
    """Servers in ``folder``. ``start`` them; each can be ended, paused and started again on its data."""

    def __init__(self, folder: Path, size: int = 1, options: Sequence[str] = (), binary: Path | None = None) -> None:
        self.binary = binary or need_server("etcd", "COMITY_ETCD_SERVER")
        self.ports = [free_port(HOST) for _ in range(size)]
        self._peers = [free_port(HOST) for _ in range(size)]
        self._folder = folder
        self._options = [*QUICK, *options]
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * size
        self.scheme = "https" if any(option.startswith("--cert-file") for option in options) else "http"
        self._metrics = [free_port(HOST) for _ in range(size)] if self.scheme == "https" else []
        """Where each is asked whether it is well, in the clear."""

    @property
    def address(self) -> str:
        return f"etcd://{','.join(f'{HOST}:{port}' for port in self.ports)}"

    def url(self, n: int = 0) -> str:
        return f"{self.scheme}://{HOST}:{self.ports[n]}"

    async def start(self, *which: int, wait: bool = True) -> None:
        """Those numbered, or all. Returns once they have a leader (if ``wait``)."""
        for n in which or range(len(self.ports)):
            self._begin(n)
        if wait:
            for n in which or range(len(self.ports)):
                await self.until_healthy(n)

    def _begin(self, n: int) -> None:
        cluster = ",".join(f"m{k}=http://{HOST}:{port}" for k, port in enumerate(self._peers))
        client, peer = self.url(n), f"http://{HOST}:{self._peers[n]}"
        words = [
            str(self.binary), f"--name=m{n}", f"--data-dir={self._folder / f'm{n}'}", f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
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
        port = self._metrics[n] if self._metrics else self.ports[n]
        try:
            with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2) as reply:
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

    async def leader(self) -> int:
        """The number of the server that leads."""
        for n in range(len(self.ports)):
            if self._processes[n] is not None and await asyncio.to_thread(self._leads, n):
                return n
        raise AssertionError("nobody leads")

    def _leads(self, n: int) -> bool:
        asked = urllib.request.Request(f"{self.url(n)}/v3/maintenance/status", data=b"{}")
        with urllib.request.urlopen(asked, timeout=5) as reply:
            said = json.load(reply)
        return bool(said["header"]["member_id"] == said.get("leader"))


def _surroundings() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
