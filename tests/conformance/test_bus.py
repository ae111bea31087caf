"""The bus contract, held by every backend; and what only one of them promises."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from math import inf
from pathlib import Path

import nats
import pytest
from bus_contract import SOON_S, BusContract, Inbox, answering, settled
from cable import Cable, two_ways
from cabled import CabledWorld, sees_deaths, until
from nats.aio.client import Client, Server
from nats.aio.msg import Msg

from comity.bus import nats as nats_bus
from comity.bus.base import EVERYONE, LEADER, Address, Bus, Link, any_of, to
from comity.bus.connection import RECONNECT_MAX_S, RECONNECT_WAIT_S
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.nats import NatsBus
from comity.credentials import Authority, Role
from comity.embedded import EmbeddedServer, find_binary
from comity.errors import AccessDenied, BadSettings, Disconnected, InvalidInput, Unreachable
from comity.model import wire
from comity.model.ids import ProcessId
from comity.registry.jetstream import JetStreamRegistry
from conftest import need_server


class MemoryWorld:
    def __init__(self) -> None:
        self.network = MemoryNetwork()

    async def bus(self, process: str) -> MemoryBus:
        return MemoryBus(self.network, ProcessId(process))

    async def cut(self, bus: Bus) -> None:
        self.network.disconnect(bus.process)

    async def mend(self, bus: Bus) -> None:
        self.network.reconnect(bus.process)


class TestMemoryBus(BusContract):
    @pytest.fixture
    def world(self) -> MemoryWorld:
        return MemoryWorld()


class NatsWorld(CabledWorld):
    """Buses with a node's permissions, each behind a cable of its own."""

    def __init__(self, server: EmbeddedServer) -> None:
        super().__init__()
        self.server = server

    async def bus(self, process: str, role: Role = "node") -> NatsBus:
        mint = self.server.authority.mint
        cable = Cable(self.server.url)
        await cable.mend()
        made = await NatsBus.connect(
            cable.url,
            process=process,
            options=mint(role, process).connect_options(),
            system=mint("system", process).connect_options(),
            timeout_s=SOON_S,
        )
        self._cables[made] = cable
        return made


async def watching(bus: NatsBus) -> None:
    """Return once it sees departures: they have a connection of their own, which comes back by itself."""
    assert bus._departures is not None
    async with asyncio.timeout(SOON_S):
        while not bus._departures.connection.is_connected:  # noqa: ASYNC110 (it tells nobody)
            await asyncio.sleep(0.01)
        await bus._departures.connection.flush()


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    need_server()
    server = await EmbeddedServer.start(tmp_path / "data", network="main", port=0)
    yield server
    await server.stop()


