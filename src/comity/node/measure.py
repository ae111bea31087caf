"""How busy this process and its machine are, for beacons."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Load(NamedTuple):
    """``cpu``: this process's use of one core since the last measurement. Memory in MiB. ``host_cpu_free`` in cores."""

    cpu: float
    memory_mb: float
    host_cpu_free: float
    host_memory_free_mb: float


Measure = Callable[[], Load]


def measured() -> Measure:
    """A function that measures this process (psutil)."""
    import psutil

    process = psutil.Process()
    cores = psutil.cpu_count() or 1
    process.cpu_percent()
    psutil.cpu_percent()

    def measure() -> Load:
        with process.oneshot():
            cpu = process.cpu_percent() / 100
            memory_mb = process.memory_info().rss / 2**20
        free = cores * (1 - psutil.cpu_percent() / 100)
        return Load(cpu, memory_mb, max(0.0, free), psutil.virtual_memory().available / 2**20)

    return measure
