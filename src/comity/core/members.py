"""What the membership machine is told and what it asks for; and its record of one node."""

from __future__ import annotations

import enum
from math import inf

import msgspec

from comity.model.ids import NodeId
from comity.model.task import Evict, NodeLeft, NodeUp


class MemberState(enum.StrEnum):
    ALIVE = "alive"
    SUSPECT = "suspect"
    DEAD = "dead"
    LEFT = "left"
    DRAINING = "draining"


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """``late``: beacons missed before suspicion. ``probe_s``: between probes of a node that seems gone. ``watch_s``: between
    probes of a node at work, where the bus cannot see ``departures``. ``retry_s``: when a proposal not applied is repeated."""

    lease_s: float = 3.0
    beacon_s: float = 0.5
    late: int = 3
    grace_s: float = 0.15
    probe_s: float = 0.05
    watch_s: float = 0.15
    mass: int = 3
    mass_window_s: float = 0.3
    retry_s: float = 1.0
    departures: bool = True


class BeaconSeen(msgspec.Struct, frozen=True):
    """``busy``: the node runs attempts."""

    node: NodeId
    incarnation: int
    draining: bool = False
    busy: bool = True


class Leaving(msgspec.Struct, frozen=True):
    """The node says goodbye: its attempts have ended or are handed back."""

    node: NodeId
    incarnation: int


class Departed(msgspec.Struct, frozen=True):
    """The bus saw the node's newest connection close."""

    node: NodeId


class NoResponder(msgspec.Struct, frozen=True):
    """Something was sent to the node and nobody listened there."""

    node: NodeId


class ProbeAnswered(msgspec.Struct, frozen=True):
    node: NodeId


class Applied(msgspec.Struct, frozen=True):
    """A command is effective. Before the first, one ``NodeUp`` for each lease of the state a controller starts from."""

    command: NodeUp | Evict | NodeLeft


class BusState(msgspec.Struct, frozen=True):
    """Whether this controller is connected. It is at first."""

    up: bool


class Leadership(msgspec.Struct, frozen=True):
    """Whether this controller leads. It does not at first."""

    on: bool


class AppendStalled(msgspec.Struct, frozen=True):
    """Whether the leader is unable to append. When it ends, the fate of all earlier proposals has been applied."""

    stalled: bool


class LoopLag(msgspec.Struct, frozen=True):
    """Worst lag of this controller's loop since the last report; to be reported regularly."""

    seconds: float


class Tick(msgspec.Struct, frozen=True):
    pass


class Propose(msgspec.Struct, frozen=True):
    command: NodeUp | Evict | NodeLeft


class Probe(msgspec.Struct, frozen=True):
    node: NodeId


class Became(msgspec.Struct, frozen=True):
    node: NodeId
    state: MemberState
    reason: str = ""


class Tell(msgspec.Struct, frozen=True):
    """Tell the node that its lease ended: up to ``incarnation`` it is evicted, or has left."""

    node: NodeId
    incarnation: int


Event = (
    BeaconSeen | Leaving | Departed | NoResponder | ProbeAnswered | Applied | BusState | Leadership | AppendStalled
    | LoopLag | Tick
)  # fmt: skip
Effect = Propose | Probe | Became | Tell


class Member:
    """A node with a lease. Times are the caller's, less what did not count when they were taken (see ``Membership``).
    ``verdict`` is why its lease shall end, ``proposed`` when that was proposed, ``searched`` since when it is searched for,
    ``held`` that only the lease decides, ``told`` the state last announced."""

    __slots__ = (
        "busy", "departed", "draining", "heard", "heard_at", "held", "incarnation", "late", "leaving", "next_probe", "node",
        "proposed", "queued", "renewed", "searched", "silences", "told", "unreachable", "verdict",
    )  # fmt: skip

    def __init__(self, node: NodeId, incarnation: int) -> None:
        self.node = node
        self.incarnation = incarnation
        self.told: MemberState | None = None
        self.draining = False
        self.leaving = False
        self.busy = False
        self.heard = 0.0
        self.heard_at = 0.0
        self.renewed = 0.0
        self.late = False
        self.departed = False
        self.held = False
        self.unreachable = False
        self.searched: float | None = None
        self.silences = 0
        self.next_probe = inf
        self.verdict = ""
        self.proposed: float | None = None
        self.queued = inf

    @property
    def state(self) -> MemberState:
        if self.leaving:
            return MemberState.DRAINING
        if self.late or self.unreachable or self.verdict:
            return MemberState.SUSPECT
        return MemberState.DRAINING if self.draining else MemberState.ALIVE
