"""Members of a built-in Raft as processes: started and awaited by a test that needs them, and ended, paused and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from comity.cli.elsewhere import look_at_raft
from comity.cli.raft_keys import make_keys
from comity.cli.raft_looks import leader_of
from comity.ports import free_port

HOST = "127.0.0.1"
CLUSTER = "main"
READY_S = 30.0


class Rafts:
    """Members in ``folder``, with certificates. ``hosts``: the address of each, if not this machine's; ``within``: the words
    before a command that run it there."""

    def __init__(
        self, folder: Path, size: int = 3, hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = ()
    ) -> None:
        self.hosts = list(hosts) or [HOST] * size
        self.ports = [free_port(HOST) for _ in range(size)]
        self._within = list(within) or [[]] * size
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * size
        at = [f"{host}:{port}" for host, port in zip(self.hosts, self.ports, strict=True)]
        self._members = {f"m{n}": address for n, address in enumerate(at)}
        make_keys(folder / "keys", CLUSTER, self._members)
        mine = folder / "keys" / "controller"
        self.address = f"rafts://{','.join(at)}/{CLUSTER}?ca={mine}/ca.pem&cert={mine}/cert.pem&key={mine}/key.pem"

    async def start(self, *which: int) -> None:
        """Those numbered, or all. Returns once they take part."""
        chosen = which or tuple(range(len(self.ports)))
        for n in chosen:
            self._begin(n)
        await asyncio.gather(*(self._ready(n) for n in chosen))

    def _begin(self, n: int) -> None:
        members = ",".join(f"{id}={address}" for id, address in self._members.items())
        words = [
            *self._within[n], sys.executable, "-m", "comity", "raft", "serve", str(self._folder / f"m{n}"), "--id", f"m{n}",
            "--cluster", CLUSTER, "--members", members, "--keys", str(self._folder / "keys" / f"m{n}"), "-o", "json",
        ]  # fmt: skip
        with (self._folder / f"m{n}.log").open("ab") as log:
            self._processes[n] = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=log)

    async def _ready(self, n: int) -> None:
        process = self._processes[n]
        assert process is not None and process.stdout is not None
        said = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), READY_S)
        process.stdout.close()
        assert said, (self._folder / f"m{n}.log").read_text()[-2000:]

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
            await asyncio.to_thread(process.wait, READY_S)
            self._processes[n] = None

    async def leader(self) -> int:
        """The number of the member that leads. Raises AssertionError if none does."""
        rows, hidden = await look_at_raft({"log": self.address}, CLUSTER)
        leader = leader_of(rows)
        assert leader and not hidden, "nobody leads"
        return int(leader.removeprefix("m"))

    async def end_leases(self) -> int:
        """It has none."""
        return 0
