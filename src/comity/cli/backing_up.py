"""A connection that reads the log and the store of a running network, and copies them."""

from __future__ import annotations

import json
import os
import time
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from comity.errors import AccessDenied, BadInput, NotFound

if TYPE_CHECKING:
    from comity.backup.create import Made
    from comity.backup.targets import Target
    from comity.config import Loaded

POLITE = 10
"""Added to this process's niceness: agents and controllers have the processor first."""


async def back_up(loaded: Loaded, target: Target, *, with_keys: bool) -> tuple[Made, float]:
    """Make a backup; how long it took. Raises what ``backup.create`` does, and AccessDenied without keys or credentials."""
    import random
    from importlib.metadata import version

    import msgspec

    from comity.backends import Elsewhere, told
    from comity.backup.create import Creating
    from comity.buses import streams
    from comity.client import Client
    from comity.connect import doors, identity, lasting
    from comity.contexts import resolve
    from comity.log.jetstream import JetStreamLog
    from comity.model.ids import NetworkId

    began = time.perf_counter()
    context = resolve(loaded)
    if with_keys and not context.authority:
        raise BadInput("the keys are in the data directory of comity up: make this backup on that machine")
    keys = read_keys(Path(context.authority)) if with_keys else None
    process, known = identity(context, "backup")
    if known is not None and known.role not in ("", "backup", "controller"):
        raise AccessDenied(f"credentials of a {known.role} cannot read the log: make the backup where the data directory is")
    os.nice(POLITE)
    async with AsyncExitStack() as stack:
        bus, registry, store, places = await doors(stack, context, process, known)
        elsewhere = Elsewhere(stack, places or await lasting(bus, partial(told, bus)))
        if elsewhere.has("log"):
            log, _ = await lasting(bus, partial(elsewhere.log, context.network, create=False))
        else:
            opening = partial(JetStreamLog.open, streams(bus), context.network, create=False)
            log = await lasting(bus, opening)
            stack.push_async_callback(log.close)
        settings = msgspec.structs.replace(loaded.settings, network=context.network)
        client = Client(bus, registry, store, settings, wall=time.time, rng=random.SystemRandom())
        stack.push_async_callback(client.close)
        await client.open()
        await client.ready()
        made = await Creating(
            log, store, target, client.head,
            network=context.network, network_id=NetworkId((await client.stats())["network"]), version=version("comity"),
            now_ms=lambda: int(time.time() * 1000), keys=keys,
        ).run()  # fmt: skip
    return made, time.perf_counter() - began


def read_keys(data: Path) -> bytes:
    """The network's keys, as one piece. Raises NotFound."""
    folder = data / "keys"
    if not folder.is_dir():
        raise NotFound(f"no keys in {data}", path=str(folder))
    return json.dumps({path.name: path.read_text() for path in sorted(folder.iterdir())}).encode()
