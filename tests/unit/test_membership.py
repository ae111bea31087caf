"""Membership: who is judged alive or dead, and when. Its stories are in ``tests/scenarios/membership``."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from comity.core import membership as m
from comity.core.membership import Membership, MemberState, Timing
from comity.model.ids import NodeId
from comity.model.task import Evict, NodeLeft, NodeUp

A, B, D = NodeId("a"), NodeId("b"), NodeId("d")


def leading(*nodes: NodeId, timing: Timing | None = None) -> Membership:
    """Leads from 0.0; each node holds a lease in incarnation 1."""
    machine = Membership(timing)
    machine.step(m.Leadership(True), 0.0)
    for node in nodes:
        machine.step(m.Applied(NodeUp(node, 1)), 0.0)
    machine.check()
    return machine


def until(machine: Membership, end: float) -> list[tuple[float, m.Effect]]:
    """Keep every deadline up to ``end``."""
    told = []
    while (deadline := machine.next_deadline()) is not None and deadline <= end:
        told += [(round(deadline, 6), effect) for effect in machine.step(m.Tick(), deadline)]
        machine.check()
    return told


def proposed(effects: list[m.Effect]) -> list[object]:
    return [effect.command for effect in effects if isinstance(effect, m.Propose)]


def test_a_standby_does_nothing_and_has_no_deadline() -> None:
    machine = Membership()
    machine.step(m.Applied(NodeUp(A, 1)), 0.0)
    for event in (
        m.BeaconSeen(A, 2),
        m.BeaconSeen(B, 1),
        m.Departed(A),
        m.NoResponder(A),
        m.ProbeAnswered(A),
        m.Leaving(A, 1),
    ):
        assert machine.step(event, 100.0) == []
    assert machine.next_deadline() is None
    machine.check()


def test_strangers_are_ignored() -> None:
    machine = leading()
    for event in (
        m.Departed(A),
        m.NoResponder(A),
        m.ProbeAnswered(A),
        m.Leaving(A, 1),
        m.Applied(Evict(A, 1)),
        m.Applied(NodeLeft(A, 1)),
    ):
        assert machine.step(event, 1.0) == []
    assert machine.state_of(A) is None
    machine.check()


def test_limits_are_exact() -> None:
    machine = leading(A)
    assert until(machine, 1.499) == []
    assert until(machine, 2.999) == [(1.5, m.Became(A, MemberState.SUSPECT, "3 beacons late"))]
    assert until(machine, 3.5) == [(3.0, m.Propose(Evict(A, 1, "no beacon for 3 s")))]


def test_a_beacon_renews_from_when_it_is_seen() -> None:
    machine = leading(A)
    machine.step(m.BeaconSeen(A, 1), 1.2)
    assert [at for at, _ in until(machine, 9.0)][:2] == [2.7, 4.2]


def test_what_is_said_twice_changes_nothing() -> None:
    machine = leading(A)
    machine.step(m.AppendStalled(True), 0.5)
    for event in (m.AppendStalled(True), m.BusState(True)):
        assert machine.step(event, 1.0) == []
    machine.step(m.AppendStalled(False), 1.0)
    assert machine.step(m.AppendStalled(False), 1.2) == []
    assert [at for at, effect in until(machine, 3.9) if isinstance(effect, m.Propose)] == [3.5]


def test_a_controller_that_does_not_lead_may_come_and_go() -> None:
    machine = Membership()
    machine.step(m.Applied(NodeUp(A, 1)), 0.0)
    assert machine.step(m.BusState(False), 1.0) == machine.step(m.BusState(True), 2.0) == []
    assert machine.next_deadline() is None


def test_other_limits_hold_as_well() -> None:
    machine = leading(A, timing=Timing(lease_s=1.0, beacon_s=0.1, late=2, retry_s=5.0))
    assert [(at, type(effect)) for at, effect in until(machine, 5.0)] == [(0.2, m.Became), (1.0, m.Propose)]


def test_time_never_goes_back() -> None:
    machine = leading(A)
    machine.step(m.BeaconSeen(A, 1), 1.0)
    assert machine.step(m.Tick(), 0.5) == []
    assert machine.next_deadline() == 2.5


def test_an_answered_probe_does_not_renew_the_lease() -> None:
    machine = leading(A, B)
    machine.step(m.Departed(A), 1.0)
    assert machine.step(m.NoResponder(A), 1.01) == [m.Became(A, MemberState.SUSPECT, "nobody listens there")]
    assert machine.step(m.ProbeAnswered(A), 1.06) == [m.Became(A, MemberState.ALIVE, "it answers")]
    machine.step(m.BeaconSeen(B, 1), 1.4)
    told = [(at, effect) for at, effect in until(machine, 3.2) if not isinstance(effect, m.Probe)]
    assert told[0] == (1.5, m.Became(A, MemberState.SUSPECT, "3 beacons late"))
    assert (3.0, m.Propose(Evict(A, 1, "no beacon for 3 s"))) in told


def test_one_silence_is_no_evidence_however_late() -> None:
    machine = leading(A, B)
    machine.step(m.Departed(A), 1.0)
    until(machine, 1.4)
    assert proposed(machine.step(m.NoResponder(A), 1.4)) == []
    assert proposed(machine.step(m.NoResponder(A), 1.41)) == [Evict(A, 1, "its process is gone")]


def test_silences_before_the_grace_is_over_are_no_evidence() -> None:
    machine = leading(A, B)
    machine.step(m.Departed(A), 1.0)
    for i in range(10):
        assert proposed(machine.step(m.NoResponder(A), 1.0 + i * 0.014)) == []
    assert proposed(machine.step(m.NoResponder(A), 1.15)) == [Evict(A, 1, "its process is gone")]


def test_an_answer_starts_the_search_anew() -> None:
    machine = leading(A, B)
    machine.step(m.Departed(A), 1.0)
    machine.step(m.NoResponder(A), 1.1)
    machine.step(m.ProbeAnswered(A), 1.12)
    assert machine.step(m.NoResponder(A), 1.2) == [], "an old answer of the bus; the node was found since"
    machine.step(m.Departed(A), 1.3)
    machine.step(m.NoResponder(A), 1.31)
    assert proposed(machine.step(m.NoResponder(A), 1.4)) == []
    assert proposed(machine.step(m.NoResponder(A), 1.46)) == [Evict(A, 1, "its process is gone")]


def test_absence_during_a_search_starts_it_anew() -> None:
    machine = leading(A, B)
    machine.step(m.Departed(A), 1.0)
    machine.step(m.NoResponder(A), 1.01)
    effects = machine.step(m.NoResponder(A), 1.8)  # a probe was due at 1.05
    assert proposed(effects) == [] and m.Probe(A) in effects
    assert proposed(machine.step(m.NoResponder(A), 1.9)) == []
    assert proposed(machine.step(m.NoResponder(A), 1.96)) == [Evict(A, 1, "its process is gone")]


def test_late_probes_do_not_put_off_the_last_one() -> None:
    machine = leading(A, B)
    machine.step(m.Departed(A), 1.0)
    assert m.Probe(A) in machine.step(m.Tick(), 1.08)
    assert machine.next_deadline() == pytest.approx(1.13)
    assert m.Probe(A) in machine.step(m.Tick(), 1.14)
    assert machine.next_deadline() == pytest.approx(1.15), "the grace is over"
    assert m.Probe(A) in machine.step(m.Tick(), 1.15)
    assert machine.next_deadline() == pytest.approx(1.3)


def test_a_slightly_late_tick_is_no_absence() -> None:
    machine = leading(A)
    assert machine.step(m.Tick(), 1.5 + m.SLACK_S / 2) == [m.Became(A, MemberState.SUSPECT, "3 beacons late")]


def test_an_event_notices_absence_as_well_as_a_tick() -> None:
    machine = leading(A, B)
    machine.step(m.BeaconSeen(B, 1), 9.0)
    assert machine.state_of(A) is MemberState.ALIVE
    assert until(machine, 20.0)[0][0] == 9.15, "after what lay unread has been read"
    machine.check()


def test_mass_is_counted_at_the_verdict() -> None:
    nodes = [NodeId(f"n{i}") for i in range(9)]
    machine = leading(*nodes, timing=Timing(mass=4, beacon_s=5.0, lease_s=30.0))
    for node in nodes[:3]:
        machine.step(m.Departed(node), 1.0)
    until(machine, 1.4)
    machine.step(m.Departed(nodes[3]), 1.4)
    for node in nodes[:4]:
        machine.step(m.NoResponder(node), 1.45)
    until(machine, 1.5)
    commands = [command for node in nodes[:3] for command in proposed(machine.step(m.NoResponder(node), 1.5))]
    assert commands == [Evict(node, 1, "its process is gone") for node in nodes[:3]], "the fourth is 0.4 s apart"
    until(machine, 1.62)
    assert proposed(machine.step(m.NoResponder(nodes[3]), 1.62)) == [Evict(nodes[3], 1, "its process is gone")]
    machine.check()


def test_those_held_are_not_searched_for_again_until_heard() -> None:
    machine = leading(A, B, timing=Timing(beacon_s=5.0, lease_s=30.0))
    for node in (A, B):
        machine.step(m.Departed(node), 1.0)
        machine.step(m.NoResponder(node), 1.1)
    until(machine, 1.16)
    machine.step(m.NoResponder(A), 1.16)
    assert machine.state_of(A) is machine.state_of(B) is MemberState.SUSPECT
    for at in (1.5, 1.7, 1.9):
        assert machine.step(m.Departed(A), at) == []
        assert machine.step(m.NoResponder(A), at) == []
    assert machine.step(m.BeaconSeen(A, 1), 2.0) == [m.Became(A, MemberState.ALIVE, "heard again")]
    assert machine.step(m.Departed(A), 3.0) == [m.Probe(A)]
    machine.check()


def test_whom_one_heard_of_is_forgotten_in_time() -> None:
    machine = leading()
    for i in range(10_500):
        node = NodeId(f"n{i}")
        machine.step(m.Applied(NodeUp(node, 1)), 1.0)
        machine.step(m.Applied(NodeLeft(node, 1)), 1.0)
    assert machine.step(m.BeaconSeen(NodeId("n10499"), 1), 1.0) == [m.Tell(NodeId("n10499"), 1)]
    assert proposed(machine.step(m.BeaconSeen(NodeId("n0"), 1), 1.0)) == [NodeUp(NodeId("n0"), 1)]
    machine.check()


def test_many_beacons_leave_nothing_behind() -> None:
    machine = leading(A, B, timing=Timing(departures=False))
    for i in range(2000):
        machine.step(m.BeaconSeen(A, 1), i * 0.1)
        machine.step(m.BeaconSeen(B, 1), i * 0.1)
        machine.step(m.ProbeAnswered(A), i * 0.1)
    assert len(machine._queue) < 10


def test_members_come_in_order_of_joining() -> None:
    machine = leading(B, A)
    machine.step(m.BeaconSeen(A, 1, draining=True), 1.0)
    assert list(machine.members()) == [(B, 1, MemberState.ALIVE), (A, 1, MemberState.DRAINING)]


@pytest.mark.parametrize("apply", [True, False])
def test_an_evict_is_proposed_until_effective(apply: bool) -> None:
    machine = leading(A)
    until(machine, 3.0)
    if apply:
        assert machine.step(m.Applied(Evict(A, 1, "x")), 3.1) == [m.Became(A, MemberState.DEAD, "x")]
        assert until(machine, 9.0) == []
    else:
        assert [at for at, _ in until(machine, 6.5)] == [4.0, 5.0, 6.0]


def test_absence_while_stalled_is_left_out_once() -> None:
    machine = leading(A)
    machine.step(m.AppendStalled(True), 1.0)
    machine.step(m.Tick(), 3.5)  # due at 1.5: 2 s of absence
    machine.step(m.AppendStalled(False), 4.0)
    lapses = [at for at, effect in until(machine, 9.0) if isinstance(effect, m.Propose)]
    assert lapses[0] == 6.0, "3 s of lease, 2 s of absence, 1 s stalled and awake"


def test_the_log_may_admit_a_lower_incarnation() -> None:
    """A leader that has forgotten the higher one; the log is right."""
    machine = leading()
    machine.step(m.Applied(NodeUp(A, 5)), 0.0)
    machine.step(m.Applied(NodeLeft(A, 5)), 0.0)
    machine.step(m.Applied(NodeUp(A, 2)), 0.0)
    assert machine.step(m.BeaconSeen(A, 2), 1.0) == []
    assert machine.state_of(A) is MemberState.ALIVE
    machine.check()


def test_the_old_twin_does_not_refute_a_restart() -> None:
    machine = leading(A)
    assert proposed(machine.step(m.BeaconSeen(A, 2), 1.0)) == [Evict(A, 1, "restarted"), NodeUp(A, 2)]
    assert machine.step(m.BeaconSeen(A, 1), 1.5) == []
    assert until(machine, 2.0) == [(2.0, m.Propose(Evict(A, 1, "restarted")))]


@pytest.mark.parametrize(
    "interruption", [[m.AppendStalled(True), m.AppendStalled(False)], [m.Leadership(False), m.Leadership(True)]]
)
def test_after_an_interruption_a_node_need_not_wait_to_be_proposed_again(interruption: list[m.Event]) -> None:
    machine = leading()
    assert proposed(machine.step(m.BeaconSeen(A, 1), 1.0)) == [NodeUp(A, 1)]
    assert proposed(machine.step(m.BeaconSeen(A, 1), 1.1)) == []
    for event in interruption:
        machine.step(event, 1.2)
    assert proposed(machine.step(m.BeaconSeen(A, 1), 1.3)) == [NodeUp(A, 1)]


NODES = [A, B, D]


class World(RuleBasedStateMachine):
    """Nodes that live, die and restart; a controller that leads or not, hears or not, appends or not, and oversleeps.
    A living node is never given up; a dead one always is, once the controller can."""

    @initialize(departures=st.booleans())
    def begin(self, departures: bool) -> None:
        self.machine = Membership(Timing(departures=departures))
        self.now = 0.0
        self.alive: dict[NodeId, int] = {}
        self.beats: dict[NodeId, float] = {}
        self.highest = dict.fromkeys(NODES, 0)
        self.leased: dict[NodeId, int] = {}
        self.told: dict[NodeId, MemberState] = {}
        self.proposals: list[NodeUp | Evict | NodeLeft] = []
        self.lead, self.connected, self.stalled = False, True, False

    def step(self, event: m.Event) -> None:
        if isinstance(event, m.Leadership):
            self.told.clear()
        effects = self.machine.step(event, self.now)
        self.machine.check()
        for effect in effects:
            if isinstance(effect, m.Propose):
                assert self.lead and not self.stalled
                if isinstance(effect.command, Evict):
                    assert self.alive.get(effect.command.node) != effect.command.incarnation, (
                        "a living node is given up"
                    )
                self.proposals.append(effect.command)
            elif isinstance(effect, m.Became):
                assert self.told.get(effect.node) != effect.state, "said twice"
                self.told[effect.node] = effect.state
            elif isinstance(effect, m.Tell):
                assert self.alive.get(effect.node, 0) <= effect.incarnation
        for effect in effects:
            if isinstance(effect, m.Probe):
                assert self.lead and self.connected
                self.step(m.ProbeAnswered(effect.node) if effect.node in self.alive else m.NoResponder(effect.node))

    def beat(self) -> None:
        for node, at in self.beats.items():
            if node in self.alive and at <= self.now:
                self.beats[node] = self.now + 0.5
                if self.connected:
                    self.step(m.BeaconSeen(node, self.alive[node]))

    def pass_time(self, seconds: float, each: Callable[[], None] = lambda: None) -> None:
        end = self.now + seconds
        while self.now < end:
            deadline = self.machine.next_deadline() or inf
            beat = min((at for node, at in self.beats.items() if node in self.alive), default=inf)
            soonest = max(min(deadline, beat, end), self.now)
            if soonest - self.now > 0.002:
                self.now = soonest - 0.001
                assert self.machine.step(m.Tick(), self.now) == [], "nothing is due before the deadline"
            self.now = soonest
            self.beat()
            self.step(m.Tick())
            after = self.machine.next_deadline()
            assert after is None or after > self.now, "a deadline was kept and is still due"
            each()

    @rule(seconds=st.sampled_from([0.04, 0.3, 1.0, 2.5]))
    def wait(self, seconds: float) -> None:
        self.pass_time(seconds)

    @rule(seconds=st.sampled_from([0.3, 2.0, 10.0]))
    def oversleep(self, seconds: float) -> None:
        """What nodes said meanwhile is read after the tick."""
        self.now += seconds
        self.step(m.Tick())
        self.beat()

    @rule(node=st.sampled_from(NODES))
    def start(self, node: NodeId) -> None:
        self.highest[node] += 1
        self.alive[node] = self.highest[node]
        self.beats[node] = self.now
        self.beat()

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), reported=st.booleans())
    def kill(self, data: st.DataObject, reported: bool) -> None:
        node = data.draw(st.sampled_from(sorted(self.alive)))
        del self.alive[node]
        if self.connected and reported:
            self.step(m.Departed(node))

    @precondition(lambda self: self.alive and self.connected)
    @rule(data=st.data())
    def reconnect(self, data: st.DataObject) -> None:
        """A living node's connection closed; it is on another one already."""
        self.step(m.Departed(data.draw(st.sampled_from(sorted(self.alive)))))

    @precondition(lambda self: self.proposals and not self.stalled)
    @rule(count=st.integers(1, 3))
    def commit(self, count: int) -> None:
        """As ``core.tasks`` applies them."""
        now, self.proposals = self.proposals[:count], self.proposals[count:]
        for command in now:
            holds = self.leased.get(command.node)
            if isinstance(command, NodeUp):
                if holds is None or holds < command.incarnation:
                    self.leased[command.node] = command.incarnation
                    self.told.pop(command.node, None)
            elif holds == command.incarnation:
                del self.leased[command.node]
            self.step(m.Applied(command))

    @rule()
    def change_leadership(self) -> None:
        self.lead = not self.lead
        self.stalled = False
        self.proposals.clear()
        self.step(m.Leadership(self.lead))

    @rule()
    def change_connection(self) -> None:
        self.connected = not self.connected
        self.step(m.BusState(self.connected))

    @precondition(lambda self: self.lead and not self.stalled)
    @rule()
    def stall(self) -> None:
        self.stalled = True
        self.step(m.AppendStalled(True))

    @precondition(lambda self: self.stalled)
    @rule(lost=st.booleans())
    def recover(self, lost: bool) -> None:
        if lost:
            self.proposals.clear()
        self.commit(len(self.proposals))
        self.stalled = False
        self.step(m.AppendStalled(False))

    @rule(seconds=st.sampled_from([0.0, 0.4, 100.0]))
    def lag(self, seconds: float) -> None:
        self.step(m.LoopLag(seconds))

    @rule()
    def settle(self) -> None:
        """When all is well for a while, the leases are those of the living."""
        if not self.connected:
            self.change_connection()
        if not self.lead:
            self.change_leadership()
        self.recover(lost=True)
        self.lag(0.0)
        self.pass_time(5.5, lambda: self.commit(len(self.proposals)) if self.proposals else None)
        assert self.leased == self.alive
        assert {node: state for node, _, state in self.machine.members()} == dict.fromkeys(
            self.alive, MemberState.ALIVE
        )

    @invariant()
    def agrees(self) -> None:
        if hasattr(self, "machine"):
            assert {node: incarnation for node, incarnation, _ in self.machine.members()} == self.leased


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=80, stateful_step_count=50)
