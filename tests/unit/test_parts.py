"""Streams of parts: what the node keeps and sends, and what a reader makes of what arrives."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from node_stage import Caller, Leader, Stage, staged_on, until

from comity import Agent, Final
from comity.errors import BadInput
from comity.model import wire
from comity.model.ids import ProcessId, TaskId
from comity.model.parts import KEPT_PARTS, PART_LIMIT, NoParts, Part, PartsEnd, PartsOffered, ReadParts
from comity.model.signature import Signature
from comity.node import parts as node_parts
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)
MADE: list[int] = []


def streaming() -> Agent:
    agent = Agent("a")
    MADE.clear()

    @agent.capability
    async def count(n: int, pause_s: float = 0.0) -> AsyncIterator[int | Final[str]]:
        for number in range(1, n + 1):
            if pause_s:
                await asyncio.sleep(pause_s)
            MADE.append(number)
            yield number
        yield Final(f"{n} made")

    @agent.capability
    async def listed(n: int) -> AsyncIterator[int]:
        for number in range(n):
            yield number

    @agent.capability
    async def text(n: int, size: int) -> AsyncIterator[str | Final[int]]:
        for number in range(n):
            MADE.append(number)
            yield "x" * size
        yield Final(n)

    @agent.capability
    async def wrong(kind: str) -> AsyncIterator[int | Final[int]]:
        yield "text" if kind == "part" else 1  # type: ignore[misc]
        if kind == "error":
            raise ValueError("no more")
        if kind == "final":
            yield Final("text")  # type: ignore[arg-type]

    return agent


class Reads:
    """A reader of node n1's streams, by raw items."""

    def __init__(self, caller: Caller) -> None:
        self.caller = caller

    async def read(self, epoch: int = 1, *, taken: int = 0, after: int = 0, until: int = 0, **more: Any) -> None:
        item = ReadParts(more.pop("ref", 7), TaskId("t1"), epoch, taken, after, until, **more)
        await self.caller.bus.send("to/n1", wire.encode([item]))

    def parts(self, ref: int = 7) -> list[int]:
        return [item.number for item in self.of(Part) if item.ref == ref]

    def of(self, kind: type[Any]) -> list[Any]:
        return [item for item in self.caller.items if isinstance(item, kind)]


async def begin(stage: Stage, capability: str, **given: Any) -> tuple[Leader, Reads]:
    _, leader = await stage.started(streaming())
    caller = await Caller.join(stage)
    leader.assign(capability, given, submitter=ProcessId("c1"))
    await until(lambda: any(isinstance(item, PartsOffered) for item in caller.items))
    return leader, Reads(caller)


@staged
async def test_a_reader_gets_what_it_has_room_for(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=10)
    assert reads.of(PartsOffered) == [PartsOffered(TaskId("t1"), 1, 1)]
    await reads.read(until=3)
    await until(lambda: reads.parts() == [1, 2, 3])
    await reads.read(after=3, taken=2, until=8)
    await until(lambda: reads.parts() == [*range(1, 9)])
    assert reads.of(PartsEnd) == []
    await reads.read(after=8, taken=8, until=100)
    await until(lambda: bool(reads.of(PartsEnd)))
    assert reads.parts() == [*range(1, 11)]
    assert reads.of(PartsEnd) == [PartsEnd(7, 1, 10)]
    assert [msgspec.json.decode(item.body) for item in reads.of(Part)] == [*range(1, 11)]
    assert await leader.done() == "10 made"


@staged
async def test_what_was_lost_on_the_way_is_sent_again(stage: Stage) -> None:
    _, reads = await begin(stage, "count", n=10)
    await reads.read(until=100)
    await until(lambda: bool(reads.of(PartsEnd)))
    reads.caller.items.clear()
    await reads.read(after=6, taken=4, until=100, again=True)
    await until(lambda: bool(reads.of(PartsEnd)))
    assert reads.parts() == [7, 8, 9, 10]


@staged
async def test_who_comes_just_after_the_last_reader_has_left_gets_it_all(stage: Stage) -> None:
    """Who got no offer, and learned at the end of the task where its last attempt was."""
    _, reads = await begin(stage, "count", n=10)
    await reads.read(until=100)
    await until(lambda: bool(reads.of(PartsEnd)))
    await reads.read(for_ms=0)
    await asyncio.sleep(node_parts.READ_S / 2)
    await reads.read(ref=8, until=100)
    await until(lambda: len(reads.of(PartsEnd)) == 2)
    assert reads.parts(8) == [*range(1, 11)]
    await reads.read(ref=8, for_ms=0)
    await asyncio.sleep(node_parts.READ_S * 2)
    await reads.read(until=100)
    await until(lambda: bool(reads.of(NoParts)))


