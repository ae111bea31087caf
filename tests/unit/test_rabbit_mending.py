"""A connection to RabbitMQ is made again while subscriptions end: it stands, it is one, and what ended is not there any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

import pytest
import uvloop
from pamqp import commands
from pamqp.base import Frame

from comity.amqp import line as lines
from comity.amqp.address import Where
from comity.amqp.connection import Connection
from comity.amqp.line import Line
from comity.bus.base import any_of, to
from comity.bus.rabbitmq import RabbitBus
from comity.errors import Disconnected
from comity.model.ids import ProcessId


class Server(Connection):
    """Does all that it is asked; ``before`` comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[Frame], Awaitable[None]] | None = None
        self.frames: list[Frame] = []

    async def ask(self, channel: int, frame: Frame) -> None:
        if self.before is not None:
            await self.before(frame)
        self.frames.append(frame)

    def tell(self, channel: int, frame: Frame) -> None:
        self.frames.append(frame)

    forget = tell

    def asked(self, kind: type[Frame]) -> list[Any]:
        return [frame for frame in self.frames if isinstance(frame, kind)]


@pytest.mark.parametrize("ends", ["first", "last", "other"])
async def test_a_subscription_that_ends_while_the_connection_is_made_again(ends: str) -> None:
    bus = RabbitBus(Where.parse("amqp://h"), ProcessId("p"), "main")
    server = Server()
    ended = {"first": any_of("first"), "last": any_of("last"), "other": to("other")}[ends]
    bus._receivers = {any_of("first"): (print,), to("other"): (print,), any_of("last"): (print,)}
    bus._link = bus._link.DOWN

    async def end(frame: Frame) -> None:
        if isinstance(frame, commands.Queue.Declare) and "any.first" in frame.queue:
            await bus._cancel(ended, cast(Any, print), [])

    server.before = end
    async with asyncio.timeout(20):
        await bus._prepare(server)
    groups = {frame.queue for frame in server.asked(commands.Basic.Consume)} - {bus._queue}
    left = {frame.consumer_tag for frame in server.asked(commands.Basic.Cancel)}
    assert groups - left == {"cy.main.any.first", "cy.main.any.last"} - {f"cy.main.{ended.replace('/', '.')}"}
    unbound = [frame.routing_key for frame in server.asked(commands.Queue.Unbind)]
    assert unbound == (["to.other.*"] if ends == "other" else [])


class Socket(asyncio.Transport):
    """What is lost is told in the next turn."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self._protocol = protocol
        protocol.connection_made(self)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def abort(self) -> None:
        asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)


async def test_a_connection_that_breaks_as_soon_as_it_stood_is_followed_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Connection] = []

    class Taken(Server):
        async def open(self, *where: Any) -> None:
            made.append(self)
            self.server = {"product": "RabbitMQ", "version": "4.0"}
            Socket(self)

    async def prepare(connection: Connection) -> None:
        if connection is made[0]:
            connection.abort(Disconnected("gone"))

    monkeypatch.setattr(lines, "Connection", Taken)
    line = Line(Where.parse("amqp://h"), "p", prepare, lambda _up: None)
    async with asyncio.timeout(20):
        await line.open(20.0)
        mending = line._mending
        assert (mending, len(made)) == (None, 2), "nothing else connects as well"
        assert line.connection is made[1] and line.connection.is_open and not made[0].is_open
        await line.close()


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_a_connection_that_is_given_up_as_it_is_made_has_ended(run: Callable[[Coroutine[Any, Any, None]], None]) -> None:
    """uvloop does not tell its protocol."""

    async def live() -> None:
        server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
        host, port = server.sockets[0].getsockname()
        for turns in range(8):
            made = Connection()
            opening = asyncio.create_task(made.open(host, port, None, "user", "password", "/", "title"))
            for _ in range(turns):
                await asyncio.sleep(0)
            opening.cancel()
            await asyncio.wait([opening])
            made.abort()
            async with asyncio.timeout(20):
                await made.ended()
        last, writer = await asyncio.open_connection(host, port)
        assert await asyncio.wait_for(last.read(), 20) == b"", "those before it were taken, too, and are not left behind unclosed"
        writer.close()
        server.close()

    run(live())
