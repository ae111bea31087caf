"""Calls agents' functions in a simulated world: without threads, and before a witness."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from comity.agent import Offered
from comity.errors import Refuse
from comity.handles import Attempt
from comity.model.task import TaskFailure
from comity.node.failing import Failure, NoRetry
from comity.node.parts import Outgoing
from comity.node.performing import Performer
from comity.node.pools import Pools, compute
from comity.sim.checkers import Truth, Violation
from comity.sim.loop import VirtualLoop
from comity.sim.recollection import Witness


class _OneThread(Pools):
    """Runs plain functions where they are called: in no virtual time at all."""

    async def in_thread(self, call: Callable[[], Any], started: Callable[[], None]) -> Any:
        started()
        return call()

    async def in_process(
        self,
        function: Callable[..., Any],
        data: bytes,
        no_retry: NoRetry,
        started: Callable[[], None],
    ) -> bytes:
        started()
        result = compute(function.__module__, function.__qualname__, data, no_retry)
        if isinstance(result, TaskFailure):
            raise Failure(result)
        if isinstance(result, Refuse):
            raise result
        return result


class Stage(Performer):
    """Tells ``truth`` what each attempt really did."""

    def __init__(self, truth: Truth, loop: VirtualLoop) -> None:
        super().__init__(_OneThread())
        self._truth = truth
        self._loop = loop

    def _begin(self, attempt: Attempt) -> None:
        """A node takes whatever its agents raise for their failure: it must not take this."""
        try:
            self._truth.begin(attempt.id, attempt.epoch, attempt.agent)
        except Violation as violation:
            self._loop.abort(violation)

    async def perform(
        self,
        offered: Offered,
        data: bytes,
        handle: Callable[[], Any],
        started: Callable[[], None],
        no_retry: tuple[str, ...] = (),
        out: Outgoing | None = None,
    ) -> bytes:
        attempt = handle()
        if attempt.epoch:
            self._begin(attempt)
            attempt = Witness(attempt, self._truth.recollection, self._loop)
        output = await super().perform(offered, data, lambda: attempt, started, no_retry, out)
        if attempt.epoch:
            self._truth.end(attempt.id, attempt.epoch, output)
        return output
