"""The outbox: what is sent together, what is cut, and what becomes of the rest."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from comity.bus.base import Address, Delivery, to
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.bus.outbox import Outbox
from comity.errors import TooLarge
from comity.model import wire
from comity.model.ids import ProcessId


class Peer:
    """A process that keeps the batches it gets, as lists of numbers."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self.bus = MemoryBus(network, ProcessId(name))
        self.batches: list[list[int]] = []
        self.sizes: list[int] = []
        self.came = asyncio.Event()

    async def listen(self) -> Peer:
        await self.bus.subscribe(to(self.bus.process), self._receive)
        return self

    async def until(self, count: int) -> list[list[int]]:
        """The batches, once they hold ``count`` items."""
        async with asyncio.timeout(20):
            while sum(map(len, self.batches)) < count:
                self.came.clear()
                await self.came.wait()
        return self.batches

    def _receive(self, delivery: Delivery) -> None:
        self.batches.append(
            [item.ref for item in wire.decode(delivery.data) if isinstance(item, wire.Ping | wire.Answer)]
        )
        self.sizes.append(len(delivery.data))
        self.came.set()


class GatedBus(MemoryBus):
    """A bus on which sending to an address whose gate is closed takes until it opens."""

    def __init__(self, network: MemoryNetwork, process: str) -> None:
        super().__init__(network, ProcessId(process))
        self.gates: dict[Address, asyncio.Event] = {}
        self.sends = 0

    async def send(self, address: Address, data: bytes) -> None:
        self.sends += 1
        if address in self.gates:
            await self.gates[address].wait()
        await super().send(address, data)


def large(ref: int, size: int) -> wire.Answer:
    return wire.Answer(ref, "", bytes(size))


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


@pytest.fixture
def bus(network: MemoryNetwork) -> GatedBus:
    return GatedBus(network, "a")


@pytest.fixture
async def peer(network: MemoryNetwork) -> Peer:
    return await Peer(network, "b").listen()


async def test_what_is_posted_in_one_turn_of_the_loop_goes_together_in_order(bus: GatedBus, peer: Peer) -> None:
    outbox = Outbox(bus)
    for number in range(100):
        outbox.post(to("b"), wire.Ping(number))
    assert bus.sends == 0
    await asyncio.sleep(0)
    assert bus.sends == 1
    assert await peer.until(100) == [list(range(100))]


async def test_an_idle_pipe_does_not_wait_for_more(bus: GatedBus, peer: Peer) -> None:
    outbox = Outbox(bus)
    for number in range(3):
        outbox.post(to("b"), wire.Ping(number))
        await asyncio.sleep(0)
        assert bus.sends == number + 1
    assert await peer.until(3) == [[0], [1], [2]]


async def test_while_a_batch_is_on_its_way_the_next_one_gathers(bus: GatedBus, peer: Peer) -> None:
    outbox = Outbox(bus)
    gate = bus.gates[to("b")] = asyncio.Event()
    for number in range(10):
        outbox.post(to("b"), wire.Ping(number))
        await asyncio.sleep(0)
    assert bus.sends == 1
    gate.set()
    assert await peer.until(10) == [[0], list(range(1, 10))]


async def test_a_stuck_address_holds_up_no_other(bus: GatedBus, network: MemoryNetwork, peer: Peer) -> None:
    outbox = Outbox(bus)
    stuck = await Peer(network, "c").listen()
    gate = bus.gates[to("c")] = asyncio.Event()
    outbox.post(to("c"), wire.Ping(1))
    outbox.post(to("b"), wire.Ping(2))
    assert await peer.until(1) == [[2]]
    draining = asyncio.create_task(outbox.drain())
    await asyncio.sleep(0)
    assert (stuck.batches, draining.done()) == ([], False)
    gate.set()
    await draining
    assert await stuck.until(1) == [[1]]


async def test_a_large_batch_is_cut(bus: GatedBus, peer: Peer) -> None:
    outbox = Outbox(bus)
    sizes = [1, 70_000, 50_000, 70_000, 1, wire.BATCH_LIMIT - 100, 1, 1]
    for number, size in enumerate(sizes):
        outbox.post(to("b"), large(number, size))
    await outbox.drain()
    assert await peer.until(len(sizes)) == [[0, 1, 2], [3, 4], [5], [6, 7]]
    assert sorted(peer.sizes)[-2] <= wire.BATCH_BYTES + 5 < max(peer.sizes) <= wire.BATCH_LIMIT + 5


async def test_an_item_that_fits_nowhere_is_refused(bus: GatedBus, peer: Peer) -> None:
    outbox = Outbox(bus)
    outbox.post(to("b"), wire.Ping(1))
    with pytest.raises(TooLarge, match="Answer"):
        outbox.post(to("b"), large(2, wire.BATCH_LIMIT))
    outbox.post(to("b"), wire.Ping(3))
    assert await peer.until(2) == [[1, 3]]
    assert outbox.dropped == 0


async def test_while_the_bus_is_down_items_are_dropped_and_counted(
    bus: GatedBus, network: MemoryNetwork, peer: Peer
) -> None:
    outbox = Outbox(bus)
    network.disconnect(bus.process)
    for number in range(5):
        outbox.post(to("b"), wire.Ping(number))
        outbox.post(to("c"), large(number, 300_000))
    await outbox.drain()
    assert outbox.dropped == 10
    network.reconnect(bus.process)
    outbox.post(to("b"), wire.Ping(9))
    assert await peer.until(1) == [[9]]
    assert outbox.dropped == 10


async def test_drain_of_an_empty_outbox_returns(bus: GatedBus) -> None:
    async with asyncio.timeout(20):
        await Outbox(bus).drain()


async def test_a_fault_of_the_bus_is_not_hidden_and_blocks_nothing(network: MemoryNetwork, peer: Peer) -> None:
    class Faulty(MemoryBus):
        faulty = True

        async def send(self, address: Address, data: bytes) -> None:
            if self.faulty:
                raise RuntimeError("a fault")
            await super().send(address, data)

    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    bus = Faulty(network, ProcessId("f"))
    outbox = Outbox(bus)
    outbox.post(to("b"), wire.Ping(1))
    await outbox.drain()
    gc.collect()
    assert [str(context["exception"]) for context in failures] == ["a fault"]
    bus.faulty = False
    outbox.post(to("b"), wire.Ping(2))
    assert await peer.until(1) == [[2]]
