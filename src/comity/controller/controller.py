"""Program 2: the controller. Many may run; one leads.

    follow ──(leader's beacons and the log's tail still for 1 s + jitter)──▶ campaign ──▶ lead
      ▲                                                                        │           │ pipeline broken
      └────────────────── a higher effective term is somebody else's ──────────┴───────────┘

To campaign is to read the log to its tail and append a term entry there, again and again until it is effective or another
one's is. Leadership is an optimisation; the log is the safety: a controller that wrongly believes it leads can append nothing
that counts, and says nothing that did not count.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from functools import partial
from math import inf
from typing import Any, TypeVar

import structlog

from comity.bus.base import LEADER, Bus, Cancel, Delivery, Link, to, topic
from comity.bus.outbox import Outbox
from comity.config import Settings
from comity.controller.census import Census
from comity.controller.doubt import DOUBT, Doubt, doubted, question
from comity.controller.origin import beginning, past
from comity.controller.payloads import Payloads
from comity.controller.pipeline import EntryClock
from comity.controller.recalling import RECALL, recalled
from comity.controller.tail import must_hold, read_on
from comity.controller.term import Term
from comity.core.breaker import BreakerPolicy, Breakers
from comity.core.changes import Change
from comity.core.ledger import Effective, Ledger
from comity.core.scheduling import Scheduling
from comity.core.tasks import Tasks
from comity.errors import ClockAhead, ComityError, Conflict, Corrupt, Disconnected, Indefinite, InvalidInput
from comity.failpoints import durable
from comity.log.base import Log
from comity.model.codec import seal, to_json
from comity.model.ids import NetworkId, ProcessId
from comity.model.moment import iso
from comity.model.task import Command, Entry, Lead, TimeJump
from comity.model.version import installed
from comity.model.wire import Answer, Ask, Leading, decode
from comity.patience import Unready, patiently
from comity.registry.base import Registry
from comity.store.base import Store

CONTROLLERS = topic("controllers")
STILL_S = 1.0
"""A leader whose beacons and whose log have been still for so long, plus up to half of it at random, is challenged."""
PULSE_S = 0.25
RETRY_S = 0.05
SAID_S = 30.0
"""What keeps a controller from leading is told as often."""
DAY_S = 86_400.0
JUMP_S = 7 * DAY_S
"""An operator who starts a network that stood still for longer says that the clock is right. While it runs its log tells the time
(``term.STAMP_MS``)."""
REREAD = 16
"""Entries of the past read at once."""

_log = structlog.get_logger("comity.controller")
T = TypeVar("T")


class Controller:
    """One controller. ``wall`` gives seconds since 1970, ``random`` floats in [0, 1). ``eager``: campaign at once instead of
    listening first (the only controller of an embedded network). ``jump_s``: entry time may jump to the wall clock, by so much at
    most, when this controller first leads (an operator started the network), unless another one was heard leading before.
    ``place`` names where it runs."""

    def __init__(
        self,
        bus: Bus,
        log: Log,
        registry: Registry,
        store: Store,
        settings: Settings,
        *,
        network_id: str,
        wall: Callable[[], float],
        random: Callable[[], float],
        eager: bool = False,
        jump_s: float = 0.0,
        place: str = "",
    ) -> None:
        self.bus = bus
        self.log = log
        self.registry = registry
        self.store = store
        self.settings = settings
        self.network_id = NetworkId(network_id)
        self.wall = wall
        self.random = random
        self.outbox = Outbox(bus)
        self.scheduling = Scheduling(random)
        self.census = Census(registry, self.scheduling)
        self.doubt = Doubt(self._doubt, 2 if log.lag_s else 1)
        self.payloads = Payloads(log, self.doubt)
        self.doubted: Callable[[int], None] = lambda _index: None
        """Told of an entry that somebody cannot read."""
        self.state = Tasks(self.network_id)
        self.breakers = self._breakers()
        self.ledger = Ledger(network_id)
        self.sees_departures = False
        self.leading: Term | None = None
        self.led = asyncio.Event()
        """Set while this controller leads."""
        self.heard = asyncio.Event()
        """Set once somebody else was heard leading."""
        self.shut_down = asyncio.Event()
        """Set once a shutdown that somebody asked for has drained the network."""
        self.failure: Exception | None = None
        """What stopped this controller for good: a damaged or foreign log, or a fault of ours."""
        self.failed = asyncio.Event()
        self.place = place
        self.doors: dict[str, str] = {}
        """Addresses of what lies elsewhere than the bus, for whoever asks."""
        self.measure: Callable[[], dict[str, Any]] = dict
        """What its owner can tell of this process and its machine."""
        self._eager = eager
        self._jump_s = jump_s
        self._leader_seen = 0.0
        self._known_at = 0.0  # what is known here was the newest then, for all that could be seen
        self._entry_time = 0, 0.0  # as it was known last, of an entry or of the leader's beacon, and when (loop time)
        self._vacant = asyncio.Event()  # the leader said that it leaves
        self._turned = asyncio.Event()  # the bus has gone, or come back
        self._tasks: list[asyncio.Task[None]] = []
        self._cancels: list[Cancel] = []

    async def start(self) -> None:
        """Load what the log says, then take part: bus, log and store may be away for a while. Raises Corrupt or ForeignData if
        the log cannot be trusted, and Disconnected if the bus was closed."""
        loop = asyncio.get_running_loop()
        self.bus.on_unreachable(lambda address: self.leading.unreachable(address) if self.leading else None)
        self.sees_departures = self.bus.on_departure(self._departed)
        self.bus.on_state(self._bus_state)
        for address, receive in ((to(self.bus.process), self._receive), (CONTROLLERS, self._hear)):
            self._cancels.append(await self._begin(partial(self.bus.subscribe, address, receive)))
        await self._begin(self._load)
        begins = self.ledger.effective_index, self.ledger.digest
        await self.doubt.patiently(lambda: self._begin(lambda: must_hold(self.log, *begins, "a snapshot")))
        await self._begin(self._catch_up)
        self._leader_seen = self._known_at = loop.time()
        self._tasks.append(loop.create_task(self._guarded(self.census.watch())))
        self._tasks.append(loop.create_task(self._guarded(self._live())))

    async def stop(self) -> None:
        """Leave; if this controller leads, or was the last to, the others are told that they may, or that the network was shut
        down. Idempotent."""
        was_last = self.state.leader == self.bus.process  # also while the log moves to another server
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        if was_last:
            ends = "network" if self.shut_down.is_set() else "term"
            self.outbox.post(CONTROLLERS, Leading(self.state.term, self.bus.process, self.state.time_ms, ends))
        self.payloads.end()
        for cancel in self._cancels:
            await cancel()
        self._cancels.clear()
        await self.outbox.drain()

    async def _begin(self, work: Callable[[], Awaitable[T]]) -> T:
        return await patiently(work, hopeless=lambda: self.bus.link is Link.CLOSED, tell=Unready(_log))

    # The log

    async def _load(self) -> None:
        """Begin from the newest snapshot that can be read."""
        self.state, self.ledger = await self.past(None)
        self.breakers = self._breakers()

    def _breakers(self) -> Breakers:
        s = self.settings
        window_ms, open_ms = int(s.breaker_window_s * 1000), int(s.breaker_open_s * 1000)
        return Breakers(BreakerPolicy(failures=s.breaker_failures, window_ms=window_ms, open_ms=open_ms))

    async def past(self, index: int | None) -> tuple[Tasks, Ledger]:
        """State and ledger from the newest snapshot that can be read and lies at ``index`` or before (None: any); empty ones if
        there is none."""
        return await past(self.store, self.network_id, index)

    async def _catch_up(self) -> None:
        """Read and apply to the log's tail, as far as can be seen from here. Raises Corrupt, also if the log has lost entries
        that were applied."""
        await self.doubt.patiently(self._read_up)

    async def _read_up(self) -> None:
        while True:
            try:
                items = await read_on(self.log, self.ledger.index)
            except Corrupt:
                if not await self._overtaken():
                    raise
                continue
            if not items:
                return
            if self.ledger.index == 0:
                self.state, self.ledger = await beginning(items[0], self.store, self.network_id)
            for index, data in items:
                self._offer(index, data)

    async def _overtaken(self) -> bool:
        """Whether the log was trimmed beyond what had been read here, rather than damaged. Then go on from a snapshot."""
        first, _ = await self.log.bounds()
        if self.ledger.index + 1 >= first:
            return False
        _log.info("overtaken by a trim; going on from a snapshot", read=self.ledger.index, first=first)
        await self._load()
        return self.ledger.index + 1 >= first

    async def changes(self, after: int, upto: int) -> AsyncGenerator[tuple[int, int, list[Change]], None]:
        """What the entries after ``after``, to ``upto``, changed: the log read again from the nearest snapshot before."""
        state, ledger = await self.past(after)
        while ledger.index < upto and (items := await self.log.read(ledger.index, REREAD)):
            if ledger.index == 0:
                state, ledger = await beginning(items[0], self.store, self.network_id)
            for index, data in items:
                verdict = ledger.offer(index, data)
                changed = state.apply(verdict.entry, index) if isinstance(verdict, Effective) else []
                if after < index <= upto:
                    yield index, state.time_ms, changed
                await asyncio.sleep(0)

    def _offer(self, index: int, data: bytes) -> None:
        verdict = self.ledger.offer(index, data)
        if isinstance(verdict, Effective):
            self._note_time(self.ledger.time_ms)
            self.payloads.note(index, verdict.entry)
            self.breakers.observe(self.state.apply(verdict.entry, index), self.state.time_ms)
            self.breakers.due(self.state.time_ms)

    # The roles

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            tell = _log.info if isinstance(error, ClockAhead) else _log.critical  # whoever started it is told, and is asked
            tell("this controller stops", error=str(error), exc_info=not isinstance(error, ComityError))
            self.failure = error
            self.failed.set()

    async def _live(self) -> None:
        while True:
            if not self._eager:
                await self._follow()
            if self.bus.link is not Link.UP:  # who leads cannot be heard, nor could we
                await self._connected()
                continue
            self._eager = False
            cancel: Cancel | None = None
            try:
                while await self._campaign():
                    cancel = cancel or await self.bus.subscribe(LEADER, self._receive)
                    await self._lead()
            except Indefinite as error:  # the bus was down when it was needed: try again from the start
                _log.warning("cannot listen as leader; trying again", code=error.code, error=error.message)
                self._eager = True
                await asyncio.sleep(RETRY_S)
            finally:
                if cancel is not None:
                    with contextlib.suppress(Indefinite):  # then the subscription is gone with its connection
                        await cancel()

    async def _connected(self) -> None:
        """Wait for the bus. From then on stillness counts anew. Raises Disconnected if it was closed."""
        while self.bus.link is not Link.UP:
            if self.bus.link is Link.CLOSED:
                raise Disconnected("the connection was closed for good")
            self._turned.clear()
            await self._turned.wait()
        self._leader_seen = asyncio.get_running_loop().time()

    async def _follow(self) -> None:
        """Apply what others append; return when it is time to campaign."""
        following = asyncio.get_running_loop().create_task(self._follow_log())
        try:
            await self._stillness(following)
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _follow_log(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                async for items in self.log.follow(self.ledger.index):
                    for index, data in items:
                        self._offer(index, data)
                    self._leader_seen = self._known_at = loop.time()
            except Corrupt as error:  # damaged, or trimmed while we were away? To read it again tells
                _log.warning("the log cannot be followed", error=error.message)
                with contextlib.suppress(Indefinite):
                    await self._catch_up()
            await asyncio.sleep(RETRY_S)

    async def _stillness(self, following: asyncio.Task[None]) -> None:
        loop = asyncio.get_running_loop()
        patience = STILL_S * (1 + 0.5 * self.random())
        self._vacant.clear()
        vacant = loop.create_task(self._vacant.wait())
        try:
            while not vacant.done():
                left = self._leader_seen + patience - loop.time()
                if left <= 0:
                    return
                await asyncio.wait([following, vacant], timeout=left, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()
        finally:
            vacant.cancel()
        await asyncio.sleep(RETRY_S * self.random())  # other standbys heard it too

    async def _campaign(self) -> bool:
        """Try to begin a new term; whether it is ours. False: somebody else's is effective."""
        loop = asyncio.get_running_loop()
        began = self.ledger.term
        mine: bytes | None = None
        said: dict[str, float] = {}
        while True:
            try:
                await self._catch_up()
                if self.ledger.term > began:
                    if self.ledger.digest == mine:
                        return True
                    if self.state.leader != self.bus.process:
                        self._leader_seen = self._known_at = loop.time()
                        return False
                clock = self._clock()
                commands: list[Command] = [Lead(self.bus.process)]
                if self._jump_s:
                    commands.append(TimeJump(clock.now_ms()))
                entry = Entry(self.network_id, self.ledger.term + 1, self.ledger.digest, clock.stamp(), commands)
                data, mine = seal(entry)
                with durable("term.append"):
                    index = await self.log.append(data, self.ledger.index)
                self.ledger.accept(entry, mine)
                self.state.apply(entry, index)
                return True
            except Conflict:
                await asyncio.sleep(RETRY_S * self.random())  # somebody wrote: read on
            except ComityError as error:
                if error.definite:
                    raise
                if loop.time() - said.get(error.code, -inf) >= SAID_S:
                    said[error.code] = loop.time()
                    _log.warning("cannot reach the log; trying again", code=error.code, error=error.message)
                await asyncio.sleep(RETRY_S * (1 + self.random()))

    def _note_time(self, time_ms: int) -> None:
        if time_ms > self._entry_time[0]:
            self._entry_time = time_ms, asyncio.get_running_loop().time()

    def _clock(self) -> EntryClock:
        """Entry time goes on while nobody writes: what passed since it was known here has passed. Raises ClockAhead."""
        self._note_time(self.ledger.time_ms)
        last_ms, known_at = self._entry_time
        clock = EntryClock(self.wall, asyncio.get_running_loop().time)
        clock.start(last_ms, bool(self._jump_s), known_at)
        ahead_s = clock.now_ms() / 1000 - last_ms / 1000 - (asyncio.get_running_loop().time() - known_at)
        if last_ms and self._jump_s and ahead_s > self._jump_s:
            said = f"this machine's clock says {iso(clock.now_ms())}, {ahead_s / DAY_S:.1f} days after the network last ran"
            raise ClockAhead(f"{said} ({iso(last_ms)}): results would expire, and time does not go back", ahead_s=ahead_s)
        return clock

    async def _lead(self) -> None:
        """Lead until the pipeline breaks."""
        clock = self._clock()
        self._jump_s = 0.0
        term = Term(self, clock)
        self.leading = term
        _log.info("leading", term=self.state.term, log_head=self.ledger.index)
        try:
            term.begin()
            self.led.set()
            await self._pulse(term)
            if term.fault is not None:
                raise term.fault
        finally:
            self.led.clear()
            self.leading = None
            self._leader_seen, self._known_at = asyncio.get_running_loop().time(), term.pipeline.landed_at
            term.end()
            self.census.put, self.census.remove = self.scheduling.put_agent, self.scheduling.remove_agent
            self.census.changed = lambda _kind, _agent: None
            self.census.damaged = lambda _server, _damage: None
            await term.pipeline.settle()

    async def _pulse(self, term: Term) -> None:
        """While leading: tell the other controllers, measure our own lag, look after the house."""
        loop = asyncio.get_running_loop()
        while not term.is_over:
            beat = Leading(self.state.term, self.bus.process, term.clock.now_ms())
            self.outbox.post(CONTROLLERS, beat)
            due = loop.time() + PULSE_S
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(term.over.wait(), PULSE_S)
            term.pulse(max(0.0, loop.time() - due))
            self._note_time(self.ledger.time_ms)

    # What is heard

    def _receive(self, delivery: Delivery) -> None:
        if self.leading is not None:
            self.leading.leader.receive(delivery)

    def _hear(self, delivery: Delivery) -> None:
        """Anybody can say that it leads. A standby believes the one that the log names; a leader looks there."""
        if delivery.sender == self.bus.process:
            return
        try:
            items = decode(delivery.data)
        except InvalidInput as error:
            _log.warning("not a controller's message", sender=delivery.sender, error=error.message)
            return
        for item in items:
            if isinstance(item, Ask) and item.what == "position":
                self.outbox.post(to(delivery.sender), Answer(item.ref, "", to_json(self.position())))
            elif isinstance(item, Ask) and item.what == DOUBT:
                self.doubted(doubted(item.args))
            elif isinstance(item, Ask) and item.what == RECALL:
                self._recall(item, delivery.sender)
            elif not isinstance(item, Leading):
                continue
            elif self.leading is not None and item.term > self.state.term:
                self.leading.doubt()
            elif self.leading is None and delivery.sender == self.state.leader:
                self._hear_leader(item)

    def _recall(self, item: Ask, sender: ProcessId) -> None:
        known_at = self.leading.pipeline.landed_at if self.leading is not None else self._known_at
        age_s = asyncio.get_running_loop().time() - known_at
        try:
            code, body = "", recalled(self.state, self.ledger, item.args, age_s)
        except ComityError as error:
            code, body = error.code, to_json({"message": error.message, "details": error.details})
        self.outbox.post(to(sender), Answer(item.ref, code, body))

    def _doubt(self, index: int) -> None:
        self.doubted(index)
        self.outbox.post(CONTROLLERS, question(index))

    def _hear_leader(self, item: Leading) -> None:
        self._leader_seen = self._known_at = asyncio.get_running_loop().time()
        self._note_time(item.now_ms)
        self._jump_s = 0.0
        self.heard.set()
        if item.ends == "network":
            self.shut_down.set()
        elif item.ends:
            self._vacant.set()

    def _departed(self, process: ProcessId) -> None:
        if self.leading is not None:
            self.leading.departed(process)

    def _bus_state(self, link: Link) -> None:
        self._turned.set()
        if self.leading is not None:
            self.leading.liveness.bus_state(link)

    def about(self) -> dict[str, Any]:
        return {"process": self.bus.process, "version": installed(), **self.measure()}

    def stats(self) -> dict[str, Any]:
        """Numbers of this controller; the network's if it leads."""
        if self.leading is not None:
            return self.leading.stats()
        return {"network": self.network_id, **self.position()}

    def position(self) -> dict[str, Any]:
        """Who and where this controller is, and how far it has read the log."""
        return {
            "process": self.bus.process,
            "place": self.place,
            "role": "leader" if self.leading is not None else "standby",
            "leader": self.state.leader,
            "term": self.ledger.term,
            "log_head": self.ledger.index,
            "damaged_copies": self.census.damages(),
            "wall_ms": int(self.wall() * 1000),
            "doors": self.doors,
            "controller": self.about(),
        }
