"""Tasks one can trust, with everybody real but time: delays, schedules, stuck and poisonous attempts, dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextvars import Context
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest

from comity import Agent, Attempt, Client, Retry, errors
from comity.controller import keeping
from comity.controller.controller import Controller
from comity.model.ids import TaskId
from comity.model.task import Ending
from comity.sim import World
from comity.sim.hosts import Host

Work = Callable[[World, Client], Awaitable[None]]
RESTART_S = 1.0


def live(
    work: Work, agents: Callable[[], list[Agent]] | None = None, *, chunk: tuple[int, int] = (600_000, 2000), **options: Any
) -> World:
    """A life without faults, but for those that ``work`` makes. ``chunk``: when finished tasks go to the archive, by age in
    milliseconds and by number."""
    settings = {"retries": 3, "start_timeout_s": 10.0, "attempt_timeout_s": 100.0, "keep_finished": 1_000_000}
    settings |= {"max_waiting": 1000, **options.pop("settings", {})}
    options = {"controllers": 1, "nodes": 2, "clients": 1, "torture_s": 0.0, "faults": {}} | options
    world = World(1, agents=agents or crew, settings=settings, **options)
    world.limits[keeping] = dict(zip(("CHUNK_AGE_MS", "CHUNK_TASKS"), chunk, strict=True))

    async def run(client: Client) -> None:
        await work(world, client)

    world.run(run)
    return world


def crew() -> list[Agent]:
    agent = Agent("worker")

    @agent.capability
    async def echo(value: Any) -> Any:
        return value

    @agent.capability(progress_timeout_s=2.0)
    async def silent(attempt: Attempt, silences: int) -> int:
        """The first attempts say something, and then nothing more."""
        for _ in range(4):
            await asyncio.sleep(1.0)
            attempt.progress(0.5)
        if attempt.number <= silences:
            await asyncio.sleep(1000)
        return attempt.number

    @agent.capability(progress_timeout_s=2.0)
    async def parent(attempt: Attempt) -> Any:
        child = await attempt.submit("slow", {"seconds": 10})
        return await child.result()

    @agent.capability
    async def slow(seconds: float) -> float:
        await asyncio.sleep(seconds)
        return seconds

    @agent.capability(retry=Retry(retries=1, first_s=0.1, no_retry=("LookupError",)))
    async def picky(value: int) -> int:
        if value < 0:
            raise KeyError(value)
        if value == 0:
            raise ValueError("zero")
        return value

    return [agent]


def kill(host: Host) -> None:
    """From outside of any process of the world."""
    asyncio.get_running_loop().call_later(0.01, lambda: host.kill(noticed=True), context=Context())


def revive(host: Host, after_s: float) -> None:
    asyncio.get_running_loop().call_later(after_s, host.revive, context=Context())


async def restart(host: Host) -> None:
    kill(host)
    revive(host, RESTART_S)
    await asyncio.sleep(2 * RESTART_S)


async def met(client: Client) -> None:
    """It knows the leader's time, and what there is to be done by whom."""
    await client.ready()
    await client.discover()
    await until(lambda: all(client.directory.capability(name) is not None for name in ("picky", "silent", "parent")))


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(100):
        while not true():  # noqa: ASYNC110 - the world's time is virtual
            await asyncio.sleep(0.1)


def leader(world: World) -> Host:
    return next(host for host in world.controllers if isinstance(host.running, Controller) and host.running.leading)


# Stuck


def test_a_stuck_attempt_is_moved_within_a_second() -> None:
    async def work(_: World, client: Client) -> None:
        await met(client)
        task = await client.submit("silent", {"silences": 2})
        assert await task.result() == 3

    world = live(work)
    (task,) = world.auditor.state.tasks.values()
    assert [past.ending for past in task.past] == [Ending.STUCK, Ending.STUCK, Ending.COMPLETED]
    for stuck, after in pairwise(task.past):
        last_shown = stuck.started_at + 4000
        assert 2000 <= after.assigned_at - last_shown < 3000
    assert world.auditor.state.totals.stuck == 2


def test_one_that_stays_stuck_is_a_dead_letter() -> None:
    async def work(_: World, client: Client) -> None:
        task = await client.submit("silent", {"silences": 9}, retries=1, progress_timeout_s=1.5)
        with pytest.raises(errors.Stuck):
            await task.result()
        (letter,) = await client.dead.list(code="stuck")
        assert (letter["id"], letter["attempts"]) == (task.id, 2)

    live(work)