@staged
async def test_a_slow_reader_makes_the_generator_wait(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=KEPT_PARTS * 3)
    await reads.read(until=10)
    for _ in range(20):
        await asyncio.sleep(1)
        await reads.read(until=10)
    assert len(MADE) == KEPT_PARTS + 1  # one in hand
    await reads.read(taken=10, after=10, until=74)
    await until(lambda: len(MADE) == KEPT_PARTS + 11)
    assert leader.all(wire.Done) == []
    await reads.read(for_ms=0)
    assert await leader.done() == f"{KEPT_PARTS * 3} made"


@staged
async def test_large_parts_are_bounded_in_bytes(stage: Stage) -> None:
    _, reads = await begin(stage, "text", n=1000, size=100_000)
    await reads.read(until=3)
    await asyncio.sleep(10)
    assert len(MADE) <= 12


@staged
async def test_a_reader_that_says_nothing_holds_nothing_up(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=KEPT_PARTS * 3)
    await reads.read(until=10)
    await reads.read(ref=8, until=1000)
    for taken in range(60):
        await reads.read(ref=8, taken=max(reads.parts(8), default=0), after=0, until=2000)
        await asyncio.sleep(1)
        if leader.all(wire.Done):
            assert taken > 10
            break
    assert await leader.done() == f"{KEPT_PARTS * 3} made"
    assert reads.parts(8) == [*range(1, KEPT_PARTS * 3 + 1)]


@staged
async def test_a_stream_that_nobody_reads_goes_on_and_keeps_the_last(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=KEPT_PARTS + 50)
    assert await leader.done() == f"{KEPT_PARTS + 50} made"
    await reads.read(until=1000)
    await until(lambda: bool(reads.of(PartsEnd)))
    assert reads.of(NoParts) == [NoParts(7, 1, 50)]
    assert reads.parts() == [*range(51, KEPT_PARTS + 51)]


@staged
async def test_a_stream_is_forgotten_in_the_end(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=3)
    await leader.next(wire.Done)
    await asyncio.sleep(node_parts.LEFT_S + 1)
    await reads.read(until=1000)
    await until(lambda: bool(reads.of(NoParts)))
    await reads.read(epoch=9, until=1000)
    await until(lambda: reads.of(NoParts) == [NoParts(7, 1), NoParts(7, 9)])


@staged
async def test_who_asks_for_what_is_not_there_yet_gets_a_sign_of_life(stage: Stage) -> None:
    _, reads = await begin(stage, "count", n=3, pause_s=10)
    await reads.read(until=10, again=True)
    await until(lambda: reads.of(NoParts) == [NoParts(7, 1, 0)])
    await until(lambda: reads.parts() == [1])
    await reads.read(until=10, after=1, taken=1, again=True)
    await until(lambda: reads.of(NoParts) == [NoParts(7, 1, 0), NoParts(7, 1, 1)])


@staged
async def test_a_stream_that_has_ended_is_kept_while_it_is_read(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=100)
    await reads.read(until=10)
    await leader.next(wire.Done)
    for _ in range(40):
        await reads.read(taken=5, after=10, until=10)
        await asyncio.sleep(1)
    await reads.read(taken=10, after=10, until=100)
    await until(lambda: bool(reads.of(PartsEnd)))
    assert reads.parts() == [*range(1, 101)]
    await reads.read(taken=100, after=100, until=164)
    await asyncio.sleep(node_parts.LEFT_S + 1)
    await reads.read(taken=100, after=100, until=164)
    await until(lambda: bool(reads.of(NoParts)))


@staged
async def test_what_has_ended_is_kept_within_bounds(stage: Stage) -> None:
    _, leader = await stage.started(streaming())
    node_parts.LEFT_MAX, before = 3, node_parts.LEFT_MAX
    try:
        for number in range(6):
            leader.assign("count", {"n": 1}, task=f"t{number}", submitter=ProcessId("c1"))
            await leader.next(wire.Done)
        assert len(stage.nodes[0].attempts.streams._left) == 3
    finally:
        node_parts.LEFT_MAX = before


@staged
async def test_nonsense_from_readers_harms_nobody(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=5, pause_s=0.1)
    for item in [(-5, -5, -5), (2**60, 2**60, 2**60), (0, -1, 2**60)]:
        await reads.read(taken=item[0], after=item[1], until=item[2], ref=item[2] % 97, again=True)
    for ref in range(100, 100 + node_parts.READERS_MAX):
        await reads.read(ref=ref, until=1)
    await until(lambda: bool(reads.of(NoParts)))
    assert await leader.done() == "5 made"


