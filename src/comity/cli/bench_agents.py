"""The agents that ``comity bench`` measures with: twins of one another, as ``comity run --replicas`` makes them."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

from comity import Agent, Attempt, Final, Message
from comity.cli.bench_overload import Order, Told
from comity.cli.bench_overload import burst as burst_of

SHOW_S = 0.1
enough = asyncio.Event()
showing: set[Attempt] = set()
"""Those that still show progress."""
heard = 0
"""One-way messages that this process's agents received."""

first = Agent("bench-0", concurrency=int(os.environ.get("COMITY_BENCH_SLOTS", "256")))


@first.capability(name="bench.echo")
async def echo(text: str) -> int:
    """Answer with the length of what was sent."""
    return len(text)


@first.capability(name="bench.hold")
async def hold(number: int) -> int:
    """Wait until it is enough."""
    await enough.wait()
    return number


@first.capability(name="bench.show")
async def show(attempt: Attempt, number: int) -> int:
    """Show progress until told to stand still, and wait until it is enough."""
    showing.add(attempt)
    try:
        while not enough.is_set():
            if attempt in showing:
                attempt.progress()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(enough.wait(), SHOW_S)
    finally:
        showing.discard(attempt)
    return number


@first.capability(name="bench.stream")
async def stream(n: int, payload: int, pause_s: float) -> AsyncIterator[dict[str, float | str] | Final[int]]:
    """Parts of so many bytes, each with the moment in which it was made."""
    text = "x" * payload
    for _ in range(n):
        if pause_s:
            await asyncio.sleep(pause_s)
        yield {"at": monotonic(), "text": text}
    yield Final(n)


@first.on("bench.stand-still")
async def stand_still() -> None:
    """What runs in this process now shows progress once more, and then no longer."""
    for attempt in showing:
        attempt.progress()
    showing.clear()


@first.on("bench.enough")
async def let_go() -> None:
    enough.set()


@first.on("bench.ping")
async def ping(body: str) -> str:
    return body


@first.on("bench.tell")
async def tell() -> None:
    global heard  # noqa: PLW0603 - the process's count
    heard += 1


@first.on("bench.count")
async def count() -> int:
    return heard


@first.on("bench.who")
async def who(message: Message) -> str:
    return message.envelope.receiver


@first.on("bench.mark")
async def mark(message: Message, body: str) -> None:
    """Change the record of the agent that is told to."""
    name = message.envelope.receiver.partition("/")[2]
    next(agent for agent in agents if agent.name == name).update(labels={"mark": body})


@first.on("bench.join")
async def join(body: str) -> None:
    """Bring one more agent to this process's node."""
    home: Any = first._home
    home.add(first.twin(body))


@first.on("bench.burst")
async def burst(body: Order) -> Told:
    """Every agent of this process submits its burst."""
    return await burst_of(agents, body)


agents = [first, *(first.twin(f"bench-{i}") for i in range(1, int(os.environ.get("COMITY_BENCH_AGENTS", "4"))))]
for agent in agents:
    agent.update(tags=(agent.name,))
