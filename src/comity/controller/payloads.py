"""Where payloads are. Replicated state holds small ones; a larger one is a place in the log, whose bytes are kept here while
they are hot and read back from the log when they are not."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

from comity.controller.doubt import Doubt
from comity.controller.sharing import Sharing
from comity.core.tasks import Tasks
from comity.errors import Corrupt, Unreachable
from comity.log.base import Log
from comity.model.codec import unseal
from comity.model.ids import TaskId
from comity.model.payload import INLINE_LIMIT, Logged, Payload
from comity.model.records import AskInput, GiveAnswer, Place, RecordStep, SaveCheckpoint
from comity.model.task import Complete, Entry, Fire, Replay, Submit, Task

HOT_BYTES = 64 * 1024 * 1024
SLICE = 2000
"""Tasks looked through without giving way; well below a millisecond."""
AT_ONCE = 8
"""Entries read back at a time."""


class Payloads:
    """A bounded cache over the log. ``doubt``: what to do about an entry that cannot be read; without it, nothing."""

    def __init__(self, log: Log, doubt: Doubt | None = None) -> None:
        self._log = log
        self._doubt = doubt
        self._hot: OrderedDict[tuple[int, int], bytes] = OrderedDict()
        self._bytes = 0
        self._entries = Sharing(self._read, AT_ONCE)

    def end(self) -> None:
        self._entries.end()

    def note(self, index: int, entry: Entry) -> None:
        """Keep the large payloads of an entry that was just applied."""
        for ordinal, payload in _large(entry):
            self._keep((index, ordinal), payload)

    def _keep(self, place: tuple[int, int], payload: bytes) -> None:
        if place in self._hot:
            return
        self._hot[place] = payload
        self._bytes += len(payload)
        while self._bytes > HOT_BYTES and len(self._hot) > 1:
            self._bytes -= len(self._hot.popitem(last=False)[1])

    def hot(self, payload: Payload) -> Payload | None:
        """``payload`` with its bytes in place of a position in the log; None if they must be read first."""
        if type(payload) is not Logged:
            return payload
        return self._hot.get((payload.index, payload.ordinal))

    async def load(self, payload: Payload) -> Payload:
        """As ``hot``, reading the log if need be. Raises Corrupt if the entry was trimmed or says something else, Unreachable if
        the log does not show it now."""
        known = self.hot(payload)
        if known is not None or type(payload) is not Logged:
            return payload if known is None else known
        found = (await self._entries.get(payload.index)).get(payload.ordinal)
        if found is None or len(found) != payload.size:
            message = f"log entry {payload.index} does not hold the payload that is said to be there"
            raise Corrupt(message, index=payload.index)
        return found

    async def load_from(self, where: Callable[[], Payload]) -> Payload:
        """``load`` what ``where`` names, for a task that hangs on it: it may go to the store meanwhile, and then ``where`` names
        something else; and the copy of the log that we read may be damaged, and be rebuilt in a moment."""
        while True:
            payload = where()
            try:
                return await self.load(payload)
            except Corrupt:
                if where() == payload:
                    break
        assert type(payload) is Logged
        if self._doubt is None or payload.index < (await self._log.bounds())[0]:
            return await self.load(payload)
        return await self._doubt.patiently(lambda: self.load(where()))

    async def _read(self, index: int) -> dict[int, bytes]:
        """The large payloads of an entry, by their place in it: whoever wants one will want the others soon."""
        for item in await self._log.read(index - 1, 1):
            if item.index == index:
                try:
                    entry, _ = unseal(item.data)
                except Corrupt as error:
                    raise Corrupt(f"log entry {index}: {error.message}", index=index) from error
                self.note(index, entry)
                return dict(_large(entry))
        if not self._log.lag_s and (await self._log.bounds())[1] >= index:
            raise Corrupt(f"log entry {index} was trimmed away or is missing", index=index)
        raise Unreachable(f"the log does not show entry {index} now", index=index)  # an old view of it: read again


_CARRIED: dict[type, Callable[[Any], Payload]] = {
    Submit: attrgetter("spec.input"),
    Replay: attrgetter("spec.input"),
    Fire: attrgetter("spec.input"),
    Complete: attrgetter("result"),
    RecordStep: attrgetter("result"),
    SaveCheckpoint: attrgetter("state"),
    AskInput: attrgetter("ask"),
    GiveAnswer: attrgetter("answer"),
}
"""The payload of a command that has one."""


def _large(entry: Entry) -> Iterator[tuple[int, bytes]]:
    """Payloads that replicated state does not hold, and their places in the entry."""
    for ordinal, command in enumerate(entry.commands):
        carried = _CARRIED.get(type(command))
        if carried is not None:
            payload = carried(command)
            if type(payload) is bytes and len(payload) > INLINE_LIMIT:
                yield ordinal, payload


def carried_by(task: Task) -> Iterator[tuple[str, Payload]]:
    """All payloads of a task: what each is, and where."""
    yield "input", task.spec.input
    if task.result is not None:
        yield "result", task.result
    if task.records is not None:
        for place, payload in task.records.payloads():
            yield place.kind, payload


async def logged_before(state: Tasks, index: int) -> list[tuple[str, bool, Logged]]:
    """Payloads of unarchived tasks that lie in entries up to ``index``: (task, whether it is the result, where). Gives way to
    others; no payload comes to lie there meanwhile."""
    found: list[tuple[str, bool, Logged]] = []
    for number, (task_id, task) in enumerate(list(state.tasks.items()), 1):
        if number % SLICE == 0:
            await asyncio.sleep(0)
        if type(task.spec.input) is Logged and task.spec.input.index <= index:
            found.append((task_id, False, task.spec.input))
        if type(task.result) is Logged and task.result.index <= index:
            found.append((task_id, True, task.result))
    return found


async def records_before(state: Tasks, index: int) -> list[tuple[TaskId, Place, Logged]]:
    """As ``logged_before``, of tasks' records."""
    found: list[tuple[TaskId, Place, Logged]] = []
    for number, (task_id, task) in enumerate(list(state.tasks.items()), 1):
        if number % SLICE == 0:
            await asyncio.sleep(0)
        if task.records is not None:
            for place, payload in task.records.payloads():
                if isinstance(payload, Logged) and payload.index <= index:
                    found.append((task_id, place, payload))
    return found
