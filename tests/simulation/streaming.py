"""Streams in the simulated world: agents that count, readers, and the judge of what they read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from comity import Agent, Attempt, Break, Client, Final
from comity.errors import ComityError
from comity.sim import World
from comity.sim.checkers import Violation


def counters() -> list[Agent]:
    agent = Agent("counter", concurrency=4)

    @agent.capability(retries=30)
    async def count(attempt: Attempt, n: int, pause_s: float) -> AsyncIterator[list[int] | Final[list[int]]]:
        for number in range(1, n + 1):
            if pause_s and number % 10 == 0:
                await asyncio.sleep(pause_s)
            yield [attempt.number, number]
        yield Final([attempt.number, n])

    return [agent]


class Judge:
    """What one reader read. Parts of one attempt come in order, each once, none left out unless that is said; no part of an
    attempt comes after one of a later attempt; of the attempt that counts, the last part is read or said to be missing."""

    def __init__(self) -> None:
        self.attempt = self.announced = self.last = self.parts = self.breaks = 0
        self.may_begin = True
        self.missed = 0

    def take(self, part: Any) -> None:
        if isinstance(part, Break):
            self.breaks += 1
            if part.missed:
                self.missed += part.missed
            else:
                self.announced, self.may_begin, self.last, self.missed = part.attempt, True, 0, 0
            return
        self.parts += 1
        attempt, number = part
        if attempt != self.attempt and not (self.may_begin and attempt > self.attempt):
            raise Violation(f"a part of attempt {attempt} came after one of attempt {self.attempt}, unannounced")
        if self.announced and attempt != self.announced:
            raise Violation(f"a part of attempt {attempt} came where one of attempt {self.announced} was announced")
        if number <= self.last:
            raise Violation(f"part {number} came after part {self.last}")
        if number > self.last + 1 + self.missed:
            raise Violation(f"part {number} came after part {self.last}, and only {self.missed} were said to be missing")
        self.attempt, self.last, self.may_begin, self.missed = attempt, number, False, 0

    def end(self, result: list[int]) -> None:
        if result != [self.attempt, self.last] and not self.missed:
            raise Violation(f"the stream ended after part {self.last} of attempt {self.attempt}; the result is {result}")


async def reading(net: Client) -> None:
    """Read a few streams, each slowly or quickly. Errors may be met while faults last."""
    for number, (n, pause_s, slow_s) in enumerate([(400, 0.0, 0.0), (300, 0.05, 0.0), (200, 0.0, 0.02), (60, 0.2, 0.0)]):
        judge = Judge()
        try:
            async with net.stream("count", {"n": n, "pause_s": pause_s}, attempt_timeout_s=30.0) as parts:
                async for part in parts:
                    judge.take(part)
                    if slow_s and number % 5 == 0:
                        await asyncio.sleep(slow_s)
                result = await parts.result()
        except ComityError:
            continue
        judge.end(result)


def live(seed: int) -> None:
    World(seed, agents=counters).run(reading)