def test_who_waits_for_a_child_is_not_stuck() -> None:
    async def work(_: World, client: Client) -> None:
        await met(client)
        assert await (await client.submit("parent")).result() == 10

    assert live(work).auditor.state.totals.stuck == 0


# Retries


def test_a_capability_says_how_it_is_tried_again() -> None:
    async def work(_: World, client: Client) -> None:
        await met(client)
        for value, attempts in ((-1, 1), (0, 2)):
            task = await client.submit("picky", {"value": value})
            with pytest.raises(errors.TaskFailed):
                await task.result()
            status = await task.status()
            assert len(status["attempts"]) == attempts, status
            assert status["retry"] == {"first_s": 0.1, "no_retry": ["LookupError"]}
        task = await client.submit("picky", {"value": 0}, retry=Retry(retries=5, no_retry=("ValueError",)))
        with pytest.raises(errors.TaskFailed):
            await task.result()
        assert (await task.status())["retries_used"] == 0

    live(work)


# Delays


def test_a_delay_and_its_deadline_survive_restarts() -> None:
    async def work(world: World, client: Client) -> None:
        await client.ready()
        loop = asyncio.get_running_loop()
        began = loop.time()
        later = await client.submit("echo", {"value": 1}, in_s=8.0, deadline_s=2.0)
        at = datetime.fromtimestamp(client.leader_ms() / 1000 + 8.0, UTC)
        moment = await client.submit("echo", {"value": 2}, at=at)
        never = await client.submit("nobody", in_s=5.0, deadline_s=2.0)
        status = await later.status()
        assert (status["state"], status["reason"][:12]) == ("submitted", "it may start")
        await restart(leader(world))
        assert await asyncio.gather(later.result(), moment.result()) == [1, 2]
        assert 8.0 <= loop.time() - began < 9.0
        with pytest.raises(errors.DeadlineExceeded):
            await never.result()
        (dead,) = [task for task in world.auditor.state.tasks.values() if task.spec.id == never.id]
        assert 7000 <= dead.finished_at - dead.created_at < 8000

    live(work)


def test_a_delayed_task_can_be_canceled() -> None:
    async def work(_: World, client: Client) -> None:
        task = await client.submit("echo", {"value": 1}, in_s=3600)
        assert (await task.cancel())["state"] == "canceled"

    live(work)


# Schedules


def fired(world: World) -> list[int]:
    """When tasks of the schedule were due, in seconds."""
    keys = [task.spec.key for task in world.auditor.state.tasks.values() if task.spec.key.startswith("tick/")]
    times = [int(datetime.fromisoformat(key.removeprefix("tick/")).timestamp()) for key in keys]
    assert len(set(times)) == len(times)
    return times


async def ticks(world: World, count: int) -> None:
    await until(lambda: len(fired(world)) >= count)


def test_a_schedule_fires_each_time_once_whoever_leads() -> None:
    async def work(world: World, client: Client) -> None:
        await client.schedules.add("tick", "*/2 * * * * *", "echo", {"value": 7}, deadline_s=30)
        await ticks(world, 3)
        await restart(leader(world))
        await ticks(world, 8)
        (schedule,) = await client.schedules.list()
        assert (schedule["fired"] >= 8, schedule["capability"], schedule["input"]) == (True, "echo", {"value": 7})
        assert (await client.schedules.get("tick"))["deadline_s"] == 30
        await client.schedules.remove("tick")
        count = len(fired(world))
        await asyncio.sleep(5)
        assert len(fired(world)) == count
        with pytest.raises(errors.NotFound):
            await client.schedules.remove("tick")

    times = fired(live(work, controllers=2))
    assert all(time % 2 == 0 for time in times)
    assert [after - time for time, after in pairwise(times)].count(2) >= len(times) - 2


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"cron": "* * *"}, errors.BadInput),
        ({"zone": "Mars/Base"}, errors.BadInput),
        ({"name": "a/b"}, errors.BadInput),
        ({"input": {"value": "x" * 2000}}, errors.TooLarge),
        ({"in_s": 5}, errors.BadInput),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(options: dict[str, Any], error: type[Exception]) -> None:
    async def work(_: World, client: Client) -> None:
        with pytest.raises(error):
            await client.schedules.add(**{"name": "tick", "cron": "* * * * *", "capability": "echo", **options})
        assert await client.schedules.list() == []

    live(work)


# Poison


