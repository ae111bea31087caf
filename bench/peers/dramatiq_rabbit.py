"""Dramatiq with RabbitMQ. It keeps results in Redis: RabbitMQ has no place for them."""

from __future__ import annotations

import asyncio
import os

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.results import Results, ResultTimeout
from dramatiq.results.backends import RedisBackend

from bench.peers.load import serve, work

broker = RabbitmqBroker(url=os.environ["BENCH_RABBIT"], confirm_delivery=True)
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_REDIS"]), store_results=True))
dramatiq.set_broker(broker)


@dramatiq.actor
def noop(text: str) -> int:
    return work(text)


class Peer:
    late = ResultTimeout
    waiters = 1

    async def submit(self, texts: list[str]) -> list[dramatiq.Message]:
        return [noop.send(text) for text in texts]

    async def result(self, task: dramatiq.Message, timeout_s: float) -> int:
        return task.get_result(block=True, timeout=int(timeout_s * 1000))


if __name__ == "__main__":
    asyncio.run(serve(Peer()))
