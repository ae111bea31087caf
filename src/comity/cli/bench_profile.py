"""``--profile``: where the time of all processes goes, as one flame graph, by py-spy (extra ``profile``). The server is no Python
program, and not in it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comity.cli.bench_network import Bench

RATE = 250
"""Samples a second."""
STOP_S = 60.0
FORMATS = {".json": "speedscope", ".txt": "raw"}
"""Of the file, by its ending; else an SVG."""


@contextlib.asynccontextmanager
async def profiled(bench: Bench, file: Path | None) -> AsyncIterator[None]:
    """Watch this process and its children meanwhile, and write ``file``; nothing is done without one. Raises BadSettings if
    py-spy is not there, or may not watch."""
    if file is None:
        yield
        return
    process = await asyncio.create_subprocess_exec(
        _find(), "record", "--pid", str(os.getpid()), "--subprocesses", "--nonblocking", "--rate", str(RATE),
        "--format", FORMATS.get(file.suffix, "flamegraph"), "--output", os.fspath(file),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        await asyncio.wait_for(process.stdout.readline(), STOP_S)  # it says that it begins, or ends
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        _, said = await asyncio.wait_for(process.communicate(), STOP_S)
    if process.returncode != 0:
        from comity.errors import BadSettings

        why = said.decode(errors="replace").strip()[-300:]
        raise BadSettings(f"py-spy could not watch: {why}")
    bench.settings["profile"] = str(file)


def _find() -> str:
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        from comity.errors import BadSettings

        raise BadSettings("--profile needs py-spy: pip install comity[profile]", extra="profile")
    return found
