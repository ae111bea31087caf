"""A connection to RabbitMQ is made again while subscriptions end: it stands, and what ended is not there any more."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from pamqp import commands
from pamqp.base import Frame

from comity.amqp.address import Where
from comity.amqp.connection import Connection
from comity.bus.base import any_of, to
from comity.bus.rabbitmq import RabbitBus
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
    async with asyncio.timeout(5):
        await bus._prepare(server)
    groups = {frame.queue for frame in server.asked(commands.Basic.Consume)} - {bus._queue}
    left = {frame.consumer_tag for frame in server.asked(commands.Basic.Cancel)}
    assert groups - left == {"cy.main.any.first", "cy.main.any.last"} - {f"cy.main.{ended.replace('/', '.')}"}
    unbound = [frame.routing_key for frame in server.asked(commands.Queue.Unbind)]
    assert unbound == (["to.other.*"] if ends == "other" else [])
