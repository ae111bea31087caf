"""Nodes, a controller and a client together, on in-memory doors and virtual time: what only shows between them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from random import Random
from typing import Any

import pytest
from node_stage import Stage, staged_on, until

from comity.agent import Agent
from comity.bus.memory import MemoryBus
from comity.client.client import Client
from comity.controller.controller import JUMP_S, Controller
from comity.errors import NoAgent, Refuse, TaskCanceled, TaskFailed, UnknownCapability
from comity.handles import Attempt
from comity.log.memory import MemoryLog, MemoryLogState
from comity.message import Message
from comity.model.ids import ProcessId
from comity.model.task import LOG_LIMIT
from comity.node.node import Node
from comity.registry.base import Change
from comity.registry.memory import MemoryRegistry
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore

staged = staged_on(VirtualLoop)


class Net:
    """A whole network in one process."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.controller: Controller
        self.client: Client

    async def up(self, registry: MemoryRegistry | None = None, /, **nodes: Iterable[Agent]) -> Net:
        """``registry``: the controller's."""
        stage = self.stage
        self.controller = Controller(
            MemoryBus(stage.network, ProcessId("k1")), MemoryLog(MemoryLogState()), registry or MemoryRegistry(stage.registry),
            MemoryStore(stage.store), stage.settings, network_id="net", wall=stage.wall, random=lambda: 0.5, eager=True,
            jump_s=JUMP_S,
        )  # fmt: skip
        await self.controller.start()
        await self.controller.led.wait()
        for name, agents in nodes.items():
            await self.join(name, agents)
        self.client = Client(
            MemoryBus(stage.network, ProcessId("c1")), MemoryRegistry(stage.registry), MemoryStore(stage.store, "c1"),
            stage.settings, wall=stage.wall, rng=Random(1),
        )  # fmt: skip
        await self.client.open()
        await self.client.ready()
        return self

    async def join(self, name: str, agents: Iterable[Agent]) -> Node:
        node = self.stage.node(name, agents)
        await node.start()
        await node.ready()
        return node

    async def down(self) -> None:
        await self.client.close()
        for node in self.stage.nodes:
            await node.stop()
        await self.controller.stop()


@staged
async def test_a_task_is_done(stage: Stage) -> None:
    agent = Agent("a")

    @agent.capability
    async def repeat(text: str, times: int = 2) -> str:
        return text * times

    net = await Net(stage).up(n1=[agent])
    assert await (await net.client.submit("repeat", {"text": "ab"})).result() == "abab"
    tasks = await net.client.submit_many("repeat", [{"text": str(n), "times": 1} for n in range(100)])
    assert await asyncio.gather(*tasks) == [str(n) for n in range(100)]
    large = await net.client.submit("repeat", {"text": "x" * LOG_LIMIT, "times": 2})
    assert await large.result() == "x" * LOG_LIMIT * 2
    await net.down()
    assert not stage.nodes[0].attempts.unsettled


class Late(MemoryRegistry):
    """It tells of changes ``by_s`` later."""

    by_s = 1.0

    async def watch(self, prefix: str) -> AsyncGenerator[list[Change], None]:
        async for changes in super().watch(prefix):
            await asyncio.sleep(self.by_s)
            yield changes


def one() -> Agent:
    agent = Agent("a")

    @agent.capability(name="one")
    async def _one() -> int:
        return 1

    return agent


@staged
async def test_a_node_is_ready_once_the_leader_knows_its_agents_too(stage: Stage) -> None:
    net = await Net(stage).up(Late(stage.registry))
    await net.join("n1", [one()])
    assert await (await net.client.submit("one", queue=False)).result() == 1
    await net.down()


@staged
async def test_a_leader_that_cannot_read_the_registry_does_not_keep_a_node(stage: Stage) -> None:
    registry = Late(stage.registry)
    registry.by_s = 60.0
    net = await Net(stage).up(registry)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await net.join("n1", [one()])
    assert 5 <= loop.time() - began < 10
    with pytest.raises(UnknownCapability):
        await net.client.submit("one", queue=False)
    await net.down()


@staged
async def test_parents_that_await_children_do_not_block_each_other(stage: Stage) -> None:
    """One agent that takes one attempt at a time, and a tree of tasks fourteen deep."""
    agent = Agent("a", concurrency=1)

    @agent.capability
    async def fibonacci(attempt: Attempt, n: int) -> int:
        if n < 2:
            return n
        children = [await attempt.submit("fibonacci", n - 1), await attempt.submit("fibonacci", n - 2)]
        return sum([await child for child in children])

    net = await Net(stage).up(n1=[agent])
    task = await net.client.submit("fibonacci", 6)
    assert await task.result(60) == 8
    await net.down()


