"""Puts a network together: the one place, beside ``comity.connect``, that names concrete backends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version
from math import inf
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import structlog

from comity.backends import Elsewhere, public
from comity.bus.base import Link
from comity.bus.nats import NatsBus
from comity.bus.outbox import Outbox
from comity.cli.full_disk import FullDisk
from comity.cli.marking import Marking
from comity.cli.mending import Mending, mend_before
from comity.cli.place import Place
from comity.cli.seat import Seat, Waiting
from comity.config import Settings
from comity.connect import ELECTION_S, secured
from comity.contexts import Context
from comity.controller.controller import CONTROLLERS, JUMP_S, Controller
from comity.controller.doubt import Doubt, question
from comity.credentials import Role
from comity.embedded import EmbeddedServer
from comity.errors import DiskFull, Indefinite
from comity.log.base import Durability, Log
from comity.log.jetstream import JetStreamLog
from comity.log.jetstream import stream_name as log_name
from comity.model.ids import ProcessId
from comity.model.server import Damage
from comity.patience import Unready, patiently
from comity.registry.base import Registry
from comity.registry.jetstream import JetStreamRegistry
from comity.store.base import Store
from comity.store.jetstream import JetStreamStore
from comity.store.jetstream import stream_name as store_name
from comity.web.metrics import MetricsServer

VERIFIED = Durability("verified", "the embedded server syncs to disk before it acknowledges (sync_interval: always)")
OFF = Durability("unverified", "fsync is off: the embedded server acknowledges what is not yet on disk")
CLIENT_NAME = "cli"
PORTS_TRIED = 64

log = structlog.get_logger("comity.up")
T = TypeVar("T")


class Doors(NamedTuple):
    log: Log
    registry: Registry
    store: Store


class EmbeddedNetwork:
    """A server, a controller and ``/metrics`` in this process: what ``comity up`` runs."""

    def __init__(
        self, server: EmbeddedServer, bus: NatsBus, doors: list[Any], controller: Controller, marking: Marking,
        mending: Mending | None, elsewhere: AsyncExitStack,
    ) -> None:  # fmt: skip
        self.server = server
        self.seat = mending.seat if mending is not None else None
        self.bus = bus
        self.controller = controller
        self.metrics: MetricsServer | None = None
        self.durability = VERIFIED
        self.notes: list[str] = list(server.notes)
        self._doors = doors
        self._elsewhere = elsewhere
        self._marking = marking
        self._mending = mending
        self._full_disk: FullDisk | None = None

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def name(self) -> str:
        return self.server.network

    @property
    def data(self) -> str:
        return str(self.server.data)

    @property
    def reach(self) -> str:
        """From where the server can be reached, and how."""
        return "(this machine only)" if self.server.tls is None else f"(with TLS: --ca {self.server.tls.ca})"

    @classmethod
    async def start(
        cls,
        settings: Settings,
        *,
        metrics: bool = True,
        place: Place | None = None,
        tell: Callable[[Waiting, Seat], None] = lambda _waiting, _seat: None,
        jump_s: float = JUMP_S,
    ) -> EmbeddedNetwork:
        """Start on ``settings.data_dir`` and return once tasks can be submitted. In a cluster that is when servers enough are
        there; ``tell`` says who is awaited. ``jump_s``: how long it may have stood still, by this machine's clock. Raises
        AlreadyRunning, ForeignData, Corrupt, BadSettings, ClockAhead, DiskFull, ServerFailed."""
        place = place or Place()
        cluster = place.member.config() if place.member is not None else None
        damage: Damage | None = None

        seat: Seat | None = None
        mending: Mending | None = None

        async def before(server: EmbeddedServer) -> None:
            nonlocal damage
            member = seat.member if seat is not None else place.member
            damage = await mend_before(member, server) if member is not None else None
            if mending is not None and damage is not None:
                mending.found(damage)

        async with AsyncExitStack() as stack:
            server = await EmbeddedServer.start(
                settings.data_dir, network=settings.network, port=settings.port, binary=settings.nats_server,
                fsync=settings.fsync, host=place.host, tls=place.tls, cluster=cluster, before=before,
            )  # fmt: skip
            stack.push_async_callback(server.stop)
            full_disk = FullDisk(server)
            stack.push_async_callback(full_disk.close)
            process = ProcessId(f"k-{secrets.token_hex(4)}")
            bus = await _connect(server, process)
            stack.push_async_callback(bus.close)
            if place.member is not None:
                seat = Seat(server, place, version("comity"))
                stack.push_async_callback(seat.close)
                opening = partial(seat.open, _options(server, "system", f"{process}-view"), f"{process}-view")
                await while_it_runs(server.wait, patiently(opening, tell=Unready(log)))
                await while_it_runs(server.wait, seat.until_placed(bus.connection, partial(_tell, tell, seat)))
                mending = Mending(server, seat, bus, settings, damage)
                stack.push_async_callback(mending.close)
            try:
                network = await while_it_runs(server.wait, cls._with_controller(server, bus, settings, mending, jump_s))
            except Indefinite as error:
                if full_disk.look():
                    raise DiskFull(f"no room is left for the data in {server.data}", path=str(server.data)) from error
                raise
            network._full_disk = full_disk
            stack.pop_all()
        if metrics:
            network.metrics = serve_metrics(network.controller, settings.http_port, network.notes)
        network._leave_context()
        if seat is not None:
            seat.changed = network._leave_context
            seat.announce(network.controller.registry)
        return network

    @classmethod
    async def _with_controller(
        cls, server: EmbeddedServer, bus: NatsBus, settings: Settings, mending: Mending | None, jump_s: float
    ) -> EmbeddedNetwork:
        streams = server.data / "jetstream" / server.authority.account.public / "streams"
        at = public(settings.doors["log"]) if "log" in settings.doors else str(streams / log_name(server.network))
        marking = Marking(server.data, server.network_id, at)
        async with AsyncExitStack() as stack:
            elsewhere = Elsewhere(stack, settings.doors)
            with marking.noting():
                doors = await _open(bus, server, VERIFIED if settings.fsync else OFF, marking, mending, elsewhere)
                return await cls._begin(server, bus, doors, settings, marking, mending, stack.pop_all(), jump_s)

    @classmethod
    async def _begin(
        cls, server: EmbeddedServer, bus: NatsBus, doors: Doors, settings: Settings, marking: Marking,
        mending: Mending | None, elsewhere: AsyncExitStack, jump_s: float,
    ) -> EmbeddedNetwork:  # fmt: skip
        seat = mending.seat if mending is not None else None
        controller = Controller(
            bus, *doors, settings,
            network_id=server.network_id, wall=time.time, random=random.random, eager=seat is None, jump_s=jump_s,
            place=seat.member.member if seat is not None else "",
        )  # fmt: skip
        controller.doors = {name: public(address) for name, address in settings.doors.items()}
        network = cls(server, bus, list(doors), controller, marking, mending, elsewhere)
        controller.measure = partial(machine, settings.data_dir)
        if mending is not None:
            mending.known = lambda: controller.ledger.index
            mending.ask = controller.doubt.ask
            controller.doubted = mending.hurry
        try:
            network.durability = await doors.log.durability()
            await controller.start()
            await until_led(controller)
            if settings.fsync:  # else an acknowledged entry may not be durable
                marking.keep(lambda: controller.ledger)
        except BaseException:
            await network.stop()
            raise
        return network

    def _leave_context(self) -> None:
        """So that other commands on this machine find the network by its data directory."""
        server, data = self.server, self.server.data
        path = data / "client.creds"
        server.authority.mint("client", f"{CLIENT_NAME}-{secrets.token_hex(3)}").save(path)
        context = Context(
            urls=(self.seat.member.urls if self.seat is not None else ()) or (self.url,),
            network=server.network, credentials=str(path.absolute()), authority=str(data.absolute()),
            ca=str(server.tls.ca.absolute()) if server.tls is not None else "", doors=self.controller.settings.doors,
        )  # fmt: skip
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
        """Stop everything this started, in order; in a cluster that goes on, others take over first. What one raises does not
        keep the others from their end: the first error is raised then. Idempotent."""
        doors, self._doors = self._doors, []
        steps: list[Callable[[], Awaitable[None]]] = [self._stop_metrics]
        if self._full_disk is not None:
            steps.append(self._full_disk.close)
        if self._mending is not None:
            steps.append(self._mending.close)
        if self.seat is not None and doors and not self.controller.shut_down.is_set():
            steps.append(partial(self.seat.leave, self.bus))
        steps.append(self._stop_controller)
        if self.seat is not None:
            steps.append(self.seat.close)
        steps += [self._marking.stop, *(door.close for door in doors), self._elsewhere.aclose, self.bus.close, self.server.stop]
        await every_one(steps)

    async def _stop_metrics(self) -> None:
        metrics, self.metrics = self.metrics, None
        if metrics is not None:
            await metrics.stop()

    async def _stop_controller(self) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await self.controller.stop()


async def every_one(steps: Sequence[Callable[[], Awaitable[None]]]) -> None:
    """Do all ``steps``, one after the other, whatever they raise; then raise the first error."""
    first: BaseException | None = None
    for step in steps:
        try:
            await step()
        except BaseException as error:
            if first is not None:
                log.error("not everything came to its end", error=repr(error))
            first = first or error
    if first is not None:
        raise first


async def until_led(controller: Controller) -> None:
    """Until ``controller`` leads, or has heard who does: it tells what keeps it from that. Raises what stopped it."""
    waits = [asyncio.create_task(event.wait()) for event in (controller.led, controller.heard, controller.failed)]
    try:
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waits:
            task.cancel()
    if controller.failure is not None:
        raise controller.failure


async def while_it_runs(wait: Callable[[], Coroutine[Any, Any, object]], work: Coroutine[Any, Any, T]) -> T:
    """What ``work`` gives. Raises what a server's ``wait`` raises once that is gone for good: what waits for it would wait for
    ever."""
    working, gone = asyncio.create_task(work), asyncio.create_task(wait())
    try:
        await asyncio.wait([working, gone], return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            gone.result()
        return await working  # which stops the server itself if it fails
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


def serve_metrics(controller: Controller, port: int, notes: list[str]) -> MetricsServer | None:
    """``/metrics`` on ``port``, or on any if that is taken: then a note says so."""
    for candidate in range(port, min(port + PORTS_TRIED, 65_536)) if port else [0]:
        try:
            server = MetricsServer(controller.stats, candidate)
        except OSError:
            continue
        if port not in (0, server.port):
            notes.append(f"port {port} is taken; metrics are on {server.port}")
        return server
    notes.append(f"no port is free from {port} on: there is no /metrics")
    return None


def _tell(tell: Callable[[Waiting, Seat], None], seat: Seat, waiting: Waiting) -> None:
    tell(waiting, seat)


def _options(server: EmbeddedServer, role: Role, process: str) -> dict[str, Any]:
    known = server.authority.mint(role, process)
    return secured(known.connect_options(), server.tls.ca if server.tls is not None else None)


def machine(data: Path) -> dict[str, Any]:
    """What may run out on a controller's machine: the disk that holds ``data``, and files that may be open."""
    import resource
    import shutil

    disk = shutil.disk_usage(data)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return {"disk_free_bytes": disk.free, "disk_bytes": disk.total, "open_files_limit": soft}


