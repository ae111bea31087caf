"""Who is alive: the leader's judgement of its nodes, from beacons, departures and probes.

    Evict applied                       NodeUp applied
    dead <------------------ lease <--------------------- a beacon of a new incarnation
    left <------------------   |
    NodeLeft applied           | alive -- three beacons late, or unreachable --> suspect -- a beacon --> alive
                               | draining: as alive, but the node says that it wants no new attempts

A lease is ended by a committed command only; what happens here decides when to propose one. Dead, slowly: no beacon for
``lease_s``, counted while this controller leads, hears, keeps up and can append. Dead, fast: the bus saw the node's connection
close, and probes find nobody listening from then through ``grace_s``; where the bus cannot see departures, probes alone. If
as many as ``mass`` nodes vanish together, or all of them, a server or a link is gone rather than they: then the lease
decides. The observer doubts itself first (Lifeguard, arXiv 1707.00788): the time by which a deadline is seen too late is its
own absence and counts against nobody, nor is anybody judged before what lay unread has been read; every limit is stretched
by the reported lag of its loop.

Every controller applies the commands; only the leader judges. A wrong verdict costs duplicate work, never a double count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from heapq import heappop, heappush
from math import inf

from comity.core.members import (
    AppendStalled,
    Applied,
    BeaconSeen,
    Became,
    BusState,
    Departed,
    Effect,
    Event,
    Leadership,
    Leaving,
    LoopLag,
    Member,
    MemberState,
    NoResponder,
    Probe,
    ProbeAnswered,
    Propose,
    Tell,
    Tick,
    Timing,
)
from comity.model.ids import NodeId
from comity.model.task import Evict, NodeLeft, NodeUp

__all__ = [
    "Applied", "AppendStalled", "BeaconSeen", "Became", "BusState", "Departed", "Effect",
    "Event", "Leadership", "Leaving", "LoopLag", "Member", "MemberState", "NoResponder",
    "Probe", "ProbeAnswered", "Propose", "Tell", "Tick", "Timing", "Membership",
]  # fmt: skip

SLACK_S = 0.1
"""Lateness of a deadline that is not yet absence."""
_REMEMBERED = 10_000
_ROUNDING_S = 1e-6


class Membership:
    """See the module. Three clocks: the caller's; listening time, which leaves out this controller's own absence; lease time,
    which also leaves out the time in which it could not append. ``_absent`` and ``_stalled`` are the differences. ``ended``:
    the incarnations whose lease has ended before, as replicated state has them."""

    def __init__(self, timing: Timing | None = None, ended: Mapping[NodeId, int] | None = None) -> None:
        self.timing = timing or Timing()
        self.leading = False
        self.connected = True
        self._members: dict[NodeId, Member] = {}
        self._ended: dict[NodeId, int] = dict(ended or {})
        self._joining: dict[NodeId, tuple[int, float]] = {}
        self._vanished: dict[NodeId, float] = {}
        self._queue: list[tuple[float, NodeId]] = []
        self._effects: list[Effect] = []
        self._now = -inf
        self._absent = 0.0
        self._stalled = 0.0
        self._stalled_since: float | None = None
        self._lag = 0.0
        self._judge_from = -inf
        self._expected = inf

    # The machine

    def step(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; ``now`` never goes back."""
        self._now = now = max(now, self._now)
        if now - self._expected > SLACK_S:
            self._was_absent(now - self._expected)
        match event:
            case BeaconSeen():
                self._beacon(event)
            case NoResponder():
                self._no_responder(event.node)
            case ProbeAnswered():
                self._answered(event.node)
            case Departed():
                self._departed(event.node)
            case Applied():
                self._applied(event.command)
            case Leaving():
                self._leaving(event)
            case BusState():
                self._bus(event.up)
            case Leadership():
                self._leadership(event.on)
            case AppendStalled():
                self._append_stalled(event.stalled)
            case LoopLag():
                self._lagging(min(max(event.seconds, 0.0), self.timing.lease_s))
            case Tick():
                pass
        self._judge_due()
        effects, self._effects = self._effects, []
        self._expected = deadline if (deadline := self.next_deadline()) is not None else inf
        return effects

    def next_deadline(self) -> float | None:
        queue = self._queue
        while queue:
            at, node = queue[0]
            member = self._members.get(node)
            if member is not None and member.queued == at:
                due = self._due(member)
                if due <= at:
                    return at
                member.queued = inf
                heappop(queue)
                self._enqueue(member)
            else:
                heappop(queue)
        return None

    def members(self) -> Iterator[tuple[NodeId, int, MemberState]]:
        """Nodes that hold a lease: their incarnation and state, in the order in which they joined."""
        return ((member.node, member.incarnation, member.state) for member in self._members.values())

    def state_of(self, node: NodeId) -> MemberState | None:
        """None if the node holds no lease."""
        member = self._members.get(node)
        return member.state if member is not None else None

    # What is heard

    def _beacon(self, event: BeaconSeen) -> None:
        if not self.leading:
            return
        member, ended = self._members.get(event.node), self._ended.get(event.node, -1)
        if member is not None and event.incarnation == member.incarnation:
            self._heard(member, event)
        elif event.incarnation <= ended:
            # The older twin of a node that is back is not worth an answer, unless it is the very one that was evicted.
            if member is None or event.incarnation == ended:
                self._effects.append(Tell(event.node, ended))
        elif member is None or event.incarnation > member.incarnation:
            self._joins(member, event)

    def _heard(self, member: Member, event: BeaconSeen) -> None:
        member.heard = self._now - self._absent
        member.heard_at = self._now
        member.renewed = self._lease_time()
        member.late = False
        member.draining = event.draining
        member.busy = event.busy
        if member.proposed is None and not member.leaving:
            member.verdict = ""
        self._reachable(member, "it drains" if event.draining else "heard again")

    def _reachable(self, member: Member, reason: str) -> None:
        member.departed = member.unreachable = member.held = False
        self._vanished.pop(member.node, None)
        self._end_search(member)
        self._update(member, reason)

    def _joins(self, member: Member | None, event: BeaconSeen) -> None:
        if self._stalled_since is not None:
            return
        incarnation, at = self._joining.get(event.node, (-1, -inf))
        if incarnation >= event.incarnation and self._now - at < self.timing.retry_s:
            return
        if member is not None and member.proposed is None:
            self._end_lease(member, "restarted")
        self._joining[event.node] = event.incarnation, self._now
        self._effects.append(Propose(NodeUp(event.node, event.incarnation)))

    def _leaving(self, event: Leaving) -> None:
        member = self._members.get(event.node)
        if self.leading and member is not None and member.incarnation == event.incarnation and not member.verdict:
            member.leaving = True
            self._end_lease(member, "left")

    def _departed(self, node: NodeId) -> None:
        member = self._members.get(node)
        if member is not None and self.leading and self.connected:
            member.departed = True
            self._search(member)

    def _no_responder(self, node: NodeId) -> None:
        member = self._members.get(node)
        if member is None or not self.leading or not self.connected or member.held or member.verdict:
            return
        if self.timing.departures and not member.departed:
            return
        self._search(member)
        member.silences += 1
        member.unreachable = True
        if member.silences >= 2 and self._now - (member.searched or 0.0) >= self.timing.grace_s - _ROUNDING_S:
            self._gone(member)
        self._update(member, "nobody listens there")

    def _answered(self, node: NodeId) -> None:
        member = self._members.get(node)
        if member is not None and self.leading and not member.verdict:
            self._reachable(member, "it answers")

    # Searching for a node that seems gone

    def _search(self, member: Member) -> None:
        if member.searched is None and not member.held and not member.verdict:
            member.searched = member.next_probe = self._now
            oldest = self._now - self.timing.mass_window_s
            for node in [node for node, at in self._vanished.items() if at < oldest and not self._is_searched(node)]:
                del self._vanished[node]
            self._vanished[member.node] = self._now
            self._enqueue(member)

    def _is_searched(self, node: NodeId) -> bool:
        member = self._members.get(node)
        return member is not None and member.searched is not None

    def _end_search(self, member: Member) -> None:
        member.searched = None
        member.silences = 0
        member.next_probe = self._now + self.timing.watch_s
        self._enqueue(member)

    def _gone(self, member: Member) -> None:
        """The search found nobody: the node is dead, unless it is one of many."""
        timing, since = self.timing, self._vanished[member.node]
        together = {node: None for node, at in self._vanished.items() if abs(at - since) <= timing.mass_window_s}
        everyone = len(together) >= 2 and all(node in together for node in self._members)
        if len(together) < timing.mass and not everyone:
            self._end_search(member)
            self._end_lease(member, "its process is gone")
            return
        for node in together:
            other = self._members.get(node)
            if other is not None and not other.verdict:
                other.held = other.unreachable = True
                self._end_search(other)
                self._update(other, f"vanished with {len(together) - 1} others")

    # Judging

    def _lease_time(self) -> float:
        at = self._stalled_since if self._stalled_since is not None else self._now
        return at - self._absent - self._stalled

    def _late_at(self, member: Member) -> float:
        limit = self.timing.late * self.timing.beacon_s + self._lag
        return max(member.heard + self._absent + limit, self._judge_from)

    def _lapses_at(self, member: Member) -> float:
        return max(member.renewed + self._absent + self._stalled + self.timing.lease_s + self._lag, self._judge_from)

    def _probed_at(self, member: Member) -> float:
        watched = not self.timing.departures and (member.busy or member.late) and not member.held
        return member.next_probe if member.searched is not None or watched else inf

    def _due(self, member: Member) -> float:
        """When something is to be done about the member, if nothing happens."""
        if not self.leading or not self.connected:
            return inf
        if member.verdict:
            if self._stalled_since is not None:
                return inf
            return self._now if member.proposed is None else member.proposed + self.timing.retry_s
        late = inf if member.late else self._late_at(member)
        lapses = inf if self._stalled_since is not None else self._lapses_at(member)
        return min(late, lapses, self._probed_at(member))

    def _judge_due(self) -> None:
        while (deadline := self.next_deadline()) is not None and deadline <= self._now + _ROUNDING_S:
            member = self._members[heappop(self._queue)[1]]
            member.queued = inf
            self._judge(member, self._now + _ROUNDING_S)
            self._enqueue(member)

    def _judge(self, member: Member, now: float) -> None:
        if member.verdict:
            if self._refuted(member):
                member.verdict, member.proposed = "", None
                self._update(member, "heard again")
            else:
                self._end_lease(member, member.verdict)
            return
        if not member.late and self._late_at(member) <= now:
            member.late = True
            self._update(member, f"{self.timing.late} beacons late")
        if self._probed_at(member) <= now:
            member.next_probe = self._next_probe(member)
            self._effects.append(Probe(member.node))
        if self._stalled_since is None and self._lapses_at(member) <= now:
            self._end_lease(member, f"no beacon for {self.timing.lease_s:g} s")

    def _next_probe(self, member: Member) -> float:
        """When the probe after the one sent now is due. One is sent just when the grace is over, however late those before
        were: its answer can be the verdict."""
        over = member.searched + self.timing.grace_s if member.searched is not None else -inf
        if self._now < over - _ROUNDING_S:
            return min(self._now + self.timing.probe_s, over)
        return self._now + self.timing.watch_s

    def _refuted(self, member: Member) -> bool:
        """Whether the node was heard after its end was proposed, and nothing but silence spoke against it."""
        if member.proposed is None or member.leaving or member.node in self._joining:
            return False
        return member.heard_at > member.proposed

    def _end_lease(self, member: Member, verdict: str) -> None:
        """Propose it, or as soon as appending is possible."""
        self._end_search(member)
        member.verdict = verdict
        if self._stalled_since is None:
            member.proposed = self._now
            left, evict = NodeLeft(member.node, member.incarnation), Evict(member.node, member.incarnation, verdict)
            self._effects.append(Propose(left if member.leaving else evict))
        self._update(member, verdict)

    def _update(self, member: Member, reason: str) -> None:
        """Say so if the member's state changed."""
        if member.told is not member.state:
            member.told = member.state
            self._effects.append(Became(member.node, member.state, reason))
        self._enqueue(member)

    # What changes for all

    def _applied(self, command: NodeUp | Evict | NodeLeft) -> None:
        node, member = command.node, self._members.get(command.node)
        if isinstance(command, NodeUp):
            if member is not None and command.incarnation <= member.incarnation:
                return
            if member is not None:
                self._remove(member)
            if self._joining.get(node, (-1, 0.0))[0] <= command.incarnation:
                self._joining.pop(node, None)
            if self._ended.get(node, -1) >= command.incarnation:
                del self._ended[node]
            member = self._members[node] = Member(node, command.incarnation)
            self._afresh(member)
            self._update(member, "joined")
        elif member is not None and command.incarnation == member.incarnation:
            self._remove(member)
            if isinstance(command, Evict):
                self._effects.append(Became(node, MemberState.DEAD, command.reason))
            else:
                self._effects.append(Became(node, MemberState.LEFT))

    def _remove(self, member: Member) -> None:
        del self._members[member.node]
        self._ended.pop(member.node, None)
        self._ended[member.node] = member.incarnation
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]

    def _afresh(self, member: Member) -> None:
        """As if heard now."""
        member.heard = self._now - self._absent
        member.renewed = self._lease_time()
        member.late = member.departed = member.unreachable = member.held = False
        member.verdict, member.proposed, member.leaving = "", None, False
        self._end_search(member)

    def _all_afresh(self, reason: str) -> None:
        self._vanished.clear()
        self._judge_from = self._now + self.timing.grace_s
        for member in self._members.values():
            self._afresh(member)
            self._update(member, reason)

    def _enqueue(self, member: Member) -> None:
        due = self._due(member)
        if due < member.queued:
            member.queued = due
            heappush(self._queue, (due, member.node))

    def _was_absent(self, seconds: float) -> None:
        """This controller's loop stood still past a deadline: nobody was late but itself."""
        if not self.leading or not self.connected:
            return
        self._absent += seconds
        if self._stalled_since is not None:
            self._stalled_since += seconds
        self._judge_from = self._now + self.timing.grace_s
        for member in self._members.values():
            if member.searched is not None:
                member.silences = 0
                member.searched = member.next_probe = self._vanished[member.node] = self._now
                self._enqueue(member)

    def _bus(self, up: bool) -> None:
        if up is self.connected:
            return
        self.connected = up
        if up and self.leading:
            self._all_afresh("connected again")

    def _lagging(self, lag: float) -> None:
        shorter = lag < self._lag
        self._lag = lag
        if shorter:
            for member in self._members.values():
                self._enqueue(member)

    def _leadership(self, on: bool) -> None:
        self.leading = on
        self._joining.clear()
        self._stalled_since = None
        for member in self._members.values():
            self._afresh(member)
            member.told = None if on else member.state
        if on:
            self._all_afresh("a new leader looks after it")

    def _append_stalled(self, stalled: bool) -> None:
        if stalled and self._stalled_since is None:
            self._stalled_since = self._now
        elif not stalled and self._stalled_since is not None:
            self._stalled += self._now - self._stalled_since
            self._stalled_since = None
            self._joining.clear()
            for member in self._members.values():
                if self._refuted(member):
                    member.verdict = ""
                member.proposed = None
                self._update(member, "heard again")

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        queued = {(at, node) for at, node in self._queue}
        for node, member in self._members.items():
            assert member.node == node and member.told is member.state
            assert self._ended.get(node, -1) < member.incarnation
            assert member.searched is not None or member.silences == 0
            assert member.proposed is None or member.verdict
            assert not (member.held and member.searched is not None), "held, and yet searched for"
            assert member.searched is None or node in self._vanished
            assert member.queued == inf or (member.queued, node) in queued
            assert member.queued <= self._due(member), f"{node} would be judged too late"
            assert self.leading or not member.verdict, "only the leader judges"
            assert member.verdict or not member.leaving
