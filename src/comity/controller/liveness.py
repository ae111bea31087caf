"""Drives the membership machine: beacons, probes, departures; and turns its effects into commands, replies and events."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import msgspec

from comity.bus.base import Link, to
from comity.bus.outbox import Outbox
from comity.core import membership as m
from comity.core.reconcile import Reconcile
from comity.model.ids import AgentId, NodeId, ProcessId
from comity.model.task import Command, Evict, NodeLeft, NodeUp
from comity.model.wire import Beacon, BeaconAck, Evicted, Leaving, Ping

CALLS_MAX = 1_000_000
CLOCKS = 20
"""Beacons by which a node's clock is judged."""


class Liveness:
    """The leader's knowledge of its nodes. ``propose`` takes commands; ``notice`` a kind of event, a node and a reason; ``rearm``
    hears that the next deadline may have changed, ``ended`` which incarnation of a node has no lease any more; ``routed`` says
    how many live calls the leader sent to an agent; ``at_work`` which mail a node has at work, ``listed``
    whether the registry told of a node's life."""

    def __init__(
        self,
        machine: m.Membership,
        outbox: Outbox,
        reconcile: Reconcile,
        *,
        term: int,
        lease_s: float,
        poison_nodes: int,
        now_ms: Callable[[], int],
        propose: Callable[[Command], None],
        notice: Callable[[str, NodeId, str], None],
        rearm: Callable[[], None],
        ended: Callable[[NodeId, int], None],
        routed: Callable[[AgentId], int],
        at_work: Callable[[NodeId], tuple[tuple[AgentId, int], ...]],
        listed: Callable[[NodeId, int], bool],
    ) -> None:
        self.machine = machine
        self.beacons: dict[NodeId, tuple[float, Beacon]] = {}
        """When each node with a lease was last heard, and what it said."""
        self.states: dict[NodeId, tuple[str, str]] = {}
        self.clocks: dict[NodeId, deque[int]] = {}
        """By how many milliseconds each node's clock was ahead when its latest beacons arrived."""
        self._calls: dict[NodeId, dict[AgentId, int]] = {}
        self._missed: dict[NodeId, None] = {}
        self._outbox = outbox
        self._reconcile = reconcile
        self._term = term
        self._lease_s = lease_s
        self._poison_nodes = poison_nodes
        self._now_ms = now_ms
        self._propose = propose
        self._notice = notice
        self._rearm = rearm
        self._ended = ended
        self._routed = routed
        self._at_work = at_work
        self._listed = listed
        self._time = asyncio.get_running_loop().time
        self._probe_ref = 0

    def restore(self, node: NodeId, incarnation: int) -> None:
        """A node that held a lease when this term began: its lease starts afresh."""
        self.step(m.Applied(NodeUp(node, incarnation)))
        self._set_node(node)

    def beacon(self, item: Beacon, node: ProcessId) -> bool:
        """Whether what was sent to the node before may not have reached it: it was away, as it says or as we saw, or we were."""
        state = self._reconcile.state
        self.step(m.BeaconSeen(node, item.incarnation, item.draining, item.running > 0))
        lease = state.nodes.get(node)
        known = lease is not None and lease.incarnation == item.incarnation
        aside = state.aside.get(node)
        self._outbox.post(to(node), BeaconAck(
            item.seq, self._term, self._lease_s, self._now_ms(), known, aside.state if aside is not None else "",
            self._listed(node, item.incarnation),
        ))  # fmt: skip
        if known:
            self.beacons[node] = self._time(), item
            if item.wall_ms:
                self.clocks.setdefault(node, deque(maxlen=CLOCKS)).append(item.wall_ms - self._now_ms())
            self._set_node(node)
            self._take_calls(node, item.calls)
        return known and (self._missed.pop(node, self) is None or item.was_away)

    def _take_calls(self, node: NodeId, calls: dict[AgentId, int]) -> None:
        """Live calls at the node's own agents, without those that were routed from here: they count already."""
        direct = {
            agent: min(count - self._routed(agent), CALLS_MAX)
            for agent, count in calls.items()
            if agent.startswith(f"{node}/") and count > self._routed(agent)
        }
        gone = dict.fromkeys((agent for agent in self._calls.get(node, ()) if agent not in direct), 0)
        for agent, count in (direct | gone).items():
            self._reconcile.scheduling.set_calls(agent, count)
        self._calls[node] = direct

    def _set_node(self, node: NodeId) -> None:
        _, beacon = self.beacons.get(node, (0.0, None))
        cpu, memory = (beacon.host_cpu_free, beacon.host_memory_free_mb) if beacon is not None else (0.0, 0.0)
        state = self._reconcile.state
        eligible = self.states.get(node, ("", ""))[0] == "alive" and node in state.nodes and node not in state.aside
        self._reconcile.set_node(node, eligible, cpu, memory)

    def seen_ago_s(self, node: NodeId) -> float | None:
        seen = self.beacons.get(node)
        return None if seen is None else self._time() - seen[0]

    def ahead_s(self, node: NodeId) -> float | None:
        """By how much the node's clock is ahead of leader time; None if it does not say. A beacon's way makes it seem behind: so
        the most of the latest counts."""
        seen = self.clocks.get(node)
        return max(seen) / 1000 if seen else None

    def leaving(self, item: Leaving, node: ProcessId) -> None:
        self.step(m.Leaving(node, item.incarnation))

    def departed(self, process: ProcessId) -> None:
        self._miss(process)
        self.step(m.Departed(process))

    def unreachable(self, node: NodeId) -> None:
        self._miss(node)
        self.step(m.NoResponder(node))

    def _miss(self, process: ProcessId) -> None:
        if process in self._reconcile.state.nodes:
            self._missed[process] = None

    def answered(self, node: ProcessId) -> None:
        self.step(m.ProbeAnswered(node))

    def bus_state(self, link: Link) -> None:
        self._missed.update(dict.fromkeys(self._reconcile.state.nodes))
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
        elif lease is None:
            self._take_calls(command.node, {})
            for known in (self.beacons, self.states, self.clocks, self._calls, self._missed):
                known.pop(command.node, None)
            if isinstance(command, Evict):
                self._outbox.post(to(command.node), Evicted(command.incarnation, command.reason))
            self._ended(command.node, command.incarnation)

    def aside_changed(self, node: NodeId) -> None:
        """The node was set aside, or resumed."""
        self._set_node(node)
        self._reconcile.wake()

    def tick(self) -> None:
        self.step(m.Tick())

    def next_deadline(self) -> float | None:
        return self.machine.next_deadline()

    def step(self, event: m.Event) -> None:
        for effect in self.machine.step(event, self._time()):
            if isinstance(effect, m.Propose):
                self._propose(self._stamped(effect.command))
            elif isinstance(effect, m.Probe):
                self._probe_ref += 1
                self._outbox.post(to(effect.node), Ping(self._probe_ref))
            elif isinstance(effect, m.Tell):
                self._outbox.post(to(effect.node), Evicted(effect.incarnation, "its lease was ended"))
            else:
                self._became(effect)
        self._rearm()

    def _stamped(self, command: Command) -> Command:
        """What the state must know to tell a task, or mail, that takes nodes down."""
        if isinstance(command, Evict | NodeUp) and self._poison_nodes:
            at_work = self._at_work(command.node)
            return msgspec.structs.replace(command, poison_nodes=self._poison_nodes, at_work=at_work)
        return command

    def _became(self, effect: m.Became) -> None:
        before = self.states.get(effect.node, ("", ""))[0]
        self.states[effect.node] = (effect.state, effect.reason)
        self._set_node(effect.node)
        if effect.state == "alive":
            self._reconcile.wake()
        if before and effect.state in ("suspect", "alive", "draining"):
            self._notice(f"node.{effect.state}", effect.node, effect.reason)
