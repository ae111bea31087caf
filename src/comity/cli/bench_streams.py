"""``comity bench streams``: how late the parts of a stream are, and how many there are in a second."""

from __future__ import annotations

from time import monotonic
from typing import Any

from comity.cli.bench_figures import Meter, spread
from comity.cli.bench_network import Bench


async def measure(bench: Bench, streams: int, parts: int, payload: int) -> dict[str, Any]:
    """First a stream of many parts, as fast as they come; then ``streams`` of a few each, made one by one: how late each is, by
    the one clock that all processes of a machine have."""
    async with bench.net.stream("bench.stream", {"n": 100, "payload": payload, "pause_s": 0.0}) as warm:
        await warm.result()
    meter, got = Meter(bench), 0
    async with bench.net.stream("bench.stream", {"n": parts, "payload": payload, "pause_s": 0.0}) as many:
        async for _ in many:
            got += 1
    figures = await meter.stop(parts, "parts")
    firsts: list[float] = []
    late: list[float] = []
    for _ in range(streams):
        async with bench.net.stream("bench.stream", {"n": 10, "payload": payload, "pause_s": 0.002}) as few:
            began = len(late)
            async for made in few:
                late.append(monotonic() - made["at"])
            firsts.append(late[began])
    first = {f"first_{name}": value for name, value in spread(firsts).items()}
    return {
        **figures, **spread(late), **first, "streams": streams, "peak_rss_mb": bench.peak_rss_mb(), "lost": parts - got,
        "count": parts, "settings": bench.settings,
    }  # fmt: skip
