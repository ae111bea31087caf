"""Program 1: the node. Hosts agents, runs attempts, tells the leader that it lives, and reports what came of them.

    start: listen ──▶ announce ──▶ beacon ──(acknowledged, and known)──▶ ready
    stop:  (drain: nothing new, wait, hand back the rest) ──▶ leave ──▶ deregister

It works against the doors alone and starts no thread of its own (plain functions of agents get some, see ``pools``), so the same
code runs in the simulated world.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterable
from math import inf
from random import Random
from typing import Any

import msgspec
import structlog

from comity.agent import Agent
from comity.bus.base import EVERYONE, LEADER, Bus, Cancel, Delivery, Link, to
from comity.bus.outbox import Outbox
from comity.bus.straying import Straying
from comity.client.client import Client
from comity.client.sightings import TOPICS
from comity.client.subscribing import subscribe
from comity.config import Settings
from comity.errors import ComityError, Conflict, InvalidInput, ShuttingDown, TimedOut, UnknownAgent
from comity.model import wire
from comity.model.capability import NodeRecord
from comity.model.ids import AgentId, ProcessId
from comity.model.parts import ReadParts
from comity.node.announce import Announcer
from comity.node.attempts import Attempts
from comity.node.control import Control
from comity.node.guarding import Guard
from comity.node.health import Checkups
from comity.node.lease import Lease
from comity.node.mail import Inbox
from comity.node.measure import Measure, measured
from comity.node.messages import Call, Messages
from comity.node.parts import Streams
from comity.node.performing import Performer, ended
from comity.node.pools import Pools
from comity.node.probing import Probing
from comity.node.refusing import why_not
from comity.node.running import Running
from comity.registry.base import Registry
from comity.store.base import Store

TICKS = 4
"""Ticks for each beacon: how finely the event loop's lag is seen."""
SOON_S = 0.05
HELD_LIMIT = 10_000
SETTLE_S = 5.0
"""How long a node that leaves waits for its last reports to be settled."""

_log = structlog.get_logger("comity.node")


