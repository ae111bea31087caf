"""A world of its own for a run: network, mounts and processes are private to it, and gone with it, however it ends.

The run is process 1 of a new PID namespace. When it ends, or is killed, the kernel ends every process in it; with the last of
them go its network namespaces, its links and its mounts. As root this gives all faults; where only user namespaces are allowed,
all but those that need a disk image; and elsewhere the run goes on without, and says which faults are left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

PRIVATE = ("--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private")
WAYS = (("unshare", *PRIVATE), ("unshare", "--user", "--map-root-user", *PRIVATE))
FOLDER = "CHAOS_FOLDER"


def way() -> list[str]:
    """The words before a command that give it a world of its own; none if that is not allowed here."""
    for words in WAYS:
        try:
            if subprocess.run([*words, "true"], check=False, capture_output=True, timeout=20).returncode == 0:
                return list(words)
        except (OSError, subprocess.TimeoutExpired):
            continue
    return []


def is_inside() -> bool:
    """Whether this process is the first of a world of its own."""
    return folder() is not None and os.getpid() == 1


def folder() -> Path | None:
    """Where the run keeps its files; None in the process that only starts it."""
    return Path(os.environ[FOLDER]) if FOLDER in os.environ else None


def enter(words: list[str]) -> int:
    """Run ``words`` (a Python program and its arguments) in a world of its own, if possible, with a folder that is gone
    afterwards; its exit code. It can tell by the end of its stdin that we are gone."""
    signal.signal(signal.SIGTERM, lambda _signum, _frame: sys.exit(1))  # so that what is below ends in order
    with tempfile.TemporaryDirectory(prefix="comity-chaos-") as name:
        env = os.environ | {FOLDER: name}
        process = subprocess.Popen([*way(), sys.executable, *words], env=env, stdin=subprocess.PIPE)
        try:
            return process.wait()
        finally:
            process.kill()
            process.wait()


def end_with_starter() -> None:
    """End at once, and leave nothing, when whoever started the run is gone."""
    asyncio.get_running_loop().add_reader(0, _abandoned)


def _abandoned() -> None:
    own, place = psutil.Process(), folder()
    for process in [one for one in psutil.process_iter() if one.pid != own.pid] if is_inside() else own.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    if place is not None:
        for mount in place.glob("disk-*"):
            subprocess.run(["umount", "--lazy", str(mount)], check=False, capture_output=True)
        shutil.rmtree(place, ignore_errors=True)
    os._exit(1)


def run(*words: str) -> None:
    """A command that must succeed. Raises OSError with what it said."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise OSError(f"{' '.join(words)}: {done.stderr.strip() or done.returncode}")
