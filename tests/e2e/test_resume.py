"""Resume, not restart: real nodes are killed between and within steps, and it is counted how often each step ran."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from town import LIMIT_S, Town, kill, story

from comity.errors import Conflict
from conftest import need_server

pytestmark = pytest.mark.server
STEPS = 5
CREW = '''
import asyncio, os
from comity import Agent, Attempt

steps = open(os.environ["RUNS"], "a", buffering=1)
agent = Agent("a", concurrency=16)

async def work(number: int, step: int, seconds: float, size: int) -> str:
    steps.write(f"begin {number} {step} a\\n")
    await asyncio.sleep(seconds)
    steps.write(f"end {number} {step} a\\n")
    return f"{number}/{step}".ljust(size, ".")

@agent.capability
async def pipeline(attempt: Attempt, number: int, seconds: float, size: int = 1, until: int = 5) -> list[str]:
    """The first attempt does not get to the end of step ``until``."""
    done = []
    for step in range(5):
        takes = 600 if attempt.number == 1 and step == until else seconds
        done.append((await attempt.step(f"step {step}", work, number, step, takes, size)).rstrip("."))
    return done

@agent.capability
async def publish(attempt: Attempt, number: int) -> str:
    draft = await attempt.step("draft", work, number, 0, 0.0, 1)
    await attempt.checkpoint({"draft": draft})
    verdict = await attempt.wait_for("approval", ask={"draft": draft})
    assert attempt.resume_state == {"draft": draft}
    return f"{draft}: {verdict}"
'''


@pytest.fixture
async def town(tmp_path: Path) -> AsyncIterator[Town]:
    need_server()
    async with Town(tmp_path) as town:
        (tmp_path / "crew.py").write_text(CREW)
        yield town


def counts(town: Town, word: str = "begin") -> Counter[tuple[int, int]]:
    """How often each step of each task ran, by numbers."""
    found: Counter[tuple[int, int]] = Counter()
    for line in (town.folder / "runs.txt").read_text().splitlines():
        said, number, step, _ = line.split()
        if said == word:
            found[int(number), int(step)] += 1
    return found


async def reaches(town: Town, number: int, step: int, word: str = "begin") -> None:
    """Wait until a step has begun, or ended."""
    async with asyncio.timeout(LIMIT_S):
        while not counts(town, word)[number, step]:  # noqa: ASYNC110 - other processes write it
            await asyncio.sleep(0.002)


async def says(town: Town, *words: str) -> str:
    """What a command prints."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "comity", *words, env=town.env, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
    assert process.returncode == 0
    return out.decode()


@pytest.mark.parametrize(("word", "size"), [("begin", 1), ("end", 1), ("end", 5000), ("begin", 300_000)])
async def test_a_killed_nodes_task_goes_on_from_the_step_that_ran(town: Town, word: str, size: int) -> None:
    await town.up()
    await town.hire("n1")
    net = await town.client()
    task = await net.submit("pipeline", {"number": 7, "seconds": 0.2, "size": size, "until": 2 if word == "begin" else 3})
    await reaches(town, 7, 2, word)
    await kill(town.nodes["n1"])
    await town.hire("n2")
    assert await task.result(LIMIT_S) == [f"7/{step}" for step in range(STEPS)]
    ran = counts(town)
    assert [ran[7, step] for step in (0, 1, 4)] == [1, 1, 1]
    assert ran.total() <= STEPS + 1, ran
    view = await task.status()
    assert [attempt["ending"] for attempt in view["attempts"]] == ["evicted", "completed"]
    assert [step["name"] for step in view["steps"]] == [f"step {step}" for step in range(STEPS)]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_whenever_nodes_are_killed_at_most_the_steps_that_ran_are_repeated(town: Town) -> None:
    random = Random(4)
    town.env["COMITY_POISON_NODES"] = "0"  # who loses nodes for a living is not to blame
    await town.up()
    await town.hire("n1", "n2")
    net = await town.client()
    options: dict[str, Any] = {"retries": 50}
    inputs = [{"number": n, "seconds": 0.4, "size": random.choice([1, 3000])} for n in range(40)]
    tasks = await net.submit_many("pipeline", inputs, **options)
    working = asyncio.gather(*(task.result(LIMIT_S * 3) for task in tasks))
    for round_ in range(5):
        await asyncio.wait([working], timeout=random.uniform(0.1, 0.5))
        await kill(town.nodes[f"n{round_ + 1}"])
        await town.hire(f"n{round_ + 3}")
    assert await working == [[f"{n}/{step}" for step in range(STEPS)] for n in range(40)]
    ran = counts(town)
    lost = 0
    for number, task in enumerate(tasks):
        attempts = (await task.status())["attempts"]
        evicted = sum(attempt["ending"] == "evicted" for attempt in attempts)
        again = sum(ran[number, step] - 1 for step in range(STEPS))
        assert 0 <= again <= evicted, (number, attempts)
        lost += evicted
    assert lost > 10, "or it shows nothing"


async def test_a_question_outlives_nodes_and_the_network(town: Town) -> None:
    up = await town.up()
    await town.hire("n1")
    net = await town.client()
    async with story(net) as told:
        task = await net.submit("publish", {"number": 1})
        asked = await told.until(lambda event: event["type"] == "task.input_required")
        assert (asked["task"], asked["reason"]) == (task.id, "approval")
    view = await task.status()
    assert (view["state"], view["questions"][0]["ask"], view["retries_used"]) == ("input-required", {"draft": "1/0"}, 0)
    assert [node["id"] for node in await net.tasks(state="input-required")] == [task.id]
    assert (await net.stats())["tasks"]["input-required"] == 1
    await kill(town.nodes["n1"])
    await kill(up)
    await town.up()
    await town.hire("n2")
    assert (await task.status())["state"] == "input-required"
    shown = await says(town, "tasks", "show", task.id, "-o", "table")
    for word in ("it asks for 'approval'", "QUESTION", "STEP", "draft", "(checkpoint)"):
        assert word in shown
    assert json.loads(await says(town, "tasks", "answer", task.id, "approval", '"print it"'))["id"] == task.id
    assert await task.result(LIMIT_S) == "1/0: print it"
    with pytest.raises(Conflict):
        await task.answer("do not")
    assert counts(town) == {(1, 0): 1}
    endings = [attempt["ending"] for attempt in (await task.status())["attempts"]]
    assert (endings[0], endings[-1], endings.count("input-required")) == ("input-required", "completed", 1)
