"""A task's handle: how it ends, how it is doing, and what to do about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar, overload

from comity.client.outcomes import Outcome
from comity.client.parts import Parts, parts_of
from comity.errors import (
    BadInput,
    ComityError,
    DeadlineExceeded,
    Indefinite,
    InvalidInput,
    Poisoned,
    Stuck,
    TaskCanceled,
    TaskError,
    TaskFailed,
    TaskRejected,
    TimedOut,
    UnknownTask,
    by_code,
)
from comity.model.codec import from_json, to_json
from comity.model.ids import TaskId
from comity.model.limits import INDEX_MAX, REASON_MAX, check_text, check_timeout, check_whole
from comity.model.task import Stored, TaskState
from comity.model.typed import decoder
from comity.model.wire import Ended
from comity.patience import patiently

if TYPE_CHECKING:
    from comity.client.exchange import Exchange

T = TypeVar("T")
Pausing = Callable[[bool], None]
"""``pausing(True)`` before a wait for a task, ``pausing(False)`` after it: an attempt lets go of its slot meanwhile."""

_STATE_ERRORS: dict[TaskState, type[TaskError]] = {
    TaskState.FAILED: TaskFailed,
    TaskState.CANCELED: TaskCanceled,
    TaskState.REJECTED: TaskRejected,
}
DETAIL_S = 2.0
"""How long an error waits for the list of its attempts."""


class Task:
    """One task of the network, as seen from here. ``await task`` is ``await task.result()``."""

    __slots__ = ("_exchange", "_outcome", "_pausing")

    def __init__(self, exchange: Exchange, outcome: Outcome, pausing: Pausing | None = None) -> None:
        self._exchange = exchange
        self._outcome = outcome
        self._pausing = pausing

    def __repr__(self) -> str:
        return f"Task({self.id!r})"

    @property
    def id(self) -> TaskId:
        return self._outcome.id

    @property
    def has_ended(self) -> bool:
        """Whether its end is known here already."""
        return self._outcome.ended is not None

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    @overload
    async def result(self, timeout: float | None = None, *, as_type: type[T]) -> T: ...

    @overload
    async def result(self, timeout: float | None = None) -> Any: ...

    async def result(self, timeout: float | None = None, *, as_type: Any = None) -> Any:
        """Wait for the end and give the result: JSON builtins, or ``as_type`` (anything msgspec reads, or a pydantic model).

        Raises TaskFailed, TaskCanceled, TaskRejected or DeadlineExceeded, with ``details``: task, code, attempts;
        UnknownTask; InvalidInput if the result is not an ``as_type``; TimedOut after ``timeout`` seconds (the task goes
        on).
        """
        started = self._exchange.loop.time()
        ended = await self._ended(check_timeout(timeout))
        if not ended.has_result:
            raise await self._error(ended)
        payload = ended.result
        if isinstance(payload, Stored):
            payload = await self._fetch(payload, None if timeout is None else started + timeout)
        assert isinstance(payload, bytes | None)
        if as_type is None:
            return from_json(payload) if payload else None
        try:
            return decoder(as_type).decode(payload or b"null")
        except (ValueError, RecursionError) as error:
            raise InvalidInput(f"the result of task {self.id} is no {as_type}: {error}", task=self.id) from error

    async def _ended(self, timeout: float | None) -> Ended:
        if self._outcome.ended is not None:
            return self._outcome.ended
        if self._pausing is None:
            return await self._exchange.outcomes.end(self._outcome, timeout)
        self._pausing(True)
        try:
            return await self._exchange.outcomes.end(self._outcome, timeout)
        finally:
            self._pausing(False)

    async def _fetch(self, payload: Stored, until: float | None) -> bytes:
        """Read a result from the store; a reading that broke is begun again while there is time."""
        exchange = self._exchange
        try:
            async with asyncio.timeout_at(until):
                return await patiently(
                    lambda: exchange.store.read(payload.key), exchange.settings.request_timeout_s,
                    hopeless=exchange.ended.is_set,
                )  # fmt: skip
        except TimeoutError:
            raise TimedOut(f"the result of task {self.id} could not be fetched in time", task=self.id) from None

    async def _error(self, ended: Ended) -> ComityError:
        failure = ended.failure
        code, said = (failure.code, failure.text) if failure is not None else ("", "it is not said why")
        details: dict[str, Any] = {"task": self.id, "code": code}
        if code == UnknownTask.code:
            return UnknownTask(said, task=self.id)
        named = by_code().get(code)
        kind = _STATE_ERRORS.get(ended.state, TaskFailed)
        if named is not None and issubclass(named, DeadlineExceeded | TaskRejected | TaskCanceled | Poisoned | Stuck):
            kind = named
        try:
            details["attempts"] = (await self.status(DETAIL_S))["attempts"]
        except (Indefinite, UnknownTask) as error:
            details["attempts"] = f"not known: {error.message}"
        return kind(f"task {self.id} {ended.state}: {said}", **details)

    async def status(self, timeout: float | None = None) -> dict[str, Any]:
        """What the network knows of it now: state, agent, node, epoch, retries, times, input, result, error, attempts,
        and why it waits. No older than the question. Raises UnknownTask, Unreachable, TimedOut."""
        view: dict[str, Any] = await self._exchange.ask("task", {"id": self.id}, timeout)
        return view

    async def why(self, timeout: float | None = None) -> dict[str, Any]:
        """Why it was given to its agent, or why it waits: candidates, scores, choice."""
        view: dict[str, Any] = await self._exchange.ask("why", {"id": self.id}, timeout)
        return view

    async def cancel(self, reason: str = "", timeout: float | None = None) -> dict[str, Any]:
        """Ask for its end. A running attempt is told and given a grace time; what the task is then, as ``status`` has
        it: it may have ended before. Raises UnknownTask, Unreachable, TimedOut."""
        view: dict[str, Any] = await self._exchange.cancel(self.id, check_text(reason, "reason", REASON_MAX), timeout)
        return view

    async def answer(self, value: Any, *, name: str = "", timeout: float | None = None) -> dict[str, Any]:
        """Answer what it waits for (``name`` if given, else whatever that is); what the task is then, as ``status`` has it. The
        first answer counts. Raises Conflict if it asks for nothing, for something else, or was answered; NotSerializable,
        TooLarge, UnknownTask, Unreachable, TimedOut."""
        view: dict[str, Any] = await self._exchange.answer(self.id, check_text(name, "name"), to_json(value), timeout)
        return view

    async def rate(self, score: float, timeout: float | None = None) -> None:
        """Say how good the result was, 0 to 1: ``best_fit`` learns from it. Raises BadInput."""
        if not 0.0 <= score <= 1.0:
            raise BadInput(f"a rating is 0 to 1, not {score}", score=score)
        await self._exchange.rate(self.id, score, timeout)

    def stream(self, as_type: Any = Any) -> Parts:
        """What its capability yields, as it comes, each as an ``as_type``. Its submitter reads from the first part on; who comes
        later, from the oldest that the node still has."""
        return parts_of(self, as_type)

    async def events(self, after: int = -1) -> AsyncGenerator[dict[str, Any], None]:
        """What happens to it, live: changes of state, progress, log lines; ends with its last one. Each is a dict with
        ``type`` and ``at`` (UTC ms). From now on, or from log index ``after`` as far as the leader still has it (0:
        from the beginning)."""
        exchange = self._exchange
        stream = exchange.streams.open(check_whole(after, "after", -1, INDEX_MAX), self.id)
        waiter = exchange.outcomes.watch(self._outcome)

        def over(_: asyncio.Future[Ended]) -> None:
            stream.is_over = True
            stream.wake()

        waiter.add_done_callback(over)
        try:
            async for event in exchange.streams.events(stream):
                if event["type"] != "events.gap":
                    yield event
                if event["type"] in _LAST:
                    return
            ended = waiter.result()
            failure = ended.failure
            about = {"code": failure.code, "reason": failure.message} if failure is not None else {}
            yield {"type": f"task.{ended.state}", "at": exchange.contact.now_ms(), "task": self.id, **about, "index": 0}
        finally:
            exchange.outcomes.leave(self._outcome, waiter)
            exchange.streams.close(stream)


_LAST = frozenset({"task.completed", "task.failed", "task.canceled", "task.rejected"})
