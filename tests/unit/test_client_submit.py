"""Submits: checked before they are sent, sent until they are answered, and the same task however often."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from typing import Any

import msgspec
import pytest
from peers import virtually
from stand_in import ground, until

from comity.errors import (
    BadInput,
    Indefinite,
    InvalidInput,
    NotSerializable,
    Overloaded,
    TimedOut,
    Unreachable,
)
from comity.model import wire
from comity.model.capability import Capability, Requirements, Strategy
from comity.model.task import Stored

SCHEMA = {
    "type": "object",
    "properties": {"path": {"type": "string"}, "depth": {"type": "integer"}},
    "required": ["path"],
    "additionalProperties": False,
}


@virtually()
async def test_options_become_the_spec() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.submit(
            "review>=1.2", None, key="k", tags={"fast", "eu"}, requirements=Requirements(kind="llm"),
            strategy="round_robin", attempt_timeout_s=5, start_timeout_s=2, deadline_s=60, queue=False,
        )  # fmt: skip
        item = await leader.first(wire.SubmitTask)
        spec = item.spec
        assert (spec.capability, spec.key, item.queue, item.again) == ("review", "k", False, False)
        assert spec.requirements == Requirements(kind="llm", tags=("eu", "fast"), version=">=1.2")
        assert (spec.strategy, spec.attempt_timeout_s, spec.start_timeout_s) == (Strategy.ROUND_ROBIN, 5, 2)
        assert 59_000 < spec.deadline_ms <= 60_000


async def test_a_capability_says_its_own_limits() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await g.offer("n1", "a", Capability(name="slow", retries=9, attempt_timeout_s=77.0))
        await client.submit("slow")
        await client.submit("slow", retries=0)
        first, second = (await leader.first(wire.SubmitTask, 2)), leader.all(wire.SubmitTask)[0]
        assert (second.spec.retries, second.spec.attempt_timeout_s) == (9, 77.0)
        assert first.spec.retries == 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"priority": 10}, "priority"),
        ({"priority": 2.5}, "priority"),
        ({"retries": -1}, "retries"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"attempt_timeout_s": float("nan")}, "attempt_timeout_s"),
        ({"strategy": "luck"}, "luck"),
    ],
)
async def test_bad_options_are_named(options: dict[str, Any], word: str) -> None:
    async with ground() as g:
        client = await g.client()
        with pytest.raises(BadInput, match=word):
            await client.submit("x", **options)


async def test_unknown_options_and_names_are_refused() -> None:
    async with ground() as g:
        client = await g.client()
        with pytest.raises(TypeError, match="prio"):
            await client.submit("x", prio=1)  # type: ignore[call-arg]
        with pytest.raises(BadInput, match="name"):
            await client.submit("")
        with pytest.raises(BadInput, match="version"):
            await client.submit("x>=one")


async def test_input_is_checked_by_the_schema_before_anything_is_sent() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await g.offer("n1", "a", Capability(name="survey", input_schema=SCHEMA))
        with pytest.raises(InvalidInput, match="depth") as caught:
            await client.submit("survey", {"path": "a", "depth": "deep"})
        assert caught.value.details["path"] == "depth"
        with pytest.raises(InvalidInput):
            await client.submit_many("survey", [{"path": "a"}, {"path": 3}])
        with pytest.raises(InvalidInput):
            await client.submit("survey")
        assert leader.all(wire.SubmitTask) == []
        await client.submit("survey", {"path": "a", "depth": 1})
        await client.submit("other", {"path": 3})
        assert len(leader.all(wire.SubmitTask)) == 2


async def test_values_of_many_types_pass_the_check_as_their_json() -> None:
    @dataclasses.dataclass
    class Place:
        path: str

    class Deep(msgspec.Struct):
        path: str
        depth: int

    only = {"type": "object", "properties": {"place": {"type": "object"}}, "required": ["place"]}
    async with ground() as g:
        await g.leader()
        client = await g.client()
        await g.offer("n1", "a", Capability(name="survey", input_schema=SCHEMA))
        await g.offer("n2", "b", Capability(name="visit", input_schema=only))
        await client.submit("survey", Place("a"))
        await client.submit("survey", Deep("a", 2))
        await client.submit("visit", {"place": Place("a")})
        with pytest.raises(InvalidInput):
            await client.submit("visit", {"place": 1})
        with pytest.raises(NotSerializable):
            await client.submit("survey", {"path": object()})


async def test_the_only_argument_may_be_given_bare() -> None:
    only = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    async with ground() as g:
        await g.leader()
        client = await g.client()
        await g.offer("n1", "a", Capability(name="double", input_schema=only))
        await client.submit("double", 3)
        with pytest.raises(InvalidInput):
            await client.submit("double", "three")


async def test_a_lost_answer_is_made_good_by_the_same_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.submissions.SILENCE_S", 0.05)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        del leader.answers[wire.SubmitTask]
        submit = asyncio.ensure_future(client.submit("x", deadline_s=100))
        first = await leader.first(wire.SubmitTask)
        leader.answers[wire.SubmitTask] = leader.accept
        task = await submit  # silence makes the client ask who leads, and repeat
        again = leader.all(wire.SubmitTask)[1]
        assert (again.spec.id, again.again, first.again) == (task.id, True, False)
        assert again.spec.deadline_ms < first.spec.deadline_ms


async def test_refusals_are_typed() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()

        def refuse(item: wire.SubmitTask, sender: str) -> None:
            leader.say(sender, wire.Refused(item.spec.id, "overloaded", "too many wait", {"retry_after_s": 1.5}))

        leader.answers[wire.SubmitTask] = refuse
        with pytest.raises(Overloaded, match="too many") as caught:
            await client.submit("x")
        assert caught.value.details["retry_after_s"] == 1.5
        assert client._exchange.outcomes._open == client._exchange.outcomes._submitted == {}


async def test_a_refused_repetition_is_not_definite() -> None:
    async with ground() as g:
        old, client = await g.leader(), await g.client()
        await client.ready()
        del old.answers[wire.SubmitTask]
        submit = asyncio.ensure_future(client.submit("x"))
        await old.first(wire.SubmitTask)
        await old.bus.close()
        new = await g.leader("k2", term=2)
        new.answers[wire.SubmitTask] = lambda item, sender: new.say(
            sender, wire.Refused(item.spec.id, "shutting-down", "bye")
        )
        with pytest.raises(Indefinite, match="earlier send") as caught:
            await submit
        assert caught.value.details["refused"] == "shutting-down"


@virtually()
async def test_no_leader_is_unreachable_and_silence_is_timed_out() -> None:
    async with ground(submit_timeout_s=0.2, request_timeout_s=0.2) as g:
        client = await g.client()
        with pytest.raises(Unreachable):
            await client.submit("x")
        with pytest.raises(Unreachable):
            await client.stats()
        leader = await g.leader()
        await client.ready()
        del leader.answers[wire.SubmitTask]
        with pytest.raises(TimedOut) as caught:
            await client.submit("x")
        assert caught.value.details["task"] == leader.all(wire.SubmitTask)[0].spec.id
        with pytest.raises(TimedOut):
            await client.stats()


async def test_what_was_never_sent_is_sent_for_the_first_time() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        await leader.bus.close()
        submit = asyncio.ensure_future(client.submit("x"))
        await until(lambda: not client._exchange.contact.is_up)
        held = asyncio.ensure_future(client.submit("y"))
        await asyncio.sleep(0)
        new = await g.leader("k2", term=2)
        await submit
        await held
        again = {item.spec.capability: item.again for item in new.all(wire.SubmitTask)}
        assert again == {"x": True, "y": False}


async def test_a_large_input_goes_by_the_store() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        task = await client.submit("x", "y" * 300_000)
        payload = (await leader.first(wire.SubmitTask)).spec.input
        assert isinstance(payload, Stored)
        assert payload.key == f"c1/inputs/{task.id}"
        assert payload.size == 300_002


async def test_an_interrupted_submit_is_forgotten() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        del leader.answers[wire.SubmitTask]
        submit = asyncio.ensure_future(client.submit("x"))
        await leader.first(wire.SubmitTask)
        submit.cancel()
        with pytest.raises(asyncio.CancelledError):
            await submit
        assert client._exchange.submissions._open == {}
        assert client._exchange.outcomes._open == client._exchange.outcomes._submitted == {}


@virtually()
async def test_a_thousand_callers_make_few_messages() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        before = leader.batches
        tasks = await asyncio.gather(*(client.submit("x", n) for n in range(1000)))
        assert len({task.id for task in tasks}) == 1000
        assert len(leader.all(wire.SubmitTask)) == 1000
        assert leader.batches - before <= 5


async def test_many_are_accepted_in_order_or_their_error_says_which() -> None:
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        tasks = await client.submit_many("x", range(5000), tags="t")
        assert [item.spec.id for item in leader.all(wire.SubmitTask)] == [task.id for task in tasks]
        assert leader.all(wire.SubmitTask)[7].spec.input == b"7"

        def some(item: wire.SubmitTask, sender: str) -> None:
            if int(bytes(item.spec.input)) % 2:  # type: ignore[arg-type]
                leader.say(sender, wire.Refused(item.spec.id, "overloaded", "full"))
            else:
                leader.accept(item, client.process)

        leader.answers[wire.SubmitTask] = some
        with pytest.raises(Overloaded) as caught:
            await client.submit_many("x", range(10))
        assert len(caught.value.details["accepted"]) == 5
        assert await client.submit_many("x", []) == []


@virtually()
async def test_more_than_the_window_waits_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.client.submissions.WINDOW", 100)
    monkeypatch.setattr("comity.client.submissions.SLICE", 50)
    async with ground() as g:
        leader, client = await g.leader(), await g.client()
        await client.ready()
        del leader.answers[wire.SubmitTask]
        submit = asyncio.ensure_future(client.submit_many("x", range(300)))
        await leader.first(wire.SubmitTask, 100)
        assert len(leader.all(wire.SubmitTask)) == 100
        leader.answers[wire.SubmitTask] = leader.accept
        for item in leader.all(wire.SubmitTask)[:100]:
            leader.accept(item, client.process)
        assert len(await submit) == 300


async def test_submitting_is_cheap() -> None:
    """The client's own share of a submit, encoded and sent in batches: the goal is 15 microseconds."""
    async with ground() as g:
        client, _ = await g.client(), await g.leader()
        await g.offer("n1", "a", Capability(name="survey", input_schema=SCHEMA))
        await client.discover()
        sent: list[int] = []

        async def swallow(address: str, data: bytes) -> None:
            sent.append(len(data))

        inputs = [{"path": f"file-{n}", "depth": 3} for n in range(10_000)]
        await client.submit("survey", inputs[0])
        client._exchange.outbox._bus.send = swallow  # type: ignore[method-assign]
        before = time.process_time()
        submit = asyncio.ensure_future(client.submit_many("survey", inputs))
        await until(lambda: len(client._exchange.submissions._open) == len(inputs))
        await client._exchange.outbox.drain()
        spent = time.process_time() - before
        for task in list(client._exchange.submissions._open):
            client._exchange.submissions.on_accepted(wire.Accepted(((task, task),)))
        await submit
        assert sum(sent) > 500_000
        assert spent / len(inputs) < 60e-6  # generous: the machine is shared
