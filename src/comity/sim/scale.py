"""How cost grows: a large, quiet world in which nodes come and go, and what its controller pays for nodes, agents and tasks.

Only the controller's own callbacks are timed, in processor time; the rest of the world is there for it to have work.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec

from comity.agent import Agent
from comity.client.client import Client
from comity.controller.controller import Controller
from comity.errors import ComityError
from comity.sim.world import LOOK_S, World

LIMIT_S = 150.0
"""No further size is begun after that."""
CHURN, CHURN_S = 100, 0.1
"""While half of the tasks run, one node of so many dies every so often, and comes back a second later."""
BATCH = 500
SLOTS = 4
_PLAIN = (dict, list, tuple, set, frozenset, deque, defaultdict, str, bytes, int, float)
_OURS = ("comity.core", "comity.controller", "comity.model")


class Size(NamedTuple):
    nodes: int
    agents: int
    tasks: int


class Cost(NamedTuple):
    """What a world of that size took. ``us_per_*`` is the controller's processor time, ``died`` how many nodes were killed."""

    size: Size
    us_per_agent: float
    us_per_beacon: float
    us_per_task: float
    us_per_task_churning: float
    controller_mb: float
    log_bytes_per_task: float
    log_mb: float
    died: int
    took_s: float


def crowd(count: int) -> list[Agent]:
    """As many agents, each offering the same."""

    async def echo(value: int) -> int:
        """Give back what came."""
        await asyncio.sleep(0.05)
        return value

    agents = [Agent(f"a{number}", concurrency=SLOTS) for number in range(count)]
    for agent in agents:
        agent.capability(echo)
    return agents


