"""A node on in-memory doors and virtual time, and a leader played with raw wire items: for tests of the node."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from random import Random
from typing import Any, TypeVar

import msgspec
from own_loop import Test, on_loop

from comity.agent import Agent
from comity.bus.base import EVERYONE, LEADER, Delivery, to
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.config import Settings
from comity.model import published, wire
from comity.model.capability import AgentRecord, NodeRecord
from comity.model.envelope import Envelope, Performative
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.node.measure import Load
from comity.node.node import Node
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from comity.sim.loop import VirtualLoop
from comity.store.memory import MemoryStore, MemoryStoreState

T = TypeVar("T", bound=wire.Item)
LIMIT_S = 60.0
"""Virtual seconds."""


def staged_on(loop_class: type[asyncio.AbstractEventLoop] = VirtualLoop) -> Callable[[Test], Callable[..., None]]:
    """A decorator: run an async test of a ``stage`` on such a loop."""
    return on_loop(loop_class, _play, "stage")


async def _play(test: Test, given: dict[str, Any]) -> None:
    stage = Stage()
    try:
        await test(stage=stage, **given)
    finally:
        await stage.stop()


async def until(true: Callable[[], bool]) -> None:
    """Let time pass until ``true``."""
    async with asyncio.timeout(LIMIT_S):
        while not true():  # noqa: ASYNC110 - what is waited for is not always an event
            await asyncio.sleep(0.002)


def worker(name: str = "a", **options: Any) -> Agent:
    """An agent that does some work."""
    agent = Agent(name, **options)

    @agent.capability
    async def work(seconds: float = 0.0) -> str:
        """Do some work."""
        await asyncio.sleep(seconds)
        return "done"

    return agent


def settle(item: wire.Done | wire.Failed | wire.Declined) -> wire.Settled:
    return wire.Settled(((item.task, item.epoch),))


class Stage:
    """The doors that the processes of one network share."""

    def __init__(self, **settings: Any) -> None:
        self.network = MemoryNetwork()
        self.registry = MemoryRegistryState()
        self.store = MemoryStoreState()
        self.settings = Settings(**settings)
        self.nodes: list[Node] = []

    def wall(self) -> float:
        return 1_700_000_000.0 + asyncio.get_running_loop().time()

    def node(self, name: str = "n1", agents: Iterable[Agent] = (), **options: Any) -> Node:
        node = Node(
            MemoryBus(self.network, ProcessId(name)),
            options.pop("registry", None) or MemoryRegistry(self.registry),
            MemoryStore(self.store, name),
            self.settings,
            agents=agents,
            wall=self.wall,
            rng=Random(name),
            measure=lambda: Load(0.25, 100.0, 1.5, 1000.0),
            **options,
        )
        self.nodes.append(node)
        return node

    async def started(self, *agents: Agent, name: str = "n1", **options: Any) -> tuple[Node, Leader]:
        """A node that a leader has taken in."""
        leader = await self.leader()
        node = self.node(name, agents, **options)
        await node.start()
        await node.ready()
        return node, leader

    async def leader(self, name: str = "k1", term: int = 1) -> Leader:
        leader = Leader(self, name, term)
        await leader.bus.subscribe(to(name), leader.receive)
        await leader.bus.subscribe(LEADER, leader.receive)
        return leader

    async def stop(self) -> None:
        """Nodes that a test did not stop leave without saying goodbye: no leader would settle what they reported."""
        for node in self.nodes:
            if not node.has_left:
                self.network.disconnect(node.node)
            await node.stop()

    def agents(self) -> dict[str, AgentRecord]:
        """As the registry shows them."""
        chunks = [published.decode_agents(r.value) for k, r in self.registry.records.items() if k.startswith("agents/")]
        return {agent.id: agent for chunk in chunks for agent in chunk}

    def record(self, node: str = "n1") -> NodeRecord | None:
        record = self.registry.records.get(f"nodes/{node}")
        return published.decode_node(record.value) if record is not None else None


class Watched(MemoryRegistry):
    """Notes what is written, and whether the node could be reached at that moment; fails when told."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage.registry)
        self.stage = stage
        self.puts: list[str] = []
        self.unheard: list[str] = []
        self.failing: Exception | None = None

    async def put(self, key: str, value: bytes, **options: Any) -> int:
        if self.failing is not None:
            raise self.failing
        self.puts.append(key)
        if not self.stage.network._members(to("n1")):
            self.unheard.append(key)
        return await super().put(key, value, **options)


