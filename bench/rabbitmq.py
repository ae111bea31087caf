"""What the bus costs on RabbitMQ beside aio-pika, which carries the same messages in the same run:
``python -m bench.rabbitmq amqp://USER:PASSWORD@HOST:PORT``.

Only exclusive queues of its own are used, and the network's exchange ``cy.bench``.
"""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable

import aio_pika
from aio_pika.abc import AbstractIncomingMessage

from comity.bus.base import Delivery, to
from comity.bus.rabbitmq import RabbitBus

BODY = bytes(256)
MESSAGES = 20_000
ASKED = 2_000
ROUNDS = 3


class Count:
    """Set once there are all."""

    def __init__(self) -> None:
        self.all = asyncio.Event()
        self._left = MESSAGES

    def one(self) -> None:
        self._left -= 1
        if not self._left:
            self.all.set()


async def raw(address: str) -> None:
    """The library as its guide has it: no confirms, no acknowledgements."""
    a, b = await aio_pika.connect(address), await aio_pika.connect(address)
    out, into = await a.channel(publisher_confirms=False), await b.channel(publisher_confirms=False)
    inbox, answers = await into.declare_queue(exclusive=True), await out.declare_queue(exclusive=True)
    waiting: dict[str | None, asyncio.Future[bytes]] = {}
    count = Count()

    async def take(message: AbstractIncomingMessage) -> None:
        if message.reply_to is None:
            count.one()
        else:
            answer = aio_pika.Message(message.body, correlation_id=message.correlation_id)
            await into.default_exchange.publish(answer, message.reply_to, mandatory=False)

    async def answered(message: AbstractIncomingMessage) -> None:
        waiting.pop(message.correlation_id).set_result(message.body)

    async def send(_: int) -> None:
        await out.default_exchange.publish(aio_pika.Message(BODY), inbox.name, mandatory=False)

    async def ask(n: int) -> None:
        waiting[str(n)] = asyncio.get_running_loop().create_future()
        message = aio_pika.Message(BODY, correlation_id=str(n), reply_to=answers.name)
        await out.default_exchange.publish(message, inbox.name, mandatory=False)
        await waiting[str(n)]

    await inbox.consume(take, no_ack=True)
    await answers.consume(answered, no_ack=True)
    await measure("aio-pika", send, ask, count)
    await a.close()
    await b.close()


async def ours(address: str) -> None:
    a, b = [await RabbitBus.connect(address, process=name, network="bench") for name in "ab"]
    count = Count()
    tasks: set[asyncio.Task[None]] = set()

    def take(delivery: Delivery) -> None:
        if not delivery.reply:
            count.one()
        else:
            task = asyncio.get_running_loop().create_task(b.reply(delivery, delivery.data))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    await b.subscribe(to("b"), take)
    await measure("Comity", lambda _: a.send(to("b"), BODY), lambda _: a.request(to("b"), BODY, 10), count)
    await a.close()
    await b.close()


async def measure(
    name: str, send: Callable[[int], Awaitable[object]], ask: Callable[[int], Awaitable[object]], count: Count
) -> None:
    began = time.perf_counter()
    for n in range(MESSAGES):
        await send(n)
    await count.all.wait()
    rate = MESSAGES / (time.perf_counter() - began)
    took = []
    for n in range(ASKED):
        at = time.perf_counter()
        await ask(n)
        took.append((time.perf_counter() - at) * 1000)
    took.sort()
    median, last = statistics.median(took), took[int(ASKED * 0.99)]
    print(f"{name:10}{rate:10,.0f} messages/s   request p50 {median:.2f} ms, p99 {last:.2f} ms", flush=True)


async def main(address: str) -> None:
    for _ in range(ROUNDS):
        await raw(address)
        await ours(address)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
