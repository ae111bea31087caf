"""Looks after this server's own copies of the streams: finds damage in them, has others lead instead, and has them rebuilt from
theirs.

    before the server runs   it must not start on damage of the log: it could cut off what follows, lead with what is left, and
                             have the others drop it too. What only it can see (see ``cluster.replica``) it is made to find alone
    at once after that, and  the files of all streams are read through (those of the registry and the store are compared with what
    then all the time        another server has); sooner if somebody cannot read something

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
from comity.cluster.status import STREAMS, SystemView
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
    """Before ``server`` runs: if its copy of the log is damaged, put it aside as soon as others can be seen to have all of it;
    else the server, once it runs, may get what it lacks from them by itself. What was found, but for a lost end. Raises Corrupt,
    ForeignData (the mark cannot be used), ServerFailed (nor can the copy be moved)."""
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
                damage = _noted(folder.name, flaw)
                await asyncio.to_thread(_set_aside, server, folder)
                return damage
        if loop.time() >= until:
            log.error("this server's copy of the log cannot be rebuilt now: %s", why)
            return _noted(folder.name, flaw) if flaw is not None and flaw.reason != _end(flaw.entry - 1, known) else None
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


class Care:
    """What is known of one copy. ``known`` tells how far the stream is known to reach; ``rebuilt``: at which entry it was flawed
    when it was put aside (``was_with_group``: together with its group's entries), until it was whole again."""

    def __init__(self, copies: Copies, folder: Path) -> None:
        self.copies = copies
        self.folder = folder
        self.known: Callable[[], int] = lambda: copies.head
        self.damage: Damage | None = None
        self.is_new = False
        """``damage`` is not told of yet."""
        self.is_rebuilding = False
        self.rebuilt, self.was_with_group = 0, False
        self.doubted = 0
        self.asked = asyncio.Event()

    @property
    def is_damaged(self) -> bool:
        return self.damage is not None and not self.damage.mended


class Mending:
    """Of the copies of ``server``, which has ``seat`` in its cluster, until ``close``. ``damage``: what was found in that of the
    log before it started; ``known`` tells how far the log is known to reach."""

    def __init__(self, server: EmbeddedServer, seat: Seat, bus: NatsBus, settings: Settings, damage: Damage | None) -> None:
        self.seat = seat
        self.known: Callable[[], int] = lambda: 0
        self.ask: Callable[[int], None] = lambda _: None
        """Has every server look at its copy of an entry: what is damaged here may be so where it is to come from."""
        self._server = server
        self._bus = bus
        self._pause_s = settings.inspect_pause_s if settings.inspect_rate_mb else None
        self._rate_mb = settings.inspect_rate_mb
        self._turn = asyncio.Lock()  # the server is restarted for one copy at a time
        works = [(JetStream(bus.connection, ASK_S), door) for door in STREAMS]
        self._cares = {door: self._care(js, door) for js, door in works}
        self._cares["log"].known = lambda: self.known()  # noqa: PLW0108  # it is set later
        if damage is not None:
            seat.damages[damage.stream] = damage
            self._cares["log"].damage, self._cares["log"].is_rebuilding = damage, True
        self._works = [asyncio.create_task(self._run(js, self._cares[door]), name=f"mending-{door}") for js, door in works]

    def _care(self, js: JetStream, door: str) -> Care:
        member, network = self.seat.member, self._server.network
        return Care(Copies(js, self.seat.view, network, member.member, member.size, door), _folder(self._server, door))

    def hurry(self, index: int) -> None:
        """Look now: somebody cannot read entry ``index`` of the log (0: something in the store)."""
        care = self._cares["log" if index else "store"]
        care.doubted = index
        care.asked.set()

    def found(self, damage: Damage) -> None:
        """Before the server started once more its copy of the log was damaged, and put aside."""
        care = self._cares["log"]
        care.damage, care.is_new, care.is_rebuilding = damage, True, True
        care.asked.set()

    async def close(self) -> None:
        for work in self._works:
            work.cancel()
        await asyncio.wait(self._works)
        for work in self._works:
            if not work.cancelled():
                work.result()

    async def _run(self, js: JetStream, care: Care) -> None:
        await js.open()
        rest_s: float | None = 0.0  # what it looks like after the start is known to nobody yet
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(care.asked.wait(), rest_s)
                is_urgent = care.asked.is_set() or care.is_rebuilding or not self._rate_mb
                care.asked.clear()
                await self._look_after(care, _at_once if is_urgent else partial(_slowly, self._rate_mb))
                await asyncio.sleep(REST_S if care.is_rebuilding else AGAIN_S)
                rest_s = 0.0 if care.is_damaged else self._pause_s
        finally:
            await js.close()

    async def _look_after(self, care: Care, pace: Pace) -> None:
        try:
            await self._round(care, pace)
        except (Indefinite, NotFound) as error:  # nobody leads the stream, or it is only being made
            log.info("this server's copy of %s cannot be looked after now: %s", care.copies.stream, error)
        except (ComityError, OSError) as error:
            log.warning("this server's copy of %s cannot be looked after: %s", care.copies.stream, error)

    async def _round(self, care: Care, pace: Pace) -> None:
        """Look once, and mend what is found. Raises Indefinite errors, NotFound, OSError, ServerFailed."""
        if care.is_new and care.damage is not None:
            await self.seat.report(care.damage)
            care.is_new = False
        known, view = care.known(), await care.copies.view()
        doubted, care.doubted = care.doubted, 0
        if care.is_rebuilding and self.seat.member.member not in view.current:
            return
        flaw = await self._find(care, view, known, doubted, pace)
        if flaw is not None:
            if await self._stays(care, flaw, known, doubted):
                await self._mend(care, flaw, known)
        elif care.damage is not None and care.is_damaged and self.seat.is_known:
            mended = msgspec.structs.replace(care.damage, mended=True)
            await self.seat.report(mended)
            care.damage, care.is_rebuilding, care.rebuilt = mended, False, 0
            log.warning("this server's copy of %s is whole again", care.copies.stream)

    async def _find(self, care: Care, view: View, known: int, doubted: int, pace: Pace) -> Flaw | None:
        copies, own = care.copies, self.seat.member.member
        copy = await copies.look(care.folder, view.first, pace)
        known = min(known, copies.head or known)  # what was last then may have ended since
        if copy.flaw is None and copy.last < known and own in view.current:
            return Flaw(copy.last + 1, END, _end(copy.last, known))
        is_doubted = copy.flaw is None and own == view.leader and view.first <= doubted <= view.last
        if is_doubted and not await copies.holds(doubted):
            return Flaw(doubted, "as its server reads it", "it cannot be read")
        return copy.flaw

    async def _stays(self, care: Care, flaw: Flaw, known: int, doubted: int) -> bool:
        loop = asyncio.get_running_loop()
        until = loop.time() + (END_S if flaw.place == END else CONFIRM_S)
        while loop.time() < until:
            await asyncio.sleep(CONFIRM_S)
            again = await self._find(care, await care.copies.view(), known, doubted, _at_once)
            if again is None or again.entry != flaw.entry:
                return False
        return True

    async def _mend(self, care: Care, flaw: Flaw, known: int) -> None:
        stream = care.copies.stream
        care.damage = _noted(stream, flaw)
        try:
            await self.seat.report(care.damage)
        except Indefinite as error:  # the log above has it, and the end of it will be told
            log.info("damage could not be reported: %s", error)
        is_again = care.rebuilt == flaw.entry  # what came from the others lacks it: our group does not know better
        if is_again and care.was_with_group:
            log.error("this server's copy of %s is still damaged there: it is not rebuilt again", stream)
            care.is_rebuilding = False
            return
        if stream == stream_of(self._server.network):
            self.ask(flaw.entry)
        if self._turn.locked():
            return  # the server is restarted for another copy: this one is looked at again then
        async with self._turn:
            await self._rebuild(care, flaw, known, is_again=is_again)

    async def _rebuild(self, care: Care, flaw: Flaw, known: int, *, is_again: bool) -> None:
        copies, stream, loop = care.copies, care.copies.stream, asyncio.get_running_loop()
        await self.seat.leave(self._bus)
        until = loop.time() + SETTLE_S
        while why := await copies.obstacle(flaw, known, await self.seat.broken(stream), strictly=is_again):
            if loop.time() > until:
                log.error("this server's copy of %s cannot be rebuilt now: %s", stream, why)
                return
            await asyncio.sleep(RETRY_S)
        group = _group(self._server, (await copies.view()).group) if is_again else None
        await asyncio.to_thread(quarantine, self._server.data)
        # Stopped in order it would note the damaged copy in its group's snapshot, and then want no more than that has.
        await self._server.restart(partial(_set_aside, self._server, care.folder, group), abruptly=True)
        care.is_rebuilding, care.rebuilt, care.was_with_group = True, flaw.entry, is_again
        await asyncio.sleep(SETTLE_S)


def _folder(server: EmbeddedServer, door: str = "log") -> Path:
    return server.data / "jetstream" / server.authority.account.public / "streams" / stream_of(server.network, door)


def _group(server: EmbeddedServer, name: str) -> Path | None:
    """Where the server keeps what a group has agreed on."""
    return server.data / "jetstream" / server.authority.system.public / "_js_" / name if name else None


def _set_aside(server: EmbeddedServer, folder: Path, group: Path | None = None) -> None:
    """Raises ServerFailed."""
    try:
        set_aside(folder, server.data, group)
        if folder == _folder(server):
            (server.data / OPENING).unlink(missing_ok=True)
    except OSError as error:
        raise ServerFailed(f"the damaged copy {folder.name} cannot be put aside: {error}", path=str(server.data)) from error


def _end(last: int, known: int) -> str:
    return f"the copy ends at entry {last}, and entry {known} had been reached"


def _noted(stream: str, flaw: Flaw) -> Damage:
    damage = Damage(stream, flaw.entry, f"{flaw.place}: {flaw.reason}")
    log.error("this server's copy of %s is damaged: %s, %s", stream, damage.place, damage.reason)
    return damage


async def _at_once(_: int) -> None:
    await asyncio.sleep(0)


async def _slowly(rate_mb: float, size: int) -> None:
    await asyncio.sleep(size / (rate_mb * MB))
