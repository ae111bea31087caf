"""Looks after this server's own copy of the log: finds damage in it, has others lead instead, and has it rebuilt from theirs.

    before the server runs   it must not start on damage: it could cut off what follows, lead with what is left, and have the
                             others drop it too. What only it can see (see ``cluster.replica``) it is made to find alone
    all the time after that  the files are read through; sooner if somebody cannot read an entry, which is then asked for too

A copy is given up only if a majority of others has all of it, and what is damaged here is intact there: see
``cluster.rebuilding``. Else it stays, damage and all, and readers end with ``corrupt`` rather than take it for data.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from comity.bus.nats import NatsBus
from comity.cli.marking import Mark
from comity.cli.seat import Seat
from comity.cluster.membership import Member
from comity.cluster.rebuilding import Copies, View, quarantine, set_aside, stream_of
from comity.cluster.replica import Copy, Flaw, Pace, look
from comity.cluster.status import SystemView
from comity.config import Settings
from comity.connect import secured
from comity.credentials import Role, write_private
from comity.embedded import EmbeddedServer
from comity.errors import ComityError, Indefinite, NotFound, ServerFailed, Unreachable
from comity.jetstream import JetStream
from comity.model.server import Damage

OTHERS_S = 15.0
"""So long a server that finds its copy damaged waits for the others before it starts all the same: they may be starting too.
Without wait if the copy only lost its end: a power cut may do that to all, and JetStream has the end elsewhere too."""
LOOK_S = 5.0
ASK_S = 1.0
RETRY_S = 0.2
CONFIRM_S, END_S = 0.5, 20.0
"""Damage is what is still there after so long: files change while they are read, and a server that lacks the last entries may
wait 5 s before it asks for them."""
SETTLE_S = 5.0
"""A new leader needs a moment to know which copies are up to date; and who leads the controllers, after a restart of its server,
to lead again and be followed: what it is told before that it tells nobody."""
REST_S = 1.0
"""Between two looks while the copy is rebuilt."""
AGAIN_S = 5.0
"""Between two looks otherwise, however often one is asked for; and until a copy that could not be given up is looked at again."""
END = "the end"
OPENING = "log.opening"
"""Up to which entry the copy was there before its server opened it: until it was seen to be so after that, too."""
MB = 1_000_000

log = logging.getLogger(__name__)


async def mend_before(member: Member, server: EmbeddedServer) -> Damage | None:
    """Before ``server`` runs: if its copy is damaged, put it aside as soon as the others can be seen to have all of it; what was
    found then. Raises Corrupt, ForeignData (the mark cannot be used), ServerFailed (nor can the copy be moved)."""
    mark, folder = Mark.load(server.data), _folder(server)
    known = mark.index if mark is not None else 0
    cut = None
    if not folder.is_dir():
        return None
    copy = await look(folder, 0, _at_once)
    flaw = _flaw(copy, known)
    if flaw is None:
        flaw = cut = await _cut_alone(server, folder, copy.last)
    if flaw is None:
        return None
    loop = asyncio.get_running_loop()
    until = loop.time() + (0.0 if flaw.reason == _end(flaw.entry - 1, known) else OTHERS_S)
    while True:
        try:
            async with asyncio.timeout(LOOK_S) as limit, _from_others(member, server) as copies:
                first = (await copies.view()).first
                limit.reschedule(None)  # to read the files takes as long as it takes
                flaw = cut or _flaw(await look(folder, first, _at_once), known)
                limit.reschedule(loop.time() + LOOK_S)
                why = await copies.obstacle(flaw, known) if flaw is not None else ""
        except (ComityError, TimeoutError) as error:
            why = str(error) or "the other servers do not answer"
        else:
            if flaw is None:
                return None
            if not why:
                damage = _noted(server, flaw)
                await asyncio.to_thread(_set_aside, server)
                return damage
        if loop.time() >= until:
            log.error("this server's copy of the log is damaged, and cannot be rebuilt now: %s", why)
            return None
        await asyncio.sleep(RETRY_S)  # that other servers are ready cannot be awaited


def _flaw(copy: Copy, known: int) -> Flaw | None:
    """A copy that only ends early may lack what it never had; if it is torn there too, it was cut."""
    return Flaw(copy.last + 1, copy.torn, _end(copy.last, known)) if copy.torn and copy.last < known else copy.flaw


async def _cut_alone(server: EmbeddedServer, folder: Path, last: int) -> Flaw | None:
    """What the server cuts off a copy that ends at entry ``last``, and in which nothing was found, as it opens its files; or did
    cut at a start that came to no end."""
    note = server.data / OPENING
    noted = note.read_text().strip() if note.exists() else ""
    had = max(last, int(noted) if noted.isdecimal() else 0)
    write_private(note, f"{had}\n")
    before = _stamps(folder)
    await server.open_alone()
    if had == last and before == _stamps(folder):  # it wrote nothing: all is as it was when it was looked at
        note.unlink()
        return None
    copy = await look(folder, 0, _at_once)
    if copy.flaw is None and copy.last < had:
        return Flaw(copy.last + 1, "what its server found", f"it was cut after entry {copy.last}, of {had}")
    note.unlink()
    return copy.flaw


def _stamps(folder: Path) -> dict[str, tuple[int, int]]:
    """How long each block is, and when it was written last."""
    return {path.name: (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.glob("msgs/*.blk")}


@contextlib.asynccontextmanager
async def _from_others(member: Member, server: EmbeddedServer) -> AsyncIterator[Copies]:
    """The copies, as the other servers see them. Raises Unreachable, AccessDenied."""
    if not member.urls[1:]:
        raise Unreachable("no other server is known")
    process = f"k-{secrets.token_hex(4)}"
    ca, urls = server.tls.ca if server.tls is not None else None, member.urls[1:]

    def options(role: Role, name: str) -> dict[str, Any]:
        return secured(server.authority.mint(role, name).connect_options(), ca)

    async with contextlib.AsyncExitStack() as stack:
        mine = options("controller", process)
        bus = await NatsBus.connect(urls, process=process, network=server.network, options=mine)
        stack.push_async_callback(bus.close)
        view = await SystemView.connect(urls, f"{process}-view", options("system", f"{process}-view"))
        stack.push_async_callback(view.close)
        js = await JetStream(bus.connection, ASK_S).open()
        stack.push_async_callback(js.close)
        yield Copies(js, view, server.network, member.member, member.size)


class Mending:
    """Of the copy of ``server``, which has ``seat`` in its cluster, until ``close``. ``damage``: what was found before it
    started; ``known`` tells how far the log is known to reach."""

    def __init__(self, server: EmbeddedServer, seat: Seat, bus: NatsBus, settings: Settings, damage: Damage | None) -> None:
        self.seat = seat
        self.known: Callable[[], int] = lambda: 0
        self.ask: Callable[[int], None] = lambda _: None
        """Has every server look at its copy of an entry: what is damaged here may be so where it is to come from."""
        self._server = server
        self._bus = bus
        self._pause_s = settings.inspect_pause_s if settings.inspect_rate_mb else None
        self._rate_mb = settings.inspect_rate_mb
        self._folder = _folder(server)
        self._damage = seat.damage = damage
        self._is_rebuilding = damage is not None
        self._is_new = False
        self._doubted = 0
        self._asked = asyncio.Event()
        self._work = asyncio.create_task(self._run(), name="mending")

    def hurry(self, index: int) -> None:
        """Look now: somebody cannot read entry ``index``."""
        self._doubted = index
        self._asked.set()

    def found(self, damage: Damage) -> None:
        """Before the server started once more its copy was damaged, and put aside."""
        self._damage, self._is_rebuilding, self._is_new = damage, True, True
        self._asked.set()

    async def close(self) -> None:
        self._work.cancel()
        await asyncio.wait([self._work])
        if not self._work.cancelled():
            self._work.result()

    async def _run(self) -> None:
        member = self.seat.member
        js = await JetStream(self._bus.connection, ASK_S).open()
        copies = Copies(js, self.seat.view, self._server.network, member.member, member.size)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._asked.wait(), self._rest_s())
                is_urgent = self._asked.is_set() or self._is_rebuilding or not self._rate_mb
                self._asked.clear()
                try:
                    await self._round(copies, _at_once if is_urgent else partial(_slowly, self._rate_mb))
                except (Indefinite, NotFound) as error:  # nobody leads the log, or it is only being made
                    log.info("this server's copy of the log cannot be looked after now: %s", error)
                except (ComityError, OSError) as error:
                    log.warning("this server's copy of the log cannot be looked after: %s", error)
                await asyncio.sleep(REST_S if self._is_rebuilding else AGAIN_S)
        finally:
            await js.close()

    def _rest_s(self) -> float | None:
        """Until the next look; None: until one is asked for."""
        return 0.0 if self._damage is not None and not self._damage.mended else self._pause_s

    async def _round(self, copies: Copies, pace: Pace) -> None:
        """Look once, and mend what is found. Raises Indefinite errors, NotFound, OSError, ServerFailed."""
        if self._is_new and self._damage is not None:
            await self.seat.report(self._damage)
            self._is_new = False
        known, view = self.known(), await copies.view()
        doubted, self._doubted = self._doubted, 0
        if self._is_rebuilding and self.seat.member.member not in view.current:
            return
        flaw = await self._find(copies, view, known, doubted, pace)
        if flaw is not None:
            if await self._stays(copies, flaw, known, doubted):
                await self._mend(copies, flaw, known)
        elif self._damage is not None and not self._damage.mended and self.seat.is_known:
            mended = msgspec.structs.replace(self._damage, mended=True)
            await self.seat.report(mended)
            self._damage, self._is_rebuilding = mended, False
            log.warning("this server's copy of the log is whole again")

    async def _find(self, copies: Copies, view: View, known: int, doubted: int, pace: Pace) -> Flaw | None:
        copy, own = await look(self._folder, view.first, pace), self.seat.member.member
        if copy.flaw is None and copy.last < known and own in view.current:
            return Flaw(copy.last + 1, END, _end(copy.last, known))
        if copy.flaw is None and own == view.leader and view.first <= doubted <= view.last and not await copies.holds(doubted):
            return Flaw(doubted, "as its server reads it", "it cannot be read")
        return copy.flaw

    async def _stays(self, copies: Copies, flaw: Flaw, known: int, doubted: int) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + (END_S if flaw.place == END else CONFIRM_S)
        while loop.time() < until:
            await asyncio.sleep(CONFIRM_S)
            again = await self._find(copies, await copies.view(), known, doubted, _at_once)
            if again is None or again.entry != flaw.entry:
                return False
        return True

    async def _mend(self, copies: Copies, flaw: Flaw, known: int) -> None:
        self._damage = _noted(self._server, flaw)
        try:
            await self.seat.report(self._damage)
        except Indefinite as error:  # the log above has it, and the end of it will be told
            log.info("damage could not be reported: %s", error)
        self.ask(flaw.entry)
        await self.seat.leave(self._bus)
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_S
        while why := await copies.obstacle(flaw, known):
            if loop.time() > until:
                log.error("this server's copy of the log cannot be rebuilt now: %s", why)
                return
            await asyncio.sleep(RETRY_S)
        await asyncio.to_thread(quarantine, self._server.data)
        await self._server.restart(partial(_set_aside, self._server))
        self._is_rebuilding = True
        await asyncio.sleep(SETTLE_S)


def _folder(server: EmbeddedServer) -> Path:
    return server.data / "jetstream" / server.authority.account.public / "streams" / stream_of(server.network)


def _set_aside(server: EmbeddedServer) -> None:
    """Raises ServerFailed."""
    try:
        set_aside(_folder(server), server.data)
        (server.data / OPENING).unlink(missing_ok=True)
    except OSError as error:
        raise ServerFailed(f"the damaged copy of the log cannot be put aside: {error}", path=str(server.data)) from error


def _end(last: int, known: int) -> str:
    return f"the copy ends at entry {last}, and the log had reached entry {known}"


def _noted(server: EmbeddedServer, flaw: Flaw) -> Damage:
    reason = f"{flaw.place}: {flaw.reason}"
    log.error("this server's copy of the log is damaged: log entry %d, %s", flaw.entry, reason)
    return Damage(stream_of(server.network), flaw.entry, reason)


async def _at_once(_: int) -> None:
    await asyncio.sleep(0)


async def _slowly(rate_mb: float, size: int) -> None:
    await asyncio.sleep(size / (rate_mb * MB))
