"""A controller in a process of its own, on a server that somebody else runs: ``controlling.py DATA URL NAME``. It says when it
takes part, and when it leads, one JSON line each."""

from __future__ import annotations

import json
import logging
import random
import sys
import time
from pathlib import Path

from comity.bus.nats import NatsBus
from comity.cli.logs import configure
from comity.config import Settings
from comity.controller.controller import Controller
from comity.credentials import Authority
from comity.log.jetstream import JetStreamLog
from comity.registry.jetstream import JetStreamRegistry
from comity.store.jetstream import JetStreamStore


async def main(data: Path, url: str, name: str) -> None:
    configure(logging.WARNING, as_json=True)
    authority = Authority.load(data)
    mine, system = authority.mint("controller", name), authority.mint("system", f"{name}-sys")
    bus = await NatsBus.connect(url, process=name, options=mine.connect_options(), system=system.connect_options())
    network_id = json.loads((data / "network.json").read_text())["network_id"]
    controller = Controller(
        bus,
        await JetStreamLog.open(bus.connection, "main", create=True),
        await JetStreamRegistry.open(bus.connection, "main", create=True),
        await JetStreamStore.open(bus.connection, "main", create=True),
        Settings(),
        network_id=network_id,
        wall=time.time,
        random=random.random,
    )
    await controller.start()
    print(json.dumps({"follows": name}), flush=True)
    await controller.led.wait()
    print(json.dumps({"leads": name}), flush=True)
    await controller.failed.wait()
    raise SystemExit(str(controller.failure))


if __name__ == "__main__":
    import uvloop

    uvloop.run(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3]))
