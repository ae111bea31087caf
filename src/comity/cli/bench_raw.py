"""The same messages by nats-py alone, in the same run: what they cost without us.

The other side is a process of its own, as a node is: ``python -m comity.cli.bench_raw DATA`` answers until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from comity.cli.bench_figures import at_a_time
from comity.cli.bench_network import READY_S, Bench

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg

Cost = Callable[[int], Awaitable[float]]
"""Sends so many messages, and tells the seconds that one took."""
ROUNDS = 9


class Raw(NamedTuple):
    """A connection of nats-py's own, and the subject on which the other side answers."""

    nc: Client
    subject: str

    async def request(self, count: int, payload: int, in_flight: int) -> float:
        """``Cost`` of requests, each with its reply: the median of those that are alone, else the mean."""
        body = b"x" * payload

        async def call() -> None:
            await self.nc.request(f"{self.subject}.echo", body, timeout=READY_S)

        return await cost_of(call, count, in_flight)

    async def one_way(self, count: int, payload: int, part: int, ahead: int) -> float:
        """``Cost`` of messages that nobody answers; the other side counts them after every ``part``."""
        counted: deque[asyncio.Task[Msg]] = deque()
        body, began = b"x" * payload, perf_counter()
        for start in range(0, count, part):
            for _ in range(min(part, count - start)):
                await self.nc.publish(f"{self.subject}.tell", body)
            counted.append(asyncio.create_task(self.nc.request(f"{self.subject}.count", b"", timeout=READY_S)))
            await asyncio.sleep(0)
            if len(counted) > ahead:
                await counted.popleft()
        await asyncio.gather(*counted)
        return (perf_counter() - began) / count


async def cost_of(call: Callable[[], Awaitable[None]], count: int, in_flight: int) -> float:
    """The seconds that one of ``count`` calls took: the median if each is alone, else the mean."""
    began = perf_counter()
    latencies = await at_a_time(count, in_flight, call)
    return median(latencies) if in_flight == 1 else (perf_counter() - began) / count


async def compared(ours: Cost, raw: Cost, count: int) -> dict[str, float]:
    """Both in turn, a part of ``count`` each time, for the machine may be busy now and then; the medians of what a raw one takes
    and of how many times as long ours does."""
    part = max(1, count // ROUNDS)
    pairs = [(await ours(part), await raw(part)) for _ in range(ROUNDS)]
    return {
        "raw_us": round(median(theirs for _, theirs in pairs) * 1e6, 1),
        "ratio": round(median(mine / theirs for mine, theirs in pairs), 2),
    }


@asynccontextmanager
async def beside(bench: Bench) -> AsyncIterator[Raw]:
    """The other side in a process of its own, for as long as the block lasts. Raises ServerFailed."""
    from comity.errors import ServerFailed
    from comity.tie import tied

    data = bench.ups[0].data
    process = await asyncio.create_subprocess_exec(
        *tied(sys.executable, "-m", __name__, str(data)), stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        if not await asyncio.wait_for(process.stdout.readline(), READY_S):
            raise ServerFailed("the process that answers the raw library did not start")
        raw = await _connected(data)
        try:
            yield raw
        finally:
            await raw.nc.close()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _connected(data: Path) -> Raw:
    """A plain connection, with a controller's rights: no other process may use subjects of its own."""
    import secrets

    import nats

    from comity.connect import identity
    from comity.contexts import Context
    from comity.errors import NotFound

    context = Context.read_local(data)
    if context is None:
        raise NotFound(f"no network in {data}", path=str(data))
    subject = f"cy.{context.network}.raw"
    name, credentials = identity(context, "controller")
    options: dict[str, Any] = credentials.connect_options() if credentials is not None else {}
    inbox = f"{subject}.{secrets.token_hex(6)}"
    return Raw(await nats.connect(list(context.urls), name=name, inbox_prefix=inbox, **options), subject)


async def _serve(data: Path) -> None:
    heard = 0

    async def echo(message: Msg) -> None:
        await message.respond(message.data)

    async def tell(_: Msg) -> None:
        nonlocal heard
        heard += 1

    async def count(message: Msg) -> None:
        await message.respond(b"%d" % heard)

    raw = await _connected(data)
    for name, answer in (("echo", echo), ("tell", tell), ("count", count)):
        await raw.nc.subscribe(f"{raw.subject}.{name}", cb=answer)
    await raw.nc.flush()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    import uvloop

    uvloop.run(_serve(Path(sys.argv[1])))
