"""The watched copy of the registry: complete, indexed, and honest about its age."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
from stand_in import Ground, ground, record, until

from comity.directory import Directory, Seen, Validator, check_input
from comity.errors import AccessDenied, BadInput, Disconnected, InvalidInput, TimedOut
from comity.model import published
from comity.model.capability import AgentRecord, AgentStatus, Capability, NodeRecord, Offer, Resources
from comity.model.ids import ProcessId
from comity.registry.base import Change
from comity.registry.memory import MemoryRegistry

REVIEW = Offer("review", "1.2", "h1")


async def loaded(g: Ground) -> Directory:
    directory = Directory(MemoryRegistry(g.records), asyncio.get_running_loop().time)
    await directory.ready(20)
    return directory


def node(name: str, incarnation: int = 1) -> Change:
    return Change(f"nodes/{name}", published.encode_node(NodeRecord(id=ProcessId(name), incarnation=incarnation)), 1)


def chunk(name: str, *agents: AgentRecord, number: int = 0) -> Change:
    return Change(f"agents/{name}/{number}", published.encode_agents(list(agents)), 1)


def gone(key: str) -> Change:
    return Change(key, None, 1)


def empty() -> Directory:
    return Directory(MemoryRegistry(Ground().records), lambda: 5.0)


async def test_it_loads_and_follows() -> None:
    async with ground() as g:
        await g.register("n1", record("n1", "a", REVIEW))
        directory = await loaded(g)
        assert [a.id for a in directory.discover("review")] == ["n1/a"]
        await g.register("n2", record("n2", "b", REVIEW))
        await until(lambda: len(directory.discover("review")) == 2)
        assert directory.age_s < 5
        await g.registry.delete("nodes/n1")
        await until(lambda: len(directory.discover("review")) == 1)
        await directory.close()
        with pytest.raises(Disconnected):
            await directory.ready(20)


async def test_what_ended_the_watch_is_told() -> None:
    class Denied(MemoryRegistry):
        async def watch(self, prefix: str) -> AsyncIterator[list[Change]]:  # type: ignore[override]
            raise AccessDenied("no")
            yield []

    class Ended(MemoryRegistry):
        async def watch(self, prefix: str) -> AsyncIterator[list[Change]]:  # type: ignore[override]
            yield []

    class Silent(MemoryRegistry):
        async def watch(self, prefix: str) -> AsyncIterator[list[Change]]:  # type: ignore[override]
            await asyncio.get_running_loop().create_future()
            yield []

    time = asyncio.get_running_loop().time
    records = Ground().records
    for registry, error, wait_s in ((Denied(records), AccessDenied, 20), (Silent(records), TimedOut, 0.05)):
        directory = Directory(registry, time)
        with pytest.raises(error):
            await directory.ready(wait_s)
        assert not directory.is_loaded
        await directory.close()
    directory = Directory(Ended(records), time)
    await directory.load(20)
    await until(lambda: not directory.is_loaded)
    with pytest.raises(Disconnected):
        await directory.ready(20)
    await directory.close()


def test_conditions_narrow() -> None:
    directory = empty()
    agents = [
        record("n1", "a", REVIEW, tags=("x", "y"), labels={"tier": "1"}, kind="llm", region="eu"),
        record("n1", "b", Offer("review", "2.0", "h2"), tags=("x",), status=AgentStatus.PAUSED),
        record("n1", "c", Offer("other", "1.0", "h3"), region="us"),
    ]
    directory.apply([node("n1"), chunk("n1", *agents), node("n2"), chunk("n2", record("n2", "a"))])

    def ids(*args: Any, **conditions: Any) -> list[str]:
        return [agent.id for agent in directory.discover(*args, **conditions)]

    assert ids() == ["n1/a", "n1/b", "n1/c", "n2/a"]
    assert ids("review") == ["n1/a", "n1/b"]
    assert ids("review>=2") == ["n1/b"]
    assert ids(tags=("x", "y")) == ["n1/a"]
    assert ids(any_tags=("y", "z")) == ["n1/a"]
    assert ids(labels={"tier": "1"}) == ["n1/a"]
    assert ids(kind="llm") == ["n1/a"]
    assert ids(status="paused") == ["n1/b"]
    with pytest.raises(BadInput, match="happy"):
        ids(status="happy")
    assert ids(node="n2") == ["n2/a"]
    assert ids(region="us") == ["n1/c"]
    assert ids(name="a") == ["n1/a", "n2/a"]
    assert ids("nothing") == []
    assert [agent.id for agent in directory.named("a")] == ["n1/a", "n2/a"]
    assert directory.offers("review")
    assert not directory.offers("nothing")
    with pytest.raises(BadInput):
        directory.discover("review>=x")


def test_agents_show_only_while_their_node_is_there() -> None:
    directory, seen = empty(), list[Seen]()
    directory.watch(seen.extend)
    agent = record("n1", "a", REVIEW)
    directory.apply([chunk("n1", agent)])
    assert directory.discover() == []
    assert seen == []
    directory.apply([node("n1")])
    assert directory.discover() == [agent]
    directory.apply([gone("nodes/n1"), gone("nodes/never")])
    assert directory.agent(agent.id) is None
    assert [(s.what, s.record.id) for s in seen] == [
        ("joined", "n1"),
        ("joined", "n1/a"),
        ("left", "n1/a"),
        ("left", "n1"),
    ]


def test_watchers_hear_what_changed_and_nothing_else() -> None:
    directory, seen = empty(), list[Seen]()
    end = directory.watch(seen.extend)
    directory.apply([node("n1"), chunk("n1", record("n1", "a"), record("n1", "b"))])
    seen.clear()
    directory.apply([node("n1"), chunk("n1", record("n1", "a"), record("n1", "b"))])
    assert seen == []
    directory.apply([node("n1", 2), chunk("n1", record("n1", "a", tags=("new",)))])
    assert [(s.what, s.record.id) for s in seen] == [("changed", "n1"), ("left", "n1/b"), ("changed", "n1/a")]
    end()
    end()
    directory.apply([gone("nodes/n1")])
    assert len(seen) == 3


def test_an_agent_may_move_between_chunks() -> None:
    directory, seen = empty(), list[Seen]()
    a, b = record("n1", "a"), record("n1", "b")
    directory.apply([node("n1"), chunk("n1", a, b, number=0)])
    directory.watch(seen.extend)
    directory.apply([chunk("n1", b, number=1), chunk("n1", a, number=0)])
    assert directory.discover() == [a, b]
    assert seen == []
    directory.apply([gone("agents/n1/0")])
    assert directory.discover() == [b]


def test_nobody_speaks_for_anothers_agents_and_damage_is_counted() -> None:
    directory = empty()
    directory.apply([node("n1"), node("n2"), chunk("n1", record("n1", "a"), record("n2", "stolen"))])
    assert [agent.id for agent in directory.discover()] == ["n1/a"]
    damaged = [Change("nodes/n3", b"?", 1), Change("agents/n1/0", b"?", 1), Change("schemas/n1/h", b"?", 1)]
    directory.apply([*damaged, Change("network/k1/x", b"?", 1)])
    assert directory.malformed == 3
    assert directory.discover() == []
    assert directory.age_s == 0.0


def test_schemas_are_known_by_hash_and_forgotten_with_their_last_copy() -> None:
    directory = empty()
    capability = Capability(name="review", retries=2, input_schema={"type": "object", "required": ["x"]})
    schema, data = published.encode_capability(capability)
    offer = Offer("review", "1.0", schema)
    directory.apply([node("n1"), chunk("n1", record("n1", "a", offer))])
    assert directory.validators("review") == []  # not known yet: nothing is said
    directory.apply([Change(f"schemas/n1/{schema}", data, 1), Change(f"schemas/n2/{schema}", data, 1)])
    assert directory.capability("review") == capability
    (validator,) = directory.validators("review")
    assert directory.validators("review")[0] is validator
    directory.apply([gone(f"schemas/n1/{schema}")])
    assert directory.validators("review") == [validator]
    directory.apply([gone(f"schemas/n2/{schema}")])
    assert directory.validators("review") == []
    assert directory.capability("review") is None


def test_an_input_may_suit_any_of_the_schemas_offered() -> None:
    directory = empty()
    changes = [node("n1")]
    offers = []
    for name in ("x", "y"):
        schema, data = published.encode_capability(
            Capability(name="review", input_schema={"type": "object", "required": [name]})
        )
        changes.append(Change(f"schemas/n1/{schema}", data, 1))
        offers.append(Offer("review", "1.0", schema))
    directory.apply([*changes, chunk("n1", record("n1", "a", offers[0]), record("n1", "b", offers[1]))])
    validators = directory.validators("review")
    check_input(validators, {"x": 1}, b"")
    check_input(validators, {"y": 1}, b"")
    with pytest.raises(InvalidInput, match="required"):
        check_input(validators, {"z": 1}, b"")


def test_an_object_is_no_value_of_the_only_parameter_and_the_error_says_so() -> None:
    schema = {"type": "object", "properties": {"ref": {"type": "object"}}, "required": ["ref"], "additionalProperties": False}
    validator = Validator.of(Capability(name="take", input_schema=schema))
    assert validator is not None
    error = validator.error({"digest": "abc"}, b'{"digest":"abc"}')
    assert error is not None and error.message.endswith("an object holds the arguments by name, here 'ref'")
    assert validator.error({"ref": {"digest": "abc"}}, b"") is None


@pytest.mark.parametrize("schema", [{}, {"type": "nonsense"}])
def test_without_a_usable_schema_nothing_is_refused(schema: dict[str, Any]) -> None:
    directory = empty()
    name, data = published.encode_capability(Capability(name="review", input_schema=schema))
    directory.apply(
        [node("n1"), Change(f"schemas/n1/{name}", data, 1), chunk("n1", record("n1", "a", Offer("review", "1", name)))]
    )
    assert directory.validators("review") == []


names = st.sampled_from("abc")
agents = st.builds(
    lambda name, offers, tag: record("n1", name, *[Offer(o, "1", "h" + o) for o in offers], tags=(tag,)),
    names, st.lists(st.sampled_from("pq"), unique=True), st.sampled_from("tu"),
)  # fmt: skip
changes = st.one_of(
    st.builds(
        lambda number, found: chunk("n1", *found, number=number), st.integers(0, 2), st.lists(agents, max_size=3)
    ),
    st.builds(lambda number: gone(f"agents/n1/{number}"), st.integers(0, 2)),
    st.just(node("n1")),
    st.just(gone("nodes/n1")),
)


@hypothesis.given(st.lists(st.lists(changes, max_size=3), max_size=12))
def test_the_indices_agree_with_what_is_there_and_watchers_with_both(batches: list[list[Change]]) -> None:
    directory = empty()
    heard: dict[str, Any] = {}

    def hear(changes: list[Seen]) -> None:
        for what, found in changes:
            if what == "left":
                del heard[found.id]
            else:
                assert (what == "joined") == (found.id not in heard)
                heard[found.id] = found

    directory.watch(hear)
    for batch in batches:
        directory.apply(batch)
        everybody = directory.discover()
        for capability in "pq":
            offering = [a for a in everybody if any(o.name == capability for o in a.offers)]
            assert directory.discover(capability) == offering
        for name in "abc":
            assert directory.named(name) == [a for a in everybody if a.name == name]
        assert {a.id: a for a in everybody} == {key: a for key, a in heard.items() if isinstance(a, AgentRecord)}


def test_what_agents_have_in_common_is_one_object() -> None:
    offers = (Offer("x", "1.0", "s"), Offer("y", "1.0", "s"))
    sent = [record("n1", f"a{i}", *offers) for i in range(3)]
    read = published.decode_agents(published.encode_agents(sent))
    assert read == sent
    assert all(agent.offers is read[0].offers and agent.node is read[0].node for agent in read)


def test_conditions_may_be_mixed_and_limited() -> None:
    directory = empty()
    directory.apply([node("n1"), node("n2")])
    half = Resources(cpu=4, gpu=1, cpu_used=3)
    directory.apply([
        chunk("n1", *(record("n1", f"a{i}", REVIEW, tags=("x",) if i % 2 else ("y",), region="eu") for i in range(9))),
        chunk("n2", record("n2", "b", REVIEW, Offer("odd", "beta", "s"), resources=half, tags=("x", "y"))),
        chunk("n3", record("n3", "c", REVIEW, tags=("x",))),
    ])  # fmt: skip

    def found(*args: Any, **conditions: Any) -> list[str]:
        return [agent.id for agent in directory.discover(*args, **conditions)]

    assert found("review", region="eu", tags=("x",)) == ["n1/a1", "n1/a3", "n1/a5", "n1/a7"]
    assert found("review", region="eu", tags=("x",), limit=2) == ["n1/a1", "n1/a3"]
    assert found(any_tags=("y", "z"), limit=3) == ["n1/a0", "n1/a2", "n1/a4"]
    assert found("review>=1.1", any_tags=("y",), needs={"gpu": 1, "cpu": 1}) == ["n2/b"]
    assert found(needs={"cpu": 2}) == [] == found(needs={"memory_mb": 1})
    assert found("odd>=1") == [], "a version that cannot be read is outside every range"
    assert found("odd") == ["n2/b"]
    assert found("review>=2") == found("nothing") == found(tags=("x", "nothing")) == []
    assert directory.capabilities() == ["odd", "review"]
    for bad in ({"disk": 1.0}, {"gpu": "many"}, {"gpu": -1}, {"gpu": float("nan")}):
        with pytest.raises(BadInput, match="needs"):
            directory.discover(needs=bad)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="colour"):
        directory.discover(colour="red")  # type: ignore[call-arg]


def test_few_are_found_among_very_many_without_looking_at_all() -> None:
    directory = empty()
    directory.apply([node("n1")])
    many = [
        record("n1", f"a{i}", REVIEW, Offer(f"c{i % 100}", "1.0", "s"), tags=("gpu",) if i % 10 == 0 else (), region=f"r{i % 4}")
        for i in range(20_000)
    ]
    for start in range(0, len(many), 500):
        directory.apply([chunk("n1", *many[start : start + 500], number=start)])
    questions: list[tuple[str, dict[str, Any], int]] = [
        ("c10", {"region": "r2"}, 200), ("review", {"limit": 20}, 20), ("review", {"tags": ("gpu",), "limit": 20}, 20),
        ("review>=1", {"region": "r0", "tags": ("gpu",), "limit": 20}, 20), ("", {"name": "a77"}, 1),
    ]  # fmt: skip
    for capability, conditions, count in questions:
        directory.discover(capability, **conditions)  # sorts what is asked for the first time
        looked = 0

        def trace(_frame: Any, event: str, _arg: Any) -> Any:
            nonlocal looked
            looked += event in ("line", "call")
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            found = directory.discover(capability, **conditions)
        finally:
            sys.settrace(before)
        assert len(found) == count
        assert looked < 20 * (count + 20), (capability, conditions, looked)
