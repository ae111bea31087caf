"""An asyncio event loop on virtual time: a minute passes as fast as its callbacks run, and the same way every time.

The clock stands still while callbacks run and jumps to the next timer when none is ready. What is ready runs first in, first
out; timers due at one moment run in the order in which they were set. Tasks and futures hash by their order of creation, so
that even iterating over a set of them (``asyncio.wait``, ``TaskGroup``) goes the same way in every run.

Callbacks that run in the context of a ``Process`` belong to it. A paused process's callbacks are held until it wakes; those
of a dead one never run again, and, as after ``kill -9``, none of its ``finally`` blocks do either.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import enum
import heapq
import itertools
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Generator
from time import thread_time
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")

SPIN_LIMIT = 200_000
"""Callbacks at one moment of virtual time; more is a busy loop."""


class SimulationError(AssertionError):
    """The simulated world cannot go on. Not a ComityError: it must not be caught by the code under test."""


class Hang(SimulationError):
    """Something is awaited, and nothing is scheduled that could ever bring it."""


class Livelock(SimulationError):
    """Callbacks go on for ever without time passing."""


class NoThreads(SimulationError):
    """Simulated code asked for a thread, which would make the run depend on the machine."""


class Crashed(BaseException):
    """Ends the callback in which its process dies: nothing of ours may catch it."""


class Life(enum.StrEnum):
    RUNNING = "running"
    PAUSED = "paused"
    DEAD = "dead"


_process: contextvars.ContextVar[Process] = contextvars.ContextVar("comity_sim_process")


class Process:
    """A simulated operating-system process: whatever is started in its ``context`` belongs to it."""

    __slots__ = ("_paused_at", "context", "held", "life", "loop", "name", "paused_s")

    def __init__(self, loop: VirtualLoop, name: str) -> None:
        self.loop = loop
        self.name = name
        self.life = Life.RUNNING
        self.paused_s = 0.0
        """How long it was paused in all."""
        self._paused_at = 0.0
        self.held: deque[_Handle | _Timer] = deque()  # invariant: empty unless paused
        self.context = contextvars.Context()
        self.context.run(_process.set, self)

    def spawn(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run ``coro`` as a task of this process."""
        return self.loop.create_task(coro, context=self.context.copy())

    def call(self, callback: Callable[..., object], *args: Any) -> None:
        """Call ``callback`` soon, in this process."""
        self.loop.call_soon(callback, *args, context=self.context)

    def pause(self) -> None:
        """Run nothing of it until ``wake``. Its timers may pass meanwhile; they fire late."""
        if self.life is Life.RUNNING:
            self.life = Life.PAUSED
            self._paused_at = self.loop.time()

    def wake(self) -> None:
        if self.life is Life.PAUSED:
            self.life = Life.RUNNING
            self.paused_s += self.loop.time() - self._paused_at
            self.loop.requeue(self.held)
            self.held.clear()

    def kill(self) -> None:
        """Nothing of it runs again."""
        self.life = Life.DEAD
        self.held.clear()


def current_process() -> Process | None:
    """The process that the running callback belongs to; None in the world outside."""
    return _process.get(None)


class _Handle(asyncio.Handle):
    __slots__ = ("process",)

    def __init__(
        self, callback: Callable[..., object], args: tuple[Any, ...], loop: VirtualLoop,
        context: contextvars.Context | None,
    ) -> None:  # fmt: skip
        super().__init__(callback, args, loop, context)
        self.process: Process | None = self._context.get(_process)  # type: ignore[attr-defined]


class _Timer(asyncio.TimerHandle):
    __slots__ = ("process",)

    def __init__(
        self, when: float, callback: Callable[..., object], args: tuple[Any, ...], loop: VirtualLoop,
        context: contextvars.Context | None,
    ) -> None:  # fmt: skip
        super().__init__(when, callback, args, loop, context)
        self.process: Process | None = self._context.get(_process)  # type: ignore[attr-defined]


class _Task(asyncio.Task[T]):
    order: int
    process: Process | None

    def __new__(
        cls, *args: Any, loop: VirtualLoop, context: contextvars.Context | None = None, **kwargs: Any
    ) -> _Task[T]:
        task: _Task[T] = super().__new__(cls)
        task.order = next(loop.creation)
        task.process = current_process() if context is None else context.get(_process)
        return task

    def __hash__(self) -> int:
        return self.order

    __eq__ = object.__eq__


class _Future(asyncio.Future[T]):
    order: int

    def __new__(cls, *, loop: VirtualLoop) -> _Future[T]:
        future: _Future[T] = super().__new__(cls)
        future.order = next(loop.creation)
        return future

    def __hash__(self) -> int:
        return self.order

    __eq__ = object.__eq__


