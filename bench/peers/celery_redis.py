"""Celery, with Redis for its tasks and their results."""

from __future__ import annotations

import asyncio
import os

import celery

from bench.peers.load import serve, work

app = celery.Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=64,
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(text: str) -> int:
    return work(text)


class Peer:
    late = celery.exceptions.TimeoutError
    waiters = 1

    async def submit(self, texts: list[str]) -> list[celery.result.AsyncResult]:
        with app.producer_or_acquire() as producer:
            return [noop.apply_async((text,), producer=producer) for text in texts]

    async def result(self, task: celery.result.AsyncResult, timeout_s: float) -> int:
        return task.get(timeout_s)


if __name__ == "__main__":
    asyncio.run(serve(Peer()))
