"""Drives the membership machine: beacons, probes, departures; and turns its effects into commands, replies and events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from comity.bus.base import Address, Bus, Link, to
from comity.bus.outbox import Outbox
from comity.core import membership as m
from comity.core.reconcile import Reconcile
from comity.model.ids import NodeId, ProcessId
from comity.model.task import Command, Evict, NodeLeft, NodeUp
from comity.model.wire import Beacon, BeaconAck, Evicted, Leaving, Ping


class Liveness:
    """The leader's knowledge of its nodes. ``propose`` takes commands; ``notice`` a kind of event, a node and a reason;
    ``rearm`` hears that the next deadline may have changed."""

    def __init__(
        self,
        machine: m.Membership,
        bus: Bus,
        outbox: Outbox,
        reconcile: Reconcile,
        *,
        term: int,
        lease_s: float,
        now_ms: Callable[[], int],
        propose: Callable[[Command], None],
        notice: Callable[[str, NodeId, str], None],
        rearm: Callable[[], None],
    ) -> None:
        self.machine = machine
        self.beacons: dict[NodeId, Beacon] = {}
        self.states: dict[NodeId, tuple[str, str]] = {}
        self._seen_at: dict[NodeId, float] = {}
        self._bus = bus
        self._outbox = outbox
        self._reconcile = reconcile
        self._term = term
        self._lease_s = lease_s
        self._now_ms = now_ms
        self._propose = propose
        self._notice = notice
        self._rearm = rearm
        self._time = asyncio.get_running_loop().time
        self._probe_ref = 0

    def restore(self, node: NodeId, incarnation: int) -> None:
        """A node that held a lease when this term began: its lease starts afresh."""
        self.step(m.Applied(NodeUp(node, incarnation)))
        self._set_node(node)

    def beacon(self, item: Beacon, node: ProcessId) -> None:
        state = self._reconcile.state
        self.step(m.BeaconSeen(node, item.incarnation, item.draining, item.running > 0))
        before = self.beacons.get(node)
        self.beacons[node] = item
        self._seen_at[node] = self._time()
        lease = state.nodes.get(node)
        known = lease is not None and lease.incarnation == item.incarnation
        ack = BeaconAck(item.seq, self._term, self._lease_s, self._now_ms(), known)
        self._outbox.post(to(node), ack)
        if known:
            self._take_load(node, item, before)

    def _take_load(self, node: NodeId, item: Beacon, before: Beacon | None) -> None:
        self._set_node(node)
        if before is not None:
            for agent in before.calls:
                if agent not in item.calls:
                    self._reconcile.scheduling.set_calls(agent, 0)
        for agent, count in item.calls.items():
            self._reconcile.scheduling.set_calls(agent, count)

    def _set_node(self, node: NodeId) -> None:
        beacon = self.beacons.get(node)
        cpu, memory = (beacon.host_cpu_free, beacon.host_memory_free_mb) if beacon is not None else (0.0, 0.0)
        eligible = self.states.get(node, ("", ""))[0] == "alive" and node in self._reconcile.state.nodes
        self._reconcile.set_node(node, eligible, cpu, memory)

    def seen_ago_s(self, node: NodeId) -> float | None:
        at = self._seen_at.get(node)
        return None if at is None else self._time() - at

    def leaving(self, item: Leaving, node: ProcessId) -> None:
        self.step(m.Leaving(node, item.incarnation))

    def departed(self, process: ProcessId) -> None:
        self.step(m.Departed(process))

    def unreachable(self, address: Address) -> None:
        kind, _, process = address.partition("/")
        if kind == "to":
            self.step(m.NoResponder(ProcessId(process)))

    def answered(self, node: ProcessId) -> None:
        self.step(m.ProbeAnswered(node))

    def bus_state(self, link: Link) -> None:
        self.step(m.BusState(link is Link.UP))

    def stalled(self, stalled: bool) -> None:
        self.step(m.AppendStalled(stalled))

    def lag(self, seconds: float) -> None:
        self.step(m.LoopLag(seconds))

    def applied(self, command: NodeUp | Evict | NodeLeft) -> None:
        lease = self._reconcile.state.nodes.get(command.node)
        if isinstance(command, NodeUp) and (lease is None or lease.incarnation != command.incarnation):
            return  # it came too late to count
        self.step(m.Applied(command))
        self._set_node(command.node)
        if isinstance(command, NodeUp):
            self._reconcile.wake()
        elif command.node not in self._reconcile.state.nodes:
            self.beacons.pop(command.node, None)
            if isinstance(command, Evict):
                self._outbox.post(to(command.node), Evicted(command.incarnation, command.reason))

    def tick(self) -> None:
        self.step(m.Tick())

    def next_deadline(self) -> float | None:
        return self.machine.next_deadline()

    def step(self, event: m.Event) -> None:
        for effect in self.machine.step(event, self._time()):
            if isinstance(effect, m.Propose):
                self._propose(effect.command)
            elif isinstance(effect, m.Probe):
                self._probe_ref += 1
                self._outbox.post(to(effect.node), Ping(self._probe_ref))
            elif isinstance(effect, m.Tell):
                self._outbox.post(to(effect.node), Evicted(effect.incarnation, "its lease was ended"))
            else:
                self._became(effect)
        self._rearm()

    def _became(self, effect: m.Became) -> None:
        before = self.states.get(effect.node, ("", ""))[0]
        self.states[effect.node] = (effect.state, effect.reason)
        self._set_node(effect.node)
        if effect.state == "alive":
            self._reconcile.wake()
        if before and effect.state in ("suspect", "alive", "draining"):
            self._notice(f"node.{effect.state}", effect.node, effect.reason)