class VirtualLoop(asyncio.BaseEventLoop):
    """The loop. ``start`` is what its clock shows first, in seconds; nothing may take 0 for "never"."""

    def __init__(self, start: float = 1000.0) -> None:
        super().__init__()
        self._now = start
        self._queue: deque[_Handle | _Timer] = deque()
        self._timers: list[tuple[float, int, _Timer]] = []
        self._timer_order = itertools.count()
        self.creation = itertools.count()
        self._spins = 0
        self._offence: SimulationError | None = None
        self._generators: dict[int, Process | None] = {}  # by identity, of whose process they are
        self.callbacks = 0
        """Callbacks run so far."""
        self.meter: defaultdict[str, float] | None = None
        """If there is one: how many seconds of the processor's time the callbacks of each process took."""
        self.set_task_factory(_task)  # type: ignore[arg-type]

    # Time and scheduling

    def time(self) -> float:
        return self._now

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        self._queue.append(handle)
        return handle

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        running = getattr(self, "_thread_id", None)
        if running is not None and running != threading.get_ident():
            self._forbid("call_soon_threadsafe from another thread")
        return self.call_soon(callback, *args, context=context)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + max(delay, 0.0), callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        if math.isnan(when):
            raise ValueError("a timer needs a time, not NaN")
        timer = _Timer(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._timer_order), timer))
        return timer

    def requeue(self, handles: deque[_Handle | _Timer]) -> None:
        """Let callbacks that were held run, in their order."""
        self._queue.extend(handles)

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def _run_once(self) -> None:
        if self._offence is not None:
            raise self._offence
        queue = self._queue
        if queue or getattr(self, "_stopping", False):
            self._spins += len(queue)
            if self._spins > SPIN_LIMIT:
                last = queue[-1]
                raise Livelock(f"more than {SPIN_LIMIT} callbacks at one moment ({self._now:.3f} s), such as {last!r}")
        else:
            self._jump()
        timers = self._timers
        while timers and timers[0][0] <= self._now:
            queue.append(heapq.heappop(timers)[2])
        for _ in range(len(queue)):
            handle = queue.popleft()
            if handle._cancelled:
                continue
            process = handle.process
            if process is not None and process.life is not Life.RUNNING:
                if process.life is Life.PAUSED:
                    process.held.append(handle)
                continue
            self.callbacks += 1
            if self.meter is not None and process is not None:
                began = thread_time()
                handle._run()
                self.meter[process.name] += thread_time() - began
            else:
                handle._run()

    def _jump(self) -> None:
        timers = self._timers
        while timers and (timers[0][2]._cancelled or _is_dead(timers[0][2].process)):
            heapq.heappop(timers)
        if not timers:
            raise Hang("nothing is scheduled, so what is awaited can never come:\n" + "\n".join(self.waiting()))
        if timers[0][0] > self._now:
            self._now = timers[0][0]
            self._spins = 0

    def waiting(self) -> list[str]:
        """One line for each unfinished task: its name and where it waits."""
        tasks = sorted(asyncio.all_tasks(self), key=hash)
        return [f"  {_owner(task)} {task.get_name()}: {_place(task)}" for task in tasks if not task.done()]

    # Processes

    def process(self, name: str) -> Process:
        """A new process, running."""
        return Process(self, name)

    def bury(self) -> None:
        """Let go of all unfinished tasks after the world's end. Their ``finally`` blocks run now, with nobody to see."""
        self._queue.clear()
        self._timers.clear()
        tasks = [task for task in sorted(asyncio.all_tasks(self), key=hash) if not task.done()]
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]
        for task in tasks:
            _close(task.get_coro())
        self._queue.clear()
        self._timers.clear()

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        self._generators[id(agen)] = current_process()

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        """A generator was left where it stood. It closes in its own process, or stays as it is if that is dead."""
        process = self._generators.pop(id(agen), None)
        if not _is_dead(process) and not self.is_closed():
            context = process.context.copy() if process is not None else None
            self.call_soon(lambda: self.create_task(agen.aclose()), context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:  # asyncio's name
        """A task of a dead process may be gone without having ended."""
        died = isinstance(context.get("exception"), Crashed)
        if not died and not _is_dead(getattr(context.get("task"), "process", None)):
            super().call_exception_handler(context)

    def abort(self, error: SimulationError) -> None:
        """End the run with ``error``, whoever may catch it where it happened."""
        if self._offence is None:
            self._offence = error

    # What a simulated program cannot have

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> NoReturn:  # type: ignore[override]
        self._forbid(f"run_in_executor({getattr(func, '__qualname__', func)!s})")

    def _forbid(self, what: str) -> NoReturn:
        """Raise where it happened, and end the run too: the code under test may well catch what is raised in it."""
        error = NoThreads(f"{what}: the simulated world has one thread and no executor; make the function async")
        self.abort(error)
        raise error

    def _process_events(self, event_list: object) -> None:
        raise AssertionError("there is no selector")

    def _write_to_self(self) -> None:
        """Nobody sleeps in a selector."""


def _is_dead(process: Process | None) -> bool:
    return process is not None and process.life is Life.DEAD


def _task(loop: VirtualLoop, coro: Generator[Any, None, T] | Coroutine[Any, Any, T], **kwargs: Any) -> asyncio.Task[T]:
    return _Task(coro, loop=loop, **kwargs)


def _owner(task: asyncio.Task[Any]) -> str:
    process = task.process if isinstance(task, _Task) else None
    return process.name if process is not None else "world"


def _close(coro: Any) -> None:
    """End a coroutine where it stands; one that insists on awaiting, or fails in its ``finally`` blocks, is left alone."""
    with contextlib.suppress(Exception):
        coro.close()


def _place(task: asyncio.Task[Any]) -> str:
    """The innermost line at which ``task`` waits."""
    where = "not started"
    inner: Any = task.get_coro()
    while inner is not None:
        frame = getattr(inner, "cr_frame", None) or getattr(inner, "ag_frame", None) or getattr(inner, "gi_frame", None)
        if frame is not None:
            where = f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno})"
        inner = getattr(inner, "cr_await", None) or getattr(inner, "ag_await", None) or getattr(inner, "gi_yieldfrom", None)
    return where
