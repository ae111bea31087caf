"""Agents as their authors write them: what is taken, what is refused, what the network would see."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from comity.agent import Agent, Home
from comity.client.client import Client
from comity.errors import BadInput, Conflict, ShuttingDown, TooLarge
from comity.handles import Attempt
from comity.message import Message
from comity.model.capability import AgentStatus, Performance, Resources, Strategy
from comity.model.ids import AgentId, ProcessId
from comity.model.task import TaskFailure
from comity.model.wire import BeaconAck
from comity.node.failing import Failure, failure_of, place, traced
from comity.node.lease import Lease
from comity.node.performing import Performer
from comity.node.pools import Pools


class House:
    """A home that notes what it is told."""

    def __init__(self) -> None:
        self.node = ProcessId("n1")
        self.told: list[str] = []

    def changed(self, agent: Agent) -> None:
        self.told.append(f"changed {agent.name}")

    def listens(self, agent: Agent, topic: str) -> None:
        self.told.append(f"listens {topic} {topic in agent.listeners}")

    def client_for(self, agent: AgentId) -> Client:
        raise NotImplementedError


def test_a_capability_comes_from_the_function() -> None:
    agent = Agent("a")

    @agent.capability
    async def survey(path: str, depth: int = 1) -> list[str]:
        """Look around.

        Args:
            path: where to look
        """
        return [path]

    @agent.capability(
        name="count", version="2.1", description="Counts.", strategy="best_fit", retries=1, attempt_timeout_s=5.0,
        start_timeout_s=2.0, declared=Performance(latency_ms=3.0), no_retry=(KeyError,),
    )  # fmt: skip
    def tally(attempt: Attempt, words: list[str]) -> int:
        return len(words)

    first, second = agent.offered["survey"], agent.offered["count"]
    assert first.capability.description == "Look around." and first.function is survey and first.pool == "thread"
    assert first.capability.input_schema["properties"]["path"] == {"type": "string", "description": "where to look"}
    assert first.capability.output_schema == {"type": "array", "items": {"type": "string"}}
    capability = second.capability
    assert (capability.version, capability.description, capability.strategy) == ("2.1", "Counts.", Strategy.BEST_FIT)
    assert (capability.retries, capability.attempt_timeout_s, capability.start_timeout_s) == (1, 5.0, 2.0)
    assert second.offer.schema != first.offer.schema and second.offer.declared == Performance(latency_ms=3.0)
    assert second.signature.handles == (Attempt,) and second.no_retry == (KeyError,)
    assert tally(None, ["a", "b"]) == 2, "a decorated function stays what it was"  # type: ignore[arg-type]


def test_local_types_are_found() -> None:
    @dataclasses.dataclass
    class Point:
        x: int

    agent = Agent("a")

    @agent.capability
    def move(point: Point) -> Point:
        return point

    @agent.on("moved")
    def moved(body: Point) -> None: ...

    @agent.capability()
    def again(point: Point) -> int:
        return point.x

    assert agent.offered["move"].signature.decode(b'{"point": {"x": 2}}').positional == (Point(2),)
    assert agent.listeners["moved"].signature.decode(b'{"x": 2}').positional == (Point(2),)
    assert agent.offered["again"].signature.output_schema == {"type": "integer"}


def test_one_function_may_serve_many_agents() -> None:
    async def work(n: int) -> int:
        return n

    agents = [Agent(f"a{i}") for i in range(3)]
    for agent in agents:
        agent.capability(work)
        agent.on("work")(work)
    assert len({id(agent.offered["work"].signature) for agent in agents}) == 1
    assert agents[0].offered["work"].offer == agents[2].offered["work"].offer

    class Scale:
        def __init__(self, by: int) -> None:
            self.by = by

        def times(self, n: int) -> int:
            return n * self.by

    agent = Agent("b")
    agent.capability(Scale(2).times)
    agent.capability(name="threefold")(Scale(3).times)
    assert [offered.function(4) for offered in agent.offered.values()] == [8, 12]


@pytest.mark.parametrize(
    "options",
    [
        {"strategy": "cleverly"},
        {"version": "one"},
        {"pool": "cloud"},
        {"name": "a>b"},
        {"name": " a"},
        {"name": "x" * 201},
        {"name": "a\udcff"},
        {"description": "x" * 300_000},
        {"retries": -1},
        {"retries": 10**20},
        {"attempt_timeout_s": 1e300},
        {"start_timeout_s": 0},
        {"declared": {"latency_ms": 3}},
        {"declared": Performance(latency_ms=float("inf"))},
        {"colour": "red"},
    ],
)
def test_bad_options_of_a_capability(options: dict[str, Any]) -> None:
    agent = Agent("a")

    def work() -> None: ...

    with pytest.raises(BadInput):
        agent.capability(**options)(work)
    assert not agent.offered


def test_a_name_is_taken_once() -> None:
    agent = Agent("a")

    @agent.capability
    @agent.on("work")
    def work() -> None: ...

    with pytest.raises(Conflict):
        agent.capability(work)
    with pytest.raises(Conflict):
        agent.on("work")(work)
    for topic in ("", "x" * 201, "a\nb", "a\udcff"):
        with pytest.raises(BadInput):
            agent.on(topic)
    with pytest.raises(BadInput, match="callback"):

        @agent.on("other")
        def other(callback: type) -> None: ...


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "with space"},
        {"name": ""},
        {"tags": "one"},
        {"tags": [1]},
        {"tags": [""]},
        {"tags": ["a b"]},
        {"tags": ["x" * 10_000]},
        {"tags": ["a\udcff"]},
        {"tags": 5},
        {"labels": {"k": 1}},
        {"labels": {"": "v"}},
        {"labels": {"k": "x" * 2_000_000}},
        {"labels": {f"k{i}": "x" * 1000 for i in range(200)}},
        {"labels": {"k": "\udcff"}},
        {"labels": {"k": "a\x1b[31m"}},
        {"concurrency": True},
        {"concurrency": 10**10},
        {"weight": True},
        {"weight": float("inf")},
        {"weight": 1e300},
        {"resources": {"gpu": float("nan")}},
        {"resources": {"cpu": -1}},
        {"resources": Resources(memory_mb=float("inf"))},
        {"resources": {"cpu": "2"}},
        {"resources": 5},
        {"region": "\n\x1b[31m"},
        {"zone": "z" * 201},
        {"version": "\udcff"},
        {"endpoints": {"": "http://x"}},
        {"endpoints": {"web": 1}},
        {"concurrency": 0},
        {"concurrency": "2"},
        {"weight": -1},
        {"weight": float("nan")},
        {"resources": {"cats": 2}},
        {"endpoints": [1]},
        {"kind": None},
    ],
)
def test_an_agent_of_impossible_values(fields: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Agent(**{"name": "a", **fields})


def test_an_update_happens_whole_or_not_at_all() -> None:
    agent = Agent("a", tags=["b", "a", "b"], resources=Resources(cpu=2.0))
    assert agent.tags == ("a", "b") and agent.resources.cpu == 2.0
    house = House()
    agent.move_in(house, 5)
    with pytest.raises(BadInput, match="weight of agent a"):
        agent.update(tags={"new"}, weight="heavy")
    with pytest.raises(BadInput, match="has no 'name' to change"):
        agent.update(name="b")
    with pytest.raises(BadInput):
        agent.update(status="asleep")
    with pytest.raises(BadInput, match="comity agents remove"):
        agent.update(status="left")
    with pytest.raises(TooLarge, match="to announce"):
        agent.update(tags={"new"}, labels={f"k{i}": "x" * 1000 for i in range(200)})
    assert agent.tags == ("a", "b") and not house.told
    agent.update(tags={"new"}, status="unhealthy", labels={"k": "v"})
    assert house.told == ["changed a"]
    record = agent.record(ProcessId("n1"), "eu", "z")
    assert (record.tags, record.status, record.labels, record.region) == (("new",), AgentStatus.UNHEALTHY, {"k": "v"}, "eu")
    assert record.registered_at == 5 and record.id == "n1/a"


async def test_an_agent_has_one_home_and_none_is_no_one_to_call() -> None:
    agent = Agent("a")
    assert agent.id is None and repr(agent) == "Agent('a', offers=[])"
    for call in (agent.submit, agent.request, agent.send, agent.broadcast, agent.discover):
        with pytest.raises(ShuttingDown):
            await call("x")
    with pytest.raises(ShuttingDown):
        await agent.cancel("x")
    with pytest.raises(ShuttingDown):
        await agent.submit_many("x", [])
    house: Home = House()
    agent.move_in(house, 0)
    agent.move_in(house, 0)
    assert repr(agent) == "Agent('n1/a', offers=[])"
    with pytest.raises(Conflict):
        agent.move_in(House(), 0)
    agent.move_out()
    agent.move_in(House(), 0)


def test_its_home_hears_of_new_functions() -> None:
    agent, house = Agent("a"), House()
    agent.move_in(house, 0)

    @agent.capability
    def work() -> None: ...

    @agent.on("note")
    def note(message: Message) -> None: ...

    agent.off("note")
    agent.off("note")
    agent.withdraw("work")
    assert house.told == ["changed a", "listens note True", "listens note False", "changed a"]
    assert not agent.offered and not agent.listeners


def test_errors_as_failures() -> None:
    known = TaskFailure("x", "y", retryable=False)
    assert failure_of(Failure(known)) is known
    two = ExceptionGroup("several", [ValueError("a"), KeyError("b")])
    assert failure_of(two).code == "ExceptionGroup"
    assert failure_of(ExceptionGroup("one", [ExceptionGroup("in one", [KeyError("b")])])).code == "KeyError"
    assert not failure_of(KeyError("k"), (LookupError,)).retryable
    assert place(ValueError()) == ""
    with pytest.raises(ValueError) as caught:
        int("x")
    assert place(caught.value).startswith(__file__)
    kind, error, trace = traced(caught.value) or (None, None, None)
    assert kind is ValueError and error is caught.value and trace is caught.value.__traceback__
    assert traced(ValueError()) is not None
    with pytest.raises(BadInput) as ours:
        raise BadInput("no")
    assert traced(ours.value) is None, "it says what it is about"


async def test_the_trace_of_a_failure_begins_in_the_users_code() -> None:
    agent = Agent("a")

    @agent.capability
    async def work() -> None:
        int("x")

    (offered,) = agent.offered.values()
    performing = asyncio.create_task(Performer(Pools()).perform(offered, b"{}", lambda: None, lambda: None))
    await asyncio.wait([performing])
    error = performing.exception()
    assert isinstance(error, ValueError)
    _, _, trace = traced(error) or (None, None, None)
    assert trace is not None and trace.tb_frame.f_code.co_name == "work"


def test_a_lease_counts_only_what_answers_its_own_beacons() -> None:
    numbers = iter(range(1000))
    lease = Lease(60.0, lambda: next(numbers))
    leader, other = ProcessId("k1"), ProcessId("k2")
    assert not lease.may_begin(0.0) and lease.is_orphan(0.0)
    first = lease.beacon(10.0)
    assert not lease.take(BeaconAck(first + 500, 1, 3.0, 0), other)
    assert lease.take(BeaconAck(first, 1, 3.0, 0), leader)
    assert (lease.term, lease.leader, lease.contact_at) == (1, "k1", 10.0)
    assert lease.may_begin(12.69) and not lease.may_begin(12.71)
    assert not lease.is_orphan(69.9) and lease.is_orphan(70.0)
    assert not lease.take(BeaconAck(first, 1, 3.0, 0), leader), "once"
    early, late = lease.beacon(11.0), lease.beacon(12.0)
    assert lease.take(BeaconAck(late, 2, 3.0, 0), other) and lease.leader == "k2"
    assert not lease.take(BeaconAck(early, 1, 3.0, 0), leader), "its term is over"
    old = lease.beacon(13.0)
    for at in range(100):
        lease.beacon(14.0 + at)
    assert not lease.take(BeaconAck(old, 2, 3.0, 0), other), "forgotten"
    last = lease.beacon(200.0)
    lease.end()
    assert not lease.take(BeaconAck(last, 2, 3.0, 0), other) and not lease.may_begin(200.0)