def sizes(nodes: int, agents: int, tasks: int) -> list[Size]:
    """The sizes that lead up to this one: first nodes and agents grow, then tasks."""
    smaller = [Size(max(1, nodes // part), max(1, agents // part), tasks) for part in (100, 10)]
    return list(dict.fromkeys([*smaller, Size(nodes, agents, tasks), Size(nodes, agents, 4 * tasks)]))


def footprint(root: object) -> int:
    """Bytes of all plain data that can be reached from ``root`` through objects of the controller's and the core's."""
    seen: dict[int, None] = {}
    total, queue = 0, [root]
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen[id(item)] = None
        ours = type(item).__module__.startswith(_OURS)
        if not ours and not isinstance(item, _PLAIN):
            continue
        total += sys.getsizeof(item)
        if isinstance(item, msgspec.Struct):
            queue += [getattr(item, name) for name in item.__struct_fields__]
        elif not isinstance(item, str | bytes | int | float):
            queue += gc.get_referents(item)
    return total


class Scaled:
    """One world of one size, measured by its only client."""

    def __init__(self, size: Size, seed: int = 1) -> None:
        self.size = size
        self.died = 0
        self.cost: Cost | None = None
        self._began = time.perf_counter()
        share = -(-size.agents // size.nodes)
        self.world = World(
            seed, controllers=1, nodes=size.nodes, clients=1, torture_s=0.0, faults={}, agents=lambda: crowd(share),
            settings={"snapshot_every": 100_000, "keep_finished": 1_000_000, "dedup_window_s": 600.0, "max_waiting": 1_000_000,
                      "beacon_s": 0.5, "retries": 20, "lease_s": 3.0, "request_timeout_s": 60.0, "submit_timeout_s": 60.0},
        )  # fmt: skip
        self.world.settle_s = 600.0
        self.world.trace.is_kept = False
        self._meter = self.world.loop.meter = defaultdict(float)

    def run(self) -> Cost:
        self.world.run(self._work)
        assert self.cost is not None
        return self.cost

    @property
    def _controller(self) -> Controller:
        made = self.world.controllers[0].running
        assert isinstance(made, Controller)
        return made

    def _all_joined(self) -> bool:
        made = self.world.controllers[0].running
        if not isinstance(made, Controller):
            return False
        return len(made.census.agents) >= self.size.agents and len(made.state.nodes) == self.size.nodes

    def _log_bytes(self) -> int:
        return sum(len(data) for _, data in self.world.auditor.items)

    async def _work(self, net: Client) -> None:
        size, meter = self.size, self._meter
        while not self._all_joined():
            await asyncio.sleep(LOOK_S)
        joined_s = meter["c1"]
        await asyncio.sleep(5.0)
        idle_s = (meter["c1"] - joined_s) / 5.0
        before, written = meter["c1"], self._log_bytes()
        quiet_s = await self._tasks(net, size.tasks // 2)
        quiet_us = (meter["c1"] - before - idle_s * quiet_s) / (size.tasks // 2) * 1e6
        log_bytes = (self._log_bytes() - written) / (size.tasks // 2)
        before = meter["c1"]
        churning = asyncio.create_task(self._churn())
        churning_s = await self._tasks(net, size.tasks - size.tasks // 2)
        churning.cancel()
        await asyncio.wait([churning])
        churning_us = (meter["c1"] - before - idle_s * churning_s) / (size.tasks - size.tasks // 2) * 1e6
        self.cost = Cost(
            size, joined_s / size.agents * 1e6, idle_s / (2 * size.nodes) * 1e6, quiet_us, churning_us,
            footprint(self._controller) / 1e6, log_bytes, self._log_bytes() / 1e6, self.died, time.perf_counter() - self._began,
        )  # fmt: skip

    async def _tasks(self, net: Client, count: int) -> float:
        """Submit as many, ``BATCH`` at a time, and await them; how long that took in virtual time."""
        began = self.world.loop.time()
        for start in range(0, count, BATCH):
            tasks = await net.submit_many("echo", [{"value": number} for number in range(start, min(start + BATCH, count))])
            for task in tasks:
                try:
                    await task.result()
                except ComityError as error:
                    raise AssertionError(f"a task of a quiet world failed: {error!r}") from error
        return self.world.loop.time() - began

    async def _churn(self) -> None:
        world = self.world
        while True:
            up = [host for host in world.nodes if host.running is not None]
            for host in world.random.sample(up, int(len(up) / CHURN + world.random.random())):
                host.kill(noticed=True)
                host.running = None
                world.loop.call_later(1.0, host.revive)
                self.died += 1
            await asyncio.sleep(CHURN_S)


def measure(steps: Iterable[Size], say: Callable[[str], None]) -> list[Cost]:
    """A line for each size, as long as there is time."""
    began = time.monotonic()
    costs: list[Cost] = []
    say("                            controller: µs for each                       memory   log bytes      log  nodes   took")
    say("  nodes   agents   tasks    agent  beacon    task  task in churn              MB    per task       MB   died      s")
    for size in steps:
        if time.monotonic() - began > LIMIT_S:
            say(f"{size.nodes:>7}{size.agents:>9}{size.tasks:>8}  left out: {LIMIT_S:g} s are over")
            continue
        cost = Scaled(size).run()
        gc.collect()
        costs.append(cost)
        say(
            f"{size.nodes:>7}{size.agents:>9}{size.tasks:>8}{cost.us_per_agent:>9.1f}{cost.us_per_beacon:>8.1f}"
            f"{cost.us_per_task:>8.1f}{cost.us_per_task_churning:>15.1f}{cost.controller_mb:>16.1f}"
            f"{cost.log_bytes_per_task:>12.0f}{cost.log_mb:>9.2f}{cost.died:>7}{cost.took_s:>7.1f}"
        )
    return costs


def parse(words: list[str]) -> dict[str, Any]:
    """``nodes=N agents=N tasks=N`` as a dictionary, with defaults. Raises ValueError."""
    given = {"nodes": 1000, "agents": 100_000, "tasks": 5000}
    for word in words:
        name, _, number = word.partition("=")
        if name not in given or int(number) < (2 if name == "tasks" else 1):
            raise ValueError(f"{word!r}: say nodes=N, agents=N or tasks=N")
        given[name] = int(number)
    return given
