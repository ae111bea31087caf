"""AMQP 0-9-1 as the bus needs it: frames in and out, without a task or a future for each message.

aio-pika keeps a future for each message that may come back (``mandatory``), and a task for each that comes; pamqp, below it,
knows the frames. Publishing, consuming and all that is asked have a channel each: what the server refuses ends a channel, and
must not end the others.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import struct
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import Any, TypeVar, cast

from pamqp import commands, constants
from pamqp import frame as frames
from pamqp.base import Frame
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from comity.errors import Disconnected

HEARTBEAT_S = 4
"""The server ends a connection that is silent for twice as long."""
SILENT_S = 6.0
"""And so do we."""
ANSWER_S = 5.0
"""A server that is well answers sooner. One that does not is left."""
CLOGGED = 1024 * 1024
"""Bytes that may wait to be written before ``publish`` waits for the server to take them."""
PUBLISHING, CONSUMING, ASKING = 1, 2, 3

_HEAD = struct.Struct(">BHI")
_END = bytes([constants.FRAME_END])
_DELIVER = struct.pack(">HH", 60, 60)
_RETURN = struct.pack(">HH", 60, 50)
_CAPABILITIES: dict[str, Any] = {"authentication_failure_close": True, "connection.blocked": True, "consumer_cancel_notify": True}

log = logging.getLogger(__name__)
Properties = commands.Basic.Properties
Take = Callable[[str, Properties, bytes], None]
R = TypeVar("R", bound=Frame)


class Refusal(Exception):
    """The server ended a channel, or the connection, and said why."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class Connection(asyncio.Protocol):
    """One connection. Set what is to be called, then ``open`` it.

    ``took``: a message came; ``returned``: nobody could get it; ``refused``: the server does not let this process publish there;
    ``canceled``: the server ended the subscription to a queue, which was deleted, moved or is away with a server of a cluster;
    ``blocked``: the server is short of memory or disk and takes nothing (True), or does again; ``lost``: it is over.
    """

    def __init__(self) -> None:
        self.took: Take = _nothing
        self.returned: Take = _nothing
        self.refused: Callable[[Refusal], None] = _nothing
        self.canceled: Callable[[str], None] = self._abandon
        self.blocked: Callable[[bool], None] = _nothing
        self.is_blocked = False
        self.consumed: set[str] = set()
        self.lost: Callable[[Exception | None], None] = _nothing
        self.server: dict[str, Any] = {}
        self.error: Exception | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: dict[int, deque[asyncio.Future[Frame]]] = {}
        self._content: dict[int, tuple[Take, str, int, Properties, list[bytes]]] = {}
        self._largest = 0
        self._heard = 0.0
        self._is_doubted = False
        self._watch: asyncio.TimerHandle | None = None
        self._writable = asyncio.Event()
        self._ended = asyncio.Event()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._ended.is_set() and self.error is None

    # From nothing to three channels, and back

    async def open(
        self, host: str, port: int, tls: ssl.SSLContext | None, user: str, password: str, vhost: str, name: str
    ) -> None:
        """Raises OSError (nobody is there, or it broke), Refusal, Disconnected (it does not answer)."""
        try:
            await self._loop.create_connection(lambda: self, host, port, ssl=tls)
        except BaseException:
            self._ended.set()  # uvloop does not tell, if it is given up just as it is made
            raise
        try:
            start = await self._ask(0, b"AMQP\x00\x00\x09\x01", commands.Connection.Start)
            self.server = start.server_properties
            properties: dict[str, Any] = {"connection_name": name, "product": "Comity", "capabilities": _CAPABILITIES}
            login = commands.Connection.StartOk(properties, "PLAIN", f"\0{user}\0{password}", "en_US")
            tune = await self._ask(0, frames.marshal(login, 0), commands.Connection.Tune)
            self._largest = min(tune.frame_max or constants.FRAME_MAX_SIZE, constants.FRAME_MAX_SIZE) - 8
            tuned = commands.Connection.TuneOk(tune.channel_max, self._largest + 8, HEARTBEAT_S)
            await self._ask(0, frames.marshal(tuned, 0) + frames.marshal(commands.Connection.Open(vhost), 0), Frame)
            self._tick()
            for channel in (PUBLISHING, CONSUMING, ASKING):
                await self.ask(channel, commands.Channel.Open())
        except BaseException:
            self.abort()
            raise

    async def close(self) -> None:
        """Flush, and end it in order. Raises Disconnected if it was not possible: then what was sent last may be lost."""
        try:
            if self.is_blocked:
                raise Disconnected("the server takes nothing now")
            if self.is_open:
                await self.ask(PUBLISHING, commands.Channel.Close(200, "", 0, 0))
                await self.ask(0, commands.Connection.Close(200, "", 0, 0))
        except (Refusal, OSError) as error:
            raise Disconnected(f"the connection broke while it ended: {error}") from error
        finally:
            self.abort()

    def abort(self, error: Exception | None = None) -> None:
        """End it at once; what was not written yet is dropped."""
        self.error = self.error or error
        if self._transport is not None:
            self._transport.abort()

    async def ended(self) -> None:
        if self._transport is not None:
            await self._ended.wait()

    def _tick(self) -> None:
        if self._transport is None or self._ended.is_set():
            return
        if self._loop.time() - self._heard > SILENT_S:
            if self._is_doubted:
                self.abort(Disconnected(f"nothing was heard of the server for {SILENT_S} s"))
                return
            self._is_doubted = True  # if this process stood still, what came meanwhile is read first
        self._transport.write(Heartbeat.value)
        self._watch = self._loop.call_later(HEARTBEAT_S / 4, self._tick)

    # What is asked of the server

    async def ask(self, channel: int, frame: Frame) -> None:
        """Returns once it is done. Raises Refusal (then the channel is open anew), Disconnected."""
        await self._ask(channel, frames.marshal(frame, channel), Frame)

    async def consume(self, queue: str) -> None:
        """``took`` is told what comes to ``queue``. A second time would end the connection: that is not asked."""
        if queue not in self.consumed:
            self.consumed.add(queue)  # before the answer: the subscription may end in the same moment
            await self.ask(CONSUMING, commands.Basic.Consume(0, queue, queue, no_ack=True))

    def tell(self, channel: int, frame: Frame) -> None:
        """What has no answer."""
        if self._transport is not None:
            self._transport.write(frames.marshal(frame, channel))

    def forget(self, channel: int, frame: Frame) -> None:
        """What has an answer that nobody waits for."""
        if self.is_open:
            self._waiting[channel].append(self._loop.create_future())
            self.tell(channel, frame)

    async def _ask(self, channel: int, data: bytes, kind: type[R]) -> R:
        if self._transport is None or self._ended.is_set():
            raise Disconnected("the connection is over") from self.error
        answer: asyncio.Future[Frame] = self._loop.create_future()
        self._waiting.setdefault(channel, deque()).append(answer)
        self._transport.write(data)
        try:
            async with asyncio.timeout(ANSWER_S):
                found = await answer
        except TimeoutError:
            late = Disconnected(f"the server did not answer within {ANSWER_S} s")
            self.abort(late)
            raise late from None
        if not isinstance(found, kind):
            raise Disconnected(f"the server answered {found.name}, which was not asked for")
        return found

    # Messages

    async def publish(self, exchange: str, key: str, properties: bytes, body: bytes, *, mandatory: bool) -> None:
        """``properties``: see ``packed``. Returns once the server has taken most of what was published. Raises Disconnected."""
        transport = self._transport
        if transport is None or not self.is_open:
            raise Disconnected("nothing was sent: the connection is over") from self.error
        size = len(body)
        header = _HEAD.pack(constants.FRAME_HEADER, PUBLISHING, 12 + len(properties))
        parts = [_publish(exchange, key, mandatory), header, struct.pack(">HHQ", 60, 0, size), properties, _END]
        for begin in range(0, size, self._largest):
            piece = body[begin : begin + self._largest]
            parts += (_HEAD.pack(constants.FRAME_BODY, PUBLISHING, len(piece)), piece, _END)
        transport.write(b"".join(parts))
        if not self._writable.is_set():
            try:
                async with asyncio.timeout(ANSWER_S):
                    await self._writable.wait()
            except TimeoutError:
                late = Disconnected(f"the server took nothing for {ANSWER_S} s")
                self.abort(late)
                raise late from None
            if not self.is_open:
                raise Disconnected("the connection broke") from self.error

    # What the transport tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=CLOGGED)
        self._heard = self._loop.time()
        self._writable.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        self._is_doubted = False
        buffer = self._buffer
        buffer += data
        at = 0
        try:
            while len(buffer) - at >= _HEAD.size:
                kind, channel, size = _HEAD.unpack_from(buffer, at)
                if kind == ord("A") and buffer.startswith(b"AMQP"):
                    raise ValueError("it speaks another version of AMQP")
                if size > constants.FRAME_MAX_SIZE:
                    raise ValueError(f"a frame of {size} bytes")
                end = at + _HEAD.size + size
                if len(buffer) <= end:
                    break
                if buffer[end] != constants.FRAME_END:
                    raise ValueError("a frame has no end")
                self._on_frame(kind, channel, bytes(buffer[at : end + 1]))
                at = end + 1
        except (ValueError, LookupError, PAMQPException, struct.error) as error:
            self.abort(Disconnected(f"what came is not AMQP 0-9-1: {error}"))
        del buffer[:at]

    def eof_received(self) -> None:
        """The server closes; so do we."""

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = self.error or exc
        self._ended.set()
        self._writable.set()
        if self._watch is not None:
            self._watch.cancel()
        broken = self.error if isinstance(self.error, Refusal | Disconnected) else Disconnected("the connection broke")
        for channel in list(self._waiting):
            self._fail(channel, broken)
        self.lost(self.error)

    # Frames

    def _on_frame(self, kind: int, channel: int, data: bytes) -> None:
        if kind == constants.FRAME_BODY:
            self._on_body(channel, data[_HEAD.size : -1])
        elif kind == constants.FRAME_HEADER:
            take, key, _, _, _ = self._content[channel]
            size = int.from_bytes(data[11:19], "big")
            self._content[channel] = (take, key, size, _known(data[19:-1]), [])
            if not size:
                self._on_body(channel, b"")
        elif kind == constants.FRAME_METHOD:
            method = data[_HEAD.size : _HEAD.size + 4]
            if method == _DELIVER:
                at = 12 + data[11] + 9  # after the consumer's tag, the delivery's number and whether it came before
                self._content[channel] = (self.took, _second(data, at), 0, _NONE, [])
            elif method == _RETURN:
                at = 14 + data[13]  # after the code and the text
                self._content[channel] = (self.returned, _second(data, at), 0, _NONE, [])
            else:
                self._on_method(channel, cast("Frame", frames.unmarshal(data)[2]))

    def _on_body(self, channel: int, data: bytes) -> None:
        take, key, size, properties, parts = self._content[channel]
        parts.append(data)
        if sum(map(len, parts)) >= size:
            del self._content[channel]
            take(key, properties, parts[0] if len(parts) == 1 else b"".join(parts))

    def _on_method(self, channel: int, frame: Frame) -> None:
        if isinstance(frame, commands.Connection.Close):
            self.tell(0, commands.Connection.CloseOk())
            self.abort(_refusal(frame))
        elif isinstance(frame, commands.Channel.Close):
            self._on_channel_closed(channel, _refusal(frame))
        elif isinstance(frame, commands.Basic.Cancel):
            self.consumed.discard(str(frame.consumer_tag))
            self.canceled(str(frame.consumer_tag))
        elif isinstance(frame, commands.Connection.Blocked | commands.Connection.Unblocked):
            self.is_blocked = isinstance(frame, commands.Connection.Blocked)
            self.blocked(self.is_blocked)
        elif waiting := self._waiting.get(channel):
            answer = waiting.popleft()
            if not answer.done():
                answer.set_result(frame)
        else:
            raise ValueError(f"{frame.name} was not asked for")

    def _abandon(self, queue: str) -> None:
        self.abort(Disconnected(f"the server ended the subscription to {queue}: it was deleted, or moved"))

    def _on_channel_closed(self, channel: int, refusal: Refusal) -> None:
        self._content.pop(channel, None)
        self.tell(channel, commands.Channel.CloseOk())
        if channel == CONSUMING:
            self.abort(refusal)
            return
        self._fail(channel, refusal)
        opened: asyncio.Future[Frame] = self._loop.create_future()
        self._waiting[channel].append(opened)
        self.tell(channel, commands.Channel.Open())
        if channel == PUBLISHING:
            self.refused(refusal)

    def _fail(self, channel: int, error: Exception) -> None:
        waiting = self._waiting.setdefault(channel, deque())
        while waiting:
            answer = waiting.popleft()
            if not answer.done():
                answer.set_exception(error)
                answer.exception()  # nobody may be waiting: then it is not news


def _refusal(frame: commands.Connection.Close | commands.Channel.Close) -> Refusal:
    return Refusal(frame.reply_code or 0, frame.reply_text)


def packed(properties: Properties) -> bytes:
    """As ``publish`` takes them."""
    return properties.marshal()


@lru_cache(4096)
def _publish(exchange: str, key: str, mandatory: bool) -> bytes:
    return frames.marshal(commands.Basic.Publish(0, exchange, key, mandatory), PUBLISHING)


@lru_cache(1024)
def _properties(data: bytes) -> Properties:
    header = ContentHeader()
    header.unmarshal(bytes(12) + data)
    return header.properties


def _known(data: bytes) -> Properties:
    """None for what cannot be read: whoever sent that must not end our connection."""
    try:
        return _properties(data)
    except (ValueError, LookupError, OverflowError, TypeError, PAMQPException, struct.error):
        return _NONE


_NONE = Properties()


def _second(data: bytes, at: int) -> str:
    """The second of two short strings, of which the first begins ``at``."""
    at += 1 + data[at]
    return data[at + 1 : at + 1 + data[at]].decode(errors="replace")


def _nothing(*_: object) -> None:
    """Until somebody wants to know."""
