"""The load, the same for every peer. It runs in the peer's own virtual environment, so it needs the standard library alone.

The client is told what to do in lines of JSON, and answers each with one. ``{"mode": "all", "count": 1000, "payload": 256}``:
submit all, then wait for all results. ``"one"``: one after the other. ``"warm"``: until every one of ``workers`` has worked.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import Any, Protocol

LIMIT_S = 120.0
"""For all results of one measurement."""
WARM = 64

ran = Path(os.environ["BENCH_RAN"])
"""A file for each worker process, a byte in it for each time that a task ran there."""


def work(text: str) -> int:
    """The task: nothing but the note that it ran."""
    os.write(_note(os.getpid()), b".")
    return len(text)


@cache
def _note(pid: int) -> int:
    return os.open(ran / str(pid), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)


class Peer(Protocol):
    """What a peer's file has to offer. ``result`` raises ``late`` when there is none in time; ``waiters`` results are awaited
    side by side (1: they come to a waiter that blocks)."""

    late: type[Exception]
    waiters: int

    async def submit(self, texts: list[str]) -> list[Any]:
        """Submit a task for each; returns when all are accepted."""

    async def result(self, task: Any, timeout_s: float) -> int: ...


async def serve(peer: Peer) -> None:
    """Do what is asked on the standard input, until it ends."""
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        text, count, before = "x" * asked["payload"], asked["count"], _times()
        if asked["mode"] == "warm":
            figures = await _warm(peer, text, asked["workers"])
        elif asked["mode"] == "all":
            figures = await _all(peer, text, count)
        else:
            figures = await _one_by_one(peer, text, count)
        print(json.dumps({**figures, "ran": _times() - before}), flush=True)


def _times() -> int:
    return sum(file.stat().st_size for file in _notes())


def _notes() -> list[Path]:
    return list(ran.iterdir())


async def _warm(peer: Peer, text: str, workers: int) -> dict[str, Any]:
    until, lost, seen = perf_counter() + LIMIT_S, 0, 0
    while seen < workers and perf_counter() < until:
        lost += await _wrong(peer, await peer.submit([text] * WARM), text, until)
        seen = len(_notes())
    return {"lost": lost, "workers": seen}


async def _all(peer: Peer, text: str, count: int) -> dict[str, Any]:
    begun = perf_counter()
    tasks = await peer.submit([text] * count)
    lost = await _wrong(peer, tasks, text, begun + LIMIT_S)
    return {"took_s": perf_counter() - begun, "lost": lost}


async def _one_by_one(peer: Peer, text: str, count: int) -> dict[str, Any]:
    latencies, lost, until = [], 0, perf_counter() + LIMIT_S
    for _ in range(count):
        sent = perf_counter()
        lost += await _wrong(peer, await peer.submit([text]), text, until)
        latencies.append(perf_counter() - sent)
    return {"latencies_s": latencies, "lost": lost}


async def _wrong(peer: Peer, tasks: list[Any], text: str, until: float) -> int:
    """How many of ``tasks`` have no result in time, or another than they should."""
    waiting = iter(tasks)

    async def wait() -> int:
        wrong = 0
        for task in waiting:
            try:
                wrong += await peer.result(task, max(0.1, until - perf_counter())) != len(text)
            except peer.late:
                wrong += 1
        return wrong

    return sum(await asyncio.gather(*(wait() for _ in range(peer.waiters))))
