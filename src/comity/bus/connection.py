"""nats-py's client, mended where 2.16 would break a promise of the bus (a test holds each), and with fewer steps between a
message and whoever takes it."""

from __future__ import annotations

import asyncio
import random
import re
from math import inf
from typing import Any

from nats import errors
from nats.aio.client import Client, Server, Srv
from nats.aio.transport import TcpTransport

RECONNECT_WAIT_S, RECONNECT_MAX_S, DENIED_WAIT_S = 0.05, 0.5, 1.0
"""Longest wait before each attempt to reconnect, soon after the connection broke and much later, and when the last was refused;
the wait is random, so that processes do not come back in step."""
PATIENCE = 0.1
"""Part of the time without a connection that the wait for the next attempt may add."""
CLOGGED = 64 * 1024
"""Bytes that the socket did not take yet: more waits here, where it can be dropped when the connection breaks."""

_DENIAL = re.compile("authorization violation|authentication (expired|revoked)", re.IGNORECASE)


def is_denial(error: Exception | None) -> bool:
    """Whether it is a server's that does not want this user."""
    return _DENIAL.search(str(error)) is not None


class _Tcp(TcpTransport):
    def __bool__(self) -> bool:
        return True  # the original would put another one in its place before it is connected

    def abort(self) -> None:
        """End it at once: TLS would wait long for a server that is stopped or cut off to agree."""
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def connect_tls(self, *args: Any, **options: Any) -> None:
        try:
            await super().connect_tls(*args, **options)
        except BaseException:
            self.abort()
            self._io_reader = self._io_writer = None  # the end of a connection that was half way to TLS is never told
            raise
        # The original leaves the stream to believe that it is not over TLS, which asyncio complains of when it ends.
        self._io_writer._protocol._over_ssl = True  # type: ignore[union-attr]


class Connection(Client):
    """See the module. A subscription's callback must not wait for anything that comes by this connection."""

    _moving: asyncio.Task[None]
    _broken_at = inf

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes) -> None:
        # The original hands it to a queue and a task for each subscription: one more turn of the loop for each message.
        subscription = self._subs.get(sid)
        if subscription is None or subscription._cb is None:
            await super()._process_msg(sid, subject, reply, data, headers)
            return
        self.stats["in_msgs"] += 1
        self.stats["in_bytes"] += len(data)
        known = await self._process_headers(headers) if headers else None
        try:
            await subscription._cb(self._build_message(sid, subject, reply, data, known))
        except Exception as error:  # a receiver's fault must not end the reader
            await self._error_cb(error)

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        # The original wakes a task that writes in the next turn. The loop gathers writes by itself.
        transport = self._transport
        if force_flush or not self.is_connected or type(transport) is not _Tcp or transport._io_writer is None:
            return await super()._flush_pending(force_flush)
        try:
            if transport._io_writer.transport.get_write_buffer_size() > CLOGGED:
                return await super()._flush_pending()
            if self._pending:
                pending, self._pending, self._pending_data_size = self._pending, [], 0
                transport.writelines(pending)  # type: ignore[no-untyped-call]
        except RuntimeError as error:  # uvloop's word for a socket that was closed since; the reader has yet to see it
            raise errors.ConnectionClosedError from error
        return None

    async def _send_ping(self, future: asyncio.Future[Any] | None = None) -> None:
        # The original writes PING past the commands that still wait to be written: flush() would confirm too early.
        self._pongs.append(future or asyncio.get_running_loop().create_future())
        await self._send_command(b"PING\r\n")
        await self._flush_pending()

    async def _process_pong(self) -> None:
        # A flush() that was canceled leaves a canceled future; setting its result would end the reader, silently.
        if self._pongs and self._pongs[0].done():
            self._pongs[0] = asyncio.get_running_loop().create_future()
        await super()._process_pong()

    @property
    def servers_known(self) -> int:
        """Those named and those that the servers told of."""
        return len(self._server_pool)

    def change_server(self) -> None:
        """As if the connection had broken."""
        self._moving = asyncio.get_running_loop().create_task(self.force_reconnect())

    def next_server(self, servers: list[Server], _: dict[str, Any]) -> tuple[Server, float]:
        """The server tried least, after a random wait."""
        away_s = asyncio.get_running_loop().time() - self._broken_at
        longest = min(max(RECONNECT_WAIT_S, away_s * PATIENCE), RECONNECT_MAX_S)
        if is_denial(self.last_error):
            longest = DENIED_WAIT_S
        return min(servers, key=lambda server: server.reconnects), random.uniform(0, longest)

    def _drop(self) -> None:
        self._pending.clear()
        self._pending_data_size = 0
        if type(self._transport) is _Tcp:
            self._transport.abort()

    async def _close(self, status: int, do_cbs: bool = True) -> None:
        # Whoever closes has flushed. The original would write what waits: without end if the server is paused, and with an error
        # half way if the socket is broken.
        mending = self._reconnection_task
        if mending is not None and mending is not asyncio.current_task():
            mending.cancel()
        self._drop()
        await super()._close(status, do_cbs)

    async def _attempt_reconnect(self) -> None:
        # What was not written yet must not be sent late, and who waits for an answer of the lost server waits in vain.
        self._broken_at = asyncio.get_running_loop().time()
        self._drop()
        for future in (*self._pongs, *self._resp_map.values()):
            if not future.done():
                future.set_exception(errors.ConnectionReconnectingError())
                future.exception()  # nobody may be waiting: then it is not news
        self._pongs.clear()
        if self._current_server is not None:
            # Whoever has just failed is tried after all others.
            self._current_server.reconnects = 1 + max(server.reconnects for server in self._server_pool)
        await super()._attempt_reconnect()

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Asked for TLS, the original goes on without it if the server (or whoever answers in its place) does not offer it.
        if initial_connection and "tls" in self.options and not info.get("tls_required"):
            raise errors.Error("nats: the server does not offer TLS")
        await super()._process_info(info, initial_connection)
        for server in self._server_pool:
            server.tls_name = None  # the original would look for the first server's name in every server's certificate

    async def _connect_to_server(self, s: Srv) -> None:
        # An attempt that failed half way would leave its socket open.
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]
        elif s.uri.scheme in ("nats", "tls"):
            self._transport = _Tcp()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)
