"""A connection that breaks while something begins, and is back a moment later, ends nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from importlib import import_module
from random import Random
from typing import Any

import pytest
from node_stage import Stage, staged_on, worker

from comity import backends, buses
from comity.bus.base import Delivery, Link, Receive, to, topic
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.cli import running
from comity.cli.output import Output
from comity.client import Client
from comity.config import Settings
from comity.connect import Doors
from comity.contexts import Context
from comity.errors import Conflict, Disconnected, NotFound, Unreachable
from comity.model import wire
from comity.model.codec import to_json
from comity.model.ids import ProcessId
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore, MemoryStoreState

BACK_S = 0.05
staged = staged_on(VirtualLoop)
connecting = import_module("comity.connect")  # as an attribute it is the function


class Scene:
    """A process, and the network that it is in."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.bus = MemoryBus(self.network, ProcessId("p"))

    def breaks(self) -> None:
        """And is back in a moment."""
        self.network.disconnect(self.bus.process)
        asyncio.get_running_loop().call_later(BACK_S, self.network.reconnect, self.bus.process)

    def doors(self) -> Doors:
        return Doors(self.bus, MemoryRegistry(MemoryRegistryState()), MemoryStore(MemoryStoreState()), {})


@pytest.fixture
async def scene(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    scene = Scene()

    async def opened(*_: Any) -> MemoryBus:
        return scene.bus

    monkeypatch.setattr(buses, "open_bus", opened)
    monkeypatch.setattr(backends, "TOLD_S", 0.3)
    async with asyncio.timeout(20):
        yield scene
    await scene.bus.close()


async def beside_what_is_told(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, errors: list[Exception], *, closes: bool = False
) -> dict[str, str]:
    """Open doors, of which the first attempts come to ``errors``; what was known of their places at last."""
    places: list[dict[str, str]] = []

    async def beside(_stack: Any, _bus: Any, _network: str, _process: str, known: dict[str, str]) -> Doors:
        places.append(dict(known))
        if errors:
            await scene.bus.close() if closes else scene.breaks()
            raise errors.pop(0)
        return scene.doors()

    monkeypatch.setattr(connecting, "_beside", beside)
    async with AsyncExitStack() as stack:
        await connecting.doors(stack, Context(urls=("nats://h",)), "p", None)
    return places[-1]


async def controller(scene: Scene, *, breaks: int) -> None:
    """The connections of those who ask it break, the first ``breaks`` times, before it can answer."""
    bus = MemoryBus(scene.network, ProcessId("k1"))
    asked: list[wire.Ask] = []

    def receive(delivery: Delivery) -> None:
        for item in wire.decode(delivery.data):
            assert isinstance(item, wire.Ask)
            asked.append(item)
            if len(asked) <= breaks:
                scene.breaks()
            else:
                answer = wire.Answer(item.ref, "", to_json({"doors": {"store": "file:///s"}}))
                sends.append(asyncio.ensure_future(bus.send(to(delivery.sender), wire.encode([answer]))))

    sends: list[asyncio.Future[None]] = []
    await bus.subscribe(topic("controllers"), receive)


async def test_doors_are_opened_although_the_connection_breaks(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[Exception] = [Disconnected("broken"), Disconnected("again")]
    assert await beside_what_is_told(scene, monkeypatch, broken) == {}


async def test_where_the_doors_are_is_asked_again(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "TOLD_S", 10.0)
    await controller(scene, breaks=1)
    assert await beside_what_is_told(scene, monkeypatch, [NotFound("no stream")]) == {"store": "file:///s"}


async def test_who_is_thrown_out_for_good_does_not_wait(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    began = asyncio.get_running_loop().time()
    with pytest.raises(Disconnected):
        await beside_what_is_told(scene, monkeypatch, [Disconnected("broken")], closes=True)
    assert asyncio.get_running_loop().time() - began < 5.0


async def test_a_client_is_opened_and_hears_each_message_once(scene: Scene) -> None:
    heard: list[wire.Item] = []
    client = Client(*scene.doors()[:3], Settings(), wall=lambda: 0.0, rng=Random(1))

    def hear(item: wire.Item, _sender: ProcessId) -> bool:
        heard.append(item)
        return True

    client._exchange._take[wire.Pong] = hear
    listen, listened = scene.bus.subscribe, list[str]()

    async def subscribe(address: str, receive: Receive) -> Any:
        if address == "topic/all" and address not in listened:
            scene.breaks()
        listened.append(address)
        return await listen(address, receive)

    scene.bus.subscribe = subscribe  # type: ignore[method-assign]
    await client.open()
    await scene.bus.send(to("p"), wire.encode([wire.Pong(1)]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert len(heard) == 1 and listened.count("topic/all") > 1
    await client.close()


async def test_a_node_process_joins(monkeypatch: pytest.MonkeyPatch, scene: Scene) -> None:
    errors: list[Exception] = [Disconnected("broken"), Unreachable("no network")]

    async def doors(*_: Any) -> Doors:
        if errors:
            raise errors.pop(0)
        return scene.doors()

    monkeypatch.setattr(connecting, "doors", doors)
    loaded = Settings.load({"urls": "nats://h", "network": "main"}, env={})
    async with AsyncExitStack() as stack:
        _, process, opened = await running._joined(stack, loaded, "p", True, Output())
    assert (process, opened.bus, errors) == ("p", scene.bus, [])


async def test_whether_a_name_is_taken_is_asked_again(scene: Scene) -> None:
    scene.breaks()
    await running._be_alone(scene.bus)
    other, scene.bus = scene.bus, MemoryBus(scene.network, ProcessId("p"))
    await other.subscribe(to("p"), lambda _delivery: None)
    scene.breaks()
    with pytest.raises(Conflict, match="is called p"):
        await running._be_alone(scene.bus)


@staged
async def test_a_node_starts(stage: Stage) -> None:
    leader = await stage.leader()
    node = stage.node("n1", [worker()])
    stage.network.disconnect(node.node)
    asyncio.get_running_loop().call_later(BACK_S, stage.network.reconnect, node.node)
    await node.start()
    await node.ready()
    assert leader.all(wire.Beacon)


@staged
async def test_a_node_that_is_thrown_out_for_good_does_not_start(stage: Stage) -> None:
    node = stage.node("n1", [worker()])
    await node.bus.close()
    began = asyncio.get_running_loop().time()
    with pytest.raises(Disconnected):
        await node.start()
    assert asyncio.get_running_loop().time() == began and node.bus.link is Link.CLOSED
    await node.stop()
