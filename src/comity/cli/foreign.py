"""A controller on servers that somebody else runs: nothing there is ours but what an account may make.

The network's id, and what an operator asserted of its durability, are kept with the log's stream. Without a system account
nobody tells of closed connections: probes and leases find out, which takes longer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from contextlib import AsyncExitStack

from comity.bus.nats import NatsBus
from comity.cli.network import serve_metrics, until_led
from comity.config import Settings
from comity.connect import identity, secured
from comity.contexts import Context
from comity.controller.controller import Controller
from comity.log.base import Durability
from comity.log.jetstream import JetStreamLog
from comity.model.ids import shown_urls
from comity.registry.jetstream import JetStreamRegistry
from comity.store.jetstream import JetStreamStore
from comity.web.metrics import MetricsServer


class ForeignNetwork:
    """A controller of the network that a context leads to, and ``/metrics``: what ``comity up --connect`` runs."""

    seat, data = None, None
    reach = "(run by somebody else)"

    def __init__(self, url: str, controller: Controller, durability: Durability, name: str) -> None:
        self.url = url
        self.name = name
        self.controller = controller
        self.durability = durability
        self.metrics: MetricsServer | None = None
        self.notes: list[str] = []
        self._stack = AsyncExitStack()

    @classmethod
    async def start(cls, settings: Settings, context: Context, *, asserts: str = "") -> ForeignNetwork:
        """Take part; make the network's streams, in ``settings.replicas`` copies, if they are missing. ``asserts``: what the
        operator says of the servers' durability, recorded. Raises Unreachable, AccessDenied, BadSettings, ForeignData."""
        async with AsyncExitStack() as stack:
            process, known = identity(context, "controller")
            options = secured(known.connect_options() if known is not None else {}, context.ca)
            bus = await NatsBus.connect(context.urls, process=process, network=context.network, options=options)
            stack.push_async_callback(bus.close)
            nc, token, copies = bus.connection, context.network, settings.replicas
            log = await JetStreamLog.adopt(nc, token, secrets.token_hex(8), replicas=copies, asserts=asserts)
            stack.push_async_callback(log.close)
            registry = await JetStreamRegistry.open(nc, token, create=True, replicas=copies)
            stack.push_async_callback(registry.close)
            store = await JetStreamStore.open(nc, token, create=True, replicas=copies)
            stack.push_async_callback(store.close)
            controller = Controller(
                bus, log, registry, store, settings,
                network_id=log.network_id, wall=time.time, random=random.random, confirm_jump=True,
                place=shown_urls(context.urls[:1]),
            )  # fmt: skip
            stack.push_async_callback(controller.stop)
            await controller.start()
            await until_led(controller)
            network = cls(shown_urls(context.urls), controller, await log.durability(), token)
            network._stack = stack.pop_all()
        network.metrics = serve_metrics(controller, settings.http_port, network.notes)
        if not controller.sees_departures:
            network.notes.append("no system account: the end of a process is noticed by probes, within its lease")
        return network

    async def wait(self) -> None:
        """Return when somebody asked the network to shut down; raise what made it fail."""
        waits = [asyncio.create_task(event.wait()) for event in (self.controller.shut_down, self.controller.failed)]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if self.controller.failure is not None:
            raise self.controller.failure

    async def stop(self) -> None:
        """Leave. The servers are their owner's. Idempotent."""
        if self.metrics is not None:
            await self.metrics.stop()
            self.metrics = None
        with contextlib.suppress(asyncio.CancelledError):
            await self._stack.aclose()
