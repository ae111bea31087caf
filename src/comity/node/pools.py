"""Where plain functions run: threads for those that wait, processes for those that compute.

This is the one part of a node that uses threads, and only when an agent offers a plain function. A thread cannot be stopped, so
a function that was given up goes on until it returns, and holds its place until then.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import importlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from comity.errors import Refuse
from comity.model.signature import Signature
from comity.model.task import TaskFailure
from comity.node.failing import Failure, NoRetry, failure_of, said_by
from comity.tie import tie

THREADS = 256
"""Plain functions at a time. A thread is made when all others are busy, so few are as long as few are needed."""


END_AGAIN_S = 0.1


class Pools:
    """``running``: plain functions that have not returned, given up or not."""

    def __init__(self) -> None:
        self.running = 0
        self._loop = asyncio.get_running_loop()
        self._threads: ThreadPoolExecutor | None = None
        self._processes: ProcessPoolExecutor | None = None
        self._lost: list[asyncio.Future[None]] = []
        self._thread_room = asyncio.Semaphore(THREADS)
        self._process_room = asyncio.Semaphore(os.cpu_count() or 1)

    async def in_thread(self, call: Callable[[], Any], started: Callable[[], None]) -> Any:
        """The result of ``call()``, made in a thread, or what it raised. ``started()`` once it has a thread."""
        await self._thread_room.acquire()
        if self._threads is None:
            self._threads = ThreadPoolExecutor(THREADS, "comity-plain")
        error, value = await self._run(
            self._threads, self._thread_room, started, _outcome, contextvars.copy_context(), call
        )
        if isinstance(error, StopIteration):
            raise ExceptionGroup("raised by a plain function", [error])  # bare, it would become a RuntimeError here
        if error is not None:
            raise error
        return await value if asyncio.iscoroutine(value) else value

    async def in_process(
        self,
        function: Callable[..., Any],
        data: bytes,
        no_retry: NoRetry,
        started: Callable[[], None],
    ) -> bytes:
        """The JSON result of a module-level ``function`` for the JSON input ``data``, computed in another process. Raises Refuse,
        Failure."""
        await self._process_room.acquire()
        if self._processes is None:
            context = multiprocessing.get_context("spawn")
            self._processes = ProcessPoolExecutor(os.cpu_count() or 1, context, _begin, (os.getpid(),))
        pool, module, name = self._processes, function.__module__, function.__qualname__
        try:
            result = await self._run(pool, self._process_room, started, compute, module, name, data, no_retry)
        except BrokenProcessPool as error:
            if self._processes is pool:
                self._processes = None
                self._lost = [end for end in self._lost if not end.done()]
                self._lost.append(self._loop.run_in_executor(None, _let_go, pool))
            raise Failure(TaskFailure("process-lost", f"the process that ran it ended: {error}")) from error
        if isinstance(result, TaskFailure):
            raise Failure(result)
        if isinstance(result, Refuse):
            raise result
        return bytes(result)

    async def _run(
        self, pool: Executor, room: asyncio.Semaphore, started: Callable[[], None], call: Callable[..., Any], *args: Any
    ) -> Any:
        """Run and await ``call``. If the wait is canceled the call goes on, and holds its place in ``room``."""
        try:
            work = self._loop.run_in_executor(pool, call, *args)
        except BaseException:
            room.release()
            raise
        self.running += 1

        def done(ended: asyncio.Future[Any]) -> None:
            self.running -= 1
            room.release()
            if not ended.cancelled():
                ended.exception()

        work.add_done_callback(done)
        started()
        return await asyncio.shield(work)

    async def close(self) -> None:
        """Start nothing more. Processes are ended; threads cannot be, and are not waited for."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        if self._processes is not None:
            for worker in list((self._processes._processes or {}).values()):
                worker.terminate()
            await asyncio.to_thread(self._processes.shutdown, wait=True, cancel_futures=True)
        await asyncio.gather(*self._lost)


def _let_go(pool: ProcessPoolExecutor) -> None:
    """Have a broken pool give its semaphores back. A worker that was being started as the pool broke was not told to end, and the
    pool would wait for it for ever."""
    watch: threading.Thread | None = getattr(pool, "_executor_manager_thread", None)
    workers = pool._processes
    while watch is not None and watch.is_alive():
        for worker in list((workers or {}).values()):
            worker.terminate()
        watch.join(END_AGAIN_S)
    pool.shutdown()


def _outcome(context: contextvars.Context, call: Callable[[], Any]) -> tuple[BaseException | None, Any]:
    """What came of ``call``. Its errors travel as values: an executor's future cannot carry every one (StopIteration)."""
    try:
        return None, context.run(call)
    except BaseException as error:  # whatever the user's function raises is the attempt's failure, not the node's
        return error, None


def _begin(node: int) -> None:
    """Ctrl-C reaches the whole foreground group; the node decides when its processes end. None outlives it."""
    tie(node)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@functools.cache
def _known(module: str, name: str) -> tuple[Callable[..., Any], Signature]:
    function = getattr(importlib.import_module(module), name)
    return function, Signature(function)


def compute(
    module: str, name: str, data: bytes, no_retry: NoRetry
) -> bytes | TaskFailure | Refuse:
    """In the other process: decode, call, encode."""
    try:
        function, signature = _known(module, name)
        arguments = signature.decode(data)
        return signature.encode(function(*arguments.positional, **arguments.named))
    except Refuse as refusal:
        return Refuse(said_by(refusal.reason))
    except BaseException as error:  # whatever it raises is its failure, not this process's
        return failure_of(error, no_retry)