@staged
async def test_children_end_with_their_parent(stage: Stage) -> None:
    agent = Agent("a")
    ended: list[str] = []

    @agent.capability
    async def parent(attempt: Attempt) -> None:
        await (await attempt.submit("child"))

    @agent.capability
    async def child(attempt: Attempt) -> None:
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(f"{attempt.parent} {attempt.is_canceled}")

    net = await Net(stage).up(n1=[agent])
    task = await net.client.submit("parent")
    await until(lambda: len(stage.nodes[0].attempts.running) == 2)
    await task.cancel("enough")
    with pytest.raises(TaskCanceled, match="canceled: enough"):
        await task.result(30)
    await until(lambda: bool(ended))
    assert ended == [f"{task.id} True"]
    await net.down()


@staged
async def test_a_refused_task_goes_elsewhere_and_a_failing_one_is_tried_again(stage: Stage) -> None:
    proud, humble = Agent("proud"), Agent("humble")
    tries: list[int] = []

    @proud.capability(name="work")
    async def never() -> str:
        raise Refuse("not my style")

    @humble.capability
    async def work() -> str:
        return "humble"

    @humble.capability
    async def shaky(attempt: Attempt) -> int:
        tries.append(attempt.number)
        if attempt.number < 3:
            raise ValueError("not yet")
        return attempt.number

    @humble.capability(no_retry=(ValueError,))
    async def hopeless() -> None:
        raise ValueError("never")

    net = await Net(stage).up(n1=[proud], n2=[humble])
    for _ in range(5):
        assert await (await net.client.submit("work", retries=0)).result(60) == "humble"
    assert await (await net.client.submit("shaky")).result(60) == 3 and tries == [1, 2, 3]
    with pytest.raises(TaskFailed, match="never"):
        await (await net.client.submit("hopeless")).result(60)
    await net.down()


@staged
async def test_work_of_a_node_that_vanishes_is_done_by_another(stage: Stage) -> None:
    ran: list[str] = []

    def worker(name: str) -> Agent:
        agent = Agent(name)

        @agent.capability
        async def work() -> str:
            ran.append(name)
            await asyncio.sleep(5)
            return name

        return agent

    net = await Net(stage).up(n1=[worker("a")])
    task = await net.client.submit("work")
    await until(lambda: ran == ["a"])
    await net.join("n2", [worker("b")])
    stage.network.disconnect(ProcessId("n1"))
    assert await task.result(60) == "b"
    await asyncio.sleep(10)
    stage.network.reconnect(ProcessId("n1"))
    first = stage.nodes[0]
    await until(lambda: not first.attempts.unsettled and not first.attempts.running)
    await first.ready()
    assert (await task.status())["agent"] == "n2/b", "the late report of the first one counts for nothing"
    await net.down()


@staged
async def test_capabilities_and_agents_are_asked_live(stage: Stage) -> None:
    agent, asker = Agent("a"), Agent("asker")

    @agent.capability
    async def double(n: int) -> int:
        return 2 * n

    @asker.capability
    async def ask(attempt: Attempt, n: int) -> list[Any]:
        return [await attempt.request("double", {"n": n}), await asker.request("n1/a", topic="who")]

    @agent.on("who")
    async def who(message: Message) -> str:
        return f"{message.sender} asks"

    net = await Net(stage).up(n1=[agent], n2=[asker])
    assert await net.client.request("double", 4) == 8
    assert await (await net.client.submit("ask", 5)).result(60) == [10, "n2/asker asks"]
    agent.update(status="paused")
    await stage.nodes[0].announcer.announced.wait()
    with pytest.raises(NoAgent):
        await net.client.request("double", 4, timeout=5)
    assert [record.id for record in await asker.discover("double", status="paused")] == ["n1/a"]
    await net.down()


@staged
async def test_agents_hear_who_joins_and_leaves(stage: Stage) -> None:
    agent = Agent("a")
    heard: list[str] = []

    @agent.on("agent.joined")
    async def joined(body: dict[str, Any]) -> None:
        heard.append(f"joined {body['agent']}")

    @agent.on("agent.left")
    async def left(body: dict[str, Any]) -> None:
        heard.append(f"left {body['agent']}")

    net = await Net(stage).up(n1=[agent])
    node = await net.join("n2", [Agent("b"), Agent("c")])
    await until(lambda: heard == ["joined n2/b", "joined n2/c"])  # and not of itself
    await node.drain()
    await node.stop()
    await until(lambda: heard[2:] == ["left n2/b", "left n2/c"])
    await net.down()
