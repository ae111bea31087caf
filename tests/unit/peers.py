"""A network's shared doors, and peers that speak to its controllers with raw wire items: for tests of the controller."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from math import inf
from typing import Any, TypeVar

import msgspec
from own_loop import Test, on_loop

from comity.bus.base import EVERYONE, LEADER, Delivery, to
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.config import Settings
from comity.controller.controller import Controller
from comity.log.memory import MemoryLog, MemoryLogState
from comity.model import published, wire
from comity.model.capability import AgentRecord, NodeRecord, Offer
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId, TaskIds
from comity.model.task import TaskSpec
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore, MemoryStoreState

T = TypeVar("T")
LIMIT_S = 20.0
ECHO = Offer("echo", "1", "")


async def until(true: Callable[[], bool]) -> None:
    """Let others run until ``true``: for what only the inside of a controller shows. Virtual time does not pass by itself."""
    turn, loop = asyncio.Event(), asyncio.get_running_loop()
    pause_s = 0.001 if isinstance(loop, VirtualLoop) else 0.0
    async with asyncio.timeout(LIMIT_S):
        while not true():
            loop.call_later(pause_s, turn.set)
            await turn.wait()
            turn.clear()


async def a_while(seconds: float) -> None:
    """Let time pass, to see that nothing happens in it."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    await over.wait()


def virtually(**settings: Any) -> Callable[[Test], Callable[..., None]]:
    """A decorator: run an async test on virtual time. If it asks for a ``world``, that is its own, of these settings."""

    async def play(test: Test, given: dict[str, Any]) -> None:
        world = World(**settings)
        own = {"world": world} if "world" in inspect.signature(test).parameters else {}
        await test(**own, **given)
        for controller in world.running:
            await controller.stop()

    return on_loop(VirtualLoop, play, "world")


class World:
    """Everything the controllers of one network share."""

    def __init__(self, **changes: Any) -> None:
        self.network = MemoryNetwork()
        self.log = MemoryLogState()
        self.registry = MemoryRegistryState()
        self.store = MemoryStoreState()
        self.settings = Settings(**changes)
        self.wall = 1_700_000_000.0
        self.network_id = NetworkId("net")
        self.running: list[Controller] = []

    def now(self) -> float:
        return self.wall + asyncio.get_running_loop().time()

    def make(self, name: str, log: MemoryLog, jump_s: float, *, eager: bool = True) -> Controller:
        return Controller(
            MemoryBus(self.network, ProcessId(name)),
            log,
            MemoryRegistry(self.registry),
            MemoryStore(self.store),
            self.settings,
            network_id=self.network_id,
            wall=self.now,
            random=lambda: 0.5,
            eager=eager,
            jump_s=jump_s,
        )

    async def controller(self, name: str = "k1", eager: bool = True, log: MemoryLog | None = None) -> Controller:
        controller = self.make(name, log or MemoryLog(self.log), inf if eager else 0.0, eager=eager)
        await controller.start()
        self.running.append(controller)
        if eager:
            await asyncio.wait_for(controller.led.wait(), LIMIT_S)
        return controller

    async def peer(self, name: str) -> Peer:
        peer = Peer(self, name)
        await peer.bus.subscribe(to(name), peer.receive)
        await peer.bus.subscribe(EVERYONE, peer.receive)
        return peer


class Peer:
    """A client or a node, item by item."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = ProcessId(name)
        self.bus = MemoryBus(world.network, self.name)
        self.registry = MemoryRegistry(world.registry)
        self.items: list[wire.Item] = []
        self.ids = TaskIds(lambda: int(world.now() * 1000), hash(name) & 0xFFFF)
        self._arrived = asyncio.Event()
        self._ref = 0
        self._beat: asyncio.Task[None] | None = None

    def receive(self, delivery: Delivery) -> None:
        self.items += wire.decode(delivery.data)
        self._arrived.set()

    async def say(self, *items: wire.Item) -> None:
        await self.bus.send(LEADER, wire.encode(list(items)))

    async def hear(self, kind: type[T], match: Callable[[T], bool] = lambda _: True) -> T:
        """The first item of ``kind`` that matches, taken out."""
        async with asyncio.timeout(LIMIT_S):
            while True:
                for i, item in enumerate(self.items):
                    if isinstance(item, kind) and match(item):
                        del self.items[i]
                        return item
                self._arrived.clear()
                await self._arrived.wait()

    async def ask(self, what: str, **args: Any) -> Any:
        self._ref += 1
        ref = self._ref
        await self.say(wire.Ask(ref, what, msgspec.json.encode(args)))
        answer = await self.hear(wire.Answer, lambda a: a.ref == ref)
        return answer.code or msgspec.json.decode(answer.body)

    def spec(self, capability: str = "echo", task: TaskId | None = None, **more: Any) -> TaskSpec:
        more.setdefault("input", b'{"x":1}')
        return TaskSpec(task or self.ids.next(), capability, submitter=self.name, **more)

    async def submit(self, capability: str = "echo", **more: Any) -> TaskId:
        spec = self.spec(capability, **more)
        await self.say(wire.SubmitTask(spec))
        accepted = await self.hear(wire.Accepted, lambda a: any(asked == spec.id for asked, _ in a.tasks))
        return dict(accepted.tasks)[spec.id]

    async def state(self, task: TaskId) -> str:
        return str((await self.ask("task", id=task))["state"])

    # As a node

    async def join(self, *agents: str, slots: int = 2, incarnation: int = 1) -> None:
        """Register ``agents`` (each offers echo) and beat until told to stop."""
        record = NodeRecord(id=self.name, incarnation=incarnation)
        await self.registry.put(f"nodes/{self.name}", published.encode_node(record))
        records = [
            AgentRecord(id=AgentId(f"{self.name}/{a}"), name=a, node=self.name, concurrency=slots, offers=(ECHO,))
            for a in agents
        ]
        await self.registry.put(f"agents/{self.name}/0", published.encode_agents(records))
        await self.say(self.beacon(0, incarnation))
        await self.hear(wire.BeaconAck)
        self._beat = asyncio.create_task(self._beating(incarnation))
        await self.hear(wire.BeaconAck, lambda ack: ack.known)

    def beacon(self, seq: int, incarnation: int) -> wire.Beacon:
        return wire.Beacon(seq, incarnation, 0.0, 0.1, 10.0, 0, 1)

    async def _beating(self, incarnation: int) -> None:
        due = asyncio.Event()
        for seq in range(1, 1_000_000):
            await self.say(self.beacon(seq, incarnation))
            asyncio.get_running_loop().call_later(self.world.settings.beacon_s, due.set)
            await due.wait()
            due.clear()

    def silence(self) -> None:
        """Hang: no beacons, no answers, yet connected."""
        if self._beat is not None:
            self._beat.cancel()

    async def kill(self) -> None:
        self.silence()
        self.world.network.disconnect(self.name)
