"""Taskiq with NATS JetStream for its tasks, and a JetStream object store for their results."""

from __future__ import annotations

import asyncio
import os

import taskiq
import uvloop
from nats.js.api import RetentionPolicy, StreamConfig
from taskiq.exceptions import TaskiqResultTimeoutError
from taskiq_nats import NATSObjectStoreResultBackend, PullBasedJetStreamBroker

from bench.peers.load import serve, work

BATCH = 100
"""Submits that are awaited together."""
LOOK_S = 0.002

url = os.environ["BENCH_NATS"]
results = NATSObjectStoreResultBackend(url)
queue = StreamConfig(retention=RetentionPolicy.WORK_QUEUE)
broker = PullBasedJetStreamBroker(url, stream_config=queue).with_result_backend(results)


@broker.task(task_name="noop")
async def noop(text: str) -> int:
    return work(text)


class Peer:
    late = TaskiqResultTimeoutError
    waiters = 16  # a result is looked for again and again: more of them are busy with that, fewer leave the server idle

    async def submit(self, texts: list[str]) -> list[taskiq.AsyncTaskiqTask[int]]:
        tasks: list[taskiq.AsyncTaskiqTask[int]] = []
        for start in range(0, len(texts), BATCH):
            tasks += await asyncio.gather(*(noop.kiq(text) for text in texts[start : start + BATCH]))
        return tasks

    async def result(self, task: taskiq.AsyncTaskiqTask[int], timeout_s: float) -> int:
        return (await task.wait_result(check_interval=LOOK_S, timeout=timeout_s)).return_value


async def main() -> None:
    await broker.startup()
    await serve(Peer())
    await broker.shutdown()


if __name__ == "__main__":
    uvloop.run(main())