class Node:
    """One node process; its id is the bus's process id. ``wall`` gives seconds since 1970; ``rng`` must be hard to guess outside
    tests. ``incarnation`` must be higher than that of any earlier life (default: the wall clock in ms). ``about`` says where it
    runs (host, pid, region, zone, version, resources). ``performer`` calls the agents' functions. Made in the event loop. The
    doors are their owner's to close."""

    def __init__(
        self,
        bus: Bus,
        registry: Registry,
        store: Store,
        settings: Settings,
        *,
        agents: Iterable[Agent] = (),
        wall: Callable[[], float],
        rng: Random,
        incarnation: int | None = None,
        measure: Measure | None = None,
        about: NodeRecord | None = None,
        performer: Callable[[Pools], Performer] = Performer,
    ) -> None:
        self.node, self.bus, self.settings, self.wall = bus.process, bus, settings, wall
        self.incarnation = int(wall() * 1000) if incarnation is None else incarnation
        self.is_draining = self.has_left = self._is_leaving = self._is_started = False
        self.failure: Exception | None = None
        """A fault of ours that keeps the node from its work: whoever runs it stops it."""
        self.failed, self._ready = asyncio.Event(), asyncio.Event()
        self.outbox, self._straying = Outbox(bus), Straying(bus)
        self.lease = Lease(settings.orphan_s, lambda: rng.getrandbits(53))
        self.client = Client(bus, registry, store, settings, wall=wall, rng=rng, outbox=self.outbox)
        self.pools = Pools()
        calls = performer(self.pools)
        self.attempts = Attempts(
            self.node, store, calls, lambda item: self.outbox.post(LEADER, item), self._speak_for_attempt, wall,
            streams=Streams(self.outbox.post), keep_s=settings.keep_finished_s, grace_s=settings.cancel_grace_s,
            held=Guard(self.lease, bus, self._ready, lambda: self.client.holds_lease(self.node, self.incarnation)).held,
        )  # fmt: skip
        self._agents: dict[str, Agent] = {}
        self.checkups = Checkups(calls, settings)
        self.messages = Messages(
            self.node, self.incarnation, self._agents.get, calls, self.outbox.post, self._speak_for_call, wall,
            self.client.depot,
        )  # fmt: skip
        self.announcer = Announcer(self.node, registry, self.record, self._fail)
        self._loop, self._measure = asyncio.get_running_loop(), measure
        self._about, self._started_at = about or NodeRecord(id=self.node, incarnation=0), int(wall() * 1000)
        self._controls = Control(self)
        self._cancels: list[Cancel] = []
        self._held: list[tuple[float, wire.Item, ProcessId]] = []
        self._work: set[asyncio.Task[None]] = set()
        self._tick_timer: asyncio.TimerHandle | None = None
        self._soon: asyncio.TimerHandle | None = None
        self._is_unheard = False  # what was said to the leader, or by it, may not have come
        self._due = self._lag = 0.0
        self._ticks = self.malformed = 0
        self._thread = threading.get_ident()
        self._listen_for(calls, store)
        for agent in agents:
            self.add(agent)

    def _listen_for(self, calls: Performer, store: Store) -> None:
        """What is taken from the leader only, and what from anybody. The client takes the rest."""
        self.mail = Inbox(
            self.node, self._agents.get, self.messages, calls, store, lambda item: self.outbox.post(LEADER, item),
            lambda: self.incarnation, timeout_s=self.settings.attempt_timeout_s,
        )  # fmt: skip
        self._probing, self._soon_s = Probing(self.outbox.post, self.client.handle), SOON_S
        self._on: dict[type, Callable[[Any, ProcessId], None]] = {
            wire.Run: self._run,
            wire.Stop: lambda item, sender: self.attempts.stop(item),
            wire.Settled: lambda item, sender: self.attempts.settled(item),
            wire.Recorded: lambda item, sender: self.attempts.recorded(item),
            wire.Recalled: lambda item, sender: self.attempts.recalled(item),
            wire.Evicted: self._evicted,
            **self.mail.takers,
        }
        self._on_any: dict[type, Callable[[Any, ProcessId], None]] = {
            wire.BeaconAck: self._acknowledged,
            wire.Leading: self._leading,
            wire.Message: self._message,
            wire.Control: self._control,
            wire.Ping: lambda item, sender: self.outbox.post(to(sender), wire.Pong(item.ref)),
            wire.Pong: self._probing.answered,
            ReadParts: self.attempts.streams.read,
        }

    # Joining and leaving

    async def start(self, timeout_s: float | None = None) -> None:
        """Listen, announce the agents, begin to send beacons. Raises what keeps it from that for ``timeout_s`` (default
        ``request_timeout_s``): Disconnected, or the registry's; at once AccessDenied, and a fault of ours."""
        self._measure = self._measure or measured()
        self._is_started = True
        self.bus.on_state(self._link)
        self.bus.on_unreachable(self._unreachable)
        limit_s = self.settings.request_timeout_s if timeout_s is None else timeout_s
        for address in (to(self.node), EVERYONE):
            self._cancels.append(await subscribe(self.bus, address, self._receive, limit_s))
        self.announcer.start()
        await self._announced(limit_s)
        await self.client.open()
        self._sight()
        self._due = self._loop.time()
        self._tick()

    async def _announced(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self.announcer.announced.wait()
        except TimeoutError:
            raise self.announcer.failure or TimedOut(f"the registry did not answer within {timeout_s:g} s") from None
        if self.failure is not None:
            raise self.failure

    def _fail(self, error: Exception) -> None:
        _log.critical("this node stops", node=self.node, error=type(error).__name__, exc_info=error)
        self.failure = error
        self.failed.set()
        self.announcer.announced.set()  # nobody need wait for that

    async def ready(self, timeout_s: float | None = None) -> None:
        """Wait until the leader knows this node and may give it work; for its agents five seconds at most. Raises TimedOut."""
        limit_s = self.settings.request_timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await self._ready.wait()
        except TimeoutError:
            raise TimedOut(f"no leader took node {self.node} in within {limit_s:g} s") from None
        await self.lease.listed(self._beacon)

    async def drain(self, timeout_s: float | None = None) -> None:
        """Take nothing new, let what runs end within ``timeout_s`` (default ``drain_timeout_s``), hand back the rest. The node
        stays, idle, until ``stop``."""
        if not self.is_draining:
            self.is_draining = True
            self.announcer.changed()
            self._beacon()
        await self._quiet(self.settings.drain_timeout_s if timeout_s is None else timeout_s)
        if self.attempts.running:
            self.attempts.hand_back(f"node {self.node} is draining", self.settings.cancel_grace_s)
            await self._quiet(self.settings.cancel_grace_s + SETTLE_S)

    async def _quiet(self, timeout_s: float) -> None:
        """Wait until nothing runs and nothing is unsettled."""
        try:
            async with asyncio.timeout(timeout_s):
                await self.attempts.quiet.wait()
        except TimeoutError:
            return

    async def stop(self) -> None:
        """Leave at once: what runs is handed back. Idempotent. After ``drain`` nothing runs any more. Plain functions that were
        given up may still be in their threads: see ``pools.running``."""
        if self._is_leaving:
            return
        self._is_leaving = self.is_draining = True
        self.attempts.hand_back(f"node {self.node} has left", 0.0)
        await self.mail.close(self.settings.cancel_grace_s)
        await self.messages.close(self.settings.cancel_grace_s)
        if self.lease.may_begin(self._loop.time()) and self.bus.link is Link.UP:
            await self._quiet(SETTLE_S)
        self.has_left = True
        self._probing.close()
        await self.checkups.close()
        for timer in (self._tick_timer, self._soon):
            if timer is not None:
                timer.cancel()
        if self._is_started:
            self.outbox.post(LEADER, wire.Leaving(self.incarnation))
        await ended([*self._work, *self.attempts.lingering], self.settings.cancel_grace_s)
        self.attempts.streams.close()
        await self.announcer.close()
        await self.client.close()
        await self.outbox.drain()
        if self.bus.link is Link.UP:
            for cancel in self._cancels:
                await cancel()
        for agent in self.agents:
            agent.move_out()
        self._agents.clear()
        await self.pools.close()

    def record(self) -> NodeRecord:
        """The node as the registry shows it."""
        return msgspec.structs.replace(
            self._about, id=self.node, incarnation=self.incarnation, started_at=self._started_at,
            draining=self.is_draining, beacon_s=self.settings.beacon_s, orphan_s=self.settings.orphan_s,
        )  # fmt: skip

    # Agents

    @property
    def agents(self) -> list[Agent]:
        return list(self._agents.values())

    def add(self, agent: Agent) -> None:
        """Host ``agent`` from now on; it is announced in a moment (``announcer.announced``). Raises Conflict (its name is taken,
        or another node hosts it), ShuttingDown."""
        if self._is_leaving:
            raise ShuttingDown(f"node {self.node} has left")
        if agent.name in self._agents:
            raise Conflict(f"node {self.node} hosts an agent called {agent.name} already", name=agent.name)
        agent.move_in(self, int(self.wall() * 1000))
        self._agents[agent.name] = agent
        self.messages.listens(agent, agent.listeners)
        self._sight()
        self.announcer.put(agent)
        self.checkups.look(agent)
        for group in agent.groups:
            self.mail.join(agent, group)

    def remove(self, agent: Agent | str) -> None:
        """No longer host an agent, given itself, its name or its id. Its attempts are handed back. Raises UnknownAgent."""
        hosted = self.find(agent if isinstance(agent, str) else agent.name)
        del self._agents[hosted.name]
        self.attempts.hand_back(f"agent {hosted.name} has left", self.settings.cancel_grace_s, hosted)
        self.messages.forget(hosted, hosted.listeners)
        self.mail.forget(hosted)
        self.messages.conversing.leave({f"{self.node}/{hosted.name}"}, f"agent {hosted.name} has left")
        self.announcer.remove(hosted)
        self.checkups.forget(hosted)
        hosted.move_out()

    def find(self, agent: str) -> Agent:
        """The hosted agent of that name or id. Raises UnknownAgent."""
        node, slash, name = agent.rpartition("/")
        found = self._agents.get(name) if not slash or node == self.node else None
        if found is None:
            raise UnknownAgent(f"node {self.node} hosts no agent {agent}", agent=agent)
        return found

    def changed(self, agent: Agent) -> None:
        """See ``agent.Home``. May be called from the thread of a plain function."""
        self._in_loop(self._changed, agent)

    def _changed(self, agent: Agent) -> None:
        if self._agents.get(agent.name) is agent:
            self.announcer.put(agent)
            self.checkups.look(agent)

    def joins(self, agent: Agent, group: str) -> None:
        """See ``agent.Home``."""
        self._in_loop(self.mail.join, agent, group)

    def listens(self, agent: Agent, topic: str) -> None:
        """See ``agent.Home``."""
        self._in_loop(self._listens, agent, topic)

    def _listens(self, agent: Agent, topic: str) -> None:
        if self._agents.get(agent.name) is agent:
            self.messages.listens(agent, (topic,))
            self._sight()

    def _sight(self) -> None:
        """If an agent listens to who joins or leaves: tell it."""
        if self._is_started and any(self.messages.is_listened_to(topic) for topic in TOPICS.values()):
            self.client.sightings(lambda envelope: self.messages.take(envelope, self.node))

    def _in_loop(self, call: Callable[..., None], *args: Any) -> None:
        if threading.get_ident() == self._thread:
            call(*args)
        else:
            self._loop.call_soon_threadsafe(call, *args)

    def client_for(self, agent: AgentId) -> Client:
        """See ``agent.Home``."""
        return self.client.child(sender=agent)

    def _speak_for_attempt(self, running: Running) -> Client:
        run = running.run
        return self.client.child(
            sender=run.agent, parent=run.task, parent_epoch=run.epoch, deadline=running.deadline_at or inf,
            pausing=running.pausing, trace=run.trace, outgoing=running.memory.send,
        )  # fmt: skip

    def _speak_for_call(self, call: Call) -> Client:
        return self.client.child(sender=call.agent, deadline=call.deadline_at, trace=call.envelope.trace)

    # What arrives

    def _receive(self, delivery: Delivery) -> None:
        try:
            items = wire.decode(delivery.data)
        except InvalidInput as error:
            self.malformed += 1
            _log.warning("a message cannot be read", sender=delivery.sender, error=error.message)
            return
        if not self.has_left:
            for item in items:
                self._take(item, delivery.sender)

    def _take(self, item: wire.Item, sender: ProcessId) -> None:
        kind = type(item)
        take = self._on.get(kind)
        if take is None:
            take_any = self._on_any.get(kind)
            if take_any is not None:
                take_any(item, sender)
            else:
                self.client.handle(item, sender)
        elif sender == self.lease.leader:
            take(item, sender)
        else:
            self._hold(item, sender)

    def _hold(self, item: wire.Item, sender: ProcessId) -> None:
        """Not from the leader we know: maybe from a new one. A beacon will tell."""
        if len(self._held) < HELD_LIMIT:
            self._held.append((self._loop.time(), item, sender))
        if len(self._held) == 1:
            self._beacon()

    def _run(self, run: wire.Run, _sender: ProcessId) -> None:
        if self.attempts.knows(run):
            return
        self.lease.term = max(self.lease.term, run.term)
        agent = self._agents.get(run.agent.rpartition("/")[2])
        offered = agent.offered.get(run.capability) if agent is not None else None
        reason = why_not(self, run, agent)
        if agent is None or offered is None or reason:
            self.attempts.decline(run, reason or f"{run.agent} does not offer {run.capability}")
        else:
            self.attempts.begin(run, agent, offered)

    def _message(self, item: wire.Message, sender: ProcessId) -> None:
        if not self.client.handle(item, sender):
            self.messages.take(item.envelope, sender)

    def _leading(self, item: wire.Leading, sender: ProcessId) -> None:
        """Anybody can say so; only a controller can acknowledge a beacon."""
        self.client.handle(item, sender)
        if item.term > self.lease.term:
            self._beacon()

    def _control(self, item: wire.Control, sender: ProcessId) -> None:
        try:
            if item.what == "probe" and sender == self.lease.leader:
                self._probing.begin(item, sender)
                return
            code, body = "", self._controls.do(item)
        except ComityError as error:
            code, body = error.code, {"message": error.message, "details": error.details}
        self.outbox.post(to(sender), wire.Answer(item.ref, code, msgspec.json.encode(body)))

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do ``work`` in the background, until the node leaves."""
        task = self._loop.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    # The lease

    def _acknowledged(self, ack: wire.BeaconAck, sender: ProcessId) -> None:
        lease = self.lease
        before, aside = (lease.term, lease.leader, lease.contact_at), lease.aside
        if not lease.take(ack, sender):
            return
        if lease.aside != aside:
            _log.warning(f"set aside: {lease.aside}" if lease.aside else "no longer set aside", node=self.node)
        self.client.set_time(ack.now_ms)
        self._soon_s = SOON_S
        is_new = (lease.term, lease.leader) != before[:2]
        if is_new or self._is_unheard or self._loop.time() - before[2] > ack.lease_s:
            self._is_unheard = False
            self.attempts.repeat(all_of_it=True)
            self.mail.repeat(all_of_it=True)
        held, self._held = self._held, []
        for at, item, said_by in held:
            if said_by == sender:
                self._on[type(item)](item, sender)
            elif at > self._loop.time() - ack.lease_s:
                self._held.append((at, item, said_by))
        if ack.known:
            self._ready.set()
        else:
            self._ready.clear()
            self.announcer.check()
            self._beacon_soon()

    def _beacon_soon(self) -> None:
        if self._soon is None:
            self._soon = self._loop.call_later(self._soon_s, self._again)
            self._soon_s = min(self._soon_s * 2, self.settings.beacon_s)

    def _again(self) -> None:
        self._soon = None
        self._beacon()

    def _evicted(self, item: wire.Evicted, _sender: ProcessId) -> None:
        if item.incarnation < self.incarnation or self._is_leaving:
            return
        _log.warning("evicted; joining again", node=self.node, reason=item.reason)
        self.attempts.abandon()
        self.lease.end()
        self._ready.clear()
        self.incarnation = max(item.incarnation + 1, int(self.wall() * 1000))
        self.announcer.check()
        self._beacon()

    def _link(self, link: Link) -> None:
        if link is Link.UP and not self.has_left:
            self._is_unheard = True
            self._beacon()

    def _unreachable(self, address: str) -> None:
        """Nobody leads, or the leader is on its way back: once it acknowledges a beacon it is told everything again."""
        self._probing.unreachable(address)
        self.messages.conversing.unreachable(address)
        if address == LEADER and not self.has_left:
            self._is_unheard = True
            self._beacon_soon()

    def _tick(self) -> None:
        now = self._loop.time()
        self._lag = max(self._lag, now - self._due)
        self._due = now + self.settings.beacon_s / TICKS
        self._tick_timer = self._loop.call_at(self._due, self._tick)
        self._ticks += 1
        if self._ticks % TICKS == 1:
            if self.attempts.running and self.lease.is_orphan(now):
                self.attempts.hand_back(f"node {self.node} was out of contact for too long", 0.0)
            self._beacon()  # whatever becomes of what follows, it is known that we live
            self._straying.look(self.lease.contact_at)
            self.attempts.repeat(all_of_it=False)
            self.mail.repeat(all_of_it=False)

    def _beacon(self) -> None:
        if self._measure is None or self.has_left:
            return
        load = self._measure()
        for progress in self.attempts.progress(self.lease.contact_at):
            self.outbox.post(LEADER, progress)
        self.outbox.post(LEADER, wire.Beacon(
            self.lease.beacon(self._loop.time()), self.incarnation, self._lag, load.cpu, load.memory_mb,
            len(self.attempts.running), len(self._agents), load.host_cpu_free, load.host_memory_free_mb,
            self.is_draining, self.messages.load(), int(self.wall() * 1000), self._is_unheard,
        ))  # fmt: skip
        self._lag = 0.0
