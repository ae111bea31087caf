"""A server's seat in its cluster: it waits for the others, lets new ones in, knows them all, and hands over when it leaves."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import msgspec

from comity.bus.nats import NatsBus
from comity.cli.place import Place
from comity.cluster.config import bracketed
from comity.cluster.handover import hand_over
from comity.cluster.join import Identity, JoinEndpoint
from comity.cluster.membership import Member
from comity.cluster.status import SystemView
from comity.cluster.tls import server_context
from comity.embedded import EmbeddedServer
from comity.errors import Conflict, Disconnected, ForeignData, Indefinite, InvalidInput, NotFound, Unreachable
from comity.jetstream import JetStream
from comity.model.ids import check_token
from comity.model.server import Damage, ServerRecord, decode_server
from comity.ports import free_port
from comity.registry.base import Registry

SERVERS, FORGOTTEN = "servers/", "forgotten/"
"""Where the registry keeps what each says of itself, and who was forgotten (``comity cluster forget``)."""
LOOK_S = 0.1
ASK_S = 0.5
RETRY_S = 0.2
ROOM_S = 1.0

log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """``up`` of ``size`` servers are there; ``first``: no other has ever been."""

    up: int
    size: int
    first: bool


class Seat:
    """Of ``server``. ``changed`` is called when other servers became known."""

    def __init__(self, server: EmbeddedServer, place: Place, version: str) -> None:
        assert place.member is not None
        self.member: Member = place.member
        self.changed: Callable[[], None] = lambda: None
        self.damages: dict[str, Damage] = {}
        """By stream, what was found in this server's copy of it."""
        self.is_known = False
        """Whether the registry has this server, with ``damages``."""
        self._server = server
        self._place = place
        self._version = version
        self.data = server.data
        self._known: dict[str, ServerRecord] = {}
        self._forgotten: set[str] = set()
        """Routes of servers that were forgotten."""
        self._news = asyncio.Event()
        self._is_behind = False
        """What is known of the servers is not written down, or not told to ``changed``."""
        self._endpoint: JoinEndpoint | None = None
        self._view: SystemView | None = None
        self._registry: Registry | None = None
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def view(self) -> SystemView:
        """Of the servers, once it is open."""
        assert self._view is not None
        return self._view

    async def open(self, options: dict[str, Any], process: str) -> None:
        """Let others in, and look at the servers with ``options`` of a system user. Raises Unreachable."""
        server, place = self._server, self._place
        assert place.ca is not None and place.join_files is not None and server.cluster is not None
        self._keep(msgspec.structs.replace(self.member, route_port=server.cluster.port))
        self._view = await SystemView.connect([server.url], process, options)
        identity = Identity(server.network_id, server.authority, place.ca)
        self._endpoint = JoinEndpoint(server.data, identity, self._open_to_join, self._joined)
        context = server_context(place.join_files)
        try:
            await self._endpoint.start(self.member.host, self.member.join_port, context)
        except OSError:
            port = free_port(self.member.host)
            server.notes.append(f"port {self.member.join_port} is taken; servers join at {port}")
            self._keep(msgspec.structs.replace(self.member, join_port=port))
            await self._endpoint.start(self.member.host, port, context)

    def _open_to_join(self) -> Member:
        """Raises Conflict if nobody else may join."""
        if len(self._known) >= self.member.size:
            raise Conflict(f"this cluster has all its {self.member.size} servers")
        return self.member

    def _joined(self, name: str, route: str) -> None:
        self._forgotten.discard(route)
        try:
            self._learn({*self.member.others, route}, self.member.urls)
        except OSError as error:
            log.error("server %s has joined, which cannot be written down: %s; trying again", name, error)
            self._news.set()

    async def until_placed(self, nc: Any, tell: Callable[[Waiting], None]) -> None:
        """Return once there are servers enough: a majority if the streams are there already, else all. ``tell`` whenever the
        number that is there changed."""
        stream = f"STREAM.INFO.CY_{self._server.network}_LOG"
        js = await JetStream(nc, ASK_S).open()
        told = -1
        try:
            while True:
                up = await self._count()
                try:
                    if (await js.api(stream)).get("cluster", {}).get("leader"):
                        return
                except NotFound:
                    if up >= self.member.size:
                        return
                except Indefinite as error:
                    log.debug("the servers are not ready: %s", error)
                if up != told:
                    tell(Waiting(up, self.member.size, not self.member.others))
                    told = up
                await asyncio.sleep(LOOK_S)  # a server that comes tells nobody
        finally:
            await js.close()

    async def _count(self) -> int:
        try:
            return len(await self.view.ping(self.member.size))
        except Unreachable:
            return 0

    async def must_be_known(self, registry: Registry) -> None:
        """Raises ForeignData if this server was forgotten."""
        if await registry.get(f"{FORGOTTEN}{self.member.member}") is not None:
            message = f"server {self.member.member} was forgotten: empty {self.data}, and join anew (comity cluster invite)"
            raise ForeignData(message, path=str(self.data))

    def announce(self, registry: Registry) -> None:
        """From now on others know this server, and it knows them."""
        self._registry = registry
        self._tasks += [asyncio.create_task(work) for work in (self._announce(registry), self._write_down())]

    async def _announce(self, registry: Registry) -> None:
        while True:
            try:
                await self._put(registry)
                self.is_known = True
                async for changes in registry.watch(SERVERS):
                    for change in changes:
                        self._take(change.key.partition("/")[2], change.value)
                    self._news.set()
                return
            except Indefinite as error:
                log.debug("the registry does not say which servers there are: %s", error)
                await asyncio.sleep(RETRY_S)

    async def _write_down(self) -> None:
        """What the registry says of the servers, whenever there is news; on a full disk once there is room."""
        is_told = False
        while True:
            await self._news.wait()
            routes = {known.route for known in self._known.values()}
            if len(self._known) < self.member.size:
                routes |= {*self.member.others} - self._forgotten  # these may yet say where they are
            try:
                self._learn(routes, self._urls())
            except OSError as error:
                if not is_told:
                    log.error("which servers there are cannot be written down: %s; trying again", error)
                is_told = True
                await asyncio.sleep(ROOM_S)  # a disk tells nobody that it has room
            else:
                is_told = False
                self._news.clear()

    async def _put(self, registry: Registry) -> None:
        route = f"{bracketed(self.member.host)}:{self.member.route_port}"
        mine = ServerRecord(route, self._server.url, self._version, tuple(self.damages.values()))
        await registry.put(f"{SERVERS}{check_token(self.member.member, 'server')}", msgspec.json.encode(mine))

    async def report(self, damage: Damage) -> None:
        """Tell everybody what is wrong with this server's copy of a stream, or no longer. Raises Indefinite errors."""
        self.damages[damage.stream] = damage
        if self._registry is not None and self.is_known:
            await self._put(self._registry)

    async def broken(self, stream: str) -> set[str]:
        """The other servers whose copies of ``stream`` are damaged, as they say. Whoever reports first and then asks is not
        overlooked by one that does the same. Raises Indefinite errors."""
        found = set()
        for name in self._known.keys() - {self.member.member}:
            assert self._registry is not None
            record = await self._registry.get(f"{SERVERS}{name}")
            said = decode_server(record.value).damages if record is not None else ()
            if any(damage.stream == stream and not damage.mended for damage in said):
                found.add(name)
        return found

    def _take(self, name: str, value: bytes | None) -> None:
        try:
            if value is not None:
                known = self._known[name] = decode_server(value)
                self._forgotten.discard(known.route)
                return
        except InvalidInput:
            log.warning("the registry's record of server %s cannot be read", name)
        gone = self._known.pop(name, None)
        if gone is not None:
            self._forgotten.add(gone.route)

    def _urls(self) -> tuple[str, ...]:
        others = sorted(known.url for name, known in self._known.items() if name != self.member.member)
        return (self._server.url, *others)

    def _learn(self, routes: set[str], urls: tuple[str, ...]) -> None:
        """Raises OSError: then it is known, but not written down."""
        own = f"{bracketed(self.member.host)}:{self.member.route_port}"
        found = msgspec.structs.replace(self.member, others=tuple(sorted(routes - {own})), urls=urls)
        if found != self.member or self._is_behind:
            self._is_behind = True
            self._keep(found)
            self.changed()
            self._is_behind = False

    def _keep(self, member: Member) -> None:
        """Remember it, for the next start too. Raises OSError."""
        assert self._server.cluster is not None
        self.member = member
        self._server.cluster = replace(self._server.cluster, routes=member.others)
        member.save(self._server.data)

    async def leave(self, bus: NatsBus) -> None:
        """Have others lead what this server leads; what nobody takes over in time, an election will give away."""
        try:
            js = await JetStream(bus.connection, ASK_S).open()
        except Disconnected:
            return
        try:
            failed = await hand_over(js, self._view, self._server.network, self.member.member, self.member.size)
            for reason in failed:
                log.warning("not handed over: %s", reason)
        finally:
            await js.close()

    async def close(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._view is not None:
                stack.push_async_callback(self._view.close)
            if self._endpoint is not None:
                stack.push_async_callback(self._endpoint.stop)
            tasks, self._tasks = self._tasks, []
            for task in tasks:
                task.cancel()
            for task in tasks:
                with contextlib.suppress(asyncio.CancelledError):
                    await task
