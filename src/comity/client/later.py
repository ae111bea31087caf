"""What is done later: tasks by a schedule, and failed tasks once more. The leader answers for both."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from typing import Any, Unpack

import msgspec

from comity.client.exchange import Exchange
from comity.client.terms import FOREVER, Scope, TaskOptions, name_of, terms
from comity.errors import BadInput, NotFound
from comity.model.ids import TaskId, check_task_id, check_token
from comity.model.wire import AddSchedule

Encode = Callable[[str, list[Any]], list[bytes]]


class Schedules:
    """``client.schedules``."""

    __slots__ = ("_encode", "_exchange", "_timely")

    def __init__(self, exchange: Exchange, encode: Encode, timely: Callable[[float], Awaitable[None]]) -> None:
        self._exchange = exchange
        self._encode = encode
        self._timely = timely

    async def add(
        self,
        name: str,
        cron: str,
        capability: str,
        input: Any = None,  # noqa: A002 - as the client calls it
        *,
        zone: str = "UTC",
        **options: Unpack[TaskOptions],
    ) -> dict[str, Any]:
        """Submit a task whenever ``cron`` says so, in the time zone ``zone``; a schedule of that name is changed.

        ``cron`` has the five fields of cron (six with seconds), or is ``@daily`` and the like. Each firing is a task with
        the key ``name/time``, so that there is one whoever leads. Times at which nobody led are made up for by one late
        firing. ``options`` as for ``submit``; ``deadline_s`` counts from each firing. Raises BadInput, TooLarge.
        """
        exchange = self._exchange
        exchange.check_open()
        check_token(name, "a schedule's name")
        for option in ("at", "in_s"):
            if option in options:
                raise BadInput(f"a schedule says by itself when; {option} is for a task", option=option)
        now = exchange.loop.time()
        await self._timely(now + exchange.settings.request_timeout_s)
        await exchange.look()
        agreed = terms(
            capability, "", options, submitter=exchange.bus.process, scope=Scope(), settings=exchange.settings,
            known=exchange.directory.capability(name_of(capability)[0]), now=now, now_ms=exchange.contact.now_ms(),
        )  # fmt: skip
        (payload,) = self._encode(agreed.spec.capability, [input])
        left_ms = max(1, round((agreed.deadline - now) * 1000)) if agreed.deadline < FOREVER else 0
        spec = msgspec.structs.replace(agreed.task(TaskId(""), payload), deadline_ms=left_ms)
        found: dict[str, Any] = await exchange.send_asking(lambda ref: AddSchedule(ref, name, cron, zone, spec), "schedule")
        return found

    async def list(self) -> list[dict[str, Any]]:
        """All of them, by name: when each is due next and was last, and what it submits."""
        return list((await self._exchange.ask("schedules", {}))["schedules"])

    async def get(self, name: str) -> dict[str, Any]:
        """One of them. Raises NotFound."""
        for schedule in await self.list():
            if schedule["name"] == name:
                return schedule
        raise NotFound(f"no schedule is called {name!r}", name=name)

    async def remove(self, name: str) -> dict[str, Any]:
        """No longer fire it; what it has submitted goes on. What it was. Raises NotFound."""
        found: dict[str, Any] = await self._exchange.ask("remove-schedule", {"id": name})
        return found


class DeadLetters:
    """``client.dead``. A letter is chosen by its task's id, or all that meet the conditions given: ``capability``, the
    error's ``code``, failed ``since``."""

    __slots__ = ("_encode", "_exchange")

    def __init__(self, exchange: Exchange, encode: Encode) -> None:
        self._exchange = exchange
        self._encode = encode

    async def list(
        self,
        *,
        capability: str | None = None,
        code: str | None = None,
        since: datetime | None = None,
        limit: int = 50,
        before: str | None = None,
    ) -> list[dict[str, Any]]:
        """The newest first. ``before`` a task id: the page after it. The whole task is what ``client.task(id).status()``
        tells."""
        asked = {**_filters(capability, code, since), "limit": limit, "before": before}
        return list((await self._exchange.ask("dead", asked))["dead"])

    async def replay(
        self,
        *ids: str,
        all: bool = False,  # noqa: A002 - the word for it
        capability: str | None = None,
        code: str | None = None,
        since: datetime | None = None,
        **edited: Any,
    ) -> dict[str, TaskId]:
        """Submit each again as a new task, which names the old one (``replays``), with all its retries and all the time
        it had; the letter is one no more. The new tasks' ids, by the old ones. ``input=`` instead of what was given
        then. Without ids ``all=True``, and the conditions. Raises NotFound, Overloaded, BadInput, InvalidInput."""
        asked: dict[str, Any] = self._chosen(ids, all, _filters(capability, code, since))
        if unknown := [name for name in edited if name != "input"]:
            raise TypeError(f"replay has no option {unknown[0]!r}")
        if "input" in edited:
            asked["input"] = msgspec.Raw(await self._edited(ids, edited["input"]))
        found: dict[str, TaskId] = {}
        while True:
            answer = await self._exchange.ask("replay-dead", asked)
            found |= {one["id"]: TaskId(one["as"]) for one in answer["replayed"]}
            if ids or not answer["replayed"] or not answer["left"]:
                return found

    async def _edited(self, ids: tuple[str, ...], value: Any) -> bytes:
        """As JSON, checked against the capability's schema."""
        if len(ids) != 1:
            raise BadInput("an edited input is for one dead letter, named by its id")
        await self._exchange.look()
        status = await self._exchange.ask("task", {"id": check_task_id(ids[0])})
        return self._encode(status["capability"], [value])[0]

    async def drop(
        self,
        *ids: str,
        all: bool = False,  # noqa: A002 - the word for it
        capability: str | None = None,
        code: str | None = None,
        since: datetime | None = None,
    ) -> tuple[TaskId, ...]:
        """Keep them no longer; their ids. See ``replay``."""
        asked = self._chosen(ids, all, _filters(capability, code, since))
        found: list[TaskId] = []
        while True:
            answer = await self._exchange.ask("drop-dead", asked)
            found += answer["dropped"]
            if ids or not answer["dropped"] or not answer["left"]:
                return tuple(found)

    def _chosen(self, ids: Iterable[str], every: bool, filters: dict[str, Any]) -> dict[str, Any]:
        named = [check_task_id(id_) for id_ in ids]
        if bool(named) == every:
            raise BadInput("name dead letters by their ids, or say that you mean all that meet the conditions")
        if len(named) > NAMED_MAX:
            raise BadInput(f"at most {NAMED_MAX} ids at once", limit=NAMED_MAX)
        return {**filters, "ids": named}


NAMED_MAX = 500


def _filters(capability: str | None, code: str | None, since: datetime | None) -> dict[str, Any]:
    if since is not None and since.tzinfo is None:
        raise BadInput("since needs a time zone, such as datetime.now().astimezone() has", option="since")
    return {"capability": capability, "code": code, "since_ms": int(since.timestamp() * 1000) if since is not None else 0}
