"""How a process that holds a million objects looks for garbage without stopping for a tenth of a second each time.

Python's full collection looks at every object there is. What has survived one lives long here (tasks, agents, schemas), so it is
set aside (``gc.freeze``), and the next one looks only at what came since. Cycles among what was set aside are found when the
process is calm, or when they could have become most of its memory.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import process_time
from typing import Any

LOOK_S = 10.0
CALM = 0.05
"""Share of a processor that a calm process uses."""
FEW = 200_000
"""Objects that may be set aside without a thought."""
GROWTH, GROWTH_AT_MOST = 2, 8
"""By what factor they may grow until all are looked at: when the process is calm next, and at once."""


@asynccontextmanager
async def without_stops() -> AsyncIterator[None]:
    """Collect like this until the block is left."""
    gc.callbacks.append(_set_aside)
    looking = asyncio.create_task(_look())
    try:
        yield
    finally:
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
        gc.callbacks.remove(_set_aside)


def _set_aside(phase: str, info: dict[str, Any]) -> None:
    if phase == "stop" and info["generation"] == 2:
        gc.freeze()


async def _look() -> None:
    known = gc.get_freeze_count()
    while True:
        used_s = process_time()
        await asyncio.sleep(LOOK_S)
        growth = GROWTH if process_time() - used_s < CALM * LOOK_S else GROWTH_AT_MOST
        if gc.get_freeze_count() > growth * known + FEW:
            known = collect()


def collect() -> int:
    """Look at everything; how many objects are left."""
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    return gc.get_freeze_count()
