"""A disk that was full: nats-server gives up a stream whose write failed, and does not take it up again when there is room. So it
is started again then."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil

from comity.embedded import EmbeddedServer
from comity.errors import ServerFailed

LOOK_S = 1.0
ENOUGH_BYTES = 16 * 1024 * 1024
"""Free, before it is worth a try: room for some entries, and for what the server writes as it starts."""
AGAIN_S = 30.0
"""Between two starts at least, if there is room and writes fail all the same (a quota)."""
SIGNS = (b"no space left on device", b"disk quota exceeded")
"""What the server says of a write for which there was no room."""

log = logging.getLogger(__name__)


class FullDisk:
    """Looks after the disk of ``server``, until ``close``."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.is_full = False
        self._server = server
        self._path = server.data / "server.log"
        self._not_before = 0.0
        self._skip()
        self._work = asyncio.create_task(self._run(), name="full-disk")

    async def close(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])
        if not self._work.cancelled():
            self._work.result()

    def look(self) -> bool:
        """Whether it is full, by what the server has said until now."""
        if not self.is_full and self._said_so():
            self.is_full = True
            log.error("the disk of %s is full: nothing is accepted here until there is room", self._server.data)
        return self.is_full

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK_S)  # neither the server nor the disk tells anybody
            if self.look() and loop.time() >= self._not_before and self._free() >= ENOUGH_BYTES:
                log.warning("there is room at %s again: nats-server is started again", self._server.data)
                self._not_before = loop.time() + AGAIN_S
                try:
                    await self._server.restart(lambda: None)
                except ServerFailed as error:
                    log.error("it could not be started again: %s", error)
                self._skip()
                self.is_full = False

    def _free(self) -> int:
        return shutil.disk_usage(self._server.data).free

    def _skip(self) -> None:
        """What the server said until now does not count."""
        try:
            self._read_to = self._path.stat().st_size
        except FileNotFoundError:  # it begins anew when it is long
            self._read_to = 0

    def _said_so(self) -> bool:
        """Whether the server, since the last look, could not write something."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < self._read_to:
                    self._read_to = 0
                file.seek(self._read_to)
                said = file.read()
        except FileNotFoundError:
            self._read_to = 0
            return False
        self._read_to += len(said)
        return any(sign in said for sign in SIGNS)
