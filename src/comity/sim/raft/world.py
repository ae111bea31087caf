"""One life of a Raft cluster, on virtual time, drawn from a seed: real members, machines and frames; clients that append and
read; crashes, power cuts, pauses, cuts, lost, doubled and late messages, slow, full and damaged disks, changes of membership.

Everything is looked at by ``judge`` in every step. At the end all faults are over, and the cluster must agree and go on.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any, NamedTuple

from comity.core import raft_events as r
from comity.core.raft import Raft
from comity.errors import ComityError, Conflict, Indefinite, NotLeader, PeerLost
from comity.model.raft import Config, Message, Snapshot, founding
from comity.raft.member import Member
from comity.sim.checkers import Violation
from comity.sim.history import History
from comity.sim.loop import Process, SimulationError, VirtualLoop
from comity.sim.raft.disk import SimDisk
from comity.sim.raft.faults import Faults
from comity.sim.raft.judge import Judge, judge_history

TIMING = r.Timing(election_s=0.5, heartbeat_s=0.1, batch_bytes=200, most_messages=4, part_bytes=3, near=20)
CLIENTS = 3
PATIENCE_S = 1.5
HEALING_S = 20.0
MOST_EFFECTS = 150_000
"""Of one life; more is a storm."""


class Watched(Member):
    """A member whose every effect is seen before it is done. ``arrived``: what the machine has received for it."""

    watch: Callable[[Member, r.Effect], None]
    hear: Callable[[Member, r.Event], None]
    arrived: deque[r.Event]

    def take_in(self) -> None:
        while self.arrived:
            self.step(self.arrived.popleft())

    def _tick(self) -> None:
        self.take_in()  # as asyncio does: what has come is read before timers are looked at
        super()._tick()

    def step(self, event: r.Event) -> None:
        self.hear(self, event)
        super().step(event)

    def _perform(self, effect: r.Effect) -> None:
        self.watch(self, effect)
        super()._perform(effect)


class Place:
    """Where a member lives: its disk stays, its processes come and go."""

    def __init__(self, id: str, disk: SimDisk) -> None:
        self.id = id
        self.disk = disk
        self.process: Process | None = None
        self.member: Watched | None = None
        self.is_lost = False
        """Its data was damaged, and refused."""


class Report(NamedTuple):
    seed: int
    lived_s: float
    appended: int
    terms: int
    operations: int
    faults: dict[str, int]


class RaftWorld:
    """``faults``: how many of each kind strike, instead of what the seed draws."""

    def __init__(self, seed: int, *, faults: dict[str, int] | None = None, life_s: float = 12.0) -> None:
        self.seed = seed
        self.random = Random(seed)
        self.loop = VirtualLoop()
        self.life_s = life_s
        self.history = History()
        self.acknowledged: dict[int, bytes] = {}
        self.struck: Counter[str] = Counter()
        self.trace: list[str] = []
        self.is_traced = False
        self.places: dict[str, Place] = {}
        self.closed: set[tuple[str, str]] = set()
        self.drop = self.twice = 0.0
        self.latency_s = (0.0003, 0.003)
        self.is_ordered = self.random.random() < 0.6
        self.faults = Faults(self, faults)
        self._outside = self.loop.process("world").context
        self._lanes: dict[tuple[str, str], float] = {}
        self._values = self._effects = 0
        voters = tuple(f"m{n + 1}" for n in range(self.random.choice((3, 3, 3, 5))))
        self.founding = founding(Config(voters))
        self.judge = Judge(lambda id: self.places[id].disk, self._leading, self.founding.config)
        for id in voters:
            self.add(id, self.founding)

    # Members

    def add(self, id: str, snapshot: Snapshot) -> None:
        self.places[id] = Place(id, SimDisk(id, snapshot, Random(f"{self.seed}/{id}")))

    def start(self, id: str) -> None:
        """Start a member from what its disk has."""
        place = self.places[id]
        if place.is_lost or place.process is not None:
            return
        found = place.disk.recover()
        chance = Random(f"{self.seed}/{id}/{self.loop.time()}").random
        about: dict[str, Any] = {"ballot": found.ballot, "snapshot": found.snapshot, "entries": found.entries}
        process = place.process = self.loop.process(id)

        def begin() -> None:
            raft = Raft(id, self.loop.time(), chance, TIMING, **about)
            member = Watched(raft, place.disk, lambda to, message: self.carry(id, to, message))
            member.watch, member.hear, member.arrived = self._watch, self.judge.asked, deque()
            place.member = member

        self.note(f"{id} starts")
        process.call(begin)

    def crash(self, id: str) -> None:
        place = self.places[id]
        if place.process is not None:
            self.note(f"{id} crashes")
            place.process.kill()
            place.process = place.member = None
            place.disk.crash()

    def _watch(self, member: Member, effect: r.Effect) -> None:
        try:
            if self.is_traced:
                self.note(f"{member.id} {effect}")
            self.judge.see(member, effect)
            self._effects += 1
            if self._effects > MOST_EFFECTS:
                raise Violation("the members never rest")
            if type(effect) is not r.Send:
                member.raft.check()
        except AssertionError as error:
            found = error if isinstance(error, SimulationError) else Violation(f"{member.id}: {error!r}")
            self.loop.abort(found)
            raise found from error

    def note(self, text: str) -> None:
        if self.is_traced:
            self.trace.append(f"{self.loop.time():10.4f} {text}")

    @property
    def leader(self) -> Member | None:
        """Who leads the newest term."""
        leading = [place.member for place in self.places.values() if place.member is not None]
        found = [member for member in leading if member.raft.leading is not None]
        return max(found, key=lambda member: member.raft.state.term, default=None)

    def _leading(self, term: int) -> Member | None:
        member = self.places[self.judge.leaders[term]].member if term in self.judge.leaders else None
        return member if member is not None and member.raft.leading is not None and member.raft.state.term == term else None

    # The network

    def carry(self, source: str, target: str, message: Message) -> None:
        if (source, target) in self.closed or (self.drop and self.random.random() < self.drop):
            return
        when = self.loop.time() + self.random.uniform(*self.latency_s)
        if self.is_ordered:
            when = self._lanes[source, target] = max(when, self._lanes.get((source, target), 0.0))
        self._deliver(when, source, target, message)
        if self.twice and self.random.random() < self.twice:
            self._deliver(when + self.random.uniform(0.0, 1.0), source, target, message)

    def _deliver(self, when: float, source: str, target: str, message: Message) -> None:
        place = self.places.get(target)
        if place is None or place.process is None:
            return

        def arrive(life: Process) -> None:
            """At the machine, whether the process runs or is paused."""
            if place.process is life and place.member is not None:
                place.member.arrived.append(r.Received(source, message))
                life.call(place.member.take_in)

        self.loop.call_at(when, arrive, place.process, context=self._outside.copy())

    async def call(self, client: str, target: str, ask: Callable[[Member], Coroutine[Any, Any, Any]]) -> Any:
        """A client's question to a member. Raises what the member raises, or PeerLost."""
        place = self.places[target]
        answer: asyncio.Future[Any] = self.loop.create_future()

        async def serve(member: Member) -> None:
            value: Any = None
            error: ComityError | None = None
            try:
                value = await ask(member)
            except ComityError as refused:
                error = refused
            if (target, client) not in self.closed:
                self.loop.call_later(self.random.uniform(*self.latency_s), _settle, answer, value, error, context=outside)

        def arrive(life: Process) -> None:
            if place.process is life and place.member is not None:
                serving.append(life.spawn(serve(place.member)))

        serving: list[asyncio.Task[None]] = []
        outside = self._outside
        if place.process is not None and (client, target) not in self.closed:
            delay = self.random.uniform(*self.latency_s)
            self.loop.call_later(delay, arrive, place.process, context=place.process.context.copy())
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await answer
        except TimeoutError:
            raise PeerLost(f"{target} did not answer") from None

    # Clients

    async def _client(self, name: str, until: float) -> None:
        random = Random(f"{self.seed}/{name}")
        tail, target = 0, random.choice(list(self.places))
        while self.loop.time() < until:
            await asyncio.sleep(random.uniform(0.02, 0.25))
            try:
                if random.random() < 0.3:
                    tail = await self._tail(name, target)
                elif random.random() < 0.05:
                    await self.call(name, target, lambda member: _awaited(member.trim(max(0, tail - 5))))  # noqa: B023
                else:
                    tail = await self._append(name, target, max(0, tail + random.choice((0, 0, 0, 0, 0, 0, 0, -1, 1))))
            except Conflict as error:
                tail = error.details.get("last", tail)
            except (NotLeader, Indefinite, ComityError):
                leader = self.leader
                target = leader.id if leader is not None and random.random() < 0.7 else random.choice(list(self.places))

    async def _tail(self, name: str, target: str) -> int:
        operation = self.history.call(name, "tail", "log", now=self.loop.time())
        try:
            _, last = await self.call(name, target, lambda member: member.bounds())
        except ComityError as error:
            self.history.unknown(operation, error.code, now=self.loop.time())
            raise
        self.history.returns(operation, last, now=self.loop.time())
        return int(last)

    async def _append(self, name: str, target: str, after: int) -> int:
        self._values += 1
        value = f"{name}/{self._values}".encode() * self.random.choice((1, 1, 1, 60))
        operation = self.history.call(name, "append", "log", after, now=self.loop.time())
        try:
            index = await self.call(name, target, lambda member: _awaited(member.append(value, after)))
        except Conflict as error:
            self.history.returns(operation, error.details["last"], error="conflict", now=self.loop.time())
            raise
        except ComityError as error:
            if error.definite:
                self.history.returns(operation, error=error.code, now=self.loop.time())
            else:
                self.history.unknown(operation, error.code, now=self.loop.time())
            raise
        self.history.returns(operation, index, now=self.loop.time())
        self.acknowledged[index] = value
        return int(index)

    # A life

    def run(self) -> Report:
        """Raises Violation, or another SimulationError."""
        began = self.loop.time()
        asyncio.set_event_loop(self.loop)
        is_enabled = gc.isenabled()
        gc.disable()
        try:
            self.loop.run_until_complete(self._live())
            judge_history(self.history)
        finally:
            self.loop.bury()
            asyncio.set_event_loop(None)
            self.loop.close()
            if is_enabled:
                gc.enable()
        return Report(
            self.seed, self.loop.time() - began, len(self.acknowledged), len(self.judge.leaders), len(self.history.operations),
            dict(self.struck),
        )  # fmt: skip

    async def _live(self) -> None:
        for id in self.places:
            self.start(id)
        until = self.loop.time() + self.life_s
        clients = [asyncio.create_task(self._client(f"c{n}", until + 3.0)) for n in range(CLIENTS)]
        await self.faults.strike(until)
        await self.faults.heal()
        await asyncio.gather(*clients)
        await self._agree()

    async def _agree(self) -> None:
        """All members that take part come to one state, and it has what was acknowledged."""
        until = self.loop.time() + HEALING_S
        before = 0
        while (said := self._disagreement()) or not before:
            if self.loop.time() > until:
                raise Violation(f"{HEALING_S} s after all faults were over: {said or 'no append was taken'}")
            await asyncio.sleep(0.1)
            leader = self.leader
            if leader is not None and not before:
                try:
                    before = await self._append("end", leader.id, leader.kept.last)
                except ComityError:
                    continue
        self._check_acknowledged()

    def _disagreement(self) -> str:
        leader = self.leader
        if leader is None:
            return "nobody leads"
        config = leader.raft.config
        if config.outgoing:
            return f"the membership is still joint: {config}"
        for id in config.members:
            place = self.places[id]
            if place.is_lost:
                continue
            member = place.member
            if member is None or member.raft.log.applied != leader.raft.log.commit or member.kept.last != leader.kept.last:
                return f"{id} has not applied what {leader.id} has committed"
            if member.kept.places != leader.kept.places:
                raise Violation(f"state machine safety: {id} and {leader.id} have another log")
        return ""

    def _check_acknowledged(self) -> None:
        leader = self.leader
        assert leader is not None
        found = {item.index: item.data for item in leader.known(leader.kept.first - 1, 1 << 30)}
        for index, value in self.acknowledged.items():
            if index >= leader.kept.first and found.get(index) != value:
                raise Violation(f"durability: entry {index} was acknowledged as {value!r}, and is {found.get(index)!r}")


async def _awaited(future: asyncio.Future[Any]) -> Any:
    return await future


def _settle(answer: asyncio.Future[Any], value: Any, error: ComityError | None) -> None:
    if not answer.done():
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(value)
