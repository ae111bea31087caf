"""Durable mail in simulated lives: nothing lost, nothing out of order, nothing twice in one life of a node; and the judge of that
is judged."""

from __future__ import annotations

import pytest
from planted_mail import PLANTED, PlantedMail

from comity.sim import World
from comity.sim.loop import SimulationError
from comity.sim.mail import live

LIVES = 40


@pytest.mark.timeout(60)
@pytest.mark.parametrize("seed", range(8))
def test_mail_arrives_in_order_whatever_happens(seed: int) -> None:
    """In every other life what a lost node had at work is given alone when it is back."""
    live(seed, settings={"poison_nodes": 2 * (seed % 2)})


@pytest.mark.timeout(120)
@pytest.mark.filterwarnings("ignore:coroutine 'Sender._one' was never awaited")  # a process died before it began
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_sender_may_die_as_a_large_mail_is_stored(when: str) -> None:
    for seed in range(10):
        worlds: list[World] = []

        def doom(world: World) -> None:
            world.faults.doomed = f"mail.put.{when}", 0
            worlds.append(world)  # noqa: B023

        live(seed, doom, faults={"crash": 1.0})
        if any(e.what == "crash" and e.detail.endswith(f" at mail.put.{when}") for e in worlds[0].trace.events):
            return
    pytest.fail("in ten lives no sender came to it")


@pytest.mark.timeout(60)
def test_a_full_mailbox_refuses_and_loses_nothing() -> None:
    live(3, settings={"max_mailbox": 2})


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_mail_arrives_in_order_in_many_lives() -> None:
    repeats = sum(live(seed)[0].repeats for seed in range(100, 200))
    assert repeats, "in no life was a mail given again: the lives are too kind to prove anything"


@pytest.mark.timeout(120)
@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_planted_bug_in_mail_is_found(planted: PlantedMail, monkeypatch: pytest.MonkeyPatch) -> None:
    planted.plant(monkeypatch)
    for seed in range(LIVES):
        try:
            live(seed, **dict(planted.world))
        except SimulationError as found:
            print(f"life {seed}: {found}")
            return
    pytest.fail(f"{LIVES} lives with this bug, and nobody noticed")
