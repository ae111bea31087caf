"""One TCP connection between members, or of a member with who uses the log: lists of values in checked frames.

    frame = length(4) checksum(4) payload, little-endian; a payload is a list, MessagePack

What is sent in one turn of the loop goes in one frame. What comes damaged ends the connection: a length that is wrong leaves no
place from which to go on.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from typing import Any, cast
from zlib import crc32

import msgspec

from comity.errors import ComityError, Corrupt, Disconnected

_HEADER = struct.Struct("<II")
MOST_BYTES = 64 << 20
"""Of one frame; a longer one is garbage."""
MOST_WAITING = 4096
"""Values that wait while the other side reads nothing; a link that may lose some loses more than that."""

SILENT_S = 5
"""A connection whose other machine acknowledges nothing for so long is over: what was cut off comes back by a new one at once,
where the old one would wait for as long again as it was cut off."""

_encode = msgspec.msgpack.Encoder().encode


class Link(asyncio.Protocol):
    """``on_values`` is given each frame's list, decoded by ``decode``; ``on_end`` why the connection ended (once). A frame of
    more than ``most_bytes`` ends it."""

    def __init__(
        self,
        decode: Callable[[bytes], list[Any]],
        on_values: Callable[[Link, list[Any]], None],
        on_end: Callable[[Link, ComityError], None],
        *,
        may_lose: bool = False,
    ) -> None:
        self.decode = decode
        self.on_values = on_values
        self.on_end = on_end
        self.may_lose = may_lose
        self.most_bytes = MOST_BYTES
        self.ended: ComityError | None = None
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._waiting: list[Any] = []
        self._is_clogged = False
        self._loop = asyncio.get_running_loop()

    def send(self, value: Any) -> None:
        """Send it soon, or lose it with the connection."""
        if self.ended is not None or (self.may_lose and len(self._waiting) >= MOST_WAITING):
            return
        if not self._waiting and not self._is_clogged:
            self._loop.call_soon(self._flush)
        self._waiting.append(value)

    def close(self, error: ComityError | None = None) -> None:
        """Send what waits, and end."""
        if self.ended is None:
            self._flush()
            if self._transport is not None:
                self._transport.close()
            self._end(error or Disconnected("the connection was closed here"))

    def abort(self, error: ComityError) -> None:
        """End at once: the other side is silent."""
        if self._transport is not None:
            self._transport.abort()
        self._end(error)

    def _flush(self) -> None:
        if self._waiting and self._transport is not None and not self._transport.is_closing():
            payload = _encode(self._waiting)
            self._waiting = []
            # Not writelines: of some Pythons (CVE-2024-12254) it never asks to wait.
            self._transport.write(_HEADER.pack(len(payload), crc32(payload)) + payload)

    def _end(self, error: ComityError) -> None:
        if self.ended is None:
            self.ended = error
            self._waiting = []
            self.on_end(self, error)

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and does not say so
        if self.ended is not None:  # given up while TLS was agreed on
            self._transport.abort()
            return
        _watch(transport.get_extra_info("socket"))
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(Disconnected(f"the connection broke: {exc}" if exc else "the other side closed the connection"))

    def pause_writing(self) -> None:
        self._is_clogged = True

    def resume_writing(self) -> None:
        self._is_clogged = False
        self._flush()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while self.ended is None and len(buffer) - start >= _HEADER.size:
            length, checksum = _HEADER.unpack_from(buffer, start)
            if length > self.most_bytes:
                return self.abort(Corrupt(f"a frame of {length} bytes came: that is no member's"))
            stop = start + _HEADER.size + length
            if len(buffer) < stop:
                break
            payload = bytes(memoryview(buffer)[start + _HEADER.size : stop])
            start = stop
            if crc32(payload) != checksum:
                return self.abort(Corrupt("a frame came damaged"))
            try:
                values = self.decode(payload)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                return self.abort(Corrupt(f"a frame came that cannot be understood: {error}"))
            self.on_values(self, values)
        del buffer[:start]
        return None


def _watch(sock: socket.socket | None) -> None:
    """Have the machine end the connection when the other one is silent, be there something to send or not."""
    if sock is None or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_S * 1000)