async def _connect(server: EmbeddedServer, process: ProcessId) -> NatsBus:
    return await NatsBus.connect(
        server.url, process=process, network=server.network,
        options=_options(server, "controller", process), system=_options(server, "system", f"{process}-sys"),
    )  # fmt: skip


async def _open(
    bus: NatsBus, server: EmbeddedServer, durability: Durability, marking: Marking, mending: Mending | None,
    elsewhere: Elsewhere,
) -> Doors:  # fmt: skip
    """The doors, whose streams are made if they are missing and may be. In a cluster their groups may need a moment to have
    leaders, and a damaged copy of the log one to be rebuilt."""
    nc, token, copies = bus.connection, server.network, server.replicas
    opened: list[Any] = []
    outbox = Outbox(bus)

    def ask(index: int) -> None:
        assert mending is not None
        mending.hurry(index)
        outbox.post(CONTROLLERS, question(index))

    doubt = Doubt(ask, copies)

    async def begin(work: Callable[[], Awaitable[T]], limit_s: float = inf if copies > 1 else ELECTION_S) -> T:
        return await patiently(work, limit_s, hopeless=lambda: bus.link is Link.CLOSED, tell=Unready(log))

    async def there(opening: Callable[..., Awaitable[T]], *args: Any, **how: Any) -> T:
        """A door that lies elsewhere: an address that is wrong is told soon."""
        return await begin(lambda: opening(token, *args, network_id=server.network_id, **how), ELECTION_S)

    async def here(kind: type[JetStreamRegistry] | type[JetStreamStore]) -> Any:
        return await begin(lambda: kind.open(nc, token, create=True, replicas=copies))

    try:
        streams = [name for door, name in (("log", log_name(token)), ("store", store_name(token))) if not elsewhere.has(door)]
        await begin(lambda: marking.look(nc, *streams))  # nodes fill the registry again
        if elsewhere.has("log"):
            opened.append((await there(elsewhere.log, create=True))[0])
        else:
            opened.append(await doubt.patiently(lambda: begin(lambda: JetStreamLog.open(
                nc, token, create=True, replicas=copies, durability=durability
            ))))  # fmt: skip
        await doubt.patiently(lambda: begin(lambda: marking.check(opened[0])))
        opened.append(await (there(elsewhere.registry, create=True) if elsewhere.has("registry") else here(JetStreamRegistry)))
        if mending is not None:
            await begin(lambda: mending.seat.must_be_known(opened[1]))
        opened.append(await (there(elsewhere.store) if elsewhere.has("store") else here(JetStreamStore)))
        await marking.begin()
    except BaseException:
        for door in opened:
            await door.close()
        raise
    return Doors(*opened)
