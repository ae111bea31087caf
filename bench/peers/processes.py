"""The processes of one measurement: started, counted, ended. Nothing else is ever touched."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Self

import psutil

ROOT = Path(__file__).resolve().parents[2]
STOP_S = 10.0
LINE_BYTES = 2**24


class Failed(Exception):
    """A process did not do what it should."""


class Processes:
    """Processes with a folder of their own, all gone at the end of the ``async with``; the last started goes first."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="comity-peers-")
        self.folder = Path(self._folder.name)
        self._started: list[asyncio.subprocess.Process] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for process in reversed(self._started):
            await _end(process)
        self._folder.cleanup()

    async def start(self, *words: str, env: dict[str, str] | None = None) -> asyncio.subprocess.Process:
        """Start a program that is spoken to by lines; what it complains of goes to a log."""
        with self._log(len(self._started)).open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *words, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}, cwd=ROOT, start_new_session=True,
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=errors, limit=LINE_BYTES,
            )  # fmt: skip
        self._started.append(process)
        return process

    def cpu_s(self) -> float:
        """CPU seconds so far of all of them and of all that they started."""
        return sum(_cpu_s(member) for process in self._started for member in _family(process.pid))

    def check(self) -> None:
        """Raise Failed if one has ended."""
        for number, process in enumerate(self._started):
            if process.returncode is not None:
                said = self._log(number).read_text(errors="replace").strip().splitlines()
                raise Failed(f"a process ended ({process.returncode}): {' / '.join(said[-3:])}")

    def _log(self, number: int) -> Path:
        return self.folder / f"{number}.log"


def _family(pid: int) -> list[psutil.Process]:
    """A process and all that it started, and they."""
    try:
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_s(process: psutil.Process) -> float:
    try:
        return float(sum(process.cpu_times()[:4]))  # with its children that have ended
    except psutil.NoSuchProcess:
        return 0.0  # it ended this moment: its parent has what it used


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        family = _family(process.pid)
        for member in family:
            _tell(member, psutil.Process.terminate)
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
        for member in family[1:]:
            _tell(member, psutil.Process.kill)
    await process.communicate()


def _tell(process: psutil.Process, what: Callable[[psutil.Process], None]) -> None:
    try:
        what(process)
    except psutil.NoSuchProcess:
        return
