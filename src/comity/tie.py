"""A process that ends when the one that started it does, however that ends."""

from __future__ import annotations

import os
import signal
import sys

# Run by a small Python that then becomes the program: asks the kernel for SIGKILL when the parent ends, however it ends (to the
# kernel, the parent is the thread that started it). A preexec_fn would fork a process that has threads. A parent that ended
# before this line shows in getppid.
_TIE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9, 0, 0, 0); "
    "os.getppid() == int(sys.argv[1]) or os._exit(1); os.execv(sys.argv[2], sys.argv[2:])"
)


def tied(program: str, *words: str) -> list[str]:
    """The command that runs ``program``, an absolute path, tied to this process; on systems other than Linux, just that."""
    tie = [sys.executable, "-I", "-S", "-c", _TIE, str(os.getpid())] if sys.platform == "linux" else []
    return [*tie, program, *words]


def tie(parent: int) -> None:
    """Called by a process that ``parent`` started: it ends with that one, as with ``tied``."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)
