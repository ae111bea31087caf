"""Dead letters, as users see them: lists, replays and drops them, one by one or by what they have in common."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec

from comity.controller.admission import Admission
from comity.controller.adopting import MOVED
from comity.controller.answers import Args
from comity.controller.archive import AWAY_S
from comity.controller.payloads import Payloads
from comity.core.archive import holding
from comity.core.dead import Dead
from comity.core.tasks import Tasks
from comity.errors import NotFound, Overloaded, TooLarge
from comity.model.ids import TaskId, TaskIds
from comity.model.task import LOG_LIMIT, Command, DropDead, Replay, Stored, Task, TaskSpec
from comity.patience import patiently
from comity.store.base import Store

LISTED_MAX = 500
AT_ONCE = 500
"""Letters replayed or dropped by one question."""


class Replaying:
    """See the module. ``find`` reads a task, wherever it is; ``effective`` waits until what was proposed counts."""

    def __init__(
        self,
        state: Tasks,
        payloads: Payloads,
        store: Store,
        admission: Admission,
        ids: TaskIds,
        *,
        find: Callable[[TaskId], Awaitable[Task]],
        propose: Callable[[Command], None],
        effective: Callable[[], Awaitable[None]],
        now_ms: Callable[[], int],
    ) -> None:
        self._state = state
        self._payloads = payloads
        self._store = store
        self._admission = admission
        self._ids = ids
        self._find = find
        self._propose = propose
        self._effective = effective
        self._now_ms = now_ms

    async def list(self, args: Args) -> dict[str, Any]:
        """Newest first."""
        await self._effective()
        limit, before = max(1, min(args.limit, LISTED_MAX)), args.before or "~"
        found = [letter for letter in self._chosen(args) if letter.id < before]
        found.sort(key=lambda letter: letter.id, reverse=True)
        return {"dead": [_view(letter) for letter in found[:limit]], "count": len(found)}

    async def replay(self, args: Args) -> dict[str, Any]:
        """Each as a new task; ``left`` more fit what was asked for. Raises NotFound, Overloaded, TooLarge."""
        if len(args.input) > LOG_LIMIT:
            raise TooLarge(f"an edited input has at most {LOG_LIMIT} bytes", limit=LOG_LIMIT)
        await self._effective()
        chosen = list(self._chosen(args))
        made: list[tuple[Dead, TaskId]] = []
        for letter in chosen[:AT_ONCE]:
            if self._state.waiting + len(made) >= self._admission.max_waiting:
                if not made:
                    limit = self._admission.max_waiting
                    raise Overloaded(f"{limit} tasks wait already", retry_after_s=1.0, limit=limit)
                break
            spec = await self._again(await self._find(letter.id), bytes(args.input))
            self._propose(Replay(spec))
            made.append((letter, spec.id))
        await self._effective()
        done = [(letter.id, task) for letter, task in made if self._is_there(task)]  # else somebody else was quicker
        if args.ids and not done:
            raise NotFound(f"{args.ids[0]} is no dead letter any longer", ids=args.ids)
        return {"replayed": [{"id": old, "as": task} for old, task in done], "left": len(chosen) - len(made)}

    def _is_there(self, task: TaskId) -> bool:
        return task in self._state.tasks or next(holding(self._state.archive, task), None) is not None

    async def _again(self, task: Task, edited: bytes) -> TaskSpec:
        """The task of a dead letter as a new one: with all the time it had, and on its own."""
        old = task.spec
        payload = edited or await self._payloads.load_from(lambda: task.spec.input)
        if isinstance(payload, Stored) and payload.key.startswith(MOVED):  # it goes when the old task leaves memory
            payload = await patiently(partial(self._store.read, payload.key), AWAY_S)
        began_ms = max(task.created_at, old.not_before_ms)
        deadline_ms = self._now_ms() + old.deadline_ms - began_ms if old.deadline_ms else 0
        return msgspec.structs.replace(
            old, id=self._ids.next(), input=payload, key="", parent=None, parent_epoch=0, not_before_ms=0,
            deadline_ms=deadline_ms, replays=old.id,
        )  # fmt: skip

    async def drop(self, args: Args) -> dict[str, Any]:
        """Raises NotFound."""
        await self._effective()
        chosen = list(self._chosen(args))
        ids = tuple(letter.id for letter in chosen[:AT_ONCE])
        if ids:
            self._propose(DropDead(ids))
            await self._effective()
        return {"dropped": list(ids), "left": len(chosen) - len(ids)}

    def _chosen(self, args: Args) -> Iterable[Dead]:
        """Those named, or those that fit, oldest first."""
        letters = self._state.dead.letters
        unknown = [name for name in args.ids if TaskId(name) not in letters]
        if unknown:
            raise NotFound(f"{unknown[0][:80]} is no dead letter (or no longer)", ids=[name[:80] for name in unknown[:20]])
        named = (letters[TaskId(name)] for name in dict.fromkeys(args.ids)) if args.ids else letters.values()
        return (
            letter
            for letter in named
            if (args.capability is None or letter.capability == args.capability)
            and (args.code is None or letter.code == args.code)
            and letter.failed_ms >= args.since_ms
        )


def _view(letter: Dead) -> dict[str, Any]:
    return {
        "id": letter.id,
        "capability": letter.capability,
        "code": letter.code,
        "message": letter.message,
        "failed": datetime.fromtimestamp(letter.failed_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "attempts": letter.attempts,
    }
