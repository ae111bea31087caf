"""What agents are and can do: capabilities, agents, nodes, and what a task may require of them."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from comity.errors import BadInput
from comity.model.ids import AgentId, ProcessId

RETRIES_MAX = 1_000_000_000
FACTOR_MAX = 1000
PAUSE_MAX_S = 366 * 86_400.0
NAMES_MAX = 1000


class AgentStatus(enum.StrEnum):
    """An agent's own status; its node's membership state is separate. Only active agents on alive nodes get work."""

    ACTIVE = "active"
    PAUSED = "paused"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"
    LEFT = "left"


class Strategy(enum.StrEnum):
    """How an agent is picked among those that can do it."""

    LEAST_LOADED = "least_loaded"
    ROUND_ROBIN = "round_robin"
    WEIGHTED_RANDOM = "weighted_random"
    BEST_FIT = "best_fit"
    POWER_OF_TWO = "power_of_two"
    STICKY = "sticky"


def strategy(name: str) -> Strategy:
    """The strategy called ``name``, or BadInput naming those that exist."""
    try:
        return Strategy(name)
    except ValueError:
        raise BadInput(f"unknown strategy {name!r}; one of: {', '.join(Strategy)}", strategy=name) from None


class Performance(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How well an agent does one capability. Declared figures are priors until measured (``samples`` > 0)."""

    latency_ms: float = 0.0
    throughput: float = 0.0
    success: float = 1.0
    accuracy: float = 0.0
    samples: int = 0