class Leader:
    """Acknowledges beacons unless ``is_mute``, and says that the log knows a node's lease unless ``is_cut_off`` from it;
    everything else is up to the test. ``knows`` False: it knows no node."""

    def __init__(self, stage: Stage, name: str, term: int) -> None:
        self.stage = stage
        self.bus = MemoryBus(stage.network, ProcessId(name))
        self.term = term
        self.is_mute = self.is_cut_off = False
        self.knows = True
        self.lease_s = stage.settings.lease_s
        self.got: list[wire.Item] = []
        self.incarnation = 0
        self._read: dict[type, int] = {}
        self._sends: set[asyncio.Task[None]] = set()

    def receive(self, delivery: Delivery) -> None:
        for item in wire.decode(delivery.data):
            self.got.append(item)
            if isinstance(item, wire.Beacon):
                self.incarnation = item.incarnation
                if not self.is_mute:
                    now_ms = int(self.stage.wall() * 1000)
                    self.say(delivery.sender, wire.BeaconAck(item.seq, self.term, self.lease_s, now_ms, self.knows))
            elif isinstance(item, wire.Ask) and not self.is_mute:
                self._answer(item, delivery.sender)

    def _answer(self, item: wire.Ask, sender: ProcessId) -> None:
        now_ms = int(self.stage.wall() * 1000)
        answers: dict[str, Any] = {
            "hello": {"network_id": "net", "term": self.term, "leader": self.bus.process, "now_ms": now_ms},
            "lease": {"is_held": self.knows},
        }
        if item.what in answers and not (item.what == "lease" and self.is_cut_off):
            self.say(sender, wire.Answer(item.ref, "", msgspec.json.encode(answers[item.what])))

    def say(self, process: str, *items: wire.Item) -> None:
        """Send to a process, in one batch."""
        self._send(to(process), *items)

    def tell_all(self, *items: wire.Item) -> None:
        self._send(EVERYONE, *items)

    def _send(self, address: str, *items: wire.Item) -> None:
        send = asyncio.get_running_loop().create_task(self.bus.send(address, wire.encode(list(items))))
        self._sends.add(send)
        send.add_done_callback(self._sends.discard)

    def all(self, kind: type[T]) -> list[T]:
        return [item for item in self.got if isinstance(item, kind)]

    async def next(self, kind: type[T]) -> T:
        """The first item of that kind not given out before, once it is there."""
        read = self._read.get(kind, 0)
        await until(lambda: len(self.all(kind)) > read)
        self._read[kind] = read + 1
        return self.all(kind)[read]

    def forget(self) -> None:
        self.got.clear()
        self._read.clear()

    def run(self, capability: str, value: Any = None, *, epoch: int = 1, task: str = "t1", **options: Any) -> wire.Run:
        """An assignment to agent ``a`` on node ``n1``."""
        fields: dict[str, Any] = {
            "term": self.term, "incarnation": self.incarnation, "agent": AgentId("n1/a"), "number": 1, "timeout_s": 60.0,
            "input": msgspec.json.encode(value), **options,
        }  # fmt: skip
        return wire.Run(task=TaskId(task), epoch=epoch, capability=capability, **fields)

    def assign(self, capability: str, value: Any = None, **options: Any) -> None:
        self.say("n1", self.run(capability, value, **options))

    async def done(self) -> Any:
        """The next result."""
        item = await self.next(wire.Done)
        assert isinstance(item.result, bytes)
        return msgspec.json.decode(item.result)


class Caller:
    """A client that speaks in envelopes."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.bus = MemoryBus(stage.network, ProcessId(name))
        self.stage = stage
        self.got: list[Envelope] = []
        self.items: list[wire.Item] = []
        self._number = 0

    @classmethod
    async def join(cls, stage: Stage, name: str = "c1") -> Caller:
        caller = cls(stage, name)
        await caller.bus.subscribe(to(name), caller.receive)
        return caller

    def receive(self, delivery: Delivery) -> None:
        for item in wire.decode(delivery.data):
            self.items.append(item)
            if isinstance(item, wire.Message):
                self.got.append(item.envelope)

    def envelope(self, receiver: str, body: Any = None, **fields: Any) -> Envelope:
        self._number += 1
        given = {"id": f"m{self._number}", "performative": Performative.REQUEST, "sender": self.bus.process, **fields}
        return Envelope(receiver=receiver, body=msgspec.json.encode(body), **given)

    async def send(self, receiver: str, body: Any = None, **fields: Any) -> Envelope:
        envelope = self.envelope(receiver, body, **fields)
        address = to(receiver.partition("/")[0]) if receiver else EVERYONE
        await self.bus.send(address, wire.encode([wire.Message(envelope)]))
        return envelope

    async def ask(self, receiver: str, body: Any = None, **fields: Any) -> tuple[Performative, Any]:
        """The reply: how, and what."""
        asked = await self.send(receiver, body, **fields)
        await until(lambda: any(envelope.in_reply_to == asked.id for envelope in self.got))
        reply = next(envelope for envelope in self.got if envelope.in_reply_to == asked.id)
        return reply.performative, msgspec.json.decode(reply.body)

    async def control(self, what: str, **args: Any) -> wire.Answer:
        self._number += 1
        ref = self._number
        await self.bus.send(to("n1"), wire.encode([wire.Control(ref, what, msgspec.json.encode(args))]))
        answers = lambda: [i for i in self.items if isinstance(i, wire.Answer) and i.ref == ref]  # noqa: E731
        await until(lambda: bool(answers()))
        return answers()[0]
