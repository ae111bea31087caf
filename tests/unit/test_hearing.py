"""When a leader takes itself for deaf. What comes of it is in ``tests/simulation/test_deaf_leaders.py``."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from comity.controller.hearing import ASK_AFTER, SILENT_AFTER, Hearing
from comity.errors import NotFound, TimedOut


class Asked:
    """A log that answers as told (None: never), and how often it was asked."""

    def __init__(self, answer: Exception | tuple[int, int] | None) -> None:
        self.answer = answer
        self.count = 0

    async def bounds(self) -> tuple[int, int]:
        self.count += 1
        if self.answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(self.answer, Exception):
            raise self.answer
        return cast(tuple[int, int], self.answer)


def hearing(log: Asked) -> tuple[Hearing, Any]:
    pipeline = SimpleNamespace(landed=0)
    return Hearing(cast(Any, log), cast(Any, pipeline)), pipeline


async def pulses(one: Hearing, count: int) -> list[bool]:
    said = []
    for _ in range(count):
        said.append(one.pulse())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    return said


@pytest.mark.parametrize("answer", [None, TimedOut("no answer")])
async def test_a_log_that_does_not_answer_is_given_time(answer: Exception | None) -> None:
    log = Asked(answer)
    one, _ = hearing(log)
    assert await pulses(one, SILENT_AFTER) == [True] * (SILENT_AFTER - 1) + [False]
    assert log.count == SILENT_AFTER - ASK_AFTER + 1, "it is asked again and again"
    one.end()


@pytest.mark.parametrize("answer", [(1, 7), NotFound("no such log")])
async def test_any_answer_will_do(answer: Exception | tuple[int, int]) -> None:
    log = Asked(answer)
    one, _ = hearing(log)
    assert all(await pulses(one, 10 * SILENT_AFTER))
    assert 0 < log.count <= 10 * SILENT_AFTER / ASK_AFTER
    log.answer = None
    assert not all(await pulses(one, SILENT_AFTER + ASK_AFTER))
    one.end()


async def test_who_appends_need_not_ask() -> None:
    log = Asked(None)
    one, pipeline = hearing(log)
    for _ in range(SILENT_AFTER):
        pipeline.landed += 1
        assert all(await pulses(one, 2))
    assert log.count == 0
    one.end()
