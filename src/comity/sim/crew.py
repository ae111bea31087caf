"""Agents for simulated lives: quick ones, slow ones, ones that fail, refuse, get stuck, and ones that ask others."""

from __future__ import annotations

import asyncio
from random import Random
from typing import Any

from comity.agent import Agent
from comity.errors import Refuse, Unanswered
from comity.handles import Attempt
from comity.message import Message


async def echo(value: Any) -> Any:
    """Give back what came."""
    return value


async def nap(attempt: Attempt, seconds: float) -> float:
    """Sleep, and do something now and then that should not be done twice."""
    for _ in range(4):
        await asyncio.sleep(seconds / 4)
        await attempt.guard()
    return seconds


async def large(size: int) -> str:
    """Make a result of ``size`` characters."""
    await asyncio.sleep(0.01)
    return "x" * size


async def flaky(attempt: Attempt, odds: float) -> int:
    """Fail with probability ``odds``; give the number of the attempt that did not."""
    await asyncio.sleep(0.05)
    if Random(f"{attempt.id}/{attempt.epoch}").random() < odds:
        raise ConnectionError("the model's server hung up")
    return attempt.number


async def broken(value: Any) -> None:
    """Fail for good."""
    raise ValueError(f"cannot do {value!r}")


async def picky(attempt: Attempt, value: int) -> int:
    """Refuse now and then, but not for ever: an agent that does keeps its task waiting, as it must."""
    if attempt.number <= 3 and Random(f"{attempt.id}/{attempt.agent}/{attempt.epoch}").random() < 0.5:
        raise Refuse("not my kind of work")
    return value


async def stuck(stubborn: bool) -> None:
    """Never end; if ``stubborn``, not even when canceled."""
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if not stubborn:
                raise
            stubborn = False


async def silent(attempt: Attempt, odds: float) -> int:
    """Begin, and with probability ``odds`` never be heard of again; give the number of the attempt that was."""
    attempt.progress(0.0)
    await asyncio.sleep(0.05)
    if Random(f"{attempt.id}/{attempt.epoch}").random() < odds:
        await asyncio.sleep(3600)
    return attempt.number


async def family(attempt: Attempt, children: int, depth: int) -> int:
    """Have ``children`` children do parts of the work, ``depth`` generations deep; count the descendants."""
    attempt.progress(0.0)
    if depth == 0:
        naps = await attempt.submit_many("nap", [{"seconds": 0.05 * (1 + n)} for n in range(children)])
        return len([await task.result() for task in naps])
    tasks = [await attempt.submit("family", {"children": children, "depth": depth - 1}) for _ in range(children)]
    return children + sum([int(await task.result()) for task in tasks])


async def _part(number: int, size: int) -> str:
    await asyncio.sleep(1.5 if number == 1 else 0.1)
    return str(number).ljust(size, ".")


async def _share(attempt: Attempt) -> float:
    """Have a part done by somebody else. Done again, it finds the same child."""
    child = await attempt.submit("nap", {"seconds": 0.4}, key=f"{attempt.id}/share")
    return float(await child.result())


async def careful(attempt: Attempt, parts: int, size: int, ask: bool) -> str:
    """Record each of ``parts`` steps, save a checkpoint now and then, and have the result approved if ``ask``."""
    begun = attempt.resume_state or {"parts": 0}
    for number in range(parts):
        await attempt.step(f"part {number}", _part, number, size)
        if number % 2 and number >= begun["parts"]:
            await attempt.checkpoint({"parts": number, "draft": "x" * size})
    if parts > 2:
        await attempt.step("share", _share, attempt)
    verdict = "not asked"
    if ask:
        try:
            verdict = str(await attempt.wait_for("approval", ask={"parts": parts}, timeout=4.0))
        except Unanswered:
            verdict = "nobody cared"
    await attempt.step("publish", _part, parts, 10)
    return verdict


def _relay(name: str) -> Agent:
    """An agent that passes a question on to the next on its route, which may be the one that asked it."""
    agent = Agent(name, concurrency=2)

    @agent.on("relay")
    async def relay(message: Message, route: list[str]) -> int:
        if not route:
            return 0
        return 1 + int(await agent.request(route[0], route[1:], topic="relay", timeout=5.0))

    return agent


def crew() -> list[Agent]:
    """What each node of a simulated world hosts unless told otherwise."""
    worker = Agent("worker", concurrency=4, tags={"quick"})
    for function in (echo, nap, large, flaky, silent, careful):
        worker.capability(function)
    worker.capability(no_retry=(ValueError,))(broken)
    moody = Agent("moody", concurrency=2)
    for reluctant in (echo, picky, stuck):
        moody.capability(reluctant)
    parent = Agent("parent", concurrency=2)
    parent.capability(family)
    return [worker, moody, parent, _relay("tick"), _relay("tock")]
