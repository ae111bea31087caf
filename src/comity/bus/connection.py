"""nats-py's client, mended where 2.16 would break a promise of the bus (a test holds each), and with fewer steps between a
message and whoever takes it."""

from __future__ import annotations

import asyncio
from typing import Any

from nats import errors
from nats.aio.client import Client, Srv
from nats.aio.transport import TcpTransport

CLOGGED = 64 * 1024
"""Bytes that the socket did not take yet: more waits here, where it can be dropped when the connection breaks."""


class Connection(Client):
    """See the module. A subscription's callback must not wait for anything that comes by this connection."""

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
        if force_flush or not self.is_connected or type(transport) is not TcpTransport or transport._io_writer is None:
            return await super()._flush_pending(force_flush)
        if transport._io_writer.transport.get_write_buffer_size() > CLOGGED:
            return await super()._flush_pending()
        if self._pending:
            pending, self._pending, self._pending_data_size = self._pending, [], 0
            transport.writelines(pending)  # type: ignore[no-untyped-call]
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

    async def _attempt_reconnect(self) -> None:
        # What was not written yet must not be sent late, and who waits for an answer of the lost server waits in vain.
        self._pending.clear()
        self._pending_data_size = 0
        for future in (*self._pongs, *self._resp_map.values()):
            if not future.done():
                future.set_exception(errors.ConnectionReconnectingError())
                future.exception()  # nobody may be waiting: then it is not news
        self._pongs.clear()
        await super()._attempt_reconnect()

    async def _connect_to_server(self, s: Srv) -> None:
        # An attempt that failed half way would leave its socket open.
        if self._transport:
            self._transport.close()  # type: ignore[no-untyped-call]
        await super()._connect_to_server(s)
