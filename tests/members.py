"""Servers as processes for tests: one, or several that are a cluster, on free ports of this machine, to be killed and paused."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from comity.ports import is_free

ROOT = Path(__file__).resolve().parents[1]
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
HOST = "127.0.0.1"
LOOK_S = 0.05
PORTS = range(15_000, 30_000)
"""Below those that the kernel gives to connections: one of these cannot take what was free a moment ago."""


def free_port(host: str = HOST) -> int:
    """A port on which nobody listens now."""
    while not is_free(host, port := secrets.choice(PORTS)):
        pass
    return port


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


class Members(ABC):
    """``size`` of them in ``folder``. ``start`` them; each can be ended, paused and started again on its data. ``hosts``: the
    address of each, if not this machine's; ``within``: the words before a command that run it there. Where none is numbered, all
    are meant."""

    READY_S = 30.0

    def __init__(
        self, folder: Path, size: int = 1, *, hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = ()
    ) -> None:
        self.hosts = list(hosts) or [HOST] * size
        self._all = range(size)
        self._folder = folder
        self._within = list(within) or [[]] * size
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * size

    @abstractmethod
    def _words(self, n: int) -> Sequence[str]:
        """The command that runs member ``n``."""

    @abstractmethod
    async def _is_ready(self, n: int) -> bool:
        """Whether it takes part."""

    def _surroundings(self, n: int) -> Mapping[str, str]:
        """Its environment."""
        return os.environ

    async def start(self, *which: int, wait: bool = True) -> None:
        """Returns once they take part (if ``wait``)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for n in which or self._all:
            self._begin(n)
        if wait:
            await asyncio.gather(*(self.until_ready(n) for n in which or self._all))

    def _begin(self, n: int) -> None:
        words = [*self._within[n], *self._words(n)]
        with self._log(n).open("ab") as log:
            # Whatever it starts itself is signalled with it, and a Ctrl-C at the terminal is ours.
            self._processes[n] = subprocess.Popen(
                words, stdout=log, stderr=log, env=self._surroundings(n), start_new_session=True
            )

    def _log(self, n: int) -> Path:
        return self._folder / f"m{n}.log"

    async def until_ready(self, n: int) -> None:
        async with asyncio.timeout(self.READY_S):
            while not await self._is_ready(n):
                if self._process(n).poll() is not None:
                    pytest.fail(f"{self._words(n)[0]} ended: {self._log(n).read_text()[-2000:]}")
                await asyncio.sleep(LOOK_S)

    def _process(self, n: int) -> subprocess.Popen[bytes]:
        process = self._processes[n]
        assert process is not None, f"m{n} does not run"
        return process

    def runs(self, n: int) -> bool:
        return self._processes[n] is not None

    def pid(self, n: int = 0) -> int:
        return self._process(n).pid

    def signal(self, signum: signal.Signals, *which: int) -> None:
        for n in which or self._all:
            os.killpg(self.pid(n), signum)

    async def kill(self, *which: int) -> None:
        """As when their machines lose power. Those that do not run are left."""
        for n in which or self._all:
            if self.runs(n):
                await self._kill(n)
                self._processes[n] = None

    async def _kill(self, n: int) -> None:
        self.signal(signal.SIGKILL, n)
        await asyncio.to_thread(self._process(n).wait)

    async def stop(self, *which: int) -> None:
        """Ask them to end, and wait for it."""
        self.signal(signal.SIGTERM, *which)
        for n in which or self._all:
            await asyncio.to_thread(self._process(n).wait, self.READY_S)
            self._processes[n] = None
