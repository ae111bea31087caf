"""What a controller builds when it begins to lead, and drops when it stops: the leader and all that works beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from comity.bus.base import EVERYONE, Address
from comity.config import Settings
from comity.controller.admission import Admission, check_capability
from comity.controller.answers import Answers, Args, Slow
from comity.controller.choices import Choices
from comity.controller.events import Events
from comity.controller.hearing import Hearing
from comity.controller.inspection import LOG_ENTRY, Inspection
from comity.controller.keeping import Keeping
from comity.controller.leader import Leader
from comity.controller.liveness import Liveness
from comity.controller.mailing import Mailing
from comity.controller.numbers import Rates, loads, nodes, stats
from comity.controller.performance import performance
from comity.controller.pipeline import EntryClock, Pipeline
from comity.controller.replaying import Replaying
from comity.controller.room import Room
from comity.controller.routing import Routing
from comity.controller.schedules import Schedules
from comity.controller.standing import Standing
from comity.controller.telling import Telling
from comity.controller.vanished import Vanished
from comity.controller.witnesses import Witnesses
from comity.core.breaker import CLOSED, OPEN, PROBING, Turn
from comity.core.changes import Change
from comity.core.ledger import Ledger
from comity.core.membership import Leadership, Membership, Timing
from comity.core.policy import Policy
from comity.core.reconcile import Reconcile
from comity.errors import ComityError, TooLarge, Unreachable
from comity.failpoints import durable
from comity.model.capability import AgentRecord, AgentStatus, strategy
from comity.model.codec import to_json
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId, NodeId, ProcessId, TaskId, TaskIds
from comity.model.limits import FAR_S
from comity.model.moment import iso
from comity.model.server import Damage
from comity.model.task import Configure, Task, TaskState
from comity.model.wire import Message

if TYPE_CHECKING:
    from comity.controller.controller import Controller

STALL_S = 0.5
"""An append under way for longer means that we cannot write now: lease time does not count."""
STAMP_MS = 3_600_000
"""A log that is still for so long is told the time."""
STRATEGIES_MAX = 10_000
VERSIONS_KEPT = 32
TOLD = ("lease_s", "beacon_s", "orphan_s", "cancel_grace_s", "dedup_window_s")
"""Settings that others have to agree with."""
_TURNS = {OPEN: "agent.broken", PROBING: "agent.probing", CLOSED: "agent.mended"}
RUNNING = (TaskState.ASSIGNED, TaskState.WORKING)


class Term:
    """One term of leading. ``over`` is set when its pipeline broke."""

    def __init__(self, controller: Controller, clock: EntryClock) -> None:
        c, settings = controller, controller.settings
        self.clock = clock
        self.over = asyncio.Event()
        self.fault: Exception | None = None
        """A fault of ours: the state in memory may be half changed."""
        self.rates = Rates()
        self._controller = c
        self._time = asyncio.get_running_loop().time
        self.choices = Choices(c.scheduling)
        self._beside: set[asyncio.Task[None]] = set()
        self._in_doubt = False
        self._told = self._stamped_ms = 0
        self._durability = ("unverified", "not asked yet")
        self._client_versions: dict[str, None] = {}
        policy = _policy(settings)
        self.reconcile = Reconcile(c.state, c.scheduling, policy, c.random, c.breakers)
        self.reconcile.on_choice = self.choices.note
        self.reconcile.rotation.on_turn = self._breaker_turned
        window_ms = int(settings.dedup_window_s * 1000)
        room = Room(
            c.state.backlog, max_tasks=settings.max_waiting, max_bytes=settings.max_waiting_bytes,
            max_each=settings.max_waiting_per_submitter, drain=lambda: self.rates.rates()["ended_per_s"],
            ended=lambda: len(c.state.finished),
        )  # fmt: skip
        self.admission = Admission(c.state, c.scheduling, room, window_ms=window_ms)
        self.events = Events(c.outbox, self._time, c.changes)
        telling = Telling(c.state, c.outbox, c.payloads, clock, grace_ms=policy.cancel_grace_ms)
        self.leader = Leader(c.bus, c.outbox, c.state, self.reconcile, self.admission, telling, self.events, clock)
        self.pipeline = Pipeline(c.log, c.ledger, clock, self.leader.fill, self.leader.effective, self._broken)
        self.hearing = Hearing(c.log, self.pipeline)
        timing = Timing(lease_s=settings.lease_s, beacon_s=settings.beacon_s, departures=c.sees_departures)
        self.routing = Routing(self.reconcile, c.outbox, clock.now_ms)
        self.mailing = Mailing(
            c.state, c.outbox, settings, c.census.agents, now_ms=clock.now_ms,
            propose=self.leader.propose, barrier=self.leader.barrier, effective=self._effective,
        )  # fmt: skip
        machine = Membership(timing, c.state.ended)
        self.liveness = Liveness(
            machine, c.outbox, self.reconcile,
            term=c.state.term, lease_s=settings.lease_s, poison_nodes=settings.poison_nodes, now_ms=clock.now_ms,
            notice=self._node_changed,
            propose=self.leader.propose, rearm=self.leader.arm, ended=self._node_ended, routed=self.routing.at,
            at_work=self.mailing.at_work, listed=c.census.lists,
        )  # fmt: skip
        self.witnesses = Witnesses(c.bus.process, c.outbox, self.liveness.states, self.leader.notice)
        self.keeping = Keeping(
            c.state, c.ledger, c.log, c.store, c.payloads, propose=self.leader.propose, barrier=self.leader.barrier,
            now_ms=clock.now_ms, snapshot_every=settings.snapshot_every, keep_finished=settings.keep_finished,
            keep_finished_ms=int(settings.keep_finished_s * 1000), window_ms=window_ms, keep_dead=settings.keep_dead,
            keep_dead_ms=int(settings.keep_dead_s * 1000),
        )  # fmt: skip
        self.vanished = Vanished(c.census, c.state.nodes, lambda node: self._spawn(self._forget(node, 0)))
        self.inspection = Inspection(
            c.state, c.ledger, c.log, c.store, tell=self._damaged, now_ms=clock.now_ms,
            rate_mb=settings.inspect_rate_mb, pause_s=settings.inspect_pause_s,
        )  # fmt: skip
        self.schedules, self.replaying = self._makers_of_tasks()
        self.answers = self._answers()
        self._join()

    def _answers(self) -> Answers:
        c = self._controller
        return Answers(
            c.state, self.reconcile, c.payloads, c.store, c.outbox,
            barrier=self.leader.barrier, choice=self.choices.of,
            plain={
                "hello": self._hello,
                "stats": lambda _args: self.stats(),
                "nodes": lambda _args: {"nodes": nodes(self.leader, c.census)},
                "agents": lambda _args: {"agents": loads(self.leader, c.census)},
                "performance": lambda args: performance(c.scheduling, args.capability, self.clock.now_ms()),
            },
            slow={
                "shutdown": self._shutdown,
                "strategy": self._set_strategy,
                "schedules": self.schedules.list,
                "remove-schedule": self.schedules.remove,
                "dead": self.replaying.list,
                "replay-dead": self.replaying.replay,
                "drop-dead": self.replaying.drop,
                **self._standing(),
                **self.mailing.questions,
            },
        )  # fmt: skip

    def _makers_of_tasks(self) -> tuple[Schedules, Replaying]:
        c, leader = self._controller, self.leader
        ids = TaskIds(self.clock.now_ms, int(c.random() * 2**40))
        schedules = Schedules(
            c.state, ids, propose=leader.propose, effective=self._effective, may_fire=self._may_fire, notice=leader.notice
        )
        replaying = Replaying(
            c.state, c.payloads, c.store, self.admission, ids, find=self._find,
            propose=leader.propose, effective=self._effective, now_ms=self.clock.now_ms,
        )  # fmt: skip
        return schedules, replaying

    def _standing(self) -> dict[str, Slow]:
        c = self._controller
        standing = Standing(
            c.state, c.census, propose=self.leader.propose, effective=self._effective, next_entry=self._next_entry,
            drain_timeout_s=c.settings.drain_timeout_s,
        )  # fmt: skip
        return {"drain-node": standing.drain, "isolate-node": standing.isolate, "resume-node": standing.resume}

    def _join(self) -> None:
        leader = self.leader
        leader.pipeline = self.pipeline
        leader.liveness = self.liveness
        leader.mailing = self.mailing
        leader.resuming.mail = self.mailing.posting.committed
        leader.ask = leader.resuming.ask = self.answers.ask
        leader.telling.propose = leader.propose
        leader.telling.follow_missing = self.answers.follow_missing
        leader.route = self.routing.route
        leader.call_ended = self.routing.call_ended
        leader.add_schedule = lambda item, sender: self.answers.reply(
            item.ref, sender, lambda _args: self.schedules.add(item, sender)
        )
        leader.witnessed = self.witnesses.answered
        leader.kept = self._kept
        leader.rate_missing = self.answers.rate_missing
        census = self._controller.census
        census.put = self._put_agent
        census.remove = self._remove_agent
        census.changed = self._agent_changed
        census.damaged = self._copy_damaged

    def begin(self) -> None:
        c = self._controller
        self.events.publish(c.ledger.index, c.state.time_ms, [Change("leader.elected", node=c.bus.process)])
        self._apply_strategies()
        self.leader.begin()
        for node in c.scheduling.eligible_nodes():
            if node not in c.state.nodes:  # it lost its lease while another controller led
                self.reconcile.set_node(node, False)
        for node, lease in c.state.nodes.items():
            self.liveness.restore(node, lease.incarnation)
        self.liveness.step(Leadership(True))
        self._spawn(self._ask_durability())
        self.inspection.begin()
        c.census.tell_again()

    def end(self) -> None:
        self.leader.end()
        self.hearing.end()
        self.routing.end()
        self.witnesses.end()
        self.keeping.end()
        self.mailing.end()
        self.inspection.end()
        self.events.end()
        self.answers.end()
        for task in self._beside:
            task.cancel()

    @property
    def is_over(self) -> bool:
        return self.over.is_set()

    def _broken(self, error: Exception) -> None:
        if isinstance(error, ComityError):
            self.leader.notice("leader.interrupted", reason=f"{error.code}: {error.message}")
        else:
            self.fault = error
        self.over.set()

    def doubt(self) -> None:
        """Somebody says that it leads a higher term: the log knows."""
        if not self._in_doubt:
            self._in_doubt = True
            self._spawn(self._look_for_rival())

    async def _look_for_rival(self) -> None:
        c = self._controller
        ledger = Ledger.restore(c.ledger.state())
        try:
            for index, data in await c.log.read(ledger.index):
                ledger.offer(index, data)
        except ComityError as error:  # not known now; who really leads says so again
            self.leader.notice("log.unreachable", reason=error.message)
        self._in_doubt = False
        if ledger.term > c.state.term:
            self.over.set()

    def pulse(self, lag_s: float) -> None:
        """A few times a second."""
        self.liveness.lag(lag_s)
        since = self.pipeline.stalled_since()
        self.liveness.stalled(since is not None and self._time() - since > STALL_S)
        if not self.hearing.pulse():
            self._broken(Unreachable("the log has not answered for too long"))
            return
        self.rates.sample(self._time(), self._controller.state.totals)
        self.keeping.look(self.pipeline.commands, self.pipeline.bytes)
        self.vanished.look(self._time())
        self.choices.pulse()
        self.schedules.look(self.clock.now_ms())
        self.mailing.pulse()
        self._stamp(self.clock.now_ms())

    def _stamp(self, now_ms: int) -> None:
        """The log tells what time it is, also if nothing happens: whoever starts this network again can see for how long it stood
        still."""
        if now_ms - max(self._controller.ledger.time_ms, self._stamped_ms) >= STAMP_MS:
            self._stamped_ms = now_ms
            self.leader.barrier(lambda: None)

    def _may_fire(self) -> bool:
        return not self.admission.shutting_down and self._controller.state.waiting < self.admission.max_waiting

    async def _find(self, task: TaskId) -> Task:
        return await self.answers.find(task)

    async def _effective(self) -> None:
        """Until all that was proposed before counts."""
        effective = asyncio.Event()
        self.leader.barrier(effective.set)
        await effective.wait()

    def departed(self, process: ProcessId) -> None:
        self.liveness.departed(process)
        self.routing.caller_died(process)

    def unreachable(self, address: Address) -> None:
        """Nobody listens there."""
        kind, _, process = address.partition("/")
        if kind == "to":
            self.liveness.unreachable(ProcessId(process))
            self.routing.caller_died(ProcessId(process))

    def _damaged(self, place: str, reason: str) -> None:
        """Tell of it, and save what is in memory: who reads from a newer snapshot needs no entry before it."""
        self.leader.notice("storage.damaged", place=place, reason=reason)
        self.keeping.snapshot_wanted = True
        index = place.removeprefix(LOG_ENTRY)
        if self._controller.log.lag_s:
            self._controller.doubt.ask(int(index) if index.isdecimal() else 0)

    def _copy_damaged(self, server: str, damage: Damage) -> None:
        kind = "replica.rebuilt" if damage.mended else "replica.damaged"
        self.leader.notice(kind, server=server, stream=damage.stream, place=damage.place, reason=damage.reason)

    # Agents and nodes

    def _put_agent(self, agent: AgentRecord) -> None:
        self.reconcile.put_agent(agent)
        self.mailing.put(agent)
        self.pipeline.wake()

    def _remove_agent(self, agent: AgentId) -> None:
        self.reconcile.remove_agent(agent)
        self.mailing.remove(agent)

    def _agent_changed(self, kind: str, agent: AgentRecord) -> None:
        status = AgentStatus.LEFT if kind == "agent.left" else agent.status
        self.leader.notice(kind, agent=agent.id, node=agent.node, status=status)

    def _breaker_turned(self, turn: Turn) -> None:
        kind = _TURNS.get(turn.state)
        if kind is not None:
            until = {"until": iso(turn.until_ms)} if turn.until_ms else {}
            self.leader.notice(kind, agent=turn.agent, capability=turn.capability, reason=turn.reason, **until)

    def _tell_everyone(self, kind: str, about: dict[str, Any]) -> None:
        c, self._told = self._controller, self._told + 1
        envelope = Envelope(
            id=f"{c.bus.process}-{c.state.term}-{self._told}", performative=Performative.INFORM, sender=c.bus.process,
            topic=kind, sent_at=self.clock.now_ms(), body=to_json(about),
        )  # fmt: skip
        c.outbox.post(EVERYONE, Message(envelope))

    def _kept(self, changes: list[Change]) -> None:
        self.keeping.kept(changes)
        for change in changes:
            if change.kind == "strategy.set":
                self._apply_strategies()

    def _node_changed(self, kind: str, node: NodeId, reason: str) -> None:
        self.leader.notice(kind, node=node, reason=reason)
        if kind == "node.suspect":
            self.witnesses.suspected(node)

    def _node_ended(self, node: NodeId, incarnation: int) -> None:
        self.routing.caller_died(node)
        self._spawn(self._forget(node, incarnation))

    def _apply_strategies(self) -> None:
        for capability, chosen in self._controller.state.strategies.items():
            self._controller.scheduling.set_strategy(capability, chosen)

    async def _forget(self, node: NodeId, incarnation: int) -> None:
        """Clear a gone node's registrations away. If that fails they stay, which misleads nobody: it has no lease."""
        try:
            await self._controller.census.forget(node, incarnation)
        except ComityError as error:
            self.leader.notice("registry.unreachable", node=node, reason=error.message)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    # Questions about the network

    def _hello(self, args: Args) -> dict[str, Any]:
        c = self._controller
        if args.version and len(self._client_versions) < VERSIONS_KEPT:
            self._client_versions[args.version[:40]] = None
        return {
            "network": c.settings.network,
            "network_id": c.network_id,
            "term": c.state.term,
            "leader": c.bus.process,
            "now_ms": self.clock.now_ms(),
            "lease_s": c.settings.lease_s,
            "dedup_window_s": c.settings.dedup_window_s,
            "durability": self._durability[0],
        }

    def stats(self) -> dict[str, Any]:
        c = self._controller
        origin = c.state.origin
        return {
            **stats(self.leader, c.census, self.rates, self._durability),
            "controller": c.about(),
            "client_versions": sorted(self._client_versions),
            "settings": {name: getattr(c.settings, name) for name in TOLD},
            "doors": c.doors,
            "restored_from": f"entry {origin.index} of network {origin.origin}" if origin is not None else "",
            "time_ahead_s": round(self.clock.now_ms() / 1000 - c.wall(), 3),
            "storage": self.inspection.figures(),
            "damaged_copies": c.census.damages(),
            "mail": self.mailing.figures(),
        }

    async def _ask_durability(self) -> None:
        try:
            level, reason = await self._controller.log.durability()
            self._durability = (level, reason)
        except ComityError as error:
            self._durability = ("unverified", error.message)

    async def _set_strategy(self, args: Args) -> dict[str, Any]:
        capability, chosen = args.capability or "", strategy(args.strategy)
        check_capability(capability)
        if len(self._controller.state.strategies) >= STRATEGIES_MAX and capability not in self._controller.state.strategies:
            raise TooLarge(f"{STRATEGIES_MAX} capabilities have a strategy of their own already", limit=STRATEGIES_MAX)
        with durable("strategy.commit"):
            self.leader.propose(Configure(capability, chosen))
            await self._effective()
        return {"capability": capability, "strategy": chosen}

    async def _shutdown(self, args: Args) -> dict[str, Any]:
        """Announce it to everyone, refuse submits, wait until nothing runs (or the time is over), then say so."""
        limit_s = self._controller.settings.drain_timeout_s if args.timeout_s is None else min(args.timeout_s, FAR_S)
        self.admission.shutting_down = True
        self.leader.notice("network.shutdown")
        self._tell_everyone("system.shutdown", {"timeout_s": limit_s})
        self.reconcile.paused = True
        deadline = self._time() + limit_s
        counts = self._controller.state.counts
        while any(counts[state] for state in RUNNING) and self._time() < deadline:
            await self._next_entry(deadline - self._time())
        self._controller.shut_down.set()
        return {"running": sum(counts[state] for state in RUNNING), "waiting": self._controller.state.waiting}

    async def _next_entry(self, timeout_s: float) -> None:
        """Until an entry became effective, or the time is over."""
        applied = asyncio.Event()
        self.leader.once_effective.append(applied.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(applied.wait(), timeout_s)


def _policy(settings: Settings) -> Policy:
    return Policy(
        backoff_ms=int(settings.retry_first_s * 1000), backoff_factor=settings.retry_factor,
        backoff_max_ms=int(settings.retry_max_s * 1000), retry_budget=settings.retry_budget,
        cancel_grace_ms=int(settings.cancel_grace_s * 1000),
    )  # fmt: skip
