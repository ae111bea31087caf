"""Whole lives, as many as there is time for. A seed that ever failed stays in ``seeds.txt``."""

from __future__ import annotations

import asyncio
import gc
import os
from pathlib import Path
from typing import Any

import pytest

from comity.agent import Agent
from comity.client.client import Client
from comity.sim import Violation, World
from comity.sim.__main__ import main
from comity.sim.loop import SimulationError

SEEDS = int(os.environ.get("COMITY_SIM_SEEDS") or ("300" if os.environ.get("CI") else "30"))
TOGETHER = 10
"""Lives of one test."""


def remembered() -> list[int]:
    """The seeds of ``seeds.txt``: one a line, and what it once found."""
    lines = (Path(__file__).parent / "seeds.txt").read_text().splitlines()
    return [int(line.split()[0]) for line in lines if line.strip() and not line.startswith("#")]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("seed", remembered())
def test_what_once_failed_holds(seed: int) -> None:
    World(seed).run()


@pytest.mark.no_cover  # it would take most of the time; shorter worlds cover the same
@pytest.mark.timeout(300)
@pytest.mark.parametrize("first", range(0, SEEDS, TOGETHER))
def test_every_promise_is_kept(first: int) -> None:
    for seed in range(first, min(first + TOGETHER, SEEDS)):
        World(seed).run()
        gc.collect()


def echoing() -> list[Agent]:
    agent = Agent("echo")

    @agent.capability
    async def echo(value: int) -> int:
        return value

    @agent.capability
    def plain(value: int) -> int:
        return -value

    return [agent]


class TestUsersOwnAgents:
    """What the documentation promises of ``World``."""

    def test_they_run_in_virtual_time(self) -> None:
        seen: list[int] = []

        async def work(net: Client) -> None:
            task = await net.submit("echo", {"value": 7})
            seen.append(await task.result())

        report = World(1, agents=echoing, clients=1, torture_s=0.0, faults={}).run(work)
        assert seen == [7]
        assert report.ends == {"completed": 1}
        assert report.faults == {}

    def test_plain_functions_run_without_threads(self) -> None:
        async def work(net: Client) -> None:
            assert await (await net.submit("plain", {"value": 7})).result() == -7

        World(2, agents=echoing, clients=1, faults={"crash": 1.0}, torture_s=3.0).run(work)

    def test_what_their_work_finds_wrong_ends_the_life(self) -> None:
        async def work(net: Client) -> None:
            assert await (await net.submit("echo", {"value": 7})).result() == 8

        with pytest.raises(SimulationError, match="u1 failed: AssertionError") as caught:
            World(3, agents=echoing, clients=1, torture_s=0.0, faults={}).run(work)
        assert any("python -m comity.sim 3" in note for note in caught.value.__notes__)

    def test_work_that_never_ends_is_a_violation(self) -> None:
        async def work(net: Client) -> None:
            await (await net.submit("nobody-offers-this", {})).result()

        with pytest.raises(Violation, match="1 open tasks") as caught:
            World(4, agents=echoing, clients=1, torture_s=0.0, faults={}).run(work)
        assert "everything to end" in str(caught.value)


def test_a_client_that_was_idle_for_long_still_knows_leader_time() -> None:
    """Entry time goes at half the client's pace here: after some minutes its ids would lie in the leader's future."""

    async def work(net: Client) -> None:
        for _ in range(3):
            assert await (await net.submit("echo", {"value": 7})).result() == 7
            await asyncio.sleep(300)

    world = World(5, controllers=1, nodes=1, clients=1, agents=echoing, torture_s=1.0, faults={})
    world.loop.call_later(10.0, world.controllers[0].clock.set, -86_400.0)
    world.settle_s = 1000.0
    assert world.run(work).ends == {"completed": 3}


class TestCommandLine:
    def test_one_life_is_told(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["1"]) == 0
        told = capsys.readouterr().out
        assert "seed 1:" in told
        assert "every promise kept" in told

    def test_a_trace_shows_messages_and_faults(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["5", "--trace"]) == 0
        told = capsys.readouterr().out
        assert "SubmitTask(" in told
        assert "fault:" in told

    def test_a_violation_exits_with_1_and_says_how_to_see_it_again(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: World) -> None:
            raise Violation("planted")

        monkeypatch.setattr(World, "_judge", broken)
        assert main(["1", "--seeds", "3"]) == 1
        told = capsys.readouterr().out
        assert "live it again with: python -m comity.sim 1" in told
        assert "1 lives" not in told

    def test_many_lives_are_counted(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["1", "--seeds", "2"]) == 0
        assert "2 lives in" in capsys.readouterr().out


def test_the_documentations_example_is_true() -> None:
    page = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0]
    assert "range(100)" in example
    names: dict[str, Any] = {"__name__": "example"}
    exec(example.replace("range(100)", "range(10)"), names)
    names["test_my_agents_survive"]()
