"""Durable mail and groups, as callers use them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

from comity.client.exchange import Exchange
from comity.client.terms import Scope, words
from comity.errors import BadInput, TooLarge
from comity.failpoints import durable
from comity.model.codec import to_json
from comity.model.envelope import Performative
from comity.model.envelope import performative as performative_named
from comity.model.ids import base32, check_token
from comity.model.limits import NAME_MAX, check_seconds, check_text
from comity.model.mail import BODY_LIMIT, Note, Outgoing
from comity.model.payload import Payload

BODY_MAX = 16 * 1024 * 1024
"""Bytes of a body: the receiver holds it in memory."""

Rows = list[dict[str, Any]]
Timely = Callable[[float], Awaitable[None]]


class Mail:
    """``client.mail``: durable mail that waits, or is dead. To send some: ``Client.send`` and ``broadcast`` with ``durable``."""

    __slots__ = ("_exchange", "_scope", "_timely")

    def __init__(self, exchange: Exchange, scope: Scope, timely: Timely) -> None:
        self._exchange = exchange
        self._scope = scope
        self._timely = timely

    async def post(
        self,
        body: Any,
        *,
        to: str = "",
        group: str = "",
        tags: Iterable[str] = (),
        topic: str = "",
        performative: Performative | str = Performative.INFORM,
        conversation: str = "",
        in_reply_to: str = "",
        ttl_s: float | None = None,
    ) -> str:
        """What ``send`` and ``broadcast`` do if durable. Raises what they raise."""
        exchange, scope = self._exchange, self._scope
        exchange.check_open()
        if to:
            check_text(to, "target", NAME_MAX * 2)
        if group:
            check_token(group, "a group")
        check_text(topic, "topic", NAME_MAX)
        ttl_ms = max(1, round(check_seconds(ttl_s, "ttl_s") * 1000)) if ttl_s is not None else 0
        data = to_json(body)
        until = exchange.loop.time() + exchange.settings.submit_timeout_s
        payload: Payload = data if len(data) <= BODY_LIMIT else await self._stored(data, ttl_s, until)
        note = Note(
            scope.sender or exchange.bus.process, topic, performative_named(performative), payload,
            check_text(conversation, "conversation"), check_text(in_reply_to, "in_reply_to"), scope.trace,
            exchange.messages.wall_ms(), bool(to),
        )  # fmt: skip
        mail = Outgoing(note, to, group, words(tags), ttl_ms)
        if scope.outgoing is not None:
            scope.outgoing(mail)
            return ""
        await self._timely(until)
        return await exchange.posts.send(mail, max(until - exchange.loop.time(), 0.001))

    async def _stored(self, data: bytes, ttl_s: float | None, until: float) -> Payload:
        """A body too large for the log goes to the store, for as long as the mail is kept and, dead, may be looked at."""
        if len(data) > BODY_MAX:
            raise TooLarge(f"a mail of {len(data)} bytes: pass a reference to something stored", limit=BODY_MAX)
        exchange = self._exchange
        kept_s = ttl_s or exchange.settings.mail_ttl_s
        key = f"{exchange.bus.process}/mail/{exchange.task_ids.next()}-{base32(exchange.calls.number(), 10)}"

        async def put() -> Payload:
            with durable("mail.put"):
                return await exchange.store.put(key, data, ttl_s=kept_s + exchange.settings.keep_dead_s)

        return await exchange.timely(put, until)

    async def list(self, agent: str = "", *, limit: int = 50) -> Rows:
        """What waits to be taken, oldest first: of one agent (its id), or of all."""
        return list((await self._exchange.ask("mail", {"name": agent, "limit": limit}))["mail"])

    async def boxes(self, *, limit: int = 50) -> Rows:
        """The agents with most mail waiting, and how much it is."""
        return list((await self._exchange.ask("mail", {"limit": limit}))["boxes"])

    async def show(self, id: str) -> dict[str, Any]:
        """One mail: what it says, who has it and who has not. Raises NotFound."""
        found: dict[str, Any] = await self._exchange.ask("receipts", {"id": id})
        return found

    async def dead(self, agent: str = "", *, limit: int = 50) -> Rows:
        """Dead letters, newest first: mail that expired, or that its receiver could not take."""
        return list((await self._exchange.ask("mail-dead", {"name": agent, "limit": limit}))["dead"])

    async def drop(self, *ids: str) -> tuple[str, ...]:
        """Keep these no longer, whether they wait or are dead. Raises NotFound."""
        return tuple((await self._exchange.ask("drop-mail", {"ids": ids}))["dropped"])


class Groups:
    """``client.groups``: who is in which group. Agents join and leave by themselves: ``Agent.join``, ``Agent.leave``."""

    __slots__ = ("_events", "_exchange")

    def __init__(self, exchange: Exchange, events: Callable[[], AsyncGenerator[dict[str, Any], None]]) -> None:
        self._exchange = exchange
        self._events = events

    async def list(self) -> Rows:
        """All of them, with the number of members."""
        return list((await self._exchange.ask("groups", {}))["groups"])

    async def members(self, group: str) -> tuple[str, ...]:
        """The ids of its agents. Raises NotFound if it has none."""
        if not group:
            raise BadInput("a group has a name")
        found = await self._exchange.ask("groups", {"name": group})
        return tuple([member["agent"] for member in found["members"]])

    async def remove(self, group: str, agent: str) -> None:
        """Take an agent that will not come back out of a group. Raises NotFound."""
        await self._exchange.ask("leave-group", {"name": group, "id": agent})

    async def watch(self, group: str = "") -> AsyncGenerator[dict[str, Any], None]:
        """Agents that join and leave, from now on: dicts with ``type`` (group.joined, group.left), ``group`` and ``agent``."""
        async for event in self._events():
            if event["type"] in ("group.joined", "group.left") and group in ("", event["reason"]):
                yield {**event, "group": event["reason"]}