def test_a_task_that_takes_nodes_down_is_quarantined() -> None:
    worlds: list[World] = []

    def poisonous() -> list[Agent]:
        agent = Agent("worker")

        @agent.capability
        async def poison(attempt: Attempt) -> None:
            await asyncio.sleep(0.1)
            (host,) = [host for host in worlds[0].nodes if attempt.agent.startswith(f"{host.name}/")]
            kill(host)
            revive(host, 5.0)
            await asyncio.sleep(100)

        return [agent]

    async def work(world: World, client: Client) -> None:
        worlds.append(world)
        task = await client.submit("poison", retries=50)
        with pytest.raises(errors.Poisoned, match=r"n\d, n\d, n\d"):
            await task.result()
        status = await task.status()
        assert len({attempt["node"] for attempt in status["attempts"]}) == 3
        (letter,) = await client.dead.list(code="poison")
        assert letter["id"] == task.id
        await asyncio.sleep(10)  # until all are back

    live(work, poisonous, nodes=5)


# Dead letters


async def failed(client: Client, *values: int, **options: Any) -> list[TaskId]:
    tasks = [await client.submit("picky", {"value": value}, **options) for value in values]
    for task in tasks:
        with pytest.raises(errors.TaskFailed):
            await task.result()
    return [task.id for task in tasks]


def test_dead_letters_are_listed_edited_replayed_and_dropped() -> None:
    async def work(_: World, client: Client) -> None:
        await met(client)
        since = datetime.fromtimestamp(client.leader_ms() / 1000, UTC)
        first, second, third = await failed(client, 0, -1, -2, deadline_s=100)
        assert [letter["id"] for letter in await client.dead.list()] == [third, second, first]
        assert [letter["id"] for letter in await client.dead.list(limit=1, before=third)] == [second]
        assert [letter["id"] for letter in await client.dead.list(code="KeyError", capability="picky")] == [third, second]
        assert await client.dead.list(since=since + timedelta(hours=1)) == []
        with pytest.raises(errors.InvalidInput):
            await client.dead.replay(first, input={"value": "five"})
        made = await client.dead.replay(first, input={"value": 5})
        again = client.task(made[first])
        assert await again.result() == 5
        status = await again.status()
        assert (status["replays"], status["input"]) == (first, {"value": 5})
        assert status["deadline"] is not None
        with pytest.raises(errors.NotFound):
            await client.dead.replay(first)
        made = await client.dead.replay(all=True, code="KeyError", since=since)
        assert set(made) == {second, third}
        for task in made.values():
            with pytest.raises(errors.TaskFailed):
                await client.task(task).result()
        assert set(await client.dead.drop(all=True)) == set(made.values())
        assert await client.dead.list() == []
        with pytest.raises(errors.BadInput):
            await client.dead.drop()

    live(work)


def test_dead_letters_outlive_the_archive_and_restarts() -> None:
    async def work(world: World, client: Client) -> None:
        await met(client)
        dead = await failed(client, 0, -1)
        ids = [await client.submit("echo", {"value": value}) for value in range(20)]
        await asyncio.gather(*[task.result() for task in ids])
        await asyncio.sleep(15)
        await restart(leader(world))
        assert dead[0] not in world.auditor.state.tasks
        status = await client.task(dead[0]).status()
        assert (status["input"], status["error"]["code"]) == ({"value": 0}, "ValueError")
        with pytest.raises(errors.UnknownTask):
            await ids[0].status()
        made = await client.dead.replay(dead[0], input={"value": 3})
        assert await client.task(made[dead[0]]).result() == 3
        assert len([key for key in world.servers.store.values if key.startswith(keeping.DEAD)]) == 1
        await client.dead.drop(dead[1])
        await asyncio.sleep(2)
        assert not [key for key in world.servers.store.values if key.startswith(keeping.DEAD)]

    settings = {"keep_finished": 1, "dedup_window_s": 10.0, "snapshot_every": 10}
    live(work, settings=settings, chunk=(500, 5))


def test_the_oldest_dead_letters_go_first() -> None:
    async def work(world: World, client: Client) -> None:
        await met(client)
        dead = await failed(client, -1, -2, -3, -4)
        await until(lambda: len(world.auditor.state.dead.letters) == 2)
        assert {letter["id"] for letter in await client.dead.list()} == {*world.auditor.state.dead.letters}
        assert {*world.auditor.state.dead.letters} < {*dead}

    live(work, settings={"keep_dead": 2})
