"""A log with several copies of which one is damaged: controllers wait for it to be rebuilt, and serve nothing of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from peers import LIMIT_S, World, until, virtually

from comity.controller import census, doubt
from comity.controller.controller import CONTROLLERS, Controller
from comity.controller.doubt import Doubt, doubted, question
from comity.errors import Corrupt
from comity.log.memory import MemoryLog, MemoryLogState
from comity.model import wire
from comity.model.server import Damage, ServerRecord
from comity.registry.memory import MemoryRegistry


class Copied(MemoryLog):
    """As seen where there are several copies."""

    lag_s = 0.01


@pytest.fixture
async def world(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(doubt, "LOOK_S", 0.01)
    made = World()
    yield made
    await asyncio.gather(*(controller.stop() for controller in made.running))


def flip(log: MemoryLogState, index: int) -> bytes:
    """Damage an entry; it as it was."""
    whole = log.entries[index - log.first]
    log.entries[index - log.first] = whole[:-1] + bytes([whole[-1] ^ 1])
    return whole


@virtually()
async def test_what_is_mended_in_time_is_read_again() -> None:
    asked: list[int] = []
    tries = iter([Corrupt("damaged", index=7), Corrupt("damaged", index=7), Corrupt("gone"), None])

    async def read() -> str:
        if (error := next(tries)) is not None:
            raise error
        return "read"

    assert await Doubt(asked.append, 3).patiently(read) == "read"
    assert asked == [7, 7, 7]


@virtually()
async def test_what_is_not_mended_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> None:
        raise Corrupt("damaged", index=7)

    asked: list[int] = []
    with pytest.raises(Corrupt):
        await Doubt(asked.append, 1).patiently(read)
    assert asked == [], "nobody has another copy"
    monkeypatch.setattr(doubt, "LOOK_S", 0.01)
    monkeypatch.setattr(doubt, "MENDS_S", 0.05)
    with pytest.raises(Corrupt):
        await Doubt(asked.append, 3).patiently(read)
    assert 1 < len(asked) < 10 and set(asked) == {7}


def test_a_question_names_the_entry() -> None:
    assert doubted(question(7).args) == 7
    assert doubted(b"{}") == doubted(b"[") == doubted(b'{"index": "x"}') == 0


async def test_a_controller_that_starts_waits_for_the_copy_it_reads_from(world: World) -> None:
    leader = await world.controller("k1", log=Copied(world.log))
    client = await world.peer("c1")
    task = await client.submit()
    asked: list[int] = []
    leader.doubted = asked.append
    whole = flip(world.log, 1)
    starting = asyncio.create_task(world.controller("k2", eager=False, log=Copied(world.log)))
    await until(lambda: bool(asked))
    assert not starting.done() and set(asked) == {1}
    world.log.entries[0] = whole
    standby = await starting
    assert task in standby.state.tasks and standby.failure is None


async def test_a_leader_whose_log_is_cut_short_waits_too(world: World) -> None:
    leader = await world.controller("k1", log=Copied(world.log))
    client = await world.peer("c1")
    first = await client.submit()
    lost = world.log.entries[-1:]
    asked: list[int] = []
    leader.doubted = asked.append
    del world.log.entries[-1:]
    await client.say(wire.SubmitTask(client.spec()))
    await until(lambda: bool(asked))
    assert leader.failure is None and world.log.entries[-1] != lost[0], "it appends nothing in the lost one's place"
    world.log.entries += lost
    await asyncio.wait_for(leader.led.wait(), LIMIT_S)
    second = await client.submit()
    assert {first, second} <= leader.state.tasks.keys()
    leader.doubt = Doubt(asked.append, 1)
    del world.log.entries[-1:]
    await client.say(wire.SubmitTask(client.spec()))
    await asyncio.wait_for(leader.failed.wait(), LIMIT_S)
    assert isinstance(leader.failure, Corrupt), "it does end with what is lost"


async def test_everybody_is_asked_to_look(world: World) -> None:
    leader = await world.controller("k1", log=Copied(world.log))
    asked: list[int] = []
    leader.doubted = asked.append
    client = await world.peer("c1")
    await client.bus.send(CONTROLLERS, wire.encode([question(3)]))
    await until(lambda: asked == [3])


@pytest.mark.parametrize("log", [Copied, MemoryLog])
async def test_damage_that_the_leader_comes_upon_is_looked_for_in_all_copies(log: type[MemoryLog]) -> None:
    world = World(inspect_pause_s=0.01, inspect_rate_mb=1000.0)
    leader = await world.controller("k1", log=log(world.log))
    asked: list[int] = []
    leader.doubted = asked.append
    flip(world.log, 1)
    await until(lambda: bool(leader.stats()["storage"]["damaged"]))
    await leader.stop()
    assert asked == ([1] if log is Copied else []), "where there are several"


async def test_a_payload_in_a_damaged_copy_is_waited_for(world: World) -> None:
    """Else the task would fail for a bit that another copy has right."""
    leader = await world.controller("k1", log=Copied(world.log))
    client, node = await world.peer("c1"), await world.peer("n1")
    task = await client.submit(input=b'"' + b"y" * 5_000 + b'"')
    asked: list[int] = []
    leader.doubted = asked.append
    index = leader.state.tasks[task].spec.input.index  # type: ignore[union-attr]
    whole = flip(world.log, index)
    leader.payloads._hot.clear()
    await node.join("a")
    await until(lambda: bool(asked))
    assert set(asked) == {index} and leader.state.tasks[task].attempt is not None
    world.log.entries[index - world.log.first] = whole
    assert len((await node.hear(wire.Run)).input) == 5_002  # type: ignore[arg-type]


async def told(controller: Controller) -> list[dict[str, Any]]:
    """Live events of a leader, as they come."""
    found: list[dict[str, Any]] = []
    assert controller.leading is not None
    keep = controller.leading.events.live

    def live(event: dict[str, Any]) -> None:
        found.append(event)
        keep(event)

    controller.leading.events.live = live  # type: ignore[method-assign]
    return found


async def test_the_leader_tells_of_a_damaged_copy_and_of_its_end(world: World) -> None:
    leader = await world.controller("k1")
    found = await told(leader)
    registry = MemoryRegistry(world.registry)

    async def report(damage: Damage | None) -> None:
        damages = (damage,) if damage is not None else ()
        record = ServerRecord("127.0.0.1:1", "nats://127.0.0.1:2", "0", damages)
        await registry.put("servers/s-1", msgspec.json.encode(record))

    damage = Damage("CY_main_LOG", 7, "1.blk byte 5: it fails its checksum")
    await report(None)
    await report(damage)
    await until(lambda: bool(leader.stats()["damaged_copies"]))
    (known,) = leader.position()["damaged_copies"]
    assert known == {"server": "s-1", "stream": "CY_main_LOG", "index": 7, "reason": damage.reason}
    await report(msgspec.structs.replace(damage, mended=True))
    await until(lambda: not leader.position()["damaged_copies"])
    mine = [event for event in found if event["type"].startswith("replica.")]
    assert [event["type"] for event in mine] == ["replica.damaged", "replica.rebuilt"]
    assert {(event["server"], event["place"], event["reason"]) for event in mine} == {("s-1", "log entry 7", damage.reason)}
    found.clear()
    await report(msgspec.structs.replace(damage, index=9, mended=True))
    await until(lambda: len(found) > 1)
    mine = [(event["type"], event["place"]) for event in found]
    assert mine == [("replica.damaged", "log entry 9"), ("replica.rebuilt", "log entry 9")], "it went by unseen"
    await registry.put("servers/s-1", b"{")
    await until(lambda: leader.census.malformed == 1)
    await registry.delete("servers/s-1")
    await until(lambda: not leader.census.damage)


async def test_a_new_leader_tells_of_copies_too(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what is damaged, however long ago, and of what changed while the old one may have been dead already."""
    controller = await world.controller("k1")
    registry = MemoryRegistry(world.registry)
    whole = Damage("CY_main_LOG", 7, "1.blk byte 5: it fails its checksum", mended=True)
    damaged = msgspec.structs.replace(whole, index=8, mended=False)
    for name, damage in (("s-1", whole), ("s-2", damaged)):
        record = ServerRecord("127.0.0.1:1", "nats://127.0.0.1:2", "0", (damage,))
        await registry.put(f"servers/{name}", msgspec.json.encode(record))
    await until(lambda: controller.census.damage == {("s-1", whole.stream): whole, ("s-2", whole.stream): damaged})
    told: list[tuple[str, Damage]] = []
    controller.census.damaged = lambda server, damage: told.append((server, damage))
    controller.census.tell_again()
    assert told == [("s-1", msgspec.structs.replace(whole, mended=False)), ("s-1", whole), ("s-2", damaged)]
    told.clear()
    monkeypatch.setattr(census, "TOLD_S", -1.0)
    controller.census.tell_again()
    assert told == [("s-2", damaged)]
