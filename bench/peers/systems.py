"""What is compared: how each is run, and what it promises of a task that it has accepted.

Settings keep a task until it has been done: it is acknowledged only after it ran. Among those, what differed was tried once or
twice with 500 to 3000 tasks, and the fastest taken. What a crash may lose follows from the settings; it is not measured here.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bench.peers.servers import NATS, RABBIT, REDIS, Server

HERE = Path(__file__).parent
Commands = list[tuple[str, ...]]


class System(NamedTuple):
    """``key`` is its file here, ``workers`` the commands that start so many of them (none: it is Comity itself)."""

    key: str
    name: str
    packages: tuple[str, ...]
    settings: str
    accepted: str
    killed: str
    power_cut: str
    servers: tuple[Server, ...] = ()
    workers: Callable[[int], Commands] = lambda _: []
    callers: int = 0
    """Comity: single submits by so many at a time, rather than batches."""

    @property
    def ours(self) -> bool:
        return not self.servers

    @property
    def versions(self) -> list[str]:
        """Of its Python packages, as locked."""
        locked = (HERE / f"{self.key}.lock").read_text()
        found = {name: re.search(rf"^{name}(?:\[.*\])?==(\S+)", locked, re.MULTILINE) for name in self.packages}
        return [f"{name} {match[1]}" for name, match in found.items() if match]


def _celery(workers: int) -> Commands:
    words = ("-m", "celery", "-A", "bench.peers.celery_redis", "worker", "--pool", "threads", "-c", "1")
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "warning")
    return [(*words, *quiet, "-n", f"w{number}") for number in range(workers)]


def _dramatiq(workers: int) -> Commands:
    return [("-m", "dramatiq", "bench.peers.dramatiq_rabbit", "--processes", str(workers), "--threads", "4")]


def _taskiq(workers: int) -> Commands:
    words = ("-m", "taskiq", "worker", "bench.peers.taskiq_nats:broker", "--workers", str(workers))
    return [(*words, "--ack-type", "when_saved", "--max-async-tasks", "100", "--log-level", "WARNING")]


_OURS = (
    "fsynced by the server before the reply (JetStream, `sync_interval: always`); tasks that wait share one fsync",
    "nothing",
    "nothing",
)

SYSTEMS = (
    System("comity", "Comity", (), "`comity bench tasks`: `submit_many` of 256, at most 16,384 in flight", *_OURS),
    System(
        "comity_single",
        "Comity, single submits",
        (),
        "`comity bench tasks --callers 1000`: one `submit` a task",
        *_OURS,
        callers=1000,
    ),
    System(
        "celery_redis",
        "Celery, Redis",
        ("celery", "redis", "hiredis"),
        "`task_acks_late`, `task_reject_on_worker_lost`, `worker_prefetch_multiplier` 64, a thread pool of 1 per "
        "worker (prefork was slower, solo alike with a longer round trip), no gossip, mingle or heartbeat; Redis "
        "with `appendonly yes`, `appendfsync everysec`; results in the same Redis",
        "in the server's log file, by a write before the reply; fsynced once a second",
        "nothing, but up to 2 s of tasks while an fsync is slow (Redis then puts off the write)",
        "1 to 2 s of tasks",
        (REDIS,),
        _celery,
    ),
    System(
        "dramatiq_rabbit",
        "Dramatiq, RabbitMQ",
        ("dramatiq", "pika", "redis", "hiredis"),
        "`confirm_delivery=True`, 4 threads per worker (1 to 8 made no clear difference), prefetch as by default;"
        " a durable classic queue, persistent messages; results in Redis, set as for Celery, as RabbitMQ keeps "
        "none",
        "confirmed by the broker after an fsync of the queue's journal (seen with strace, without consumers: one "
        "for each confirm)",
        "nothing; results as for Celery",
        "nothing; of results 1 to 2 s",
        (REDIS, RABBIT),
        _dramatiq,
    ),
    System(
        "taskiq_nats",
        "Taskiq, NATS",
        ("taskiq", "taskiq-nats", "nats-py", "uvloop"),
        "`PullBasedJetStreamBroker` that fetches one by one (in batches it waits for a full one, or its time-out "
        "ends the worker), a work-queue stream on disk, ack when saved, 100 tasks at a time per worker, uvloop; "
        "results in a JetStream object store, looked for every 2 ms by 16 waiters (of 1, 4, 16 and 64 the most "
        "tasks/s at that interval), the server's `default_max_consumers` raised for them, as each look leaves a "
        "consumer behind for a while",
        "in the server's file, by a write before the acknowledgement; fsynced every 2 minutes (JetStream's default)",
        "nothing",
        "up to 2 minutes of tasks",
        (NATS,),
        _taskiq,
    ),
)
