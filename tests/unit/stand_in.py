"""A leader and a node of a client's tests: they speak raw wire items, and do only what a test tells them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

import msgspec

from comity.bus.base import EVERYONE, LEADER, Delivery, to
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.outbox import Outbox
from comity.client import Client
from comity.config import Settings
from comity.model import published, wire
from comity.model.capability import AgentRecord, Capability, NodeRecord, Offer
from comity.model.ids import AgentId, ProcessId, TaskId
from comity.model.task import TaskFailure, TaskState
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from comity.store.memory import MemoryStore, MemoryStoreState

T = TypeVar("T", bound=wire.Item)
LIMIT_S = 10.0
NOW_MS = 1_700_000_000_000


async def until(true: Callable[[], bool]) -> None:
    """Let others run until ``true``."""
    turn = asyncio.Event()
    async with asyncio.timeout(LIMIT_S):
        while not true():
            asyncio.get_running_loop().call_soon(turn.set)
            await turn.wait()
            turn.clear()


class StandIn:
    """A process that notes what it gets. ``answers``: what to do with an item of a type."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self.process = ProcessId(name)
        self.bus = MemoryBus(network, self.process)
        self.outbox = Outbox(self.bus)
        self.got: list[wire.Item] = []
        self.batches = 0
        self.answers: dict[type, Callable[[Any, ProcessId], None]] = {}

    async def listen(self, *addresses: str) -> None:
        for address in addresses:
            await self.bus.subscribe(address, self._receive)

    def _receive(self, delivery: Delivery) -> None:
        self.batches += 1
        for item in wire.decode(delivery.data):
            self.got.append(item)
            answer = self.answers.get(type(item))
            if answer is not None:
                answer(item, delivery.sender)

    def say(self, process: str, *items: wire.Item) -> None:
        for item in items:
            self.outbox.post(to(process), item)

    def all(self, kind: type[T]) -> list[T]:
        return [item for item in self.got if isinstance(item, kind)]

    async def first(self, kind: type[T], number: int = 1) -> T:
        """The ``number``-th item of a kind, once it is there."""
        await until(lambda: len(self.all(kind)) >= number)
        return self.all(kind)[number - 1]


class StandInLeader(StandIn):
    """Leads in ``term``: says hello, accepts every submit unless told otherwise."""

    def __init__(self, network: MemoryNetwork, name: str = "k1", term: int = 1, network_id: str = "net") -> None:
        super().__init__(network, name)
        self.term = term
        self.network_id = network_id
        self.questions: dict[str, Any] = {"barrier": {}}
        self.answers = {wire.Ask: self._answer, wire.SubmitTask: self.accept}

    async def lead(self) -> None:
        await self.listen(LEADER)
        self.outbox.post(EVERYONE, wire.Leading(self.term, self.process, NOW_MS))

    def hello(self) -> dict[str, Any]:
        return {
            "network_id": self.network_id,
            "term": self.term,
            "leader": self.process,
            "now_ms": NOW_MS,
            "lease_s": 3.0,
        }

    def _answer(self, item: wire.Ask, sender: ProcessId) -> None:
        found = self.hello() if item.what == "hello" else self.questions.get(item.what)
        if found is not None:
            self.say(sender, wire.Answer(item.ref, "", msgspec.json.encode(found)))

    def accept(self, item: wire.SubmitTask, sender: ProcessId) -> None:
        self.say(sender, wire.Accepted(((item.spec.id, item.spec.id),)))

    def complete(self, process: str, task: TaskId, value: Any = None, epoch: int = 0) -> None:
        self.say(process, wire.Ended(task, TaskState.COMPLETED, msgspec.json.encode(value), None, epoch))

    def end(self, process: str, task: TaskId, state: TaskState, code: str, message: str = "", epoch: int = 0) -> None:
        self.say(process, wire.Ended(task, state, None, TaskFailure(code, message, False), epoch))


class Ground:
    """A network, its registry and store, and the client ``c1`` on it."""

    def __init__(self, **settings: Any) -> None:
        self.network = MemoryNetwork()
        self.records = MemoryRegistryState()
        self.values = MemoryStoreState()
        self.registry = MemoryRegistry(self.records)
        self.settings = Settings(**settings)
        self.clients: list[Client] = []

    async def client(self, name: str = "c1") -> Client:
        loop = asyncio.get_running_loop()
        client = Client(
            MemoryBus(self.network, ProcessId(name)),
            MemoryRegistry(self.records),
            MemoryStore(self.values),
            self.settings,
            wall=lambda: NOW_MS / 1000 + loop.time(),
            rng=Random(name),
        )
        await client.open()
        self.clients.append(client)
        return client

    async def leader(self, name: str = "k1", term: int = 1, **options: Any) -> StandInLeader:
        leader = StandInLeader(self.network, name, term, **options)
        await leader.lead()
        return leader

    async def node(self, name: str = "n1") -> StandIn:
        node = StandIn(self.network, name)
        await node.listen(to(name))
        return node

    async def register(self, node: str, *agents: AgentRecord, incarnation: int = 1, chunk: str = "0") -> None:
        """Put a node and its agents into the registry."""
        await self.registry.put(f"agents/{node}/{chunk}", published.encode_agents(list(agents)))
        await self.registry.put(
            f"nodes/{node}", published.encode_node(NodeRecord(id=ProcessId(node), incarnation=incarnation))
        )

    async def offer(self, node: str, name: str, *capabilities: Capability, **fields: Any) -> AgentRecord:
        """Register an agent that offers ``capabilities``, alone on its node."""
        offers = []
        for capability in capabilities:
            schema, data = published.encode_capability(capability)
            await self.registry.put(f"schemas/{node}/{schema}", data)
            offers.append(Offer(capability.name, capability.version, schema))
        agent = record(node, name, *offers, **fields)
        await self.register(node, agent)
        return agent


def record(node: str, name: str, *offers: Offer, **fields: Any) -> AgentRecord:
    return AgentRecord(id=AgentId(f"{node}/{name}"), name=name, node=ProcessId(node), offers=offers, **fields)


@asynccontextmanager
async def ground(**settings: Any) -> AsyncIterator[Ground]:
    made = Ground(**settings)
    try:
        async with asyncio.timeout(LIMIT_S * 2):
            yield made
    finally:
        for client in made.clients:
            await client.close()
