"""Puts a network together: the one place, beside ``comity.connect``, that names concrete backends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from functools import partial
from pathlib import Path
from typing import Any

from comity.bus.nats import NatsBus
from comity.cli.marking import Marking
from comity.config import Settings
from comity.contexts import Context
from comity.controller.controller import Controller
from comity.embedded import EmbeddedServer
from comity.errors import ServerFailed
from comity.log.base import Durability
from comity.log.jetstream import JetStreamLog
from comity.log.jetstream import stream_name as log_name
from comity.model.ids import ProcessId
from comity.registry.jetstream import JetStreamRegistry
from comity.store.jetstream import JetStreamStore
from comity.store.jetstream import stream_name as store_name
from comity.web.metrics import MetricsServer

VERIFIED = Durability("verified", "the embedded server syncs to disk before it acknowledges (sync_interval: always)")
OFF = Durability("unverified", "fsync is off: the embedded server acknowledges what is not yet on disk")
CLIENT_NAME = "cli"
PORTS_TRIED = 64


class EmbeddedNetwork:
    """A server, a controller and ``/metrics`` in this process: what ``comity up`` runs."""

    def __init__(
        self, server: EmbeddedServer, bus: NatsBus, doors: list[Any], controller: Controller, marking: Marking
    ) -> None:
        self.server = server
        self.bus = bus
        self.controller = controller
        self.metrics: MetricsServer | None = None
        self.notes: list[str] = list(server.notes)
        self._doors = doors
        self._marking = marking

    @property
    def url(self) -> str:
        return self.server.url

    @classmethod
    async def start(cls, settings: Settings, *, metrics: bool = True) -> EmbeddedNetwork:
        """Start on ``settings.data_dir`` and return once tasks can be submitted. Raises AlreadyRunning, ForeignData, Corrupt,
        ServerFailed."""
        data = settings.data_dir
        server = await EmbeddedServer.start(
            data, network=settings.network, port=settings.port, binary=settings.nats_server, fsync=settings.fsync
        )
        try:
            bus = await _connect(server)
            try:
                return await cls._with_controller(server, bus, settings, metrics)
            except BaseException:
                await bus.close()
                raise
        except BaseException:
            await server.stop()
            raise

    @classmethod
    async def _with_controller(
        cls, server: EmbeddedServer, bus: NatsBus, settings: Settings, metrics: bool
    ) -> EmbeddedNetwork:
        streams = server.data / "jetstream" / server.authority.account.public / "streams"
        marking = Marking(server.data, server.network_id, streams / log_name(server.network))
        with marking.noting():
            return await cls._marked(server, bus, settings, metrics, marking)

    @classmethod
    async def _marked(
        cls, server: EmbeddedServer, bus: NatsBus, settings: Settings, metrics: bool, marking: Marking
    ) -> EmbeddedNetwork:
        nc, token, durability = bus.connection, server.network, VERIFIED if settings.fsync else OFF
        await marking.look(nc, log_name(token), store_name(token))  # nodes fill the registry again
        log = await JetStreamLog.open(nc, token, create=True, durability=durability)
        await marking.check(log)
        registry = await JetStreamRegistry.open(nc, token, create=True)
        store = await JetStreamStore.open(nc, token, create=True)
        await marking.begin()
        controller = Controller(
            bus, log, registry, store, settings,
            network_id=server.network_id, wall=time.time, random=random.random, eager=True, confirm_jump=True,
        )  # fmt: skip
        controller.measure = partial(machine, settings.data_dir)
        network = cls(server, bus, [log, registry, store], controller, marking)
        try:
            await controller.start()
            await network._until_led()
            if settings.fsync:  # else an acknowledged entry may not be durable
                marking.keep(lambda: controller.ledger)
            if metrics:
                network._serve_metrics(settings.http_port)
            network._leave_context(settings.data_dir)
        except BaseException:
            await network.stop()
            raise
        return network

    async def _until_led(self) -> None:
        led = asyncio.create_task(self.controller.led.wait())
        failed = asyncio.create_task(self.controller.failed.wait())
        done, pending = await asyncio.wait([led, failed], timeout=60, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if failed in done and self.controller.failure is not None:
            raise self.controller.failure
        if led not in done:
            raise ServerFailed("the controller could not begin to lead within 60 s")

    def _serve_metrics(self, port: int) -> None:
        for candidate in range(port, min(port + PORTS_TRIED, 65_536)) if port else [0]:
            try:
                self.metrics = MetricsServer(self.controller.stats, candidate)
                break
            except OSError:
                continue
        if self.metrics is None:
            self.notes.append(f"no port is free from {port} on: there is no /metrics")
        elif port not in (0, self.metrics.port):
            self.notes.append(f"port {port} is taken; metrics are on {self.metrics.port}")

    def _leave_context(self, data: Path) -> None:
        """So that other commands on this machine find the network by its data directory."""
        path = data / "client.creds"
        self.server.authority.mint("client", f"{CLIENT_NAME}-{secrets.token_hex(3)}").save(path)
        context = Context(
            urls=(self.url,), network=self.server.network, credentials=str(path.absolute()), authority=str(data.absolute())
        )
        context.write_local(data)

    async def wait(self) -> None:
        """Return when somebody asked the network to shut down; raise what made it fail."""
        waits = [
            asyncio.create_task(self.controller.shut_down.wait()),
            asyncio.create_task(self.controller.failed.wait()),
            asyncio.create_task(self.server.wait()),
        ]
        try:
            done, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waits:
                task.cancel()
        if waits[2] in done:
            waits[2].result()
        if self.controller.failure is not None:
            raise self.controller.failure

    async def stop(self) -> None:
        """Stop everything this started, in order. Idempotent."""
        if self.metrics is not None:
            await self.metrics.stop()
            self.metrics = None
        with contextlib.suppress(asyncio.CancelledError):
            await self.controller.stop()
        await self._marking.stop()
        for door in self._doors:
            await door.close()
        self._doors.clear()
        await self.bus.close()
        await self.server.stop()


def machine(data: Path) -> dict[str, Any]:
    """What may run out on a controller's machine: the disk that holds ``data``, and files that may be open."""
    import resource
    import shutil

    disk = shutil.disk_usage(data)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"disk_free_bytes": disk.free, "disk_bytes": disk.total, "open_files_limit": soft}


async def _connect(server: EmbeddedServer) -> NatsBus:
    process = ProcessId(f"k-{secrets.token_hex(4)}")
    mine = server.authority.mint("controller", process)
    system = server.authority.mint("system", f"{process}-sys")
    return await NatsBus.connect(
        server.url, process=process, network=server.network,
        options=mine.connect_options(), system=system.connect_options(),
    )  # fmt: skip
