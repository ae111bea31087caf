"""What ``comity cluster forget`` does, with the keys in the data directory of a server that runs."""

from __future__ import annotations

import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from comity.bus.nats import NatsBus
from comity.cli.seat import FORGOTTEN, SERVERS
from comity.cluster.forget import remove
from comity.cluster.status import SystemView
from comity.connect import identity, secured
from comity.contexts import Context
from comity.credentials import Authority
from comity.errors import AccessDenied
from comity.jetstream import JetStream
from comity.registry.jetstream import JetStreamRegistry

ASK_S = 2.0


async def forget(context: Context, said: str) -> str:
    """Forget the server that ``said`` names; its name. What an earlier try did not come to is done now. Raises AccessDenied,
    NotFound, BadInput, Conflict, and Indefinite errors."""
    if not context.authority:
        raise AccessDenied("this takes the network's keys: do it on the machine of a server that runs, with its --data")
    async with AsyncExitStack() as stack:
        process, known = identity(context, "controller")
        options = secured(known.connect_options() if known is not None else {}, context.ca)
        bus = await NatsBus.connect(context.urls, process=process, network=context.network, options=options)
        stack.push_async_callback(bus.close)
        js = await JetStream(bus.connection, ASK_S).open()
        stack.push_async_callback(js.close)
        registry = await JetStreamRegistry.open(bus.connection, context.network, create=False)
        stack.push_async_callback(registry.close)
        viewer = f"view-{secrets.token_hex(6)}"
        system = secured(Authority.load(Path(context.authority)).mint("system", viewer).connect_options(), context.ca)
        view = await SystemView.connect(context.urls, viewer, system)
        stack.push_async_callback(view.close)
        records, _ = await registry.list(SERVERS)
        registered = tuple(record.key.removeprefix(SERVERS) for record in records)
        server = await remove(js, view, context.network, registered, said)
        await registry.put(f"{FORGOTTEN}{server}", b"")
        await registry.delete(f"{SERVERS}{server}")
        return server