class Retry(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """How a task is tried again after a failure; what is None is as the capability says, or the settings.

    ``retries`` at most. The first waits ``first_s``, each further one ``factor`` times as long, none longer than ``max_s``; each
    wait is cut by up to half at random. Errors named in ``no_retry`` (an exception's class, or a base class of it, or a code
    such as ``stuck``) are final."""

    retries: int | None = None
    first_s: float | None = None
    factor: float | None = None
    max_s: float | None = None
    no_retry: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise BadInput for what cannot be meant."""
        if self.retries is not None and not 0 <= self.retries <= RETRIES_MAX:
            raise BadInput(f"retries must be 0 to {RETRIES_MAX:,}, not {self.retries}", retries=self.retries)
        for name, value in (("first_s", self.first_s), ("max_s", self.max_s)):
            if value is not None and not 0 < value <= PAUSE_MAX_S:
                raise BadInput(f"a retry's {name} must be above 0 and at most {PAUSE_MAX_S:g} s, not {value}", option=name)
        if self.factor is not None and not 1 <= self.factor <= FACTOR_MAX:
            raise BadInput(f"a retry's factor must be 1 to {FACTOR_MAX}, not {self.factor}", option="factor")
        names: Any = self.no_retry
        if not isinstance(names, tuple) or not all(isinstance(name, str) and name for name in names):
            raise BadInput("no_retry is a tuple of names of errors, such as ('ValueError',)", option="no_retry")
        if sum(map(len, self.no_retry)) > NAMES_MAX:
            raise BadInput(f"the names in no_retry take more than {NAMES_MAX} characters", option="no_retry")

    def over(self, other: Retry | None) -> Retry:
        """This, and what it leaves open as ``other`` says; an error that either names is final."""
        if other is None:
            return self
        return Retry(
            other.retries if self.retries is None else self.retries,
            other.first_s if self.first_s is None else self.first_s,
            other.factor if self.factor is None else self.factor,
            other.max_s if self.max_s is None else self.max_s,
            tuple(dict.fromkeys((*self.no_retry, *other.no_retry))),
        )

    def pauses(self) -> Retry | None:
        """This without ``retries``; None if nothing is left."""
        rest = Retry(None, self.first_s, self.factor, self.max_s, self.no_retry)
        return None if rest == Retry() else rest


class Capability(msgspec.Struct, frozen=True, kw_only=True):
    """Something an agent can do. ``input_schema`` and ``output_schema`` are JSON Schema 2020-12."""

    name: str
    version: str = "1.0"
    description: str = ""
    input_schema: dict[str, Any] = {}
    output_schema: dict[str, Any] = {}
    strategy: Strategy | None = None
    retries: int | None = None
    attempt_timeout_s: float | None = None
    start_timeout_s: float | None = None
    progress_timeout_s: float | None = None
    retry: Retry | None = None
    declared: Performance | None = None


class Resources(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Amounts of CPU (cores), memory (MiB) and GPU (devices), total and used."""

    cpu: float = 0.0
    memory_mb: float = 0.0
    gpu: float = 0.0
    cpu_used: float = 0.0
    memory_used_mb: float = 0.0
    gpu_used: float = 0.0


class Offer(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A capability in an agent's record: its schemas are published once, under their hash."""

    name: str
    version: str
    schema: str
    strategy: Strategy | None = None
    declared: Performance | None = None


class AgentRecord(msgspec.Struct, kw_only=True, array_like=True, gc=False):
    """One agent as the registry shows it. Times are UTC milliseconds."""

    id: AgentId
    name: str
    kind: str = ""
    version: str = ""
    node: ProcessId = ProcessId("")
    region: str = ""
    zone: str = ""
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    resources: Resources = msgspec.field(default_factory=Resources)
    concurrency: int = 8
    weight: float = 0.0
    endpoints: dict[str, str] = {}
    status: AgentStatus = AgentStatus.ACTIVE
    registered_at: int = 0
    offers: tuple[Offer, ...] = ()


class NodeRecord(msgspec.Struct, kw_only=True, array_like=True, gc=False):
    """One node as the registry shows it: which agent chunks it published, and where it runs."""

    id: ProcessId
    incarnation: int
    host: str = ""
    pid: int = 0
    region: str = ""
    zone: str = ""
    version: str = ""
    started_at: int = 0
    resources: Resources = msgspec.field(default_factory=Resources)
    draining: bool = False
    beacon_s: float = 0.0
    orphan_s: float = 0.0


class Requirements(msgspec.Struct, array_like=True, frozen=True, kw_only=True, gc=False):
    """What a task demands of its agent, beside the capability. ``version`` is a range such as ``>=1.2,<2``. What has the same
    ``sticky`` key goes to the same agent while that can take it."""

    tags: tuple[str, ...] = ()
    any_tags: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    cpu: float = 0.0
    memory_mb: float = 0.0
    gpu: float = 0.0
    version: str = ""
    kind: str = ""
    agent: AgentId = AgentId("")
    avoid: tuple[AgentId, ...] = ()
    sticky: str = ""

    def met_by(self, agent: AgentRecord, offer: Offer) -> bool:
        """Whether ``agent`` may do it through ``offer``. A bad version range raises BadInput when parsed, at submit."""
        if self.agent and agent.id != self.agent:
            return False
        if agent.id in self.avoid or (self.kind and agent.kind != self.kind):
            return False
        if not all(tag in agent.tags for tag in self.tags):
            return False
        if self.any_tags and not any(tag in agent.tags for tag in self.any_tags):
            return False
        if any(agent.labels.get(key) != value for key, value in self.labels.items()):
            return False
        free = agent.resources
        if self.cpu > free.cpu - free.cpu_used or self.gpu > free.gpu - free.gpu_used:
            return False
        if self.memory_mb > free.memory_mb - free.memory_used_mb:
            return False
        return not self.version or version_in_range(offer.version, self.version)


_OPERATORS = (">=", "<=", "==", "!=", ">", "<")


def parse_version(text: str) -> tuple[int, ...]:
    """``1.2.3`` as a tuple, trailing zeros dropped; BadInput for anything but dotted numbers."""
    try:
        parts = [int(part) for part in text.split(".")]
    except ValueError:
        raise BadInput(f"version {text!r} must be dotted numbers such as 1.2", version=text) from None
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def parse_range(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """``>=1.2,<2`` as conditions; a bare version means equal. BadInput if it cannot be read."""
    conditions = []
    for part in text.split(","):
        part = part.strip()
        operator = next((op for op in _OPERATORS if part.startswith(op)), "")
        conditions.append((operator or "==", parse_version(part[len(operator) :].strip())))
    return conditions


def version_in_range(version: str, wanted: str) -> bool:
    """Whether ``version`` meets every condition of ``wanted``."""
    have = parse_version(version)
    checks = {
        ">=": lambda v: have >= v,
        "<=": lambda v: have <= v,
        "==": lambda v: have == v,
        "!=": lambda v: have != v,
        ">": lambda v: have > v,
        "<": lambda v: have < v,
    }
    return all(checks[operator](value) for operator, value in parse_range(wanted))


def parse_need(text: str) -> tuple[str, str]:
    """``review>=1.2`` as name and version range (empty if none)."""
    for i, char in enumerate(text):
        if char in "<>=!":
            parse_range(text[i:])
            return text[:i].strip(), text[i:].strip()
    return text.strip(), ""
