"""A leader that is heard and hears nothing: it must not stand in the way of a standby that hears all."""

from __future__ import annotations

import asyncio

import pytest
from test_trust import leader, live, met

from comity import Client
from comity.sim import World
from comity.sim.hosts import Host

CUT_S = 40.0
SOON_S = 6.0
"""Three seconds until the leader notices, one and a half until a standby is sure, and a client that asks again."""


def deafen(world: World, host: Host) -> None:
    """Nothing gets to ``host`` for ``CUT_S``, from processes or servers; what it says is heard."""
    others = [other.name for other in world.hosts if other is not host]
    pairs = [(source, host.name) for source in (*others, "bus", "log", "registry", "store")]
    for source, target in pairs:
        world.links.cut(source, target)
        asyncio.get_running_loop().call_later(CUT_S, world.links.mend, source, target)


@pytest.mark.parametrize("idle_s", [0.0, 20.0])
def test_a_leader_that_hears_nothing_gives_way(idle_s: float) -> None:
    """Also if there is nothing to do, and so no append that could fail."""
    took_s: list[float] = []

    async def work(world: World, client: Client) -> None:
        await met(client)
        assert await (await client.submit("echo", {"value": 1})).result() == 1
        deaf, loop = leader(world), asyncio.get_running_loop()
        deafen(world, deaf)
        await asyncio.sleep(idle_s)
        began = loop.time()
        assert await (await client.submit("echo", {"value": 2}, patience_s=CUT_S)).result() == 2
        took_s.append(loop.time() - began)
        assert leader(world) is not deaf
        await asyncio.sleep(CUT_S)
        assert leader(world) is not deaf, "it heard who leads, and stands by"

    patient = {"lease_s": 30.0, "orphan_s": 90.0, "submit_timeout_s": CUT_S, "request_timeout_s": CUT_S}
    world = live(work, controllers=2, settings=patient)
    assert took_s[0] < SOON_S
    assert len(world.auditor.leaders) == 2


def test_a_leader_whose_log_answers_late_goes_on() -> None:
    async def work(world: World, client: Client) -> None:
        await met(client)
        first = leader(world)
        for pause_s in (1.0, 2.0, 2.5):
            world.links.cut("log", first.name)
            await asyncio.sleep(pause_s)
            world.links.mend("log", first.name)
            await asyncio.sleep(5.0)
        first.process.pause()
        asyncio.get_running_loop().call_later(0.9, first.process.wake)
        await asyncio.sleep(5.0)
        assert leader(world) is first

    world = live(work, controllers=2, settings={"lease_s": 30.0, "orphan_s": 60.0})
    assert len(world.auditor.leaders) == 1