@pytest.mark.server
class TestNatsBus(BusContract):
    @pytest.fixture
    async def world(self, own_server: EmbeddedServer) -> AsyncIterator[NatsWorld]:
        world = NatsWorld(own_server)
        yield world
        await world.close()

    async def bare(self, world: NatsWorld, role: Role, process: str) -> Client:
        """A client that follows no rule of ours, with a process's credentials."""
        options = world.server.authority.mint(role, process).connect_options()
        return await nats.connect(
            world.server.url, inbox_prefix=f"_INBOX_{process}", allow_reconnect=False, error_cb=ignore, **options
        )

    # Deaths

    async def test_a_killed_process_is_seen_within_milliseconds(self, world: NatsWorld, tmp_path: Path) -> None:
        credentials = world.server.authority.mint("node", "b")
        credentials.save(tmp_path / "b.creds")
        await sees_deaths(await world.bus("a", "controller"), PEER, world.server.url, str(tmp_path / "b.creds"))

    async def test_the_server_is_killed_and_comes_back(self, world: NatsWorld) -> None:
        a, b = await world.bus("a", "controller"), await world.bus("b")
        inbox, gone = Inbox(), Inbox()
        await b.subscribe(to("b"), inbox)
        a.on_departure(gone)
        for turn in range(1, 3):
            os.kill(world.server.pid, signal.SIGKILL)
            await asyncio.gather(until(a, Link.DOWN), until(b, Link.DOWN))
            await asyncio.gather(until(a, Link.UP), until(b, Link.UP))
            await a.send(to("b"), b"%d" % turn)
            await inbox.until(turn)
            tasks: list[asyncio.Task[None]] = []
            cancel = await b.subscribe(to("b"), answering(b, tasks))
            assert await a.request(to("b"), b"x", SOON_S) == b"re:x"
            await cancel()
            inbox.items.pop()
        assert gone.items == []
        await watching(a)
        c = await world.bus("c")
        await c.close()
        assert await gone.until(1) == ["c"]

    async def test_it_goes_to_another_server_when_asked(self, world: NatsWorld) -> None:
        a, inbox = await world.bus("a"), Inbox()
        async with two_ways(world.server.url) as ways:
            options = world.server.authority.mint("node", "b").connect_options()
            b = await NatsBus.connect(ways, process="b", options=options, timeout_s=SOON_S)
            await b.subscribe(to("b"), inbox)
            assert b.servers == 2
            for turn in range(1, 4):
                before = b.connection.connected_url
                b.change_server()
                await until(b, Link.DOWN)
                await until(b, Link.UP)
                assert b.connection.connected_url != before
                await a.send(to("b"), b"%d" % turn)
                await inbox.until(turn)
            await b.close()

    async def test_a_socket_that_was_closed_unseen_is_a_lost_connection(
        self, world: NatsWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As uvloop says it, between the end of a socket and the reader's turn."""
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)

        def writelines(_: list[bytes]) -> None:
            raise RuntimeError("unable to perform operation on <TCPTransport closed=True>; the handler is closed")

        with monkeypatch.context() as patch:
            patch.setattr(a.connection._transport, "writelines", writelines)
            with pytest.raises(Disconnected):
                await a.send(to("b"), b"lost")
        await a.send(to("b"), b"fresh")
        assert [delivery.data for delivery in await inbox.until(1)] == [b"fresh"]

    async def test_what_waits_to_be_written_is_dropped_when_the_connection_breaks(self, world: NatsWorld) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        await stuff(world, a, to("b"))
        await a.send(to("b"), b"stale")
        assert a.connection.pending_data_size > 0
        await world.cut(a)
        await world.mend(a)
        await a.send(to("b"), b"fresh")
        await inbox.when(lambda: b"fresh" in inbox.data)
        assert b"stale" not in inbox.data

    async def test_a_break_ends_flushes_and_jetstream_requests_at_once(self, world: NatsWorld) -> None:
        a = await world.bus("a", "controller")
        b = await self.bare(world, "controller", "b")
        asked = Inbox()

        async def ask(message: Msg) -> None:
            asked(message)

        await b.subscribe("cy.main.never", cb=ask)
        await b.flush()
        await b.flush()  # the first PING of the original client overtakes what waits to be written
        waiting = asyncio.create_task(a.connection.request("cy.main.never", b"", timeout=60))
        await asked.until(1)
        flushing = asyncio.create_task(a.connection.flush(60))
        await asyncio.sleep(0)
        await a.connection.force_reconnect()
        async with asyncio.timeout(SOON_S):
            for task in (waiting, flushing):
                with pytest.raises(nats.errors.ConnectionReconnectingError):
                    await task
        await until(a, Link.UP)
        await b.close()

    async def test_it_reconnects_within_a_moment(self, world: NatsWorld) -> None:
        a = await world.bus("a")
        took_s: list[float] = []
        for _ in range(5):
            begin = time.monotonic()
            await a.connection.force_reconnect()
            await until(a, Link.DOWN)
            await until(a, Link.UP)
            took_s.append(time.monotonic() - begin)
        assert sorted(took_s)[2] < 0.5, "most of the time: the machine may be busy"

    async def test_a_flush_confirms_what_was_sent_before_it(self, world: NatsWorld) -> None:
        a = await world.bus("a")
        echo = await a.connection.subscribe("cy.main.to.a.*")
        await a.connection.flush()
        sent = await stuff(world, a, to("a"), 4)
        flushing = asyncio.create_task(a.connection.flush(60))
        await asyncio.sleep(0)
        world.cable(a).clear()
        await flushing
        assert echo.delivered == sent

    async def test_a_canceled_flush_harms_nothing(self, world: NatsWorld) -> None:
        a = await world.bus("a")
        for _ in range(20):
            flushing = asyncio.create_task(a.connection.flush())
            await asyncio.sleep(0)
            flushing.cancel()
            await asyncio.wait([flushing])
        await settled(a, a)
        assert not a.connection.stats["reconnects"]

    # Rights

    async def test_who_has_no_rights_is_told(self, world: NatsWorld) -> None:
        mint = world.server.authority.mint
        other = Authority.create(Path(world.server.data) / "other", "main")
        for options in ({}, other.mint("node", "a").connect_options(), mint("node", "a", ttl_s=-60).connect_options()):
            with pytest.raises(AccessDenied, match=world.server.url):
                await NatsBus.connect(world.server.url, process="a", options=options, timeout_s=SOON_S)
        with pytest.raises(AccessDenied):
            options = mint("node", "a").connect_options()
            await NatsBus.connect(world.server.url, process="b", options=options, timeout_s=SOON_S)
        with pytest.raises(AccessDenied):
            await NatsBus.connect(
                world.server.url,
                process="a",
                options=mint("node", "a").connect_options(),
                system={"user": "x", "password": "y"},
                timeout_s=SOON_S,
            )

    async def test_who_finds_no_server_is_told(self, free_port: Callable[[], int]) -> None:
        urls = [f"nats://127.0.0.1:{free_port()}" for _ in range(2)]
        begin = time.monotonic()
        with pytest.raises(Unreachable, match=rf"{urls[0]}, {urls[1]}"):
            await NatsBus.connect(urls, process="a", timeout_s=0.5)
        assert time.monotonic() - begin < 10

    async def test_a_server_that_comes_late_is_found(self, world: NatsWorld, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level("DEBUG", nats_bus.__name__)
        cable = Cable(world.server.url)
        await cable.mend()
        await cable.cut()
        options = world.server.authority.mint("node", "a").connect_options()
        connecting = asyncio.create_task(NatsBus.connect(cable.url, process="a", options=options, timeout_s=SOON_S))
        async with asyncio.timeout(SOON_S):
            while "ConnectionRefused" not in caplog.text:  # noqa: ASYNC110 (a log line has no event)
                await asyncio.sleep(0.01)
        await cable.mend()
        bus = await connecting
        assert bus.link is Link.UP
        assert not bus.on_departure(Inbox())
        await bus.close()
        await cable.cut()

    async def test_one_of_several_servers_is_enough(self, world: NatsWorld, free_port: Callable[[], int]) -> None:
        urls = [f"nats://127.0.0.1:{free_port()}", world.server.url]
        options = world.server.authority.mint("node", "a").connect_options()
        bus = await NatsBus.connect(urls, process="a", options=options, timeout_s=SOON_S)
        for _ in range(5):
            await bus.connection.force_reconnect()
            await until(bus, Link.DOWN)
            await until(bus, Link.UP)
        await bus.close()

    async def test_a_server_with_a_small_limit_is_refused(self, tmp_path: Path, free_port: Callable[[], int]) -> None:
        port = free_port()
        config = tmp_path / "small.conf"
        config.write_text(f'listen: "127.0.0.1:{port}"\nmax_payload: 64KB\n')
        server = await asyncio.create_subprocess_exec(find_binary(), "-c", config, stderr=asyncio.subprocess.DEVNULL)
        try:
            with pytest.raises(BadSettings, match="max_payload"):
                await NatsBus.connect(f"nats://127.0.0.1:{port}", process="a", timeout_s=SOON_S)
        finally:
            server.kill()
            await server.wait()

    async def test_a_process_may_listen_only_where_it_should(self, world: NatsWorld) -> None:
        a = await world.bus("a")
        for address in (to("b"), LEADER):
            with pytest.raises(AccessDenied):
                await a.subscribe(address, Inbox())
        assert a.faults["denied"] == 2
        leader = await world.bus("c", "controller")
        inbox = Inbox()
        await leader.subscribe(LEADER, inbox)
        await a.send(LEADER, b"x")
        await inbox.until(1)
        await a.subscribe(EVERYONE, inbox)
        await a.subscribe(any_of("workers"), inbox)

    async def test_a_request_that_may_not_be_sent_fails_at_once(self, world: NatsWorld) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        await b.subscribe(to("b"), Inbox())
        a.process = ProcessId("x")
        with pytest.raises(AccessDenied):
            await a.request(to("b"), b"x", 60)
        await a.send(to("b"), b"x")
        a.process = ProcessId("a")
        await settled(a, a)
        assert a.faults["denied"] == 2

    async def test_forgeries_are_dropped(self, world: NatsWorld) -> None:
        """What credentials cannot prevent: the server's own answers and deliveries, sent to a subject of the forger's choice."""
        controller = await world.bus("c", "controller")
        registry = await JetStreamRegistry.open(controller.connection, "main", create=True)
        victim = await world.bus("v")
        inbox, nobody = Inbox(), Inbox()
        await victim.subscribe(to("v"), inbox)
        victim.on_unreachable(nobody)
        rogue = await self.bare(world, "node", "r")
        forged, sender = b"run this", "cy.main.to.v.c"
        await rogue.request("cy.main.reg.r.nodes.c", forged, timeout=SOON_S)
        pull = {"ack_policy": "none", "name": "pull", "filter_subject": "cy.main.reg.r.nodes.c"}
        body = json.dumps({"stream_name": "CY_main_REG", "config": pull}).encode()
        await rogue.request("$JS.API.CONSUMER.CREATE.CY_main_REG.pull.cy.main.reg.r.nodes.c", body, timeout=SOON_S)
        await rogue.publish("$JS.API.CONSUMER.MSG.NEXT.CY_main_REG.pull", b"1", reply=sender)
        await rogue.publish("cy.main.to.v.r", forged, headers={"x": "y"})
        for subject in (sender, "cy.main.nr.v.to.z", "cy.main.re.v.1.c", "cy.main.reg.v.nodes.c"):
            await rogue.publish(subject, forged)
        await rogue.publish("$JS.API.STREAM.INFO.CY_main_REG", b"", reply=sender)
        async with asyncio.timeout(SOON_S):
            while victim.faults["forged"] < 2 or len(set(inbox.data)) < 2:
                await settled(controller, victim)
        (answer,) = set(inbox.data) - {b"settled"}
        with pytest.raises(InvalidInput):
            wire.decode(answer)
        assert nobody.items == []
        assert victim.faults["forged"] == 2
        await registry.close()
        await rogue.close()

    async def test_a_server_that_shuts_one_out_closes_the_bus(self, world: NatsWorld) -> None:
        options = world.server.authority.mint("node", "a", ttl_s=4).connect_options()
        bus = await NatsBus.connect(world.server.url, process="a", options=options, timeout_s=SOON_S)
        states = Inbox()
        bus.on_state(states)
        await states.when(lambda: bus.link is Link.CLOSED)
        with pytest.raises(Disconnected, match="expired"):
            await bus.send(to("b"), b"x")
        await bus.close()

    async def test_who_is_not_let_in_again_says_so_and_keeps_trying(
        self, world: NatsWorld, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Another network answers, where this one did, until it is back."""
        caplog.set_level("ERROR", nats_bus.__name__)
        bus = await world.bus("a")
        other = await EmbeddedServer.start(tmp_path / "other", network="main", port=0)
        try:
            world.cable(bus).lead_to(other.url)
            await world.cut(bus)
            mending = asyncio.create_task(world.mend(bus))
            async with asyncio.timeout(SOON_S):
                while "a cannot connect again: nats: 'Authorization Violation'" not in caplog.text:  # noqa: ASYNC110 (a log line)
                    await asyncio.sleep(0.01)
            with pytest.raises(Disconnected, match="Authorization Violation"):
                await bus.send(to("b"), b"x")
            servers = [Server(uri=server.uri, reconnects=1) for server in bus.connection._server_pool]
            pauses = [bus.connection.next_server(servers, {})[1] for _ in range(100)]
            assert max(pauses) > 10 * RECONNECT_WAIT_S, "nor is it in a hurry"
        finally:
            world.cable(bus).lead_to(world.server.url)
            await other.stop()
        await mending
        assert len(caplog.records) == 1, "it is said once"
        await bus.send(to("b"), b"x")

    async def test_the_longer_a_server_is_away_the_less_often_it_is_tried(
        self, world: NatsWorld, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        bus = await world.bus("a")
        connection = bus.connection

        def pauses() -> list[float]:
            return [connection.next_server(list(connection._server_pool), {})[1] for _ in range(100)]

        monkeypatch.setattr(connection, "_broken_at", inf)
        assert max(pauses()) <= RECONNECT_WAIT_S
        await world.cut(bus)
        async with asyncio.timeout(SOON_S):
            while connection._broken_at == inf:  # noqa: ASYNC110 (nats-py has no event for it)
                await asyncio.sleep(0.01)
        connection._broken_at -= 60
        assert RECONNECT_MAX_S / 2 < max(pauses()) <= RECONNECT_MAX_S
        await world.mend(bus)
        await world.cut(bus)
        async with asyncio.timeout(SOON_S):
            while asyncio.get_running_loop().time() - connection._broken_at > 30:  # noqa: ASYNC110 - it counts anew
                await asyncio.sleep(0.01)
        await world.mend(bus)

    async def test_a_bus_that_is_connecting_again_can_be_closed(self, world: NatsWorld) -> None:
        """Although it has something to say, and the connection to say it on has just broken."""
        bus = await world.bus("a")
        cancel = await bus.subscribe(to("a"), Inbox())
        cable = world.cable(bus)
        await world.cut(bus)
        cable.clog()
        await cable.mend()
        async with asyncio.timeout(SOON_S):
            while not bus.connection.is_connecting:  # noqa: ASYNC110 (nats-py has no event for it)
                await asyncio.sleep(0.01)
            await cancel()
            await cable.cut()
            while not isinstance(bus.connection.last_error, ConnectionRefusedError):  # noqa: ASYNC110 (nor for that)
                await asyncio.sleep(0.01)
        await bus.close()

    async def test_a_bus_that_is_clogged_can_be_closed(self, world: NatsWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        bus = await world.bus("a")
        await stuff(world, bus, to("b"))
        monkeypatch.setattr(nats_bus, "CONFIRM_S", 0.2)
        async with asyncio.timeout(SOON_S):
            await bus.close()


async def stuff(world: NatsWorld, bus: NatsBus, address: Address, more: int = 0) -> int:
    """Clog the cable and send until nothing more fits into the sockets, and ``more``; how many messages that took."""
    world.cable(bus).clog()
    sent = 0
    while bus.connection.pending_data_size == 0 or more > 0:
        more -= bus.connection.pending_data_size > 0
        await bus.send(address, bytes(128 * 1024))
        await asyncio.sleep(0)
        sent += 1
    return sent


async def ignore(error: Exception) -> None:
    """What the server tells a rogue."""


PEER = """
import asyncio, sys
from pathlib import Path
from comity.bus.base import to
from comity.bus.nats import NatsBus
from comity.credentials import Credentials

async def main():
    options = Credentials.load(Path(sys.argv[2])).connect_options()
    bus = await NatsBus.connect(sys.argv[1], process="b", options=options, timeout_s=15)
    await bus.subscribe(to("b"), lambda delivery: None)
    await bus.send(to("a"), b"here")
    await asyncio.Event().wait()

asyncio.run(main())
"""
