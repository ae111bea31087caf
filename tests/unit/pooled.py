"""Module-level functions for the process pool, with an agent that offers them: a worker process imports them from here."""

from __future__ import annotations

import os
import signal
import threading

from comity.agent import Agent
from comity.errors import Refuse

crew = Agent("a", concurrency=4)


class Spoiled(Exception): ...


@crew.capability(pool="process", no_retry=(Spoiled,))
def compute(kind: str = "pid", n: int = 0) -> int:
    """Do it elsewhere."""
    match kind:
        case "pid":
            return os.getpid()
        case "refuse":
            raise Refuse("not here")
        case "spoiled":
            raise Spoiled("for good")
        case "exit":
            raise SystemExit(2)
        case "text":
            return "text"  # type: ignore[return-value]
        case "stay":
            print(os.getpid(), flush=True)
            threading.Event().wait()
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
    return n * n
