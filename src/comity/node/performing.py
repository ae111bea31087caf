"""Calls a user's function with JSON and gives JSON back, where the function wants to run."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from comity.agent import Offered
from comity.model.signature import Arguments, Signature
from comity.node.parts import Outgoing, streamed
from comity.node.pools import Pools


def is_closing(error: BaseException, work: asyncio.Task[None]) -> bool:
    """Whether ``error`` comes from nobody's function, but from the end of everything: ``work`` is thrown away while it waits."""
    return isinstance(error, GeneratorExit) and asyncio.current_task(work.get_loop()) is not work


async def ended(tasks: Iterable[asyncio.Task[None]], within_s: float) -> None:
    """Cancel ``tasks`` and wait until they have ended, but no longer than ``within_s``: a user's function may not listen."""
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting, timeout=within_s)


class Performer:
    """``perform`` calls ``handle`` if the function wants it in hand, and ``started`` when a plain function begins to run; what a
    generator yields goes ``out``."""

    def __init__(self, pools: Pools) -> None:
        self._pools = pools

    async def perform(
        self,
        offered: Offered,
        data: bytes,
        handle: Callable[[], Any],
        started: Callable[[], None],
        no_retry: tuple[str, ...] = (),
        out: Outgoing | None = None,
    ) -> bytes:
        """The JSON result. Raises InvalidInput, NotSerializable, InvalidOutput, and what the function raises."""
        signature = offered.signature
        if offered.pool == "process":
            return await self._pools.in_process(offered.function, data, (*offered.no_retry, *no_retry), started)
        arguments = signature.decode(data)
        handles = (handle(),) if signature.handles else ()
        if signature.is_stream:
            return await streamed(signature, offered.function(*handles, *arguments.positional, **arguments.named), out)
        if signature.is_async:
            return signature.encode(await offered.function(*handles, *arguments.positional, **arguments.named))
        return signature.encode(await self.call(offered.function, signature, handles, arguments, started))

    async def call(
        self,
        function: Callable[..., Any],
        signature: Signature,
        handles: tuple[Any, ...],
        arguments: Arguments | None,
        started: Callable[[], None] = lambda: None,
    ) -> Any:
        """What ``function`` returns."""
        if signature.is_async and arguments is None:
            return await function(*handles)
        positional, named = arguments or Arguments((), {})
        if signature.is_async:
            return await function(*handles, *positional, **named)
        return await self._pools.in_thread(functools.partial(function, *handles, *positional, **named), started)

    async def run(self, call: functools.partial[Any]) -> Any:
        """What a step's function returns: an async one here, a plain one in a thread."""
        if inspect.iscoroutinefunction(call.func):
            return await call()
        value = await self._pools.in_thread(call, lambda: None)
        return await value if inspect.isawaitable(value) else value