@staged
async def test_parts_and_results_are_checked(stage: Stage) -> None:
    _, leader = await stage.started(streaming())
    for number, (kind, code, said) in enumerate(
        [
            ("part", "invalid-output", "yielded what its annotation"),
            ("final", "invalid-output", "returned what its annotation"),
            ("none", "invalid-output", "without the Final"),
            ("error", "ValueError", "no more"),
        ]
    ):
        leader.assign("wrong", {"kind": kind}, task=f"t{number}", submitter=ProcessId("c1"))
        failure = (await leader.next(wire.Failed)).failure
        assert failure.code == code and said in failure.message
    leader.assign("text", {"n": 1, "size": PART_LIMIT}, task="t8", submitter=ProcessId("c1"))
    assert (await leader.next(wire.Failed)).failure.code == "too-large"
    leader.assign("listed", {"n": 3}, task="t9", submitter=ProcessId("c1"))
    assert await leader.done() == [0, 1, 2]


@staged
@pytest.mark.parametrize("is_read", [False, True])
async def test_an_attempt_that_fails_says_how_many_parts_it_had(stage: Stage, is_read: bool) -> None:
    leader, reads = await begin(stage, "wrong", kind="error")
    if is_read:
        await reads.read(until=100)
        await until(lambda: bool(reads.of(PartsEnd)))
    assert (await leader.next(wire.Failed)).failure.code == "ValueError"
    if not is_read:  # who comes late gets the same
        await reads.read(until=100)
        await until(lambda: bool(reads.of(PartsEnd)))
    assert reads.of(PartsEnd) == [PartsEnd(7, 1, 1)] and reads.parts() == [1]


@staged
async def test_parts_that_together_are_too_large_a_result_are_refused(stage: Stage) -> None:
    _, leader = await stage.started(streaming())
    node_parts.LIST_BYTES, before = 10, node_parts.LIST_BYTES
    try:
        leader.assign("listed", {"n": 30}, submitter=ProcessId("c1"))
        failure = (await leader.next(wire.Failed)).failure
        assert failure.code == "too-large" and "Final" in failure.message
    finally:
        node_parts.LIST_BYTES = before


@staged
async def test_a_canceled_stream_ends_and_its_generator_with_it(stage: Stage) -> None:
    leader, reads = await begin(stage, "count", n=1000, pause_s=0.1)
    await reads.read(until=1000)
    await until(lambda: len(reads.parts()) == 3)
    leader.say("n1", wire.Stop(TaskId("t1"), 1, "canceled", 1000))
    assert (await leader.next(wire.Failed)).canceled
    made = len(MADE)
    await until(lambda: reads.of(PartsEnd) == [PartsEnd(7, 1, made)])
    await asyncio.sleep(5)
    assert len(MADE) == made


@staged
async def test_a_live_call_gets_the_final_value(stage: Stage) -> None:
    await stage.started(streaming())
    caller = await Caller.join(stage)
    assert await caller.ask("n1/a", {"n": 3}, topic="count") == ("inform", "3 made")
    assert await caller.ask("n1/a", {"n": 3}, topic="listed") == ("inform", [0, 1, 2])


@staged
async def test_waiting_for_a_reader_is_not_being_stuck(stage: Stage) -> None:
    _, leader = await stage.started(streaming())
    caller = Reads(await Caller.join(stage))
    leader.assign("count", {"n": KEPT_PARTS * 2}, submitter=ProcessId("c1"), progress_timeout_s=2.0)
    await asyncio.sleep(0.5)
    for _ in range(10):
        await caller.read(until=10)
        await asyncio.sleep(1)
        leader.forget()
        await leader.next(wire.Progress)


def test_what_a_generator_promises_is_read_from_its_annotation() -> None:
    async def plain(a: int):  # type: ignore[no-untyped-def]
        yield a

    async def both(a: int) -> AsyncIterator[str | int | Final[list[str]]]:
        yield "x"

    async def only(a: int) -> AsyncIterator[Final[int]]:
        yield Final(1)

    async def bare(a: int) -> AsyncIterator[int | Final]:  # type: ignore[type-arg]
        yield 1

    assert Signature(plain).output_schema == {"x-parts": {}}
    found = Signature(both)
    assert (found.is_stream, found.has_final, found.output_schema["type"]) == (True, True, "array")
    assert found.output_schema["x-parts"] == {"type": ["integer", "string"]} or "anyOf" in str(found.output_schema)
    assert Signature(only).output_schema == {"type": "integer", "x-parts": {}}
    assert Signature(bare).output_schema == {"x-parts": {"type": "integer"}}
    agent = Agent("a")
    with pytest.raises(BadInput, match="only a capability"):
        agent.on("x")(plain)
