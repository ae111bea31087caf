"""``log.mark``: how far the log was known to reach, kept beside it. So a log that lost its end, or a stream that is gone, shows
at the next start: without it the server would serve what is left, or an empty stream, as if that were all.

It names an effective entry that the log had acknowledged, by index and digest, and is replaced as a whole, about once a second
while entries come and when the network stops. So it is never ahead of what is durable, and may be a second behind it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import structlog
from nats.aio.client import Client

from comity.controller.tail import must_hold
from comity.core.ledger import Ledger
from comity.credentials import write_private
from comity.errors import Corrupt, ForeignData, NotFound, ServerFailed
from comity.failpoints import durable
from comity.jetstream import JetStream
from comity.log.base import Log
from comity.model.ids import NetworkId

FILE = "log.mark"
FORMAT = 1
PACE_S = 1.0

_log = structlog.get_logger("comity.mark")


class Mark(msgspec.Struct, frozen=True, kw_only=True):
    """``digest`` in hex; ``index`` 0: the streams were made, and nothing is known of what is in them. ``fault``: what the last
    start found wrong."""

    network_id: str
    index: int = 0
    digest: str = ""
    fault: str = ""
    format: int = FORMAT

    @classmethod
    def load(cls, data: Path) -> Mark | None:
        """The mark in ``data``; None if there is none. Raises Corrupt, ForeignData (a newer version's)."""
        path = data / FILE
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
            bytes.fromhex(found.digest)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, msgspec.DecodeError) as error:
            raise Corrupt(f"{path} cannot be read: {error}", path=str(path)) from error
        if found.format != FORMAT:
            raise ForeignData(f"{path} has format {found.format}; this version reads {FORMAT}", path=str(path))
        return found

    def save(self, data: Path) -> None:
        with durable("log.mark"):
            write_private(data / FILE, msgspec.json.encode(self).decode() + "\n")


class Marking:
    """The mark of one data directory, whose log lies at ``log``: a folder beside the other streams, or an address. ``is_new``:
    they may be made."""

    def __init__(self, data: Path, network_id: NetworkId, log: Path | str) -> None:
        """Raises Corrupt, ForeignData."""
        found = Mark.load(data)
        if found is not None and found.network_id != network_id:
            raise ForeignData(f"{data / FILE} is of network {found.network_id}, not {network_id}", path=str(data / FILE))
        self.is_new = found is None
        self._data = data
        self._place = log
        self._mark = found or Mark(network_id=network_id)
        self._keeping: asyncio.Task[None] | None = None
        self._over = asyncio.Event()
        self._failing = ""

    async def look(self, nc: Client, *names: str) -> None:
        """Raises Corrupt if one of these streams was made before and is missing."""
        if self.is_new:
            return
        js = await JetStream(nc).open()
        try:
            for name in names:
                path = Path(self._place).with_name(name)
                try:
                    await js.api(f"STREAM.INFO.{name}")
                except NotFound as error:
                    raise Corrupt(f"{path} is missing: it was there when this network ran before", path=str(path)) from error
        finally:
            await js.close()

    async def check(self, log: Log) -> None:
        """Raises Corrupt if ``log`` does not hold the marked entry."""
        await must_hold(log, self._mark.index, bytes.fromhex(self._mark.digest), FILE)

    async def begin(self) -> None:
        """The streams are there, and must be from now on. Raises ServerFailed if that cannot be written down."""
        try:
            await self._save(self._mark)
        except OSError as error:
            raise ServerFailed(f"cannot write {self._data / FILE}: {error.strerror}", path=str(self._data)) from error

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """Say where the damage is that is found meanwhile, and write it down for ``comity doctor``: but for that the mark stays
        as it is."""
        try:
            yield
        except Corrupt as error:
            path = error.details.get("path", self._place)
            said = error.message if str(path) in error.message else f"{path} is damaged: {error.message}"
            with contextlib.suppress(OSError):  # what is damaged matters more
                msgspec.structs.replace(self._mark, fault=said).save(self._data)
            raise Corrupt(said, **error.details | {"path": str(path)}) from error

    def keep(self, ledger: Callable[[], Ledger]) -> None:
        """Follow ``ledger`` from now on."""
        self._keeping = asyncio.get_running_loop().create_task(self._keep(ledger), name="log-mark")

    async def stop(self) -> None:
        """Mark what was acknowledged last, and follow no longer. Idempotent."""
        self._over.set()
        if self._keeping is not None:
            await self._keeping

    async def _keep(self, ledger: Callable[[], Ledger]) -> None:
        while not self._over.is_set():
            await self._advance(ledger())
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), PACE_S)
        await self._advance(ledger())

    async def _advance(self, ledger: Ledger) -> None:
        if ledger.effective_index <= self._mark.index:
            return
        mark = msgspec.structs.replace(self._mark, index=ledger.effective_index, digest=ledger.digest.hex())
        failing = ""
        try:
            await self._save(mark)
            self._mark = mark
        except OSError as error:  # such as a full disk: an older mark is true as well
            failing = error.strerror or str(error)
        if failing != self._failing:
            self._failing = failing
            self._tell(failing)

    def _tell(self, failing: str) -> None:
        """Once when it begins, and once when it is over: it is tried again each second."""
        path = str(self._data / FILE)
        if failing:
            _log.warning("cannot mark how far the log reaches", path=path, error=failing)
        else:
            _log.warning("how far the log reaches is marked again", path=path)

    async def _save(self, mark: Mark) -> None:
        await asyncio.to_thread(msgspec.structs.replace(mark, fault="").save, self._data)
