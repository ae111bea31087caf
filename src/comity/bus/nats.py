"""The bus on NATS core. Subjects carry who sends, and the server lets a process publish only as itself.

    cy.NET.to.DEST.SENDER, cy.NET.any.GROUP.SENDER, cy.NET.topic.NAME.SENDER    messages
    cy.NET.re.REQUESTER.NUMBER.SENDER                                           answers
    cy.NET.nr.SENDER.KIND.NAME      reply subject of a plain message: the server's "no responders" (503) comes back there

A subject alone proves nothing about what a process can make the *server* say: an answer of JetStream's goes to any reply
subject one cares to name, and a consumer delivers to any subject, under the stored one. Stored messages are known by their
subject or their headers, and dropped; JSON answers of the server's remain, which decode as no item of ours.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from nats import errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from comity.bus.base import Address, Cancel, Delivery, Link, Receive, split
from comity.bus.connection import RECONNECT_WAIT_S, Connection, is_denial
from comity.bus.end import BusEnd
from comity.errors import (
    AccessDenied,
    BadInput,
    BadSettings,
    Disconnected,
    TooLarge,
    Unreachable,
)
from comity.model.ids import ProcessId, shown_urls

PING_EVERY_S = 2.0
PINGS_MISSED = 2
CONFIRM_S = 5.0
HIGH_WATER = 1024 * 1024
"""Bytes that may wait to be written before ``send`` waits for the server to take them."""
SMALLEST_PAYLOAD = 512 * 1024 + 4096
"""A server that takes less cannot carry our batches."""

_FORBIDDEN = re.compile('permissions violation for (publish|subscription) to "([^"]+)"')

log = logging.getLogger(__name__)


class NatsBus(BusEnd):
    """One process's end of a NATS network. See ``base.Bus``. Made by ``connect``.

    ``connection`` may be used for JetStream too; while it is down, its publishes fail at once (nothing is kept for later), and
    requests under way fail with ``ConnectionReconnectingError`` when it breaks. ``faults`` counts what went wrong beside the
    calls: ``denied`` (the server refused a subject), ``forged``.
    """

    connection: Connection

    def __init__(self, process: ProcessId, network: str) -> None:
        super().__init__(process, network)
        self._why = ""
        self._subscriptions: dict[Address, Subscription] = {}
        self._forbidden: set[str] = set()
        self._departures: _Departures | None = None
        self._replies = f"cy.{self.network}.re."

    @classmethod
    async def connect(
        cls,
        servers: str | Sequence[str],
        *,
        process: str,
        network: str = "main",
        options: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
        timeout_s: float = 2.0,
    ) -> NatsBus:
        """Join ``network`` as ``process``, trying for ``timeout_s``; later breaks are mended for ever.

        ``options`` are nats-py's for authentication; ``system`` those of a user of the system account, which lets the bus see
        departures. Raises Unreachable, AccessDenied, BadSettings.
        """
        bus = cls(ProcessId(process), network)
        bus.connection = await _dial(
            servers, bus.process, options, timeout_s, name=bus.process, error_cb=bus._on_error, disconnected_cb=bus._on_down,
            reconnected_cb=bus._on_up, closed_cb=bus._on_closed,
        )  # fmt: skip
        try:
            if bus.connection.max_payload < SMALLEST_PAYLOAD:
                size = bus.connection.max_payload
                raise BadSettings(f"the server's max_payload is {size}; it must be 1 MB", setting="max_payload")
            bus._link = Link.UP
            mine = bus._replies + bus.process
            await bus._start(mine + ".>", partial(bus._on_answer, len(mine) + 1))
            mine = f"cy.{bus.network}.nr.{bus.process}"
            await bus._start(mine + ".>", partial(bus._on_nobody, len(mine) + 1))
            if system is not None:
                token = (options or {}).get("user_jwt_cb")
                account = _claims(token().decode())["iss"] if token else "*"
                bus._sees = bus._departures = await _Departures.connect(servers, bus.process, system, account, timeout_s)
        except BaseException:
            await bus.close()
            raise
        return bus

    async def subscribe(self, address: Address, receive: Receive) -> Cancel:
        kind, name = split(address)
        async with self._changing:
            self._need_link()
            if address not in self._subscriptions:
                prefix = f"cy.{self.network}.{kind}.{name}"
                take = partial(self._on_message, prefix, address)
                self._subscriptions[address] = await self._start(prefix + ".*", take, name if kind == "any" else "")
            return self._received(address, receive)

    async def _start(self, subject: str, take: Callable[[Msg], Awaitable[None]], queue: str = "") -> Subscription:
        """Subscribe; returns once the server has it. Raises Disconnected, AccessDenied."""
        try:
            made = await self.connection.subscribe(subject, queue, take)
        except errors.Error as error:
            raise Disconnected(f"cannot subscribe: {error}") from error
        try:
            await self._confirm()
            if subject.lower() in self._forbidden:
                raise AccessDenied(f"{self.process} may not listen on {subject}", subject=subject)
        except BaseException:
            self._forbidden.discard(subject.lower())
            await self._end(made)
            raise
        return made

    async def _leave(self, address: Address) -> None:
        await self._end(self._subscriptions.pop(address))
        if self._link is Link.UP:
            try:
                await self._confirm()
            except Disconnected:
                log.debug("%s: the connection broke while a subscription ended, and ended it", self.process)

    @staticmethod
    async def _end(subscription: Subscription) -> None:
        try:
            await subscription.unsubscribe()
        except (errors.ConnectionClosedError, errors.BadSubscriptionError):
            log.debug("a subscription had ended already")

    async def _confirm(self) -> None:
        """Return once the server has dealt with all that was sent before. Raises Disconnected."""
        try:
            await self.connection.flush(CONFIRM_S)  # type: ignore[arg-type]
        except errors.Error as error:
            raise Disconnected("the connection broke, or the server does not answer") from error
        self._need_link()

    async def send(self, address: Address, data: bytes) -> None:
        kind, name = split(address)
        subject = f"cy.{self.network}.{kind}.{name}.{self.process}"
        await self._publish(subject, data, f"cy.{self.network}.nr.{self.process}.{kind}.{name}")

    async def request(self, address: Address, data: bytes, timeout_s: float) -> bytes:
        kind, name = split(address)
        subject = f"cy.{self.network}.{kind}.{name}.{self.process}"
        replies = f"{self._replies}{self.process}."
        return await self._ask(subject, address, timeout_s, lambda number: self._publish(subject, data, replies + number))

    async def reply(self, delivery: Delivery, data: bytes) -> None:
        if not delivery.reply:
            raise BadInput("this message asks for no answer")
        await self._publish(f"{delivery.reply}.{self.process}", data)

    async def _publish(self, subject: str, data: bytes, reply: str = "") -> None:
        self._need_link()
        try:
            await self.connection.publish(subject, data, reply)
            if self.connection.pending_data_size > HIGH_WATER:
                await self._confirm()
        except errors.MaxPayloadError as error:
            limit = self.connection.max_payload
            raise TooLarge(f"a message of {len(data)} bytes is too large for the bus", limit=limit) from error
        except errors.Error as error:
            raise Disconnected(f"nothing was sent: {error}") from error

    def _need_link(self) -> None:
        if self._link is not Link.UP or not self.connection.is_connected:
            raise Disconnected(f"{self.process} is not connected to the bus{self._why}")

    @property
    def servers(self) -> int:
        return self.connection.servers_known

    def change_server(self) -> None:
        self.connection.change_server()

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if self._departures is not None:
            await self._departures.connection.close()
        if self._link is Link.UP and self.connection.is_connected:
            try:
                await self.connection.flush(CONFIRM_S)  # type: ignore[arg-type]
            except errors.Error as error:
                log.warning("%s: the last messages may be lost: %s", self.process, error)
        await self.connection.close()
        self._change(Link.CLOSED)

    # What the connection tells

    async def _on_message(self, prefix: str, address: Address, message: Msg) -> None:
        head, _, sender = message.subject.rpartition(".")
        if head != prefix or message.headers is not None:
            self._fault("forged", f"a message on {prefix} came by way of {message.subject}")
            return
        reply = message.reply if message.reply.startswith(self._replies) else ""
        delivery = Delivery(ProcessId(sender), message.data, reply)
        self._take(address, delivery)

    async def _on_answer(self, start: int, message: Msg) -> None:
        number, dot, sender = message.subject[start:].partition(".")
        if number not in self._waiting:
            return  # it came too late
        request = self._waiting[number]
        address, answer = request.address, request.answer
        if not dot and _says_nobody(message):
            request.fail(Unreachable(f"nobody listens at {address}", address=address))
            self._tell(self._unreachable_calls, address)
        elif not dot or message.headers is not None or (address.startswith("to/") and address != f"to/{sender}"):
            self._fault("forged", f"an answer from {address} came by way of {message.subject}")
        elif not answer.done():
            answer.set_result(message.data)

    async def _on_nobody(self, start: int, message: Msg) -> None:
        kind, _, name = message.subject[start:].partition(".")
        if name and _says_nobody(message):
            self._tell(self._unreachable_calls, f"{kind}/{name}")
        else:
            self._fault("forged", f"{message.subject} carried something")

    async def _on_error(self, error: Exception) -> None:
        if forbidden := _FORBIDDEN.search(str(error)):
            verb, subject = forbidden.groups()
            if verb == "subscription":
                self._forbidden.add(subject)
            for request in self._waiting.values():
                if request.name.lower() == subject:
                    request.fail(AccessDenied(f"{self.process} may not send on {request.name}", subject=request.name))
            self._fault("denied", str(error))
        else:
            if self._link is Link.DOWN and isinstance(error, (OSError, errors.Error)):
                self._cannot(error)
            _note(self.process, error)

    def _cannot(self, error: Exception) -> None:
        """It is not connected again, and why: what does not mend itself is said, once."""
        why = f": {error}"
        if why != self._why and (is_denial(error) or isinstance(error, ssl.SSLCertVerificationError)):
            log.error("%s cannot connect again%s", self.process, why)
        self._why = why

    async def _on_down(self) -> None:
        self._change(Link.DOWN)

    async def _on_up(self) -> None:
        self._why = ""
        self._change(Link.UP)

    async def _on_closed(self) -> None:
        if not self._closing and self._link is not Link.CLOSED:
            self._why = f": the server closed the connection for good: {self.connection.last_error}"
            log.error("%s%s", self.process, self._why)
        self._change(Link.CLOSED)


class _Departures:
    """Who leaves, as the system account sees it: a second connection, for the server's CONNECT and DISCONNECT events.

    A process that came back may leave an old connection behind: its end is no departure. A process is named by its token, or
    without one by its connection's name, which anybody may choose: a departure is a hint.
    """

    connection: Connection

    def __init__(self) -> None:
        self.calls: list[Callable[[ProcessId], None]] = []
        self._newest: dict[str, tuple[str, int]] = {}

    @classmethod
    async def connect(
        cls, servers: str | Sequence[str], process: str, options: Mapping[str, Any], account: str, timeout_s: float
    ) -> _Departures:
        made = cls()
        made.connection = await _dial(
            servers, process, options, timeout_s,
            name=f"{process}.events", error_cb=made._on_error, reconnected_cb=made._on_up,
        )  # fmt: skip
        try:
            for event in ("CONNECT", "DISCONNECT"):
                await made.connection.subscribe(f"$SYS.ACCOUNT.{account}.{event}", cb=made._on_event)
            await made.connection.flush(CONFIRM_S)  # type: ignore[arg-type]
        except errors.Error as error:
            await made.connection.close()
            raise Unreachable("the connection for the server's events broke") from error
        return made

    async def _on_event(self, message: Msg) -> None:
        event = json.loads(message.data)
        client = event["client"]
        name = _claims(client["jwt"])["name"] if "jwt" in client else client.get("name", "")
        this = (event["server"]["id"], client["id"])
        if message.subject.endswith(".CONNECT"):
            self._newest[name] = this
        elif self._newest.get(name, this) == this:
            self._newest.pop(name, None)
            if not name or "." in name:
                return  # no process: a tool, or a connection like this one
            for call in self.calls:
                asyncio.get_running_loop().call_soon(call, ProcessId(name))

    async def _on_up(self) -> None:
        self._newest.clear()  # events were missed: better a hint too many than none

    async def _on_error(self, error: Exception) -> None:
        if _FORBIDDEN.search(str(error)):
            log.error("departures will not be seen: %s", error)
        else:
            _note("departures", error)


async def _dial(
    servers: str | Sequence[str], process: str, options: Mapping[str, Any] | None, timeout_s: float, **more: Any
) -> Connection:
    """A connection that mends itself for ever, once it stands. Raises Unreachable, AccessDenied, BadSettings."""
    urls = [servers] if isinstance(servers, str) else list(servers)
    shown = shown_urls(urls)
    loop = asyncio.get_running_loop()
    until = loop.time() + timeout_s
    while True:
        connection = Connection()
        try:
            async with asyncio.timeout_at(until):
                await connection.connect(
                    urls, inbox_prefix=f"_INBOX_{process}", allow_reconnect=False, max_reconnect_attempts=1,
                    reconnect_time_wait=RECONNECT_WAIT_S, reconnect_to_server_handler=connection.next_server, pending_size=0,  # type: ignore[arg-type]
                    ping_interval=PING_EVERY_S, max_outstanding_pings=PINGS_MISSED, **more, **(options or {}),  # type: ignore[arg-type]
                )  # fmt: skip
        except (OSError, errors.Error) as error:
            await connection.close()
            cause = connection.last_error or error
            if is_denial(cause):
                raise AccessDenied(f"{shown} refuses {process}: {cause}", servers=shown) from error
            if isinstance(cause, ssl.SSLCertVerificationError):
                message = f"{shown} shows a certificate that nobody known here vouches for (--ca): {cause.verify_message}"
                raise AccessDenied(message, servers=shown) from error
            if loop.time() + RECONNECT_WAIT_S > until:
                why = "" if isinstance(cause, errors.NoServersError) else f": {cause}"
                raise Unreachable(f"no server answers at {shown}{why}", servers=shown) from error
            await asyncio.sleep(RECONNECT_WAIT_S)  # a refused connection cannot be awaited
        except BaseException:
            await connection.close()
            raise
        else:
            connection.options |= {"allow_reconnect": True, "max_reconnect_attempts": -1}
            return connection


def _claims(token: str) -> dict[str, Any]:
    """What a user's token says; the server has verified it."""
    body = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return claims


def _note(who: str, error: Exception) -> None:
    """Trouble of the connection mends itself, and ``on_state`` tells of it; anything else is a fault of ours."""
    if isinstance(error, (OSError, errors.Error)):
        log.debug("%s: %r", who, error)
    else:
        asyncio.get_running_loop().call_exception_handler({"message": f"{who}: a callback failed", "exception": error})


def _says_nobody(message: Msg) -> bool:
    return not message.data and message.headers is not None and message.headers.get("Status") == "503"
