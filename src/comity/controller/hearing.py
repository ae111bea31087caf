"""Whether the log still answers its leader. One that is heard and hears nothing would stand in the way: standbys hear its
beacons, and it hears of no work, so that nothing fails. So a leader that has had no answer of the log for too long gives way: it
is silent until it can read the log again, and a standby that can may campaign (Raft's check-quorum, with the log for a quorum).

Every append that lands is an answer. While none does, the log is asked something else, which leaves nothing in it.

Time is counted in pulses, not in seconds: a process that was paused for long has missed no answer, it has not looked yet.
"""

from __future__ import annotations

import asyncio

from comity.controller.pipeline import Pipeline
from comity.errors import ComityError
from comity.log.base import Log

ASK_AFTER = 2
SILENT_AFTER = 12
"""Pulses without an answer after which the leader gives way: three seconds."""


class Hearing:
    """``pulse`` it a few times a second, as long as its term lasts."""

    def __init__(self, log: Log, pipeline: Pipeline) -> None:
        self._log = log
        self._pipeline = pipeline
        self._answers = 0
        self._seen = 0
        self._silent = 0
        self._asking: set[asyncio.Task[None]] = set()

    def pulse(self) -> bool:
        """Whether the log has answered lately."""
        answers = self._answers + self._pipeline.landed
        self._silent = self._silent + 1 if answers == self._seen else 0
        self._seen = answers
        if self._silent >= ASK_AFTER:  # again and again: the way may be whole while an answer is awaited that got lost
            asking = asyncio.get_running_loop().create_task(self._ask())
            self._asking.add(asking)
            asking.add_done_callback(self._asking.discard)
        return self._silent < SILENT_AFTER

    async def _ask(self) -> None:
        try:
            await self._log.bounds()
        except ComityError as error:
            if not error.definite:
                return  # else it is an answer; what it means, appends will tell
        self._answers += 1

    def end(self) -> None:
        for asking in self._asking:
            asking.cancel()
