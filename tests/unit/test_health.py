"""Agents that say how they are: asked by their node, out of work while they are unwell."""

from __future__ import annotations

import asyncio
import threading
from itertools import pairwise
from typing import Any

import pytest
from node_stage import Stage, staged_on, until, worker

from comity.agent import Agent
from comity.core.health import Health
from comity.errors import BadInput, Conflict
from comity.handles import Attempt
from comity.model import wire
from comity.model.capability import AgentStatus
from comity.sim.loop import VirtualLoop

staged = staged_on(VirtualLoop)
OFTEN: dict[str, Any] = {"health_s": 1.0}


def status(stage: Stage, agent: str = "n1/a") -> AgentStatus:
    return stage.agents()[agent].status


@pytest.mark.parametrize(
    ("failures", "successes", "probes", "verdicts"),
    [
        (3, 2, "++---", "wwwwi"),
        (3, 2, "--+--+---", "wwwwwwwwi"),
        (3, 2, "---+-++-", "wwiiiiww"),
        (1, 1, "-+-+", "iwiw"),
        (2, 3, "--++-+++", "wiiiiiiw"),
    ],
)
def test_the_verdict_changes_after_so_many_in_a_row(failures: int, successes: int, probes: str, verdicts: str) -> None:
    health, told = Health(failures, successes), ""
    for probe in probes:
        before = health.is_well
        assert health.saw("" if probe == "+" else "ill") is (health.is_well is not before)
        told += "w" if health.is_well else "i"
        assert not health.is_well or not health.why
    assert told == verdicts


def test_who_is_paused_stays_paused() -> None:
    health = Health(1, 1)
    assert health.saw("ill")
    assert health.status(AgentStatus.ACTIVE) is AgentStatus.UNHEALTHY
    for said in (AgentStatus.PAUSED, AgentStatus.DRAINING):
        assert health.status(said) is said
    assert health.saw("")
    assert health.status(AgentStatus.UNHEALTHY) is AgentStatus.ACTIVE
    assert health.status(AgentStatus.PAUSED) is AgentStatus.PAUSED


@staged
async def test_an_agent_that_is_ill_gets_no_work_until_it_is_well_for_a_while(stage: Stage) -> None:
    stage.settings = type(stage.settings)(**OFTEN)
    agent, asked, ill = worker("a"), [], [False]

    @agent.health
    async def how() -> None:
        asked.append(asyncio.get_running_loop().time())
        if ill[0]:
            raise ConnectionError("no database")

    _, leader = await stage.started(agent)
    await until(lambda: len(asked) == 2)
    assert status(stage) is AgentStatus.ACTIVE
    ill[0], since = True, len(asked)
    await until(lambda: status(stage) is AgentStatus.UNHEALTHY)
    assert len(asked) - since == 3
    leader.assign("work")
    assert "unhealthy" in (await leader.next(wire.Declined)).reason
    ill[0], since = False, len(asked)
    await until(lambda: status(stage) is AgentStatus.ACTIVE)
    assert len(asked) - since == 2
    gaps = [later - earlier for earlier, later in pairwise(asked)]
    assert all(0.99 < gap < 1.2 for gap in gaps), gaps


@staged
async def test_saying_no_and_saying_nothing_are_failures_too(stage: Stage) -> None:
    stage.settings = type(stage.settings)(**OFTEN, health_failures=2)
    says_no, silent, odd, well = worker("a"), worker("b"), worker("c"), worker("d")
    canceled = []

    @says_no.health
    async def no() -> bool:
        return False

    @silent.health
    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            canceled.append(1)

    @odd.health
    async def exits() -> None:
        raise SystemExit(3)

    @well.health
    async def fine() -> str:
        return "fine"

    node, _ = await stage.started(says_no, silent, odd, well)
    await until(lambda: all(status(stage, f"n1/{name}") is AgentStatus.UNHEALTHY for name in "abc"))
    assert len(canceled) >= 2
    assert status(stage, "n1/d") is AgentStatus.ACTIVE
    node.remove("b")
    count = len(canceled)
    await asyncio.sleep(5)
    assert len(canceled) <= count + 1, "who left is asked no more"
    await node.stop()


@staged_on(asyncio.SelectorEventLoop)
async def test_a_plain_function_that_hangs_is_asked_once(stage: Stage) -> None:
    stage.settings = type(stage.settings)(health_s=0.01, health_failures=2, health_successes=1)
    agent, asked, go_on = worker("a"), [], threading.Event()

    @agent.health
    def hangs() -> None:
        asked.append(1)
        go_on.wait(20)

    node, _ = await stage.started(agent)
    await until(lambda: status(stage) is AgentStatus.UNHEALTHY)
    assert len(asked) == 1
    go_on.set()
    await until(lambda: status(stage) is AgentStatus.ACTIVE)
    await until(lambda: len(asked) > 1)
    await node.stop()


@staged
async def test_an_operator_who_pauses_is_not_overruled(stage: Stage) -> None:
    stage.settings = type(stage.settings)(**OFTEN, health_failures=1)
    agent, ill = worker("a"), [True]
    asked: list[int] = []

    @agent.health
    async def how() -> bool:
        asked.append(1)
        return not ill[0]

    await stage.started(agent)
    await until(lambda: status(stage) is AgentStatus.UNHEALTHY)
    agent.update(status="paused")
    ill[0] = False
    count = len(asked)
    await until(lambda: len(asked) >= count + 4)
    assert agent.status is AgentStatus.PAUSED
    ill[0] = True
    agent.update(status="active")
    await until(lambda: status(stage) is AgentStatus.UNHEALTHY)


async def test_how_it_is_asked_is_checked() -> None:
    agent = Agent("a")
    with pytest.raises(BadInput, match="without parameters"):

        @agent.health
        def with_input(depth: int) -> None: ...

    with pytest.raises(BadInput, match="without parameters"):

        @agent.health
        def with_attempt(attempt: Attempt) -> None: ...

    @agent.health
    def fine() -> None: ...

    with pytest.raises(Conflict, match="fine"):
        agent.health(fine)
    assert agent.twin("b").checkup is agent.checkup
