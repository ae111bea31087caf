"""A large input outlives its time in the store as long as its task is not over."""

from __future__ import annotations

import msgspec
import pytest
from peers import Peer, World, a_while, until, virtually

from comity import failpoints
from comity.controller import keeping, renewing
from comity.controller.renewing import KEPT
from comity.model import wire
from comity.model.ids import TaskId
from comity.model.payload import Stored
from comity.store.memory import MemoryStore

KEEP_S = 0.2
BIG = b'"' + b"x" * 300_000 + b'"'


short = virtually(keep_finished_s=KEEP_S, keep_dead_s=KEEP_S, dedup_window_s=KEEP_S / 2, submit_timeout_s=KEEP_S / 4)


async def submitted(world: World, client: Peer, ttl_s: float = 2 * KEEP_S) -> tuple[TaskId, Stored]:
    """A task whose input lies in the store, for as long as a client would keep it there."""
    spec = client.spec()
    stored = await MemoryStore(world.store, "c1").put(f"c1/inputs/{spec.id}", BIG, ttl_s=ttl_s)
    await client.say(wire.SubmitTask(msgspec.structs.replace(spec, input=stored)))
    await client.hear(wire.Accepted)
    return spec.id, stored


def kept(world: World) -> list[str]:
    return [key for key in world.store.values if key.startswith(KEPT)]


@short
async def test_the_input_of_a_task_that_waits_long_does_not_expire(world: World) -> None:
    """Nor when another controller leads."""
    first = await world.controller()
    client, node = await world.peer("c1"), await world.peer("n1")
    task, theirs = await submitted(world, client)
    await a_while(4 * KEEP_S)
    await first.stop()
    await world.controller("k2")
    await a_while(3 * KEEP_S)
    assert world.store.find(theirs.key) is None
    await node.join("a")
    run = await node.hear(wire.Run)
    assert run.task == task and isinstance(run.input, Stored)
    assert (run.input.size, run.input.digest) == (theirs.size, theirs.digest)
    assert await MemoryStore(world.store).read(run.input.key) == BIG
    await node.say(wire.Done(run.task, run.epoch, b"1", 1))
    await until(lambda: all(world.store.find(key) is None for key in kept(world)))


@short
async def test_what_is_not_there_is_let_go_and_what_is_damaged_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renewing, "AGAIN_MS", 10)
    controller = await world.controller()
    client = await world.peer("c1")
    gone, theirs = await submitted(world, client)
    del world.store.values[theirs.key]
    task, damaged = await submitted(world, client)
    whole = world.store.values[damaged.key]
    world.store.values[damaged.key] = msgspec.structs.replace(whole, data=BIG[:-1], expires=0.0)
    await a_while(2 * KEEP_S)
    assert not kept(world)
    world.store.values[damaged.key] = whole = msgspec.structs.replace(whole, expires=0.0)
    await until(lambda: bool(kept(world)))
    await until(lambda: controller.state.tasks[task].spec.input != damaged)
    assert controller.state.tasks[gone].spec.input == theirs


@pytest.mark.parametrize("when", ["before", "after"])
@short
async def test_a_write_that_fails_is_done_again(world: World, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    monkeypatch.setattr(keeping, "RETRY_S", 0.0)
    controller = await world.controller()
    client = await world.peer("c1")
    with failpoints.watched(failpoints.parse(f"input.renew.{when}=error(2)")):
        task, theirs = await submitted(world, client, ttl_s=10.0)
        await until(lambda: controller.state.tasks[task].spec.input != theirs)
    renewed = controller.state.tasks[task].spec.input
    assert isinstance(renewed, Stored) and await MemoryStore(world.store).read(renewed.key) == BIG
