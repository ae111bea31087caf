"""A connection to RabbitMQ that mends itself for ever, once it stood."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import ssl
from collections.abc import Awaitable, Callable

from comity.amqp.address import Where, name
from comity.amqp.connection import Connection, Refusal
from comity.errors import AccessDenied, BadSettings, ComityError, Disconnected, Unreachable

DIAL_S = 2.0
"""For one attempt at one server; the rest is tried again."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0
"""Longest waits before the first attempts to reconnect and all later ones. Each is random, so that processes do not come back in
step."""
OLDEST = (3, 8)
_DENIED, _LACKING = (403, 530), (404, 405, 406)
"""Access refused; no such virtual host, or none for this user. And what is not there, or otherwise than we need it."""

log = logging.getLogger(__name__)


class Untrusted(AccessDenied):
    """Of one server; another one may be."""


class Line:
    """``prepare`` makes a connection ready each time, before ``changed(True)``; ``changed(False)`` when it is not of use. What is
    on the line now is ``connection``."""

    def __init__(
        self, where: Where, title: str, prepare: Callable[[Connection], Awaitable[None]], changed: Callable[[bool], None]
    ) -> None:
        self.where = where
        self.connection = Connection()
        self.why = ""
        self._title = title
        self._prepare = prepare
        self._changed = changed
        self._tls = where.tls()
        self._turn = random.randrange(len(where.hosts))
        self._mending: asyncio.Task[None] | None = None
        self._closing = False

    async def open(self, timeout_s: float) -> None:
        """Raises Unreachable, AccessDenied, BadSettings."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        while True:
            try:
                async with asyncio.timeout_at(until + DIAL_S):
                    await self._dial()
            except (TimeoutError, Unreachable, Disconnected, Untrusted) as error:
                if loop.time() + FIRST_WAIT_S > until:
                    if isinstance(error, Untrusted):
                        raise
                    why = error.message if isinstance(error, ComityError) else "it does not answer"
                    raise Unreachable(f"no server answers at {self.where.shown}: {why}", servers=self.where.shown) from error
                await asyncio.sleep(FIRST_WAIT_S)  # a refused connection cannot be awaited
            else:
                return

    async def _dial(self) -> None:
        """Try the next server. Raises Unreachable, Disconnected, AccessDenied, BadSettings."""
        host, port = self.where.hosts[self._turn % len(self.where.hosts)]
        self._turn += 1
        made = Connection()
        made.blocked = self._blocked
        try:
            async with asyncio.timeout(DIAL_S):
                where = self.where
                await made.open(host, port, self._tls, where.user, where.password, where.vhost, self._title)
            _check(made.server)
            await self._prepare(made)
            if not made.is_open:
                raise Disconnected("the connection broke as soon as it stood")
        except BaseException as error:
            made.abort()
            await made.ended()
            if (said := self._said(name(host, port), error)) is not None:
                raise said from error
            raise
        made.lost = self._lost
        self.connection = made
        self.why = ""

    def _said(self, server: str, error: BaseException) -> ComityError | None:
        """What the bus says of it, if it is the server or the way to it."""
        if isinstance(error, Refusal):
            kind = AccessDenied if error.code in _DENIED else BadSettings if error.code in _LACKING else Unreachable
            return kind(f"{server} refuses {self._title}: {error.text}", servers=self.where.shown)
        if isinstance(error, ssl.SSLCertVerificationError):
            return Untrusted(f"{server} shows a certificate that nobody known here vouches for: {error.verify_message}")
        if isinstance(error, TimeoutError):
            return Unreachable(f"{server} does not answer")
        if isinstance(error, OSError):
            return Unreachable(f"{server}: {error.strerror or error}")
        return None

    def _blocked(self, is_blocked: bool) -> None:
        self.why = ": the server takes no messages while it is short of memory or disk" if is_blocked else ""
        if is_blocked:
            log.warning("%s%s", self._title, self.why)
        self._changed(not is_blocked)

    def _lost(self, error: Exception | None) -> None:
        if not self._closing and self._mending is None:
            log.debug("%s: %r", self._title, error)
            self._changed(False)
            self._mending = asyncio.get_running_loop().create_task(self._mend())
            self._mending.add_done_callback(self._mended)

    def _mended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            context = {"message": f"{self._title} will not be connected again", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    async def _mend(self) -> None:
        longest = FIRST_WAIT_S
        while True:
            await asyncio.sleep(random.uniform(0, longest))  # a refused connection cannot be awaited
            try:
                await self._dial()
            except (ComityError, Refusal) as error:
                said = f": {error}"
                if isinstance(error, AccessDenied | BadSettings) and said != self.why:
                    log.error("%s cannot connect again%s", self._title, said)
                self.why = said
                longest = min(2 * longest, LONGEST_WAIT_S)
            else:
                self._mending = None
                self._changed(True)
                return

    async def close(self) -> None:
        """Flush, if it stands, and end. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._mending is not None:
            self._mending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._mending
        try:
            await self.connection.close()
        except Disconnected as error:
            log.warning("%s: the last messages may be lost: %s", self._title, error)
        await self.connection.ended()


def _check(server: dict[str, object]) -> None:
    """Raises BadSettings for what cannot keep the bus's promises: senders that nobody vouches for, rights that do not hold."""
    product, version = str(server.get("product")), str(server.get("version"))
    if product != "RabbitMQ":
        raise BadSettings(f"the server is {product}, not RabbitMQ", setting="urls")
    parts = version.split(".")
    if not all(part.isdigit() for part in parts[:2]) or tuple(map(int, parts[:2])) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise BadSettings(f"the server is RabbitMQ {version}; it must be {oldest} or newer", setting="urls")
