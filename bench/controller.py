"""What one task costs the controller, in microseconds of processor time: its own code, without server, disk or network.

    python bench/controller.py [--count N] [--agents N] [--waiting] [--profile]

The doors are in memory; one peer plays the client, two play nodes that answer at once. What the peers use is measured apart and
taken off. ``per_pace`` is the figure in steps of a loop that runs in between, to compare runs on a machine that is not ours
alone. ``--waiting``: all tasks are submitted before any agent is there. ``--profile``: where the time goes (cProfile).
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import pstats
import random
import statistics
import time
from itertools import islice

import uvloop

from comity.bus.base import LEADER, Delivery, to
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.cli.bench_figures import pace_us
from comity.config import Settings
from comity.controller.controller import JUMP_S, Controller
from comity.log.memory import MemoryLog, MemoryLogState
from comity.model import published, wire
from comity.model.capability import AgentRecord, NodeRecord, Offer
from comity.model.ids import AgentId, ProcessId, TaskIds
from comity.model.task import TaskSpec
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from comity.store.memory import MemoryStore, MemoryStoreState

NODES = 2
BATCH = 256
IN_FLIGHT = 8192
SLOTS = 2048
INPUT = b'{"text":"' + b"x" * 245 + b'"}'


class Peers:
    """A client and nodes, as cheap as can be; ``used_s`` is what they cost."""

    def __init__(self, network: MemoryNetwork, count: int) -> None:
        self.client = MemoryBus(network, ProcessId("client"))
        self.nodes = [MemoryBus(network, ProcessId(f"n{i}")) for i in range(NODES)]
        self.used_s = 0.0
        self.ended = self.accepted = 0
        self.done = asyncio.Event()
        self.all_accepted = asyncio.Event()
        self.known = asyncio.Event()
        self._count = count
        ids = TaskIds(lambda: int(time.time() * 1000), random.getrandbits(40))
        self._submits = iter(
            [wire.SubmitTask(TaskSpec(ids.next(), "echo", INPUT, self.client.process)) for _ in range(count)]
        )

    async def listen(self) -> None:
        await self.client.subscribe(to(self.client.process), self._hear)
        for node in self.nodes:
            await node.subscribe(to(node.process), lambda delivery, node=node: self._work(node, delivery))

    def submit(self, count: int) -> None:
        for _ in range(0, count, BATCH):
            batch = list(islice(self._submits, BATCH))
            if batch:
                self.client._send(LEADER, wire.encode(batch))

    def _hear(self, delivery: Delivery) -> None:
        begun = time.process_time()
        ended = 0
        for item in wire.decode(delivery.data):
            if type(item) is wire.Ended:
                ended += 1
            elif type(item) is wire.Accepted:
                self.accepted += len(item.tasks)
        if self.accepted >= self._count:
            self.all_accepted.set()
        if ended:
            self.ended += ended
            self.submit(ended)
        if self.ended >= self._count:
            self.done.set()
        self.used_s += time.process_time() - begun

    def _work(self, node: MemoryBus, delivery: Delivery) -> None:
        begun = time.process_time()
        done = []
        for item in wire.decode(delivery.data):
            if type(item) is wire.Run:
                done.append(wire.Done(item.task, item.epoch, b"245", 1))
            elif type(item) is wire.BeaconAck and item.known:
                self.known.set()
        if done:
            node._send(LEADER, wire.encode(done))
        self.used_s += time.process_time() - begun

    async def join(self, registry: MemoryRegistry, agents: int) -> None:
        for number, node in enumerate(self.nodes):
            await registry.put(f"nodes/{node.process}", published.encode_node(NodeRecord(id=node.process, incarnation=1)))
            mine = range(number, agents, NODES)
            slots = max(1, SLOTS // agents)
            records = [
                AgentRecord(
                    id=AgentId(f"{node.process}/a{i}"), name=f"a{i}", node=node.process, concurrency=slots,
                    offers=(Offer("echo", "1.0", ""),),
                )
                for i in mine
            ]  # fmt: skip
            for start in range(0, len(records), 500):
                part = records[start : start + 500]
                await registry.put(f"agents/{node.process}/{start // 500}", published.encode_agents(part))
            self.known.clear()
            await self._beat(node, 1)
            await asyncio.sleep(0.02)
            await self._beat(node, 2)
            await asyncio.wait_for(self.known.wait(), 5)

    async def _beat(self, node: MemoryBus, number: int) -> None:
        await node.send(LEADER, wire.encode([wire.Beacon(number, 1, 0.0, 0.1, 10.0, 0, 1, 1.0, 1024.0)]))

    async def keep_beating(self) -> None:
        for number in range(3, 1_000_000):
            await asyncio.sleep(0.5)
            for node in self.nodes:
                await self._beat(node, number)


async def run(count: int, agents: int, waiting: bool, profile: cProfile.Profile | None) -> dict[str, float]:
    network = MemoryNetwork()
    registries = MemoryRegistryState()
    controller = Controller(
        MemoryBus(network, ProcessId("k")), MemoryLog(MemoryLogState()), MemoryRegistry(registries),
        MemoryStore(MemoryStoreState()), Settings(), network_id="net", wall=time.time, random=random.random, eager=True,
        jump_s=JUMP_S,
    )  # fmt: skip
    peers = Peers(network, count)
    await peers.listen()
    await controller.start()
    await asyncio.wait_for(controller.led.wait(), 5)
    gc.collect()
    gc.freeze()
    beating = None
    if not waiting:
        await peers.join(MemoryRegistry(registries), agents)
        beating = asyncio.create_task(peers.keep_beating())
    late, paces = [], []

    async def watch() -> None:
        while True:
            due = time.perf_counter() + 0.002
            await asyncio.sleep(0.002)
            late.append(time.perf_counter() - due)
            if len(paces) * 0.1 < time.process_time() - began:
                begun = time.process_time()
                paces.append(pace_us())
                peers.used_s += time.process_time() - begun

    watcher = asyncio.create_task(watch())
    peers.used_s = 0.0
    began = time.process_time()
    if profile is not None:
        profile.enable()
    peers.submit(count if waiting else IN_FLIGHT)
    figures: dict[str, float] = {}
    if waiting:
        await peers.all_accepted.wait()
        figures["submit_us"] = (time.process_time() - began - peers.used_s) / count * 1e6
        await peers.join(MemoryRegistry(registries), agents)
        beating = asyncio.create_task(peers.keep_beating())
    await peers.done.wait()
    used = time.process_time() - began - peers.used_s
    if profile is not None:
        profile.disable()
    watcher.cancel()
    if beating is not None:
        beating.cancel()
    await controller.stop()
    figures["cpu_us_per_task"] = used / count * 1e6
    figures["per_pace"] = used / count * 1e6 / statistics.median(paces)
    figures["peers_us_per_task"] = peers.used_s / count * 1e6
    figures["loop_lag_max_ms"] = max(late) * 1000
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=50_000)
    parser.add_argument("--agents", type=int, default=8)
    parser.add_argument("--waiting", action="store_true")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    profile = cProfile.Profile() if given.profile else None
    figures = uvloop.run(run(given.count, given.agents, given.waiting, profile))
    print(", ".join(f"{name} {value:.1f}" for name, value in figures.items()))
    if profile is not None:
        pstats.Stats(profile).sort_stats("tottime").print_stats(45)


if __name__ == "__main__":
    main()
