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
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import TypeVar

import structlog

from comity.backends import Elsewhere, public
from comity.bus.base import Bus, Link
from comity.buses import is_rabbitmq, must_have_doors, open_bus, shown, streams, trust
from comity.cli.network import serve_metrics, until_led
from comity.config import Settings
from comity.connect import ELECTION_S, identity
from comity.contexts import Context
from comity.controller.controller import JUMP_S, Controller
from comity.log.base import Durability, Log
from comity.log.jetstream import JetStreamLog
from comity.patience import Unready, patiently
from comity.registry.base import Registry
from comity.registry.jetstream import JetStreamRegistry
from comity.store.base import Store
from comity.store.jetstream import JetStreamStore
from comity.web.metrics import MetricsServer

T = TypeVar("T")
_log = structlog.get_logger("comity.up")


async def _begin(bus: Bus, work: Callable[[], Awaitable[T]]) -> T:
    """While the servers elect a leader; what is wrong, or off, is told soon."""
    return await patiently(work, ELECTION_S, hopeless=lambda: bus.link is Link.CLOSED, tell=Unready(_log))


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
    async def start(cls, settings: Settings, context: Context, *, asserts: str = "", jump_s: float = JUMP_S) -> ForeignNetwork:
        """Take part; make the network's streams, in ``settings.replicas`` copies, if they are missing. ``asserts``: what the
        operator says of the servers' durability, recorded. Raises Unreachable, AccessDenied, BadSettings, ForeignData."""
        must_have_doors(context)
        async with AsyncExitStack() as stack:
            process, known = identity(context, "controller")
            bus = await open_bus(context, process, known, departures=True)
            stack.push_async_callback(bus.close)
            token, copies = context.network, settings.replicas
            elsewhere = Elsewhere(stack, context.doors)
            new_id = secrets.token_hex(8)
            log: Log
            if elsewhere.has("log"):
                opening = partial(elsewhere.log, token, create=True, new_id=new_id, asserts=asserts)
                log, network_id = await _begin(bus, opening)
            else:
                adopting = partial(JetStreamLog.adopt, streams(bus), token, new_id, replicas=copies, asserts=asserts)
                stream = await _begin(bus, adopting)
                stack.push_async_callback(stream.close)
                log, network_id = stream, stream.network_id
            registry, store = await cls._beside(stack, elsewhere, bus, token, network_id, copies)
            controller = Controller(
                bus, log, registry, store, settings,
                network_id=network_id, wall=time.time, random=random.random, jump_s=jump_s,
                place=shown(context),
            )  # fmt: skip
            controller.doors = {name: public(address) for name, address in context.doors.items()}
            stack.push_async_callback(controller.stop)
            await controller.start()
            await until_led(controller)
            network = cls(shown(context), controller, await log.durability(), token)
            network._stack = stack.pop_all()
        network.metrics = serve_metrics(controller, settings.http_port, network.notes)
        if not controller.sees_departures:
            why = "RabbitMQ does not tell us its events" if is_rabbitmq(context.urls) else "no system account"
            network.notes.append(f"{why}: the end of a process is noticed by probes, within its lease")
        network.notes += trust(context)
        return network

    @staticmethod
    async def _beside(
        stack: AsyncExitStack, elsewhere: Elsewhere, bus: Bus, token: str, network_id: str, copies: int
    ) -> tuple[Registry, Store]:
        if elsewhere.has("registry"):
            registry: Registry = await _begin(bus, partial(elsewhere.registry, token, create=True, network_id=network_id))
        else:
            opening = partial(JetStreamRegistry.open, streams(bus), token, create=True, replicas=copies)
            registry = await _begin(bus, opening)
            stack.push_async_callback(registry.close)
        if elsewhere.has("store"):
            store: Store = await _begin(bus, partial(elsewhere.store, token, network_id=network_id))
        else:
            store = await _begin(bus, partial(JetStreamStore.open, streams(bus), token, create=True, replicas=copies))
            stack.push_async_callback(store.close)
        return registry, store

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
