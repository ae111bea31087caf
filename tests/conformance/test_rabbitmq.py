"""The bus on RabbitMQ: the contract, and what only it promises."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlsplit

import pytest
from bus_contract import SOON_S, BusContract, Inbox, answering, settled
from cable import Cable, two_ways
from cabled import CabledWorld, sees_deaths, until
from pamqp import commands
from pamqp import frame as frames

from comity.amqp.address import Where
from comity.amqp.connection import ASKING, Connection, Properties, Refusal, packed
from comity.bus import rabbitmq
from comity.bus.base import EVERYONE, LEADER, Bus, Link, any_of, to, topic
from comity.bus.rabbitmq import RabbitBus
from comity.errors import AccessDenied, BadSettings, Disconnected, Unreachable
from rabbits import Rabbits


class RabbitWorld(CabledWorld):
    """Buses of processes with a user each, each behind a cable of its own."""

    def __init__(self, rabbit: Rabbits) -> None:
        super().__init__()
        self.rabbit = rabbit

    async def bus(self, process: str, *, shared: bool = False) -> RabbitBus:
        cable = Cable(self.rabbit.url())
        await cable.mend()
        address = self.rabbit.url("" if shared else process, urlsplit(cable.url).port or 0)
        made = await RabbitBus.connect(address, process=process, departures=True, timeout_s=SOON_S)
        self._cables[made] = cable
        return made


def far_port(bus: RabbitBus) -> int:
    transport = bus._line.connection._transport
    assert transport is not None
    return int(transport.get_extra_info("peername")[1])


async def bare(rabbit: Rabbits, process: str = "") -> Connection:
    """A client that follows no rule of ours, as the user of a process, or the one that many share."""
    where = Where.parse(rabbit.url(process))
    made = Connection()
    await made.open(*where.hosts[0], None, where.user, where.password, where.vhost, "bare")
    return made


@pytest.fixture
async def world(rabbit: Rabbits) -> AsyncIterator[RabbitWorld]:
    world = RabbitWorld(rabbit)
    yield world
    await world.close()


@pytest.mark.server
class TestRabbitBus(BusContract):
    async def test_processes_that_share_a_user_hear_each_other_and_who_has_its_own(self, world: RabbitWorld) -> None:
        x, y = await world.bus("x", shared=True), await world.bus("y", shared=True)
        a = await world.bus("a")
        inbox, at_a = Inbox(), Inbox()
        tasks: list[asyncio.Task[None]] = []
        await y.subscribe(to("y"), inbox)
        cancel = await y.subscribe(to("y"), answering(y, tasks))
        await a.subscribe(to("a"), at_a)
        assert await x.request(to("y"), b"1", SOON_S) == b"re:1"
        await cancel()
        await asyncio.gather(*tasks)
        await a.send(to("y"), b"2")
        assert [item.sender for item in await inbox.until(2)] == ["x", "a"]
        await x.send(to("a"), b"3")  # nobody vouches for x by itself
        await settled(x, x)
        await settled(a, a)
        assert (at_a.data, a.faults["forged"]) == ([b"settled"], 1)
        assert (x.is_own, a.is_own) == (False, True)

    # Rights

    async def test_who_has_no_rights_is_told(self, rabbit: Rabbits) -> None:
        host = f"127.0.0.1:{rabbit.port}"
        for address in (f"amqp://a:wrong@{host}", f"amqp://nobody:x@{host}", f"{rabbit.url('a')}/elsewhere"):
            with pytest.raises(AccessDenied, match=host) as denied:
                await RabbitBus.connect(address, process="a")
            assert "wrong" not in str(denied.value)

    async def test_a_process_may_listen_only_where_it_should(self, world: RabbitWorld) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        for address in (to("b"), LEADER):
            with pytest.raises(AccessDenied):
                await a.subscribe(address, Inbox())
        leader = await world.bus("k", shared=True)
        inbox = Inbox()
        await leader.subscribe(LEADER, inbox)
        await a.send(LEADER, b"x")
        await inbox.until(1)
        await a.subscribe(EVERYONE, inbox)
        await a.subscribe(any_of("workers"), inbox)
        await settled(b, a)

    async def test_what_may_not_be_sent_fails_at_once_and_harms_no_more(self, world: RabbitWorld) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        other = asyncio.create_task(a.request(to("b"), b"x", 60))
        await inbox.until(1)
        name, a.process = a.process, b.process
        with pytest.raises(AccessDenied):
            await a.request(topic("all"), b"x", 60)
        a.process = name
        with pytest.raises(Disconnected):
            await other
        assert a.faults["denied"] == 1
        await settled(a, a)
        assert a.link is Link.UP

    async def test_forgeries_are_refused_or_dropped(self, world: RabbitWorld) -> None:
        victim = await world.bus("b")
        inbox = Inbox()
        await victim.subscribe(to("b"), inbox)
        rogue, shared = await bare(world.rabbit, "c"), await bare(world.rabbit)
        refused = Inbox()
        rogue.refused = refused
        await rogue.publish("cy.main", "to.b.a", packed(Properties(user_id="c")), b"1", mandatory=False)  # the key says a
        await rogue.publish("cy.main", "to.b.c", packed(Properties(user_id="a")), b"2", mandatory=False)  # the user says a
        await refused.when(lambda: len(refused.items) > 0)
        await rogue.ask(1, commands.Channel.Flow(active=True))
        cc = Properties(user_id="c", headers={"CC": ["to.b.a"]})  # the server takes this for a way around: the key stays c's
        for properties in (Properties(), cc):
            await rogue.publish("cy.main", "to.z.c", packed(properties), b"3", mandatory=False)
        await shared.publish("cy.main", "to.b.a", packed(Properties(user_id="comity")), b"4", mandatory=False)
        await shared.publish("cy.main", "to.b.a", packed(Properties()), b"5", mandatory=False)
        await shared.publish("cy.main", "nonsense", packed(Properties(headers={"CC": ["to.b.x"]})), b"6", mandatory=False)
        await shared.ask(1, commands.Channel.Flow(active=True))
        await settled(victim, victim)
        assert inbox.data == [b"settled"]
        assert victim.faults["forged"] == 3
        await rogue.close()
        await shared.close()

    async def test_what_the_server_refuses_of_a_channel_leaves_the_others(self, rabbit: Rabbits) -> None:
        connection = await bare(rabbit)
        for _ in range(3):
            with pytest.raises(Refusal) as refusal:
                await connection.ask(ASKING, commands.Queue.Declare(0, "cy.none", passive=True))
            assert refusal.value.code == 404
        assert connection.is_open
        await connection.close()

    # TLS

    async def test_who_knows_the_ca_talks_over_tls_and_others_do_not(self, rabbit: Rabbits) -> None:
        address = rabbit.url("a", rabbit.tls_ports[0])
        bus = await RabbitBus.connect(f"{address}?ca={rabbit.tls.ca}", process="a", timeout_s=SOON_S)
        inbox = Inbox()
        await bus.subscribe(to("a"), inbox)
        large = bytes(range(256)) * 4000
        for _ in range(20):
            await bus.send(to("a"), large)
        await inbox.until(20)
        assert inbox.data == [large] * 20
        bus._line.connection.abort()
        await until(bus, Link.DOWN)
        await until(bus, Link.UP)
        await settled(bus, bus)
        await bus.close()
        with pytest.raises(AccessDenied, match="nobody known here vouches"):
            await RabbitBus.connect(address.replace("amqp", "amqps"), process="a", timeout_s=0)
        with pytest.raises(Unreachable):
            await RabbitBus.connect(address, process="a", timeout_s=0)  # in the clear, to where TLS is spoken

    # What breaks

    async def test_a_killed_process_is_seen_within_milliseconds(self, world: RabbitWorld) -> None:
        await sees_deaths(await world.bus("a"), PEER, world.rabbit.url("b"))

    async def test_what_waits_to_be_written_is_dropped_when_the_connection_breaks(self, world: RabbitWorld) -> None:
        a, b = await world.bus("a"), await world.bus("b")
        inbox = Inbox()
        await b.subscribe(to("b"), inbox)
        world.cable(a).clog()
        sending = asyncio.create_task(flood(a, to("b")))
        await asyncio.sleep(0)
        await world.cut(a)
        with pytest.raises(Disconnected):
            await sending
        await world.mend(a)
        await a.send(to("b"), b"fresh")
        await inbox.when(lambda: inbox.data[-1:] == [b"fresh"])
        assert b"stale" not in inbox.data

    async def test_it_reconnects_within_a_moment(self, world: RabbitWorld) -> None:
        a = await world.bus("a")
        took_s: list[float] = []
        for _ in range(5):
            begin = time.monotonic()
            a._line.connection.abort()
            await until(a, Link.DOWN)
            await until(a, Link.UP)
            took_s.append(time.monotonic() - begin)
        assert sorted(took_s)[2] < 0.5, "most of the time: the machine may be busy"

    async def test_a_queue_that_somebody_deletes_is_made_again(self, world: RabbitWorld) -> None:
        x = await world.bus("x", shared=True)
        inbox, states, nobody = Inbox(), Inbox(), Inbox()
        await x.subscribe(any_of("crew2"), inbox)
        x.on_state(states)
        x.on_unreachable(nobody)
        other = await bare(world.rabbit)
        await other.ask(ASKING, commands.Queue.Delete(0, "cy.main.any.crew2"))
        async with asyncio.timeout(SOON_S):
            while not inbox.items:  # the rest of the bus goes on meanwhile
                sent = len(nobody.items)
                await x.send(any_of("crew2"), b"1")
                await asyncio.wait([asyncio.ensure_future(inbox.until(1)), asyncio.ensure_future(nobody.until(sent + 1))],
                                   return_when=asyncio.FIRST_COMPLETED)
        assert states.items == []
        x._line.connection.forget(ASKING, commands.Queue.Delete(0, x._queue))  # nobody else may
        await until(x, Link.DOWN)
        await until(x, Link.UP)
        await x.send(any_of("crew2"), b"2")
        await inbox.until(2)
        await other.close()

    async def test_a_group_that_is_joined_again_as_its_queue_goes_is_joined_once(self, world: RabbitWorld) -> None:
        """A second consumer of one name would end the connection."""
        x = await world.bus("x", shared=True)
        inbox, states = Inbox(), Inbox()
        cancel = await x.subscribe(any_of("crew3"), Inbox())
        x.on_state(states)
        other = await bare(world.rabbit)
        async with x._changing:
            ending = asyncio.create_task(cancel())
            beginning = asyncio.create_task(x.subscribe(any_of("crew3"), inbox))
            await asyncio.sleep(0)
            await other.ask(ASKING, commands.Queue.Delete(0, "cy.main.any.crew3"))
            async with asyncio.timeout(SOON_S):
                while not x._joining:  # noqa: ASYNC110 (it tells nobody)
                    await asyncio.sleep(0)
        await asyncio.gather(ending, beginning)
        await asyncio.wait(x._joining)
        await x.send(any_of("crew3"), b"1")
        await inbox.until(1)
        assert states.items == []
        await other.close()

    async def test_a_group_that_is_away_disturbs_no_other(self, world: RabbitWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        x = await world.bus("x", shared=True)
        groups = [any_of(name) for name in ("away", "b", "c", "d", "e")]
        inboxes = {group: Inbox() for group in groups}
        for group, inbox in inboxes.items():
            await x.subscribe(group, inbox)

        def missing(name: str, *, exclusive: bool = False, durable: bool = False) -> commands.Queue.Declare:
            if name.endswith(".away"):
                asked.append(x.link)
                return commands.Queue.Declare(0, name, passive=True)
            return declared(name, exclusive=exclusive, durable=durable)

        declared, states, asked = rabbitmq._queue, Inbox(), list[Link]()
        with monkeypatch.context() as away:
            away.setattr(rabbitmq, "_queue", missing)
            dialed = x._line._turn
            x.change_server()
            await until(x, Link.DOWN)
            await until(x, Link.UP)
            x.on_state(states)
            assert x._line._turn == dialed + 1
            assert asked.count(Link.DOWN) == rabbitmq._TRIES  # else it would end what is asked for the others
            for group in groups[1:]:
                await x.send(group, b"1")
                await inboxes[group].until(1)
            with pytest.raises(Unreachable):
                await x.request(groups[0], b"1", SOON_S)
        await asyncio.wait(x._joining)
        await x.send(groups[0], b"2")
        await inboxes[groups[0]].until(1)
        assert states.items == []

    async def test_who_does_not_hear_itself_connects_again(self, world: RabbitWorld, monkeypatch: pytest.MonkeyPatch) -> None:
        """As when servers that make up forget a queue whose connection stands."""
        monkeypatch.setattr(rabbitmq, "ECHO_S", 0.05)
        monkeypatch.setattr(rabbitmq, "ECHOED_S", 1.5)  # two are missed before it does; y is to miss none
        x, y = await world.bus("x", shared=True), await world.bus("y", shared=True)
        inbox, calm = Inbox(), Inbox()
        await x.subscribe(to("x"), inbox)
        y.on_state(calm)
        for key in ("re.x.*", "to.x.*"):
            await x._line.connection.ask(ASKING, commands.Queue.Unbind(0, x._queue, "cy.main", key))
        await until(x, Link.DOWN)
        await until(x, Link.UP)
        await y.send(to("x"), b"1")
        assert (await inbox.until(1))[0].data == b"1"
        assert calm.items == []

    async def test_who_cannot_hear_events_sees_no_departures(self, rabbit: Rabbits) -> None:
        bus = await RabbitBus.connect(f"{rabbit.url()}?events=nowhere", process="a", departures=True)
        assert not bus.on_departure(Inbox())
        await bus.close()

    async def test_it_goes_to_another_server_when_asked(self, world: RabbitWorld, rabbit: Rabbits) -> None:
        a, inbox = await world.bus("a"), Inbox()
        async with two_ways(rabbit.url()) as ways:
            address = rabbit.url("b", *(urlsplit(way).port or 0 for way in ways))
            b = await RabbitBus.connect(address, process="b", timeout_s=SOON_S)
            await b.subscribe(to("b"), inbox)
            assert b.servers == 2
            for turn in range(1, 4):
                before = far_port(b)
                b.change_server()
                await until(b, Link.DOWN)
                await until(b, Link.UP)
                assert far_port(b) != before
                await a.send(to("b"), b"%d" % turn)
                await inbox.until(turn)
            await b.close()

    # Who is no server

    async def test_who_finds_no_server_is_told(self, free_port: Callable[[], int]) -> None:
        hosts = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        begin = time.monotonic()
        with pytest.raises(Unreachable, match=rf"amqp://{hosts[0]}, amqp://{hosts[1]}") as error:
            await RabbitBus.connect(f"amqp://u:secret@{','.join(hosts)}", process="a", timeout_s=0.5)
        assert "secret" not in str(error.value)
        assert time.monotonic() - begin < 10

    async def test_one_of_several_servers_is_enough(self, rabbit: Rabbits, free_port: Callable[[], int]) -> None:
        address = f"{rabbit.url('a')},127.0.0.1:{free_port()}"
        bus = await RabbitBus.connect(address, process="a", timeout_s=SOON_S)
        for _ in range(4):
            bus._line.connection.abort()
            await until(bus, Link.DOWN)
            await until(bus, Link.UP)
        await bus.close()

    @pytest.mark.parametrize(
        ("product", "version", "why"),
        [("RabbitMQ", "3.7.28", "3.8 or newer"), ("RabbitMQ", "old", "3.8 or newer"), ("Other", "9.0.0", "not RabbitMQ")],
    )
    async def test_a_server_that_cannot_keep_the_promises_is_refused(self, product: str, version: str, why: str) -> None:
        async with await asyncio.start_server(pretending(product, version), "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(BadSettings, match=why):
                await RabbitBus.connect(f"amqp://127.0.0.1:{port}", process="a")

    @pytest.mark.parametrize("said", [b"AMQP\x00\x01\x00\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
    async def test_what_is_no_rabbitmq_is_told(self, said: bytes) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(8)
            writer.write(said)
            writer.close()

        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(Unreachable):
                await RabbitBus.connect(f"amqp://127.0.0.1:{port}", process="a", timeout_s=0)


async def flood(bus: Bus, address: str) -> None:
    """More than sockets hold, and then what must not arrive."""
    for _ in range(200):
        await bus.send(address, bytes(128 * 1024))
    await bus.send(address, b"stale")


def pretending(product: str, version: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
    """A server that says it is this, and agrees to everything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        start = commands.Connection.Start(0, 9, {"product": product, "version": version}, "PLAIN", "en_US")
        answers = [(0, start), (0, commands.Connection.Tune(0, 131072, 60)), (0, commands.Connection.OpenOk())]
        answers += [(channel, commands.Channel.OpenOk()) for channel in (1, 2, 3)]
        for channel, answer in answers:
            if not await reader.read(65536):
                break
            writer.write(frames.marshal(answer, channel))
        await reader.read()
        writer.close()

    return serve


PEER = """
import asyncio, sys
from comity.bus.base import to
from comity.bus.rabbitmq import RabbitBus

async def main():
    bus = await RabbitBus.connect(sys.argv[1], process="b", timeout_s=10)
    await bus.subscribe(to("b"), lambda delivery: None)
    await bus.send(to("a"), b"here")
    await asyncio.Event().wait()

asyncio.run(main())
"""
