"""How a benchmark measures: latencies, the lateness of event loops, CPU by part."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from heapq import heappop
from statistics import median
from time import perf_counter, process_time, thread_time
from typing import TYPE_CHECKING, Any

import msgspec

from comity.model.ids import ProcessId, TaskId
from comity.model.task import TaskSpec

if TYPE_CHECKING:
    from comity.cli.bench_network import Bench

LOOK_S = 0.005
PACE_STEPS = 5000
Call = Callable[[], Awaitable[object]]


def spread(seconds: list[float], name: str = "") -> dict[str, float]:
    """Median, 99th percentile and maximum, in milliseconds."""
    ordered = sorted(seconds) or [0.0]
    shares = {"p50": _at(ordered, 0.5), "p99": _at(ordered, 0.99), "max": ordered[-1]}
    return {f"{name}{share}_ms": _ms(value) for share, value in shares.items()}


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def pace_us() -> float:
    """Microseconds of processor time for one step of a fixed loop: of the kind of work a controller does, none of its code. A
    figure divided by this can be compared between machines, and between one that is busy and one that is not."""
    spec = TaskSpec(TaskId(""), "pace", b"x" * 256, ProcessId("pace"))
    kept: dict[str, TaskSpec] = {}
    begun = process_time()
    for number in range(PACE_STEPS):
        found = _decode(_encode(msgspec.structs.replace(spec, id=f"pace{number * 7919 % PACE_STEPS:020d}")))
        kept[found.id] = found
    waiting = sorted((task.priority, name) for name, task in kept.items() if not task.key)
    while waiting:
        del kept[heappop(waiting)[1]]
    return (process_time() - begun) / PACE_STEPS * 1e6


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(TaskSpec).decode


class Lateness:
    """How late the event loops were, ours and the leader's, from when it is made until ``figures``. ``perf_counter`` throughout:
    uvloop's own clock counts milliseconds."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._late: list[float] = []
        self._worked: list[float] = []
        self._watch = asyncio.get_running_loop().create_task(self._look())
        self.began = perf_counter()

    async def _look(self) -> None:
        while True:
            due, worked = perf_counter() + LOOK_S, thread_time()
            await asyncio.sleep(LOOK_S)
            self._late.append(max(0.0, perf_counter() - due))
            self._worked.append(min(self._late[-1], thread_time() - worked))

    def stop(self) -> float:
        """Look no longer; for how many seconds it did."""
        self._watch.cancel()
        return perf_counter() - self.began

    async def figures(self, took: float) -> dict[str, float]:
        """Of ``took`` seconds; of the leader, of the last ten at most. ``loop_work``: for how long a loop worked without a turn,
        at most; the rest of the lag is the machine's, which ran other processes."""
        ours = spread(self._late)
        leaders = (await self._bench.net.stats())["loop_lag"]
        leaders_max, leaders_work = (max(leaders[f"{one}_ms_by_second"][: int(took) + 1]) for one in ("max", "work"))
        return {
            "loop_lag_p99_ms": max(ours["p99_ms"], min(leaders["p99_ms"], leaders_max)),
            "loop_lag_max_ms": max(ours["max_ms"], leaders_max),
            "loop_work_max_ms": max(spread(self._worked)["max_ms"], leaders_work),
            "leader_lag_max_ms": leaders_max,
        }


class Meter:
    """Measures from when it is made until ``stop``: time, CPU of every process, and how late the event loops were."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._pace = [pace_us(), pace_us()]
        self._cpu = bench.cpu_s()
        self._lateness = Lateness(bench)

    async def stop(self, count: int, what: str) -> dict[str, Any]:
        """Figures of ``count`` things called ``what``."""
        took, cpu = self._lateness.stop(), self._bench.cpu_s()
        self._pace += [pace_us(), pace_us()]
        used = {part: round((seconds - self._cpu[part]) / count * 1e6, 1) for part, seconds in cpu.items()}
        return {
            f"{what}_per_s": round(count / took),
            "cpu_us_per_task": round(sum(used.values()), 1),
            "pace_us": round(median(self._pace), 3),
            **{f"cpu_us_{part}": value for part, value in used.items()},
            **await self._lateness.figures(took),
        }


async def at_a_time(count: int, in_flight: int, call: Call) -> list[float]:
    """The seconds that each of ``count`` calls took, ``in_flight`` of them at a time."""
    latencies: list[float] = []
    left = count

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            sent = perf_counter()
            await call()
            latencies.append(perf_counter() - sent)

    await asyncio.gather(*(caller() for _ in range(min(in_flight, count))))
    return latencies
