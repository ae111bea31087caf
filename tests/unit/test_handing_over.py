"""A leader that stops on purpose says so, and others need not wait for silence; standbys say where they are."""

from __future__ import annotations

import asyncio
from itertools import count
from math import inf
from typing import Any

import msgspec
import pytest
from peers import LIMIT_S, Peer, World, a_while, until, virtually
from structlog.testing import capture_logs

from comity.controller import controller as controllers
from comity.controller import recalling
from comity.controller.controller import CONTROLLERS, STILL_S
from comity.errors import Disconnected, Unreachable
from comity.log.memory import MemoryLog, MemoryLogState
from comity.model import wire
from comity.model.codec import to_json
from comity.model.ids import ProcessId


@virtually()
async def test_a_standby_leads_as_soon_as_the_leader_has_stopped(world: World) -> None:
    first = await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    third = await world.controller("k3", eager=False)
    for waits in (standby, third):
        await asyncio.wait_for(waits.heard.wait(), LIMIT_S)
    peer = await world.peer("c1")
    task = await peer.submit()
    loop = asyncio.get_running_loop()
    began = loop.time()
    await first.stop()
    led = [asyncio.create_task(waits.led.wait()) for waits in (standby, third)]
    done, pending = await asyncio.wait(led, timeout=LIMIT_S, return_when=asyncio.FIRST_COMPLETED)
    assert loop.time() - began < STILL_S / 2
    assert len(done) == 1
    for waits in pending:
        waits.cancel()
    assert await peer.state(task) == "submitted"
    leader = standby if led[0] in done else third
    assert (leader.state.term, leader.state.leader) == (2, leader.bus.process)


@pytest.mark.parametrize("late", [False, True])
@virtually()
async def test_entry_time_goes_on_while_nobody_writes(world: World, late: bool) -> None:
    """Else a new leader's would be late by as long as the network was idle, and run at twice its pace until it has caught up."""
    first = await world.controller("k1")
    peer = await world.peer("c1")
    await peer.submit()
    if late:
        await a_while(1.0)
    standby = await world.controller("k2", eager=False)
    await asyncio.wait_for(standby.heard.wait(), LIMIT_S)
    if not late:
        await a_while(1.0)
    await first.stop()
    await asyncio.wait_for(standby.led.wait(), LIMIT_S)
    assert standby.leading is not None
    assert abs(standby.leading.clock.now_ms() - world.now() * 1000) < 400


class Away(MemoryLog):
    """Out of reach at first, or for longer."""

    def __init__(self, state: MemoryLogState, left: int = 5) -> None:
        super().__init__(state)
        self.left = left

    async def append(self, entry: bytes, after: int) -> int:
        if self.left:
            self.left -= 1
            raise Unreachable("nobody serves it")
        return await super().append(entry, after)


@virtually()
async def test_that_the_log_is_out_of_reach_is_said_once(world: World) -> None:
    """It is tried again many times a second, for as long as a majority of the servers is away."""
    with capture_logs() as said:
        await world.controller("k1", log=Away(world.log))
    assert [line["code"] for line in said if line["event"].startswith("cannot reach the log")] == ["unreachable"]


@virtually()
async def test_it_is_said_again_after_a_while(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controllers, "SAID_S", 0.1)
    with capture_logs() as said:
        await world.controller("k1", log=Away(world.log))
    assert len([line for line in said if line["event"].startswith("cannot reach the log")]) > 1


@virtually()
async def test_a_controller_whose_bus_was_closed_for_good_ends(world: World) -> None:
    standby = world.make("k1", MemoryLog(world.log), 0.0, eager=False)
    await standby.start()
    await standby.bus.close()
    await asyncio.wait_for(standby.failed.wait(), LIMIT_S)
    assert isinstance(standby.failure, Disconnected)
    await standby.stop()


@virtually()
async def test_a_leader_that_stops_while_the_log_is_away_says_so_too(world: World) -> None:
    """A server that stops hands the log over first, and at that moment nothing can be appended."""
    log = Away(world.log, 0)
    first = await world.controller("k1", log=log)
    standby = await world.controller("k2", eager=False)
    await asyncio.wait_for(standby.heard.wait(), LIMIT_S)
    log.left = 1_000_000
    client = await world.peer("c1")
    await client.say(wire.SubmitTask(client.spec()))
    await until(lambda: first.leading is None)
    began = asyncio.get_running_loop().time()
    await first.stop()
    await asyncio.wait_for(standby.led.wait(), LIMIT_S)
    assert asyncio.get_running_loop().time() - began < STILL_S / 2


@virtually()
async def test_only_the_leader_can_say_that_it_leaves(world: World) -> None:
    await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    await asyncio.wait_for(standby.heard.wait(), LIMIT_S)
    liar = await world.peer("c1")
    for ends in ("term", "network"):
        await liar.bus.send(CONTROLLERS, wire.encode([wire.Leading(1, ProcessId("k1"), 0, ends)]))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(standby.led.wait(), STILL_S / 2)
    assert not standby.shut_down.is_set()


