"""JetStream as the doors need it, beside the client's own helpers.

``JetStream`` sends requests and acknowledged publishes over one wildcard inbox, with one dictionary of futures and one timer
for all of them: no task and no timer per message, and what was under way when the connection broke fails at once.
``Cursor`` reads a stream in order through an ephemeral pull consumer; it has its own watchdog, because the client's watches
and ordered consumers may stay silent for many seconds after a server restart.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple, NoReturn

import msgspec
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from comity.errors import (
    AccessDenied,
    BadSettings,
    ComityError,
    Conflict,
    Disconnected,
    Indefinite,
    NotFound,
    TimedOut,
    TooLarge,
    Unreachable,
)
from comity.failpoints import durable

TICK_S = 0.05
HEARTBEAT_S = 1.0
SILENCE_S = 2.5
"""A following cursor that hears nothing for so long, not even a heartbeat, begins anew."""
YOUNG_S, YOUNG_TICK_S = 2.0, 0.01
"""So long a consumer may be unknown to the server that we are connected to; so often it is asked."""
PULL_S = 30.0
PULL_ROWS = 1024
PULL_BYTES = 16 * 1024 * 1024
AGAIN_S = (0.25, 0.5, 1.0)
"""A question without answer is put again after so long, and so on: while its stream gets another leader nobody may have taken it,
and nobody will."""
QUESTIONS = ("STREAM.INFO.", "STREAM.MSG.GET.", "CONSUMER.CREATE.")
"""What may be asked twice. (To make a consumer that is there already, and is the same, changes nothing.)"""
ELECTED_S = 0.25
"""A request that was under way when its stream got a new leader may be answered for so long: the old one may have dropped it."""
HEADER_ROOM = 1024
"""Bytes of the server's payload limit left for headers."""


class _Fault(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct):
    seq: int = 0
    error: _Fault | None = None


_decode_ack = msgspec.json.Decoder(_Ack).decode


def _raise(fault: _Fault, subject: str) -> NoReturn:
    """Raise what the server's error means. Only what the server decides before it stores anything counts as definite."""
    details = {"err_code": fault.err_code, "subject": subject}
    if fault.err_code in (10071, 10164):
        raise Conflict(fault.description, **details)
    if fault.err_code == 10054:
        raise TooLarge(fault.description, **details)
    if fault.code == 404:
        raise NotFound(fault.description, **details)
    if fault.err_code in (10052, 10058, 10025):
        raise BadSettings(fault.description, **details)
    raise Unreachable(f"JetStream: {fault.description}", **details)


class _Call(NamedTuple):
    reply: asyncio.Future[Msg]
    subject: str
    deadline: float
    reconnects: int


