"""Answers to questions about the network (``Ask``). What a task's state is, is answered behind a barrier: the log has confirmed
that this controller leads and has seen everything before. Statistics and lists of nodes are answered as they stand."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec
import structlog

from comity.bus.base import to
from comity.bus.outbox import Outbox
from comity.controller import archive
from comity.controller.payloads import Payloads
from comity.controller.sharing import Sharing
from comity.core.archive import holding
from comity.core.reconcile import Reconcile
from comity.core.tasks import Tasks
from comity.errors import BadInput, ComityError, Conflict, Definite, NotFound, TooLarge, UnknownTask
from comity.model.capability import Retry
from comity.model.codec import UNREADABLE, from_json, to_json
from comity.model.ids import ProcessId, TaskId, check_task_id
from comity.model.moment import iso
from comity.model.records import Place, Records
from comity.model.task import Attempt, Ending, Logged, Payload, Stored, Task, TaskFailure, TaskState
from comity.model.wire import BATCH_LIMIT, Answer, Ask, Ended, RateTask
from comity.store.base import Store

LIST_MAX = 1000
SLICE = 2000
"""Tasks looked through without giving way; about a millisecond."""
ANSWER_MAX = BATCH_LIMIT - 1024
STORED_AT_ONCE = 8
_SHOWN_BYTES = 64 * 1024
_LISTED_BYTES = 512
_log = structlog.get_logger("comity.controller")



class Args(msgspec.Struct, frozen=True):
    """What a question may say; each looks at what concerns it."""

    id: str = ""
    state: TaskState | None = None
    capability: str | None = None
    limit: int = 50
    before: str | None = None
    code: str | None = None
    since_ms: int = 0
    ids: tuple[str, ...] = ()
    input: msgspec.Raw = msgspec.Raw()
    strategy: str = ""
    timeout_s: float | None = None
    reason: str = ""
    version: str = ""
    wait: bool = False
    name: str = ""
    by: int = 0


Slow = Callable[[Args], Coroutine[Any, Any, Any]]
_args = msgspec.json.Decoder(Args)


def _arguments(data: bytes) -> Args:
    try:
        return _args.decode(data)
    except UNREADABLE as error:
        raise BadInput(f"a question's arguments are a JSON object: {error}") from error


def _newest(limit: int, tasks: list[Task]) -> list[Task]:
    """The newest of ``tasks``, each once: some may have gone to the archive meanwhile."""
    by_id = {task.spec.id: task for task in tasks}
    return [by_id[task_id] for task_id in sorted(by_id, reverse=True)[:limit]]


def _slices(tasks: list[Task], size: int) -> Iterator[list[Task]]:
    return (tasks[at : at + size] for at in range(0, len(tasks), size))


def _iso(ms: int) -> str | None:
    return iso(ms) if ms else None


def _shown(payload: Payload | None, limit: int) -> Any:
    """A payload as JSON if it has at most ``limit`` bytes and is at hand, else what is known of it."""
    if payload is None:
        return None
    if isinstance(payload, Stored):
        return {"$stored": payload.key, "size": payload.size}
    if isinstance(payload, Logged):
        return {"$size": payload.size}
    if len(payload) > limit:
        return {"$size": len(payload)}
    try:
        return from_json(payload)
    except ComityError:
        return {"$size": len(payload)}


def _attempt(attempt: Attempt) -> dict[str, Any]:
    failure = attempt.failure
    return {
        "epoch": attempt.epoch,
        "agent": attempt.agent,
        "node": attempt.node,
        "assigned": _iso(attempt.assigned_at),
        "started": _iso(attempt.started_at),
        "ended": _iso(attempt.ended_at),
        "ending": attempt.ending,
        "error": {"code": failure.code, "message": failure.message} if failure is not None else None,
    }


def _records(records: Records, limit: int) -> dict[str, Any]:
    last = records.checkpoint
    return {
        "steps": [
            {"name": name, "at": _iso(step.at_ms), "size": step.size, "epoch": step.epoch} for name, step in records.steps.items()
        ],
        "checkpoint": {"at": _iso(last.at_ms), "size": last.size, "epoch": last.epoch} if last is not None else None,
        "questions": [
            {
                "name": name,
                "asked": _iso(question.asked_at),
                "until": _iso(question.until_ms),
                "answered": None if question.is_over else _iso(question.answered_at),
                "is_over": question.is_over,
                "ask": _shown(question.ask, limit),
                "answer": _shown(question.answer, limit),
            }
            for name, question in records.questions.items()
        ],
    }


def view(task: Task, reason: str = "", limit: int = _SHOWN_BYTES) -> dict[str, Any]:
    """A task as users see it; payloads of more than ``limit`` bytes only by their size."""
    spec = task.spec
    attempts = [*task.past, *([task.attempt] if task.attempt is not None else [])]
    last = attempts[-1] if attempts else None
    failure = task.failure
    return {
        "id": spec.id,
        "state": task.state,
        "capability": spec.capability,
        "priority": spec.priority,
        "agent": last.agent if last is not None else None,
        "node": last.node if last is not None else None,
        "epoch": task.epoch,
        "retries": spec.retries,
        "retries_used": task.retries_used,
        "created": _iso(task.created_at),
        "assigned": _iso(last.assigned_at) if last is not None else None,
        "started": _iso(last.started_at) if last is not None else None,
        "finished": _iso(task.finished_at),
        "deadline": _iso(spec.deadline_ms),
        "not_before": _iso(task.not_before) if not task.finished_at else None,
        "progress_timeout_s": spec.progress_timeout_s or None,
        "retry": retry_view(spec.retry),
        "replays": spec.replays,
        "input": _shown(spec.input, limit),
        "result": _shown(task.result, limit),
        "error": {"code": failure.code, "message": failure.message} if failure is not None else None,
        "attempts": [_attempt(attempt) for attempt in attempts],
        "parent": spec.parent,
        "key": spec.key or None,
        "requirements": msgspec.structs.asdict(spec.requirements) if spec.requirements is not None else None,
        "strategy": spec.strategy,
        "score": task.score if task.score >= 0 else None,
        "reason": reason,
        **_records(task.records or Records(), limit),
    }


def retry_view(retry: Retry | None) -> dict[str, Any] | None:
    """What a task says of its retries, beside their number."""
    said = msgspec.structs.asdict(retry) if retry is not None else {}
    return {name: value for name, value in said.items() if name != "retries" and value not in (None, ())} or None


class Answers:
    """One method for each ``Ask.what``; ``plain`` ones are answered at once, ``slow`` ones when they are done, ``_confirmed``
    ones (all about tasks) behind a barrier."""

    def __init__(
        self,
        state: Tasks,
        reconcile: Reconcile,
        payloads: Payloads,
        store: Store,
        outbox: Outbox,
        *,
        barrier: Callable[[Callable[[], None]], None],
        plain: dict[str, Callable[[Args], Any]],
        slow: dict[str, Slow],
        choice: Callable[[TaskId], dict[str, Any] | None],
    ) -> None:
        self._state = state
        self._reconcile = reconcile
        self._payloads = payloads
        self._store = store
        self._outbox = outbox
        self._barrier = barrier
        self._choice = choice
        self._archive = archive.Archive(store)
        self._stored = Sharing(self._read, STORED_AT_ONCE, archive.AWAY_S)
        self._work: set[asyncio.Task[None]] = set()
        self._plain = plain
        self._slow = slow
        self._confirmed: dict[str, Slow] = {
            "task": self._task,
            "tasks": self._tasks,
            "why": self._why,
            "answered": self._answered,
            "barrier": self._nothing,
            "lease": self._lease,
        }

    def end(self) -> None:
        self._archive.end()
        self._stored.end()
        for work in self._work:
            work.cancel()

    def ask(self, item: Ask, sender: ProcessId) -> None:
        """Answer ``item``, now or later; an unknown question too is answered."""
        try:
            args = _arguments(item.args)
            if item.what in self._plain:
                self._answer(item.ref, sender, self._plain[item.what](args))
            elif item.what in self._slow:
                self._start(self._reply(item.ref, sender, self._slow[item.what], args))
            elif item.what in self._confirmed:
                answer = self._confirmed[item.what]
                self._barrier(lambda: self._start(self._reply(item.ref, sender, answer, args)))
            else:
                raise NotFound(f"no question is called {item.what!r}")
        except ComityError as error:
            self._refuse(item.ref, sender, error)

    def reply(self, ref: int, sender: ProcessId, answer: Slow) -> None:
        """Answer an item that is a question of its own kind."""
        self._start(self._reply(ref, sender, answer, Args()))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _reply(self, ref: int, sender: ProcessId, answer: Slow, args: Args) -> None:
        try:
            self._answer(ref, sender, await answer(args))
        except ComityError as error:
            self._refuse(ref, sender, error)

    def _answer(self, ref: int, sender: ProcessId, value: Any) -> None:
        body = msgspec.json.encode(value)
        if len(body) > ANSWER_MAX:
            raise TooLarge(f"the answer would take {len(body)} bytes; ask for less", limit=ANSWER_MAX)
        self._outbox.post(to(sender), Answer(ref, "", body))

    def _refuse(self, ref: int, sender: ProcessId, error: ComityError) -> None:
        body = to_json({"message": error.message, "details": error.details})
        self._outbox.post(to(sender), Answer(ref, error.code, body))

    async def _nothing(self, _args: Args) -> dict[str, Any]:
        return {}

    async def _lease(self, args: Args) -> dict[str, Any]:
        """Whether node ``id`` holds its lease, in its life ``by``."""
        lease = self._state.nodes.get(ProcessId(args.id))
        return {"is_held": lease is not None and lease.incarnation == args.by}

    # Tasks

    async def find(self, task_id: TaskId) -> Task:
        """The task, from replicated state or the archive. Raises UnknownTask."""
        task = self._state.tasks.get(task_id)
        if task is not None:
            return task
        for chunk in holding(self._state.archive, task_id):
            found = (await self._archive.chunk(chunk.key)).get(task_id)
            if found is not None:
                return found
        letter = self._state.dead.letters.get(task_id)
        if letter is not None and letter.key:
            return (await self._archive.chunk(letter.key))[task_id]
        raise UnknownTask(f"no task {task_id} is known, or it finished too long ago", task=task_id)

    async def _task(self, args: Args) -> dict[str, Any]:
        task = await self.find(check_task_id(args.id))
        spec = msgspec.structs.replace(task.spec, input=await self._near(task.spec.input))
        result = await self._near(task.result) if task.result is not None else None
        records = await self._near_question(task.records) if task.records is not None else None
        return view(msgspec.structs.replace(task, spec=spec, result=result, records=records), self._why_waiting(task))

    async def _near_question(self, records: Records) -> Records:
        """With what is asked now in place, for somebody to answer."""
        name = records.asked()
        ask = records.questions[name].ask if name is not None else None
        if name is None or ask is None:
            return records
        shown = msgspec.structs.replace(records, questions=dict(records.questions))
        shown.put(Place("ask", name), await self._near(ask))
        return shown

    async def _answered(self, args: Args) -> dict[str, Any]:
        """The task as it is, if the answer of number ``by`` counted. Raises Conflict."""
        task = await self.find(check_task_id(args.id))
        records = task.records or Records()
        if any(question.by == args.by for question in records.questions.values()):
            return await self._task(args)
        asked = records.asked() if task.state is TaskState.INPUT_REQUIRED else None
        if asked is not None:
            said = f"task {args.id} asks for {asked!r}, not for {args.name!r}"
        elif args.name in records.questions or (records.questions and not args.name):
            said = f"task {args.id} was answered already, or its time for that is over; it is {task.state}"
        else:
            said = f"task {args.id} asks for nothing; it is {task.state}"
        raise Conflict(said, task=args.id, asks=asked)

    async def _near(self, payload: Payload) -> Payload:
        """A payload with its bytes in place, if they can be shown."""
        if not isinstance(payload, Stored):
            return await self._payloads.load(payload)
        data = await self._stored.get(payload.key)
        return payload if data is None else data

    async def _read(self, key: str) -> bytes | None:
        """What can be shown of the store. It is others': it may be large, or gone."""
        data = b""
        try:
            async for chunk in self._store.get(key):
                data += chunk
                if len(data) > _SHOWN_BYTES:
                    return None
        except Definite:
            return None
        return data

    def _why_waiting(self, task: Task) -> str:
        if task.state is TaskState.INPUT_REQUIRED and task.records is not None:
            return f"it asks for {task.records.asked()!r}"
        if task.state not in (TaskState.SUBMITTED, TaskState.WAITING):
            return ""
        capability = task.spec.capability
        ends = [a for a in reversed(task.past) if a.ending and a.ending is not Ending.INPUT_REQUIRED]
        past = [f"{a.agent}: {a.failure.text if a.failure else a.ending}" for a in ends]
        if task.not_before > self._state.time_ms:
            why = f"it backs off until {_iso(task.not_before)}" if past else f"it may start at {_iso(task.not_before)}"
        elif self._reconcile.budget.is_held(capability, task.spec.id):
            why = f"too many attempts at {capability} fail: its retry is held back until some succeed"
        elif not self._reconcile.scheduling.offered(capability):
            why = f"no agent offers {capability}"
        elif not self._reconcile.scheduling.live(capability):
            why = f"no live agent offers {capability} now"
        elif len(benched := self._reconcile.scheduling.benched(capability)) >= self._reconcile.scheduling.live(capability):
            (agent, _), said = next(iter(benched.items()))
            why = f"every agent that offers {capability} failed too often, such as {agent}: {said}"
        elif task.spec.requirements is not None:
            why = "no agent that meets its requirements is free"
        else:
            why = f"no agent that offers {capability} is free"
        return "; ".join([why, *list(dict.fromkeys(past))[:3]])

    async def _tasks(self, args: Args) -> dict[str, Any]:
        limit, before = max(1, min(args.limit, LIST_MAX)), args.before or "~"

        def matches(task: Task) -> bool:
            return (
                task.spec.id < before
                and (args.state is None or task.state is args.state)
                and (args.capability is None or task.spec.capability == args.capability)
            )

        found: list[Task] = []
        for part in _slices(list(self._state.tasks.values()), SLICE):
            found = _newest(limit, [*found, *filter(matches, part)])
            await asyncio.sleep(0)
        for chunk in sorted(self._state.archive, key=lambda c: c.last, reverse=True):
            if len(found) >= limit and chunk.last < found[-1].spec.id:
                break
            if chunk.first < before:
                found = _newest(limit, [*found, *filter(matches, (await self._archive.chunk(chunk.key)).values())])
        views: list[dict[str, Any]] = []
        for part in _slices(found, SLICE // 20):
            views += [view(task, self._why_waiting(task), _LISTED_BYTES) for task in part]
            await asyncio.sleep(0)
        return {"tasks": views}

    async def _why(self, args: Args) -> dict[str, Any]:
        task = await self.find(check_task_id(args.id))
        spec = task.spec
        now = self._reconcile.scheduling.explain(spec.capability, spec.requirements, spec.strategy, ())
        reason = self._why_waiting(task)
        return {
            "id": spec.id,
            "state": task.state,
            "reason": f"{reason}; {now['reason']}" if reason and now["live"] and not now["choice"] else reason,
            "assignment": self._choice(spec.id),
            "now": now,
        }

    # Tasks that are no longer in memory

    def rate_missing(self, item: RateTask) -> None:
        """Count a rating of an archived task, which itself changes no more."""
        self._start(self._rate(item))

    async def _rate(self, item: RateTask) -> None:
        try:
            task = await self.find(item.task)
        except ComityError as error:
            _log.warning("a rating is lost", task=item.task[:80], code=error.code, error=error.message)
            return
        last = task.past[-1] if task.past else None
        if last is not None and last.ending is Ending.COMPLETED and task.score < 0:
            self._reconcile.scheduling.rated(last.agent, task.spec.capability, item.score)

    def follow_missing(self, task_id: TaskId, sender: ProcessId) -> None:
        """Tell ``sender`` how an archived task ended, or that there is none."""
        self._barrier(lambda: self._start(self._end_of(task_id, sender)))

    async def _end_of(self, task_id: TaskId, sender: ProcessId) -> None:
        try:
            task = await self.find(task_id)
        except UnknownTask as error:
            failure = TaskFailure(error.code, error.message, False)
            self._outbox.post(to(sender), Ended(task_id, TaskState.REJECTED, None, failure))
        except ComityError as error:  # not known now: who waits asks again
            _log.warning("a finished task cannot be read", task=task_id, code=error.code, error=error.message)
        else:
            if task.is_terminal:
                self._outbox.post(to(sender), Ended(task_id, task.state, task.result, task.failure, task.epoch))