@virtually()
async def test_a_network_that_was_shut_down_is_so_for_standbys_too(world: World) -> None:
    first = await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    await asyncio.wait_for(standby.heard.wait(), LIMIT_S)
    peer = await world.peer("c1")
    assert await peer.ask("shutdown", timeout_s=0.1) == {"running": 0, "waiting": 0}
    await first.stop()
    await asyncio.wait_for(standby.shut_down.wait(), LIMIT_S)
    assert not standby.led.is_set()


@virtually()
async def test_each_controller_says_where_it_is(world: World) -> None:
    await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    await asyncio.wait_for(standby.heard.wait(), LIMIT_S)
    peer = await world.peer("c1")
    await peer.bus.send(CONTROLLERS, wire.encode([wire.Ask(7, "position")]))
    said = [msgspec.json.decode((await peer.hear(wire.Answer, lambda a: a.ref == 7)).body) for _ in range(2)]
    assert {row["process"]: row["role"] for row in said} == {"k1": "leader", "k2": "standby"}
    assert {(row["leader"], row["term"], row["log_head"]) for row in said} == {("k1", 1, 1)}


@virtually()
async def test_a_clock_that_was_set_while_another_led_does_not_jump(world: World) -> None:
    """An operator who starts a standby confirms nothing: only one who starts a network does."""
    first = await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    standby._jump_s = inf
    await asyncio.wait_for(standby.heard.wait(), LIMIT_S)
    world.wall += 1_000_000.0
    await first.stop()
    await asyncio.wait_for(standby.led.wait(), LIMIT_S)
    assert standby.state.time_ms < (world.now() - 500_000) * 1000


# What is still known while nobody can write

_refs = count(1000)


async def recalled(peer: Peer, **args: Any) -> Any:
    ref = next(_refs)
    await peer.bus.send(CONTROLLERS, wire.encode([wire.Ask(ref, "recall", to_json(args))]))
    answer = await peer.hear(wire.Answer, lambda a: a.ref == ref)
    return answer.code or msgspec.json.decode(answer.body)


@virtually()
async def test_who_does_not_lead_tells_what_it_knew_and_how_old_that_is(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first = await world.controller("k1")
    standby = await world.controller("k2", eager=False, log=Away(world.log, 1_000_000))
    peer = await world.peer("c1")
    small, large = await peer.submit(), await peer.submit("later", input=b'"' + b"y" * 5_000 + b'"')
    await until(lambda: standby.ledger.index == first.ledger.index)
    known = await recalled(peer, what="tasks")
    assert [task["id"] for task in known["known"]] == [large, small] and known["log_head"] == first.ledger.index
    assert 0.0 <= known["age_s"] < 1.0
    world.network.disconnect(first.bus.process)
    await first.stop()
    await a_while(0.3)
    found = await recalled(peer, what="task", id=small)
    assert (found["known"]["id"], found["known"]["state"]) == (small, "submitted")
    assert found["age_s"] >= 0.3 and found["as_of"] == known["as_of"]
    assert [task["id"] for task in (await recalled(peer, what="tasks", capability="later", limit=1))["known"]] == [large]
    assert (await recalled(peer, what="tasks", state="working"))["known"] == []
    assert (await recalled(peer, what="stats"))["known"]["tasks"]["submitted"] == 2
    for odd in ({"what": "task", "id": "t"}, {"what": "secrets"}, {"what": 7}):
        assert (await recalled(peer, **odd))["known"] is None
    monkeypatch.setattr(recalling, "ANSWER_MAX", 1000)
    assert len((await recalled(peer, what="tasks"))["known"]) == 1, "as many as fit"
    monkeypatch.setattr(recalling, "ANSWER_MAX", 400)
    assert await recalled(peer, what="tasks") == "too-large"


@virtually()
async def test_a_leader_that_can_write_no_more_tells_how_old_what_it_knows_is(world: World) -> None:
    controller = await world.controller("k1")
    peer = await world.peer("c1")
    task = await peer.submit()
    assert (await recalled(peer, what="task", id=task))["age_s"] < 1.0
    await a_while(0.3)
    found = await recalled(peer, what="task", id=task)
    assert controller.leading is not None and found["known"]["id"] == task
    assert found["age_s"] >= 0.3, "as old as what the log took last"


@virtually()
async def test_while_the_bus_is_away_nobody_campaigns(world: World) -> None:
    """The log may lie elsewhere, and be there: each would write one term after the other, and could not listen as leader."""
    first = await world.controller("k1")
    standby = await world.controller("k2", eager=False)
    peer = await world.peer("c1")
    await peer.submit()
    await until(lambda: standby.ledger.index == first.ledger.index)
    for controller in (first, standby):
        world.network.disconnect(controller.bus.process)
    await a_while(2 * STILL_S)
    _, last = await first.log.bounds()
    assert [item for item in await first.log.read(last - 1) if b"k2" in item.data] == []
    assert (first.ledger.term, first.ledger.index) == (1, last)
    for controller in (first, standby):
        world.network.reconnect(controller.bus.process)
    await peer.submit()
    assert first.led.is_set() and not standby.led.is_set()
