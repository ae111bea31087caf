"""What agent authors use: an agent, what it offers, what it listens to, and the attempt or message in its hands.

    agent = Agent("surveyor", tags={"code"})

    @agent.capability
    async def survey(attempt: Attempt, path: str) -> Report: ...

    @agent.on("ping")
    def ping(message: Message) -> str: ...

An agent is an object. It does nothing until a node hosts it.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, overload

import msgspec

from comity import speaking
from comity.errors import BadInput, Conflict, ShuttingDown, TooLarge
from comity.handles import Attempt
from comity.message import Message
from comity.model import capability as model
from comity.model.capability import AgentRecord, AgentStatus, Capability, Offer, Performance, Resources, Retry, Strategy
from comity.model.facts import FACTS
from comity.model.ids import TOKEN_MAX, AgentId, ProcessId, agent_id, check_token
from comity.model.limits import (
    RECORD_MAX,
    SCHEMA_MAX,
    check_amount,
    check_name,
    check_seconds,
    check_sound,
    check_whole,
)
from comity.model.published import encode_agents, encode_capability
from comity.model.signature import Signature

if TYPE_CHECKING:
    from comity.client.client import Client

__all__ = ["Agent", "Attempt", "Home", "Listener", "Message", "Offered"]

F = TypeVar("F", bound=Callable[..., Any])
Pool = Literal["thread", "process"]


class Offered:
    """A capability and the function behind it."""

    __slots__ = ("capability", "data", "function", "no_retry", "offer", "pool", "signature")

    def __init__(
        self,
        capability: Capability,
        function: Callable[..., Any],
        signature: Signature,
        pool: Pool,
        no_retry: tuple[type[BaseException] | str, ...],
    ) -> None:
        self.capability = capability
        self.function = function
        self.signature = signature
        self.pool = pool
        self.no_retry = no_retry
        schema, self.data = encode_capability(capability)
        self.offer = Offer(capability.name, capability.version, schema, capability.strategy, capability.declared)


class Listener:
    """A function that receives messages."""

    __slots__ = ("function", "signature")

    def __init__(self, function: Callable[..., Any], signature: Signature) -> None:
        self.function = function
        self.signature = signature


class Home(Protocol):
    """What an agent needs of the node that hosts it."""

    node: ProcessId

    def changed(self, agent: Agent) -> None:
        """Its record is to be announced anew."""

    def listens(self, agent: Agent, topic: str) -> None:
        """It has a function for a new topic, or no longer one."""

    def joins(self, agent: Agent, group: str) -> None:
        """It is in another group, or no longer in one."""

    def client_for(self, agent: AgentId) -> Client:
        """The node's client, speaking for an agent."""
        ...


_signatures: weakref.WeakKeyDictionary[Callable[..., Any], dict[bool, Signature]] = weakref.WeakKeyDictionary()


