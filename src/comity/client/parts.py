"""A task's parts in the hands of whoever reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Unpack

from comity.errors import InvalidInput
from comity.model.parts import Break
from comity.model.typed import decoder

if TYPE_CHECKING:
    from comity.client.client import Client
    from comity.client.task import Task
    from comity.client.terms import TaskOptions
    from comity.model.wire import Ended

LAST_S = 2.0
"""How long the last parts may take once the task has ended and the reader has what came so far."""
LOOK_S = 0.1


class _Source:
    """Where the parts come from: a task, there or yet to be submitted."""

    __slots__ = ("begin", "task")

    def __init__(self, begin: Callable[[], Awaitable[Task]] | None, task: Task | None = None) -> None:
        self.begin = begin
        self.task = task

    async def the_task(self) -> Task:
        if self.task is None:
            assert self.begin is not None
            self.task = await self.begin()
        return self.task


class Parts:
    """What a streaming capability yields, as it comes: ``async for part in parts``; a ``Break`` between two parts says that the
    stream begins anew, or what is missing. Read once. After the last part it ends, or raises how the task failed. Closed early
    (leave ``async with``, or ``aclose``), parts of ``Client.stream`` cancel their task; those of ``Task.stream`` do not."""

    def __init__(self, source: _Source, kind: Any) -> None:
        self._source = source
        self._parts = _read(source, kind)

    def __aiter__(self) -> Parts:
        return self

    async def __anext__(self) -> Any:
        return await anext(self._parts)

    async def __aenter__(self) -> Parts:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Read no more."""
        await self._parts.aclose()

    async def task(self) -> Task:
        """The task whose parts these are; submitted by now."""
        return await self._source.the_task()

    async def result(self, timeout: float | None = None, as_type: Any = None) -> Any:
        """The task's result, when what was not read is dropped. See ``Task.result``."""
        task = await self.task()
        async for _ in self._parts:
            continue
        return await task.result(timeout, as_type=as_type) if as_type is not None else await task.result(timeout)


async def _read(source: _Source, kind: Any) -> AsyncGenerator[Any, None]:
    task = await source.the_task()
    reads = decoder(kind)
    exchange = task._exchange
    readings, loop = exchange.readings, exchange.loop
    ending = exchange.outcomes.watch(task._outcome)
    reading = readings.open(task.id)
    last_at = 0.0

    def over(ending: asyncio.Future[Ended]) -> None:
        if not ending.cancelled() and ending.exception() is None:
            readings.ended(reading, ending.result().epoch)
        reading.wake()

    ending.add_done_callback(over)
    try:
        if task._pausing is not None:
            task._pausing(True)
        while True:
            while reading.queue:
                last_at, part = 0.0, readings.give(reading)
                yield part if isinstance(part, Break) else _decoded(reads, part, task, kind)
            if ending.done():
                ended = ending.result()  # raises what closed the connection
                readings.ended(reading, ended.epoch)
                last_at = last_at or loop.time() + LAST_S
                is_nowhere = reading.is_nowhere and reading.looking is None
                has_none = not ended.has_result and not ended.epoch  # it never ran
                if reading.is_complete or is_nowhere or has_none or loop.time() >= last_at:
                    break
            await readings.news(reading, LOOK_S if last_at else LAST_S)
        ended = ending.result()
        missed = reading.total - reading.received
        if reading.has_begun and not reading.is_complete and (ended.has_result or missed > 0):
            yield Break(reading.attempt, max(1, missed))
        if not ended.has_result:
            raise await task._error(ended)
    finally:
        exchange.outcomes.leave(task._outcome, ending)
        readings.close(reading)
        if task._pausing is not None:
            task._pausing(False)
        if source.begin is not None and not task.has_ended:
            await task.cancel("its stream was closed")


def _decoded(reads: Any, part: bytes, task: Task, kind: Any) -> Any:
    try:
        return reads.decode(part)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"a part of task {task.id} is no {kind}: {error}", task=task.id) from error


def stream(
    self: Client,
    capability: str,
    input: Any = None,  # noqa: A002 - as ``submit`` calls it
    *,
    as_type: Any = Any,
    key: str | None = None,
    **options: Unpack[TaskOptions],
) -> Parts:
    """Submit a task of a streaming capability, and read its parts as they come: ``async with net.stream(...) as parts``, then
    ``async for part in parts``, and ``await parts.result()`` for the final value. It is submitted when first read; a reader that
    is slow slows the agent down; closed early, the task is canceled. Raises what ``submit`` and ``Task.result`` raise."""
    return Parts(_Source(lambda: self.submit(capability, input, key=key, **options)), as_type)


def parts_of(task: Task, kind: Any) -> Parts:
    return Parts(_Source(None, task), kind)