class JetStream:
    """Requests to JetStream over one connection. ``timeout_s`` bounds each."""

    def __init__(self, nc: Client, timeout_s: float = 5.0) -> None:
        self.nc = nc
        self.timeout_s = timeout_s
        self._calls: dict[str, _Call] = {}
        self._count = 0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._elections: Subscription | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def reconnects(self) -> int:
        """How often the connection was made anew."""
        return self.nc.stats["reconnects"]

    async def open(self) -> JetStream:
        """Subscribe to the inbox. Raises Disconnected."""
        self._inbox = self.nc.new_inbox() + "."
        try:
            self._subscription = await self.nc.subscribe(self._inbox + "*", cb=self._receive)
        except nats_errors.Error as error:
            raise Disconnected(f"no connection to the server: {error}") from error
        return self

    async def watch_elections(self, stream: str) -> None:
        """From now on, know when ``stream`` gets a new leader, and give up soon on what was asked of the old one. Without the
        right to hear of it, such requests wait for their time-out. Raises Disconnected."""
        try:
            subject = f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.{stream}"
            self._elections = await self.nc.subscribe(subject, cb=self._elected)
        except nats_errors.Error as error:
            raise Disconnected(f"no connection to the server: {error}") from error

    async def _elected(self, _: Msg) -> None:
        until = asyncio.get_running_loop().time() + ELECTED_S
        for token, call in self._calls.items():
            self._calls[token] = call._replace(deadline=min(call.deadline, until))

    async def call(
        self, subject: str, data: bytes = b"", headers: dict[str, str] | None = None, timeout_s: float | None = None
    ) -> Msg:
        """Send a request, wait for its reply, for ``timeout_s`` or as long as usual. Calls leave in the order in which they were
        started. Raises Disconnected, TimedOut, Unreachable (nobody answers there), AccessDenied and TooLarge."""
        nc = self.nc
        if not nc.is_connected or self._subscription is None:
            raise Disconnected("no connection to the server" if self._subscription else "closed")
        loop = asyncio.get_running_loop()
        self._count += 1
        token = str(self._count)
        reply: asyncio.Future[Msg] = loop.create_future()
        deadline = loop.time() + (self.timeout_s if timeout_s is None else timeout_s)
        self._calls[token] = _Call(reply, subject, deadline, self.reconnects)
        if self._timer is None:
            self._timer = loop.call_later(TICK_S, self._tick, loop)
        try:
            await nc.publish(subject, data, reply=self._inbox + token, headers=headers)
            msg = await reply
        except nats_errors.MaxPayloadError as error:
            raise TooLarge(f"{len(data)} bytes are more than the server takes ({nc.max_payload})") from error
        except nats_errors.Error as error:
            raise Disconnected(f"no connection to the server: {error}") from error
        finally:
            self._calls.pop(token, None)
        if msg.headers is not None and msg.headers.get("Status") == "503":
            raise Unreachable(f"nobody serves {subject}: JetStream is off, still starting or without a leader")
        return msg

    async def publish(self, subject: str, data: bytes, headers: dict[str, str] | None = None) -> int:
        """Publish and wait until the stream has it; its sequence. Raises Conflict (an expected sequence did not match), what
        ``call`` raises, and Unreachable for the server's other complaints."""
        ack = _decode_ack((await self.call(subject, data, headers)).data)
        if ack.error is not None:
            _raise(ack.error, subject)
        return ack.seq

    async def api(self, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """One request of JetStream's JSON API. Raises NotFound, BadSettings, and what ``call`` raises."""
        subject = f"$JS.API.{name}"
        data = msgspec.json.encode(body) if body is not None else b""
        msg = await (self._ask(subject, data) if name.startswith(QUESTIONS) else self.call(subject, data))
        answer: dict[str, Any] = msgspec.json.decode(msg.data)
        if "error" in answer:
            _raise(msgspec.convert(answer["error"], _Fault), subject)
        return answer

    async def _ask(self, subject: str, data: bytes) -> Msg:
        loop = asyncio.get_running_loop()
        until = loop.time() + self.timeout_s
        for patience_s in AGAIN_S:
            if patience_s < until - loop.time():
                with contextlib.suppress(TimedOut):
                    return await self.call(subject, data, timeout_s=patience_s)
        return await self.call(subject, data, timeout_s=until - loop.time())

    async def stream(self, config: dict[str, Any], *, create: bool) -> dict[str, Any]:
        """Information on the stream ``config["name"]``, made if it is missing and ``create`` says so. Raises NotFound, and
        BadSettings if a stream of that name differs from ``config`` in anything but ``num_replicas``."""
        name = config["name"]
        try:
            info = await self.api(f"STREAM.INFO.{name}")
        except NotFound:
            if not create:
                raise
            with durable("jetstream.stream"):
                info = await self.api(f"STREAM.CREATE.{name}", config)
        actual = info["config"]
        for key, wanted in config.items():
            if key != "num_replicas" and actual.get(key, wanted) != wanted:
                raise BadSettings(f"stream {name} has {key} = {actual[key]!r}, not {wanted!r}", stream=name, setting=key)
        return info

    async def close(self) -> None:
        """Leave the inbox; calls under way end with Disconnected. The connection stays its owner's."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._fail_all(Disconnected("closed"))
        for subscription in (self._subscription, self._elections):
            if subscription is not None:
                await _unsubscribe(self.nc, subscription)
        self._subscription = self._elections = None

    async def _receive(self, msg: Msg) -> None:
        call = self._calls.pop(msg.subject[len(self._inbox) :], None)
        if call is not None and not call.reply.done():
            call.reply.set_result(msg)

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        down = not self.nc.is_connected
        refused = str(self.nc.last_error).lower()
        for call in list(self._calls.values()):
            if call.reply.done():
                continue
            if down or call.reconnects != self.reconnects:
                call.reply.set_exception(Disconnected(f"the connection broke while {call.subject} was under way"))
            elif "permissions violation" in refused and f'"{call.subject.lower()}"' in refused:
                call.reply.set_exception(AccessDenied(f"these credentials may not publish to {call.subject}"))
            elif now >= call.deadline:
                call.reply.set_exception(TimedOut(f"no answer from {call.subject} in time ({self.timeout_s:g} s at most)"))
        if self._calls:
            self._timer = loop.call_later(TICK_S, self._tick, loop)

    def _fail_all(self, error: ComityError) -> None:
        for call in self._calls.values():
            if not call.reply.done():
                call.reply.set_exception(error)


async def _unsubscribe(nc: Client, subscription: Subscription) -> None:
    if not nc.is_closed and not nc.is_draining:
        await subscription.unsubscribe()


class Row(NamedTuple):
    """One message of a stream. ``time_ns``: when the server stored it, UTC."""

    seq: int
    subject: str
    data: bytes
    headers: dict[str, str] | None
    time_ns: int


class Cursor:
    """A place in a stream, and what follows it in order. ``subject`` filters. Every row comes once; a row lost on the way
    makes the cursor begin anew after the last good one. One reader at a time.

    ``mends`` False: ``next`` raises what broke it (an Indefinite error) instead of going on: for a reader who must then look
    at the whole stream again, because rows may have vanished from it meanwhile.
    """

    def __init__(
        self, js: JetStream, stream: str, subject: str, after: int = 0, *, headers_only: bool = False, mends: bool = True
    ) -> None:
        self.after = after
        self.server = ""
        """Whose copy is read, where there are several."""
        self._mends = mends
        self._js = js
        self._stream = stream
        self._subject = subject
        self._headers_only = headers_only
        self._rows: list[Row] = []
        self._received = after
        self._delivered = 0
        self._owed = 0
        self._broken = False
        self._absent = False
        self._closed = False
        self._heard = 0.0
        self._born = 0.0
        self._asked: tuple[int, dict[str, Any]] = (0, {})
        self._consumer = ""
        self._inbox = ""
        self._pulls = 0
        self._reconnects = 0
        self._subscription: Subscription | None = None
        self._wake: asyncio.Future[None] | None = None

    async def fetch(self, limit: int, wait_s: float = 0.0) -> list[Row]:
        """Up to ``limit`` rows that are there now, as far as this replica knows; waits up to ``wait_s`` for all of them. Raises
        Indefinite errors and NotFound (no such stream); the next call goes on after the last row given out."""
        loop = asyncio.get_running_loop()
        try:
            await self._begin()
            deadline = loop.time() + self._js.timeout_s + wait_s
            if len(self._rows) < limit:
                how = {"expires": int(wait_s * 1e9)} if wait_s else {"no_wait": True}
                await self._pull(limit - len(self._rows), how)
                while self._owed > 0 and len(self._rows) < limit:
                    await self._listen()
                    if loop.time() >= deadline:
                        raise TimedOut(f"stream {self._stream} did not answer within {self._js.timeout_s} s")
        except Indefinite:
            await self._drop()
            raise
        return self._take(limit)

    async def next(self) -> list[Row]:
        """The next rows, as soon as there are any; empty only once the cursor is closed. Outlives restarts of the server,
        silence, and the loss of its consumer. Raises Disconnected if the connection is closed for good, NotFound."""
        loop = asyncio.get_running_loop()
        while not self._closed:
            try:
                await self._begin()
                if self._owed <= 0:
                    await self._pull(PULL_ROWS, {"expires": int(PULL_S * 1e9), "idle_heartbeat": int(HEARTBEAT_S * 1e9)})
                if not self._rows:
                    await self._listen()
                if not self._rows and loop.time() - self._heard > SILENCE_S:
                    raise TimedOut(f"stream {self._stream} is silent")
            except Indefinite:
                await self._drop()
                if self._js.nc.is_closed or not self._mends:
                    raise
                await asyncio.sleep(TICK_S)  # the client has no event for the return of its connection
            if self._rows:
                return self._take(len(self._rows))
        await self._drop()
        return []

    async def close(self) -> None:
        """End a waiting ``next``, and give up the consumer."""
        self._closed = True
        await self._drop()
        self._ring()

    def _take(self, limit: int) -> list[Row]:
        rows, self._rows = self._rows[:limit], self._rows[limit:]
        if rows:
            self.after = rows[-1].seq
        return rows

    async def _begin(self) -> None:
        if self._subscription is not None:
            return
        js = self._js
        self._inbox = js.nc.new_inbox() + "."
        self._consumer = self._inbox.rstrip(".").rpartition(".")[2]
        self._received = self._rows[-1].seq if self._rows else self.after
        self._delivered = self._owed = 0
        self._broken = self._absent = False
        self._reconnects = js.reconnects
        config = {
            "name": self._consumer,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._received + 1,
            "ack_policy": "none",
            "filter_subject": self._subject,
            "headers_only": self._headers_only,
            "mem_storage": True,
            "num_replicas": 1,
            "max_deliver": 1,
            "inactive_threshold": 10_000_000_000,
        }
        made = await js.api(
            f"CONSUMER.CREATE.{self._stream}.{self._consumer}.{self._subject}",
            {"stream_name": self._stream, "config": config},
        )
        self.server = (made.get("cluster") or {}).get("leader", "")
        self._heard = self._born = asyncio.get_running_loop().time()
        try:
            self._subscription = await js.nc.subscribe(
                self._inbox + "*", cb=self._receive, pending_bytes_limit=8 * PULL_BYTES
            )
        except nats_errors.Error as error:
            raise Disconnected(f"no connection to the server: {error}") from error

    async def _drop(self) -> None:
        """Forget the consumer; rows already here stay."""
        subscription, self._subscription = self._subscription, None
        if subscription is None:
            return
        nc = self._js.nc
        await _unsubscribe(nc, subscription)
        if nc.is_connected:
            await nc.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._consumer}")

    async def _pull(self, rows: int, how: dict[str, Any]) -> None:
        self._pulls += 1
        self._owed = rows
        self._asked = rows, how
        body = msgspec.json.encode({"batch": rows, "max_bytes": PULL_BYTES, **how})
        try:
            await self._js.nc.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._consumer}", body, reply=f"{self._inbox}{self._pulls}"
            )
        except nats_errors.Error as error:
            raise Disconnected(f"no connection to the server: {error}") from error

    async def _listen(self) -> None:
        """Wait a little for something to arrive. Raises Disconnected if the consumer or the connection is lost."""
        loop = asyncio.get_running_loop()
        self._wake = loop.create_future()
        timer = loop.call_later(0.2, self._ring)
        try:
            await self._wake
        finally:
            timer.cancel()
            self._wake = None
        if self._broken or not self._js.nc.is_connected or self._reconnects != self._js.reconnects:
            raise Disconnected(f"the reader of stream {self._stream} was cut off")
        if self._absent:
            self._absent = False
            await asyncio.sleep(YOUNG_TICK_S)
            await self._pull(*self._asked)

    def _ring(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _receive(self, msg: Msg) -> None:
        self._heard = asyncio.get_running_loop().time()
        if msg.subject.startswith(self._inbox):
            self._status(msg)
        else:
            # $JS.ACK.(domain.account.)stream.consumer.times.sequence.delivery.time.pending(.random)
            tokens = msg.reply.split(".")
            at = 5 if len(tokens) == 9 else 7
            self._delivered += 1
            seq = int(tokens[at])
            if int(tokens[at + 1]) != self._delivered:
                self._broken = True
            elif not self._broken and seq > self._received:
                self._received = seq
                self._rows.append(Row(seq, msg.subject, msg.data, msg.headers, int(tokens[at + 2])))
            self._owed -= 1
        self._ring()

    def _status(self, msg: Msg) -> None:
        headers = msg.headers or {}
        status = headers.get("Status")
        if status == "100":
            self._broken |= int(headers.get("Nats-Last-Consumer", 0)) > self._delivered
        elif msg.subject != f"{self._inbox}{self._pulls}":
            return  # the end of an earlier pull
        elif status == "503" and self._heard - self._born < YOUNG_S:
            self._absent = True  # made on another server, which ours does not know of yet
        elif status in ("404", "408") or headers.get("Description") in ("Batch Completed", "Message Size Exceeds MaxBytes"):
            self._owed = 0
        else:
            self._broken = True  # the consumer is gone, or its server is going
