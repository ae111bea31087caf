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
import random
import re
import secrets
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Any, TypeVar

from nats import errors
from nats.aio.client import Server
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from comity.bus.base import Address, Cancel, Delivery, Link, Receive, split
from comity.bus.connection import Connection
from comity.errors import (
    AccessDenied,
    BadInput,
    BadSettings,
    ComityError,
    Disconnected,
    TimedOut,
    TooLarge,
    Unreachable,
)
from comity.model.ids import ProcessId, check_token, shown_urls

T = TypeVar("T")

RECONNECT_WAIT_S = 0.05
"""Longest wait before each attempt to reconnect; the wait is random, so that processes do not come back in step."""
PING_EVERY_S = 2.0
PINGS_MISSED = 2
CONFIRM_S = 5.0
HIGH_WATER = 1024 * 1024
"""Bytes that may wait to be written before ``send`` waits for the server to take them."""
SMALLEST_PAYLOAD = 512 * 1024 + 4096
"""A server that takes less cannot carry our batches."""

_DENIAL = re.compile("authorization violation|authentication (expired|revoked)", re.IGNORECASE)
_FORBIDDEN = re.compile('permissions violation for (publish|subscription) to "([^"]+)"')

log = logging.getLogger(__name__)


class NatsBus:
    """One process's end of a NATS network. See ``base.Bus``. Made by ``connect``.

    ``connection`` may be used for JetStream too; while it is down, its publishes fail at once (nothing is kept for later), and
    requests under way fail with ``ConnectionReconnectingError`` when it breaks. ``faults`` counts what went wrong beside the
    calls: ``denied`` (the server refused a subject), ``forged``.
    """

    connection: Connection

    def __init__(self, process: ProcessId, network: str) -> None:
        self.process = ProcessId(check_token(process, "process id"))
        self.network = check_token(network, "network")
        self.faults = {"denied": 0, "forged": 0}
        self._link = Link.CLOSED
        self._closing = False
        self._why = ""
        self._receivers: dict[Address, tuple[Receive, ...]] = {}
        self._subscriptions: dict[Address, Subscription] = {}
        self._changing = asyncio.Lock()
        self._forbidden: set[str] = set()
        self._waiting: dict[str, tuple[str, Address, asyncio.Future[bytes]]] = {}
        self._numbers = map(f"{secrets.token_hex(5)}{{}}".format, count(1))
        self._departures: _Departures | None = None
        self._state_calls: list[Callable[[Link], None]] = []
        self._unreachable_calls: list[Callable[[Address], None]] = []
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
                bus._departures = await _Departures.connect(servers, bus.process, system, account, timeout_s)
        except BaseException:
            await bus.close()
            raise
        return bus

    @property
    def link(self) -> Link:
        return self._link

    async def subscribe(self, address: Address, receive: Receive) -> Cancel:
        kind, name = split(address)
        async with self._changing:
            self._need_link()
            if address not in self._subscriptions:
                prefix = f"cy.{self.network}.{kind}.{name}"
                take = partial(self._on_message, prefix, address)
                self._subscriptions[address] = await self._start(prefix + ".*", take, name if kind == "any" else "")
            self._receivers[address] = (*self._receivers.get(address, ()), receive)
        return partial(self._cancel, address, receive, [])

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

    async def _cancel(self, address: Address, receive: Receive, done: list[bool]) -> None:
        if done:
            return
        done.append(True)
        async with self._changing:
            if self._closing or self._link is Link.CLOSED:
                return
            left = list(self._receivers[address])
            left.remove(receive)
            if left:
                self._receivers[address] = tuple(left)
                return
            del self._receivers[address]
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
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = loop.create_future()
        self._waiting[number] = (subject, address, answer)
        late = TimedOut(f"no answer from {address} within {timeout_s} s", address=address)
        timer = loop.call_later(timeout_s, _fail, answer, late)
        try:
            await self._publish(subject, data, f"{self._replies}{self.process}.{number}")
            return await answer
        finally:
            timer.cancel()
            del self._waiting[number]

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

    def on_unreachable(self, call: Callable[[Address], None]) -> None:
        self._unreachable_calls.append(call)

    def on_state(self, call: Callable[[Link], None]) -> None:
        self._state_calls.append(call)

    def on_departure(self, call: Callable[[ProcessId], None]) -> bool:
        if self._departures is None:
            return False
        self._departures.calls.append(call)
        return True

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
        for receive in self._receivers.get(address, ()):
            try:
                receive(delivery)
            except Exception as error:  # one receiver's fault is not another's
                context = {"message": f"a receiver of {address} failed", "exception": error}
                asyncio.get_running_loop().call_exception_handler(context)

    async def _on_answer(self, start: int, message: Msg) -> None:
        number, dot, sender = message.subject[start:].partition(".")
        if number not in self._waiting:
            return  # it came too late
        _, address, answer = self._waiting[number]
        if not dot and _says_nobody(message):
            _fail(answer, Unreachable(f"nobody listens at {address}", address=address))
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
            for wanted, _, answer in self._waiting.values():
                if wanted.lower() == subject:
                    _fail(answer, AccessDenied(f"{self.process} may not send on {wanted}", subject=wanted))
            self._fault("denied", str(error))
        else:
            _note(self.process, error)

    def _fault(self, kind: str, text: str) -> None:
        self.faults[kind] = number = self.faults[kind] + 1
        if number & (number - 1) == 0:  # the first, then ever fewer
            log.warning("%s: %s (%s no. %d)", self.process, text, kind, number)

    async def _on_down(self) -> None:
        self._change(Link.DOWN)

    async def _on_up(self) -> None:
        self._change(Link.UP)

    async def _on_closed(self) -> None:
        if not self._closing and self._link is not Link.CLOSED:
            self._why = f": the server closed the connection for good: {self.connection.last_error}"
            log.error("%s%s", self.process, self._why)
        self._change(Link.CLOSED)

    def _change(self, link: Link) -> None:
        if self._link in (link, Link.CLOSED) or (self._closing and link is not Link.CLOSED):
            return
        self._link = link
        self._tell(self._state_calls, link)
        if link is not Link.UP:
            for _, _, answer in self._waiting.values():
                _fail(answer, Disconnected("the connection broke before an answer came"))

    @staticmethod
    def _tell(calls: list[Callable[[T], None]], value: T) -> None:
        for call in calls:
            asyncio.get_running_loop().call_soon(call, value)


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
                    reconnect_time_wait=RECONNECT_WAIT_S, reconnect_to_server_handler=_next_server, pending_size=0,  # type: ignore[arg-type]
                    ping_interval=PING_EVERY_S, max_outstanding_pings=PINGS_MISSED, **more, **(options or {}),  # type: ignore[arg-type]
                )  # fmt: skip
        except (OSError, errors.Error) as error:
            await connection.close()
            cause = connection.last_error or error
            if _DENIAL.search(str(cause)):
                raise AccessDenied(f"{shown} refuses {process}: {cause}", servers=shown) from error
            if isinstance(cause, ssl.SSLCertVerificationError):
                message = f"{shown} shows a certificate that nobody known here vouches for (--ca): {cause.verify_message}"
                raise Unreachable(message, servers=shown) from error
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


def _next_server(servers: list[Server], info: dict[str, Any]) -> tuple[Server, float]:
    """The server tried least, after a random wait."""
    return min(servers, key=lambda server: server.reconnects), random.uniform(0, RECONNECT_WAIT_S)


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


def _fail(answer: asyncio.Future[bytes], error: ComityError) -> None:
    if not answer.done():
        answer.set_exception(error)