class Agent:
    """A named actor that offers capabilities and receives messages.

    ``name`` is unique on its node (letters, digits, ``-``, ``_``). ``tags`` are plain words, ``labels`` text by key,
    ``resources`` what it has in CPU cores, MiB and GPUs. ``concurrency``: attempts at a time. ``weight`` for weighted_random
    (0: by free CPU and memory). ``endpoints``: outside addresses by name. Raises BadInput for values of the wrong kind.
    """

    __slots__ = (
        "__weakref__", "_checkup", "_groups", "_home", "_listeners", "_offered", "_registered_at", "bids", "brokers",
        "concurrency", "endpoints", "kind", "labels", "lends", "name", "region", "resources", "status", "tags", "version",
        "weight", "zone",
    )  # fmt: skip

    tags: tuple[str, ...]
    labels: dict[str, str]
    resources: Resources
    status: AgentStatus
    concurrency: int
    weight: float
    region: str
    zone: str
    endpoints: dict[str, str]
    version: str
    kind: str

    def __init__(
        self,
        name: str,
        *,
        tags: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        kind: str = "",
        version: str = "",
        region: str = "",
        zone: str = "",
        resources: Resources | Mapping[str, float] | None = None,
        concurrency: int = 8,
        weight: float = 0.0,
        endpoints: Mapping[str, str] | None = None,
    ) -> None:
        self.name = check_token(name, "agent name")
        self._home: Home | None = None
        self._offered: dict[str, Offered] = {}
        self._listeners: dict[str, Listener] = {}
        self._checkup: Listener | None = None
        self.bids: dict[str, Listener] = {}
        self.brokers: Callable[[str, list[AgentRecord]], AgentRecord] | None = None
        self.lends: dict[str, float] = {}
        self._groups: dict[str, None] = {}
        self._registered_at = 0
        self._set(
            tags=tags, labels=labels or {}, kind=kind, version=version, region=region, zone=zone, resources=resources or {},
            concurrency=concurrency, weight=weight, endpoints=endpoints or {}, status=AgentStatus.ACTIVE,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Agent({self.id or self.name!r}, offers={list(self._offered)})"

    @property
    def id(self) -> AgentId | None:
        """``node/name`` once a node hosts it."""
        return agent_id(self._home.node, self.name) if self._home is not None else None

    @property
    def offered(self) -> Mapping[str, Offered]:
        """What it offers, by capability name."""
        return self._offered

    @property
    def listeners(self) -> Mapping[str, Listener]:
        """What it listens to, by topic or performative."""
        return self._listeners

    # What it does

    @overload
    def capability(self, function: F, /) -> F: ...

    @overload
    def capability(
        self,
        *,
        name: str = "",
        version: str = "1.0",
        description: str = "",
        strategy: Strategy | str | None = None,
        retries: int | None = None,
        attempt_timeout_s: float | None = None,
        start_timeout_s: float | None = None,
        progress_timeout_s: float | None = None,
        retry: Retry | None = None,
        declared: Performance | None = None,
        pool: Pool = "thread",
        no_retry: tuple[type[BaseException] | str, ...] = (),
    ) -> Callable[[F], F]: ...

    def capability(self, function: Any = None, **options: Any) -> Any:
        """Offer a function, plain or async, as a capability: as a decorator, with or without options, before or while a node
        hosts the agent. Name, description and schemas come from the function; a first parameter annotated ``Attempt`` gets the
        attempt. Plain functions run in a thread; ``pool="process"`` gives a plain, module-level function a process.
        ``no_retry``: exceptions (or their names) that another attempt would not mend; ``retry``: how else it is tried again.
        ``progress_timeout_s``: an attempt that shows no progress for so long is moved. Raises BadInput (a signature without a
        schema, a bad option), TooLarge, Conflict (already offered)."""
        namespace = _caller_names()
        if function is None:
            return lambda decorated: self._offer(decorated, namespace, **options)
        return self._offer(function, namespace, **options)

    def _offer(
        self,
        function: F,
        namespace: Mapping[str, Any],
        *,
        name: str = "",
        version: str = "1.0",
        description: str = "",
        strategy: Strategy | str | None = None,
        pool: Pool = "thread",
        no_retry: tuple[type[BaseException] | str, ...] = (),
        **limits: Any,
    ) -> F:
        signature = _signature(function, namespace, whole=False)
        if pool not in ("thread", "process"):
            raise BadInput(f"pool is 'thread' or 'process', not {pool!r}", pool=pool)
        if pool == "process":
            _check_for_process(function, signature)
            if limits.get("progress_timeout_s"):
                raise BadInput(f"{signature.name}: in a process of its own it has no attempt in hand, and can show no progress")
        model.parse_version(version)
        _check_limits(limits)
        try:
            capability = Capability(
                name=_capability_name(name or signature.name), version=version, description=description or signature.description,
                input_schema=signature.input_schema, output_schema=signature.output_schema,
                strategy=model.strategy(strategy) if strategy is not None else None, **limits,
            )  # fmt: skip
        except TypeError as error:
            raise BadInput(f"{signature.name}: {error}") from error
        if capability.name in self._offered:
            raise Conflict(f"agent {self.name} offers {capability.name} already", capability=capability.name)
        offered = Offered(capability, function, signature, pool, no_retry)
        if len(offered.data) > SCHEMA_MAX:
            said = f"the description of {capability.name} takes {len(offered.data)} bytes; at most {SCHEMA_MAX}"
            raise TooLarge(said, capability=capability.name, limit=SCHEMA_MAX)
        known = {field: getattr(self, field) for field in FACTS}
        self._check_size(known, [*(other.offer for other in self._offered.values()), offered.offer])
        self._offered[capability.name] = offered
        if self._home is not None:
            self._home.changed(self)
        return function

    def withdraw(self, capability: str) -> None:
        """No longer offer it. Attempts that run go on."""
        self._offered.pop(capability, None)
        if self._home is not None:
            self._home.changed(self)

    def on(self, topic: str) -> Callable[[F], F]:
        """Receive messages with a function, plain or async: those of a topic, or of a performative (``request``, ``inform`` ...)
        for whose topic there is no function. A parameter annotated ``Message`` gets the message, another one its typed body.
        What it returns for a request or query becomes the reply. Raises BadInput, Conflict (there is a function already)."""
        namespace = _caller_names()
        check_name(topic, "a topic")

        def listen(function: F) -> F:
            if topic in self._listeners:
                raise Conflict(f"agent {self.name} has a function for {topic!r} already", topic=topic)
            self._listeners[topic] = Listener(function, _signature(function, namespace, whole=True))
            if self._home is not None:
                self._home.listens(self, topic)
            return function

        return listen

    def off(self, topic: str) -> None:
        """No longer receive messages of ``topic``."""
        if self._listeners.pop(topic, None) is not None and self._home is not None:
            self._home.listens(self, topic)

    def health(self, function: F) -> F:
        """Tell how it is with a function, plain or async, without parameters: as a decorator. Its node asks every ``health_s``
        (see ``docs/operations.md``). It is unwell if it raises, returns False, or has not returned when it is due again;
        after ``health_failures`` of these in a row the agent is ``unhealthy``, and gets no work until it was well
        ``health_successes`` times in a row. Raises BadInput, Conflict (there is one already)."""
        signature = _signature(function, _caller_names(), whole=False)
        if signature.handles or signature.takes_input:
            raise BadInput(f"{signature.name}: how an agent is, is asked without parameters")
        if self._checkup is not None:
            raise Conflict(f"agent {self.name} tells how it is by {self._checkup.signature.name} already")
        self._checkup = Listener(function, signature)
        if self._home is not None:
            self._home.changed(self)
        return function

    @property
    def checkup(self) -> Listener | None:
        """How it is asked how it is."""
        return self._checkup

    def bid(self, topic: str) -> Callable[[F], F]:
        """Answer calls for proposals (``call_for_proposals``) with a function, plain or async, which gets what the work itself
        would get, and maybe the ``Message``. What it returns is the proposal; it may ``raise Refuse``. If that is accepted within
        a minute, the agent does what it does on request: its capability, or its function, of that name. Raises BadInput,
        Conflict (there is a function already)."""
        namespace = _caller_names()
        check_name(topic, "a topic")

        def bid(function: F) -> F:
            if topic in self.bids:
                raise Conflict(f"agent {self.name} bids for {topic!r} already", topic=topic)
            self.bids[topic] = Listener(function, Signature(function, handles={"message": Message}, namespace=namespace))
            return function

        return bid

    def broker(self, choose: Callable[[str, list[AgentRecord]], AgentRecord]) -> Callable[..., Any]:
        """Find agents for others (their ``net.request_via``): a decorator for a plain, quick function that is given a capability
        and the active agents that offer it, and returns one of them."""
        self.brokers = choose
        return choose

    def lend(self, resource: str, amount: float) -> None:
        """Lend so much of something to others (their ``net.borrow``), first come first served; 0: no more. What is lent already
        stays lent. Raises BadInput."""
        self.lends[check_name(resource, "a resource")] = check_amount(amount, "amount")

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups it means to be in."""
        return tuple(self._groups)

    def join(self, group: str) -> None:
        """Be in a group, from a moment after now on: mail to the group is mail to it. Before or while a node hosts it. It stays
        a member if its node is lost, and no longer if the node leaves. Raises BadInput."""
        self._groups[check_token(group, "a group")] = None
        if self._home is not None:
            self._home.joins(self, group)

    def leave(self, group: str) -> None:
        """Be in it no more."""
        if group in self._groups:
            del self._groups[group]
            if self._home is not None:
                self._home.joins(self, group)

    # What it is

    def update(self, **changes: Any) -> None:
        """Change what the network knows of it: tags, labels, resources, status, concurrency, weight, region, zone, endpoints,
        version, kind. Watchers see it without the agent leaving. Raises BadInput (TooLarge) and changes nothing."""
        self._set(**changes)
        if self._home is not None:
            self._home.changed(self)

    def _set(self, **changes: Any) -> None:
        checked = {}
        for field, value in changes.items():
            if field not in FACTS:
                raise BadInput(f"an agent has no {field!r} to change; it has: {', '.join(FACTS)}", field=field)
            try:
                checked[field] = FACTS[field](value)
            except (BadInput, TypeError, ValueError) as error:
                kind = type(error) if isinstance(error, BadInput) else BadInput
                raise kind(f"{field} of agent {self.name}: {error}", field=field) from error
        known = {field: getattr(self, field) for field in FACTS if hasattr(self, field)}
        self._check_size(known | checked, [offered.offer for offered in self._offered.values()])
        for field, value in checked.items():
            setattr(self, field, value)

    def _check_size(self, fields: Mapping[str, Any], offers: list[Offer]) -> None:
        """What is too large to be announced would keep its neighbours from being announced too."""
        record = AgentRecord(id=agent_id(_SOMEWHERE, self.name), name=self.name, node=_SOMEWHERE, offers=tuple(offers), **fields)
        size = len(encode_agents([record]))
        if size > RECORD_MAX:
            raise TooLarge(f"agent {self.name} would take {size} bytes to announce; at most {RECORD_MAX}", limit=RECORD_MAX)

    def record(self, node: ProcessId, region: str = "", zone: str = "") -> AgentRecord:
        """It as the registry shows it."""
        return AgentRecord(
            id=agent_id(node, self.name), name=self.name, kind=self.kind, version=self.version, node=node,
            region=self.region or region, zone=self.zone or zone, tags=self.tags, labels=self.labels,
            resources=self.resources, concurrency=self.concurrency, weight=self.weight, endpoints=self.endpoints,
            status=self.status, registered_at=self._registered_at, offers=tuple(o.offer for o in self._offered.values()),
        )  # fmt: skip

    def twin(self, name: str) -> Agent:
        """Another agent with the same functions and properties, called ``name``, on no node yet. Raises BadInput."""
        twin = Agent(name, **{field: getattr(self, field) for field in FACTS if field != "status"})
        twin._offered, twin._listeners, twin._checkup = dict(self._offered), dict(self._listeners), self._checkup
        twin.bids, twin.brokers, twin.lends = dict(self.bids), self.brokers, dict(self.lends)
        twin._groups = dict(self._groups)
        return twin

    def move_in(self, home: Home, at_ms: int) -> None:
        """A node hosts it from now on. Raises Conflict if another one does."""
        if self._home is not None and self._home is not home:
            raise Conflict(f"agent {self.name} is hosted by {self._home.node} already", node=self._home.node)
        self._home = home
        self._registered_at = at_ms

    def move_out(self) -> None:
        self._home = None

    # What it says, as a client does

    submit, submit_many, stream = speaking.submit, speaking.submit_many, speaking.stream
    task, cancel = speaking.task, speaking.cancel
    request, send, broadcast, receipts = speaking.request, speaking.send, speaking.broadcast, speaking.receipts
    discover, capabilities = speaking.discover, speaking.capabilities
    describe, performance = speaking.describe, speaking.performance
    put_file, get_file = speaking.put_file, speaking.get_file
    call_for_proposals, request_via = speaking.call_for_proposals, speaking.request_via
    query_if, query_ref, subscribe = speaking.query_if, speaking.query_ref, speaking.subscribe
    ping, borrow, invite = speaking.ping, speaking.borrow, speaking.invite

    @property
    def _client(self) -> Client:
        if self._home is None:
            raise ShuttingDown(f"agent {self.name} is not on a node, so it can call nobody")
        return self._home.client_for(agent_id(self._home.node, self.name))


_SOMEWHERE = ProcessId("n" * TOKEN_MAX)


def _capability_name(name: str) -> str:
    if model.parse_need(check_name(name, "a capability")) != (name, ""):
        raise BadInput(f"a capability cannot be called {name!r}: spaces around it and <>=! have a meaning", capability=name)
    return name


def _check_limits(limits: Mapping[str, Any]) -> None:
    for what, value in limits.items():
        if what == "retries" and value is not None:
            check_whole(value, what)
        elif what.endswith("_timeout_s") and value is not None:
            check_seconds(value, what)
        elif what == "retry" and value is not None:
            if not isinstance(value, Retry):
                raise BadInput(f"retry is comity.Retry, not {type(value).__name__}", option=what)
            check_sound(value, what).check()
        elif what == "declared" and value is not None:
            if not isinstance(value, Performance):
                raise BadInput(f"declared is comity.Performance, not {type(value).__name__}")
            for field, amount in msgspec.structs.asdict(value).items():
                check_amount(amount, f"declared {field}")


def _caller_names() -> Mapping[str, Any]:
    """Local names where the agent's author wrote the function: its annotations may use them."""
    return sys._getframe(2).f_locals


def _signature(function: Callable[..., Any], namespace: Mapping[str, Any], *, whole: bool) -> Signature:
    """Read once for each function, so that ten thousand agents may share one."""
    try:
        known = _signatures.setdefault(function, {})
    except TypeError:  # cannot be referred to weakly, or has no hash
        known = {}
    if whole not in known:
        handles = {"message": Message} if whole else {"attempt": Attempt}
        known[whole] = Signature(function, handles=handles, namespace=namespace, whole=whole)
    return known[whole]


def _check_for_process(function: Callable[..., Any], signature: Signature) -> None:
    if signature.is_async or signature.handles:
        raise BadInput(f"{signature.name}: pool='process' is for plain functions without an attempt or message in hand")
    qualified = getattr(function, "__qualname__", "<unknown>")
    if "<" in qualified or "." in qualified:
        raise BadInput(f"{signature.name}: pool='process' needs a function at the top level of a module")
