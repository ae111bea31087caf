"""``comity bench recovery``: how long work stands still when its node is killed, hangs, or is cut off.

Attempts wait until they are let go, and the other nodes have room for all of them. A round kills (or stops, or cuts off) the node
with most work and watches the event stream. Its figure is the time from just before the signal until the last of that work was
reported to have begun elsewhere, with a higher epoch; the report's way to us counts too.
"""

from __future__ import annotations

import asyncio
import random
import socket
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from comity.cli.bench import Fault
from comity.cli.bench_figures import spread
from comity.cli.bench_network import Bench
from comity.cli.bench_proxy import Proxy
from comity.contexts import Context
from comity.errors import TimedOut

if TYPE_CHECKING:
    import psutil

    from comity import Client

AGENTS = 2
"""Agents of each node."""
LIMIT_S = 30.0
"""A round takes no longer, or has failed."""
BEACON_S = 0.5


class Round(NamedTuple):
    """Seconds until the node was evicted, and until everything it held ran elsewhere; how much that was."""

    evicted_s: float
    moved_s: float
    moved: int


async def measure(bench: Bench, fault: Fault, count: int, nodes: int, tasks: int) -> dict[str, Any]:
    """``count`` rounds with ``tasks`` attempts on ``nodes`` nodes; the figures. Raises ServerFailed, TimedOut."""
    crew = Crew(bench, fault, slots=-(-tasks // (AGENTS * (nodes - 1))))  # all but one node have room for everything
    watch = Watch(bench.net)
    try:
        for _ in range(nodes):
            await crew.hire()
        given = await bench.net.submit_many("bench.hold", range(tasks), retries=count)
        ids: set[str] = {task.id for task in given}
        await watch.until(lambda: len(ids & watch.where.keys()) == tasks, "that every task began")
        rounds = [await _round(crew, watch, fault, ids) for _ in range(count)]
        await bench.net.broadcast(topic="bench.enough")
        results = await asyncio.gather(*(task.result(LIMIT_S) for task in given), return_exceptions=True)
        await watch.until(lambda: len(ids & watch.ended.keys()) == tasks, "that every task ended")
    finally:
        await watch.stop()
        await crew.stop()
    bench.settings |= {"nodes": nodes, "agents": AGENTS * nodes, "attempts": tasks, "fault": str(fault)}
    return {
        **spread([one.moved_s for one in rounds]),
        **spread([one.evicted_s for one in rounds], "evicted_"),
        "count": count,
        "moved": sum(one.moved for one in rounds),
        "lost": sum(result != number for number, result in enumerate(results)),
        "duplicated": sum(watch.ended[task] - 1 for task in ids),
        "settings": bench.settings,
    }


async def _round(crew: Crew, watch: Watch, fault: Fault, ids: set[str]) -> Round:
    held = watch.held(ids)
    victim = max(held, key=lambda node: len(held[node]))
    before, joined = held[victim], watch.joined[victim]
    await asyncio.sleep(random.uniform(0, BEACON_S))  # at any moment between two beacons
    began = perf_counter()
    crew.strike(victim)
    try:
        await watch.until(lambda: all(watch.where[task].epoch > epoch for task, epoch in before.items()), "that all was moved")
    finally:
        crew.heal(victim)
    figures = Round(watch.evicted[victim] - began, max(watch.where[task].at for task in before) - began, len(before))
    if fault is Fault.KILL:
        await crew.hire()
    else:
        await watch.until(lambda: watch.joined[victim] > joined, "that the node came back")
    return figures


class Crew:
    """The node processes, by name, and what ``fault`` does to one. With PARTITION each reaches the server by a proxy of its
    own."""

    def __init__(self, bench: Bench, fault: Fault, slots: int) -> None:
        self.nodes: dict[str, psutil.Process] = {}
        self.proxies: dict[str, Proxy] = {}
        self._bench = bench
        self._fault = fault
        self._slots = slots

    async def hire(self) -> None:
        """Start a node, and wait until it may be given work."""
        proxy = await self._between() if self._fault is Fault.PARTITION else None
        data = self._way(proxy) if proxy is not None else None
        (process,), (agent, *_) = await self._bench.hire(1, AGENTS, self._slots, data)
        name = agent.partition("/")[0]
        self.nodes[name] = process
        if proxy is not None:
            self.proxies[name] = proxy

    async def _between(self) -> Proxy:
        (up,) = self._bench.ups
        host, _, port = _context(up.data).urls[0].rpartition("/")[2].rpartition(":")
        proxy = Proxy(socket.create_server((host, 0)), host, int(port))
        await proxy.start()
        return proxy

    def _way(self, proxy: Proxy) -> Path:
        """A folder that says: the network is behind ``proxy``."""
        (up,) = self._bench.ups
        folder = self._bench.folder / f"by-{proxy.port}"
        folder.mkdir()
        msgspec.structs.replace(_context(up.data), urls=(f"nats://127.0.0.1:{proxy.port}",)).write_local(folder)
        return folder

    def strike(self, name: str) -> None:
        if self._fault is Fault.KILL:
            self.nodes[name].kill()
        elif self._fault is Fault.PAUSE:
            self.nodes[name].suspend()
        else:
            self.proxies[name].cut()

    def heal(self, name: str) -> None:
        if self._fault is Fault.PAUSE:
            self.nodes[name].resume()
        elif self._fault is Fault.PARTITION:
            self.proxies[name].heal()

    async def stop(self) -> None:
        for proxy in self.proxies.values():
            await proxy.stop()


def _context(data: Path) -> Context:
    found = Context.read_local(data)
    assert found is not None
    return found


class Seen(NamedTuple):
    """An attempt that was reported to have begun, and when we heard of it."""

    node: str
    epoch: int
    at: float


class Watch:
    """The network's events, as they reach us: where each task runs, how often it ended, when nodes came and went."""

    def __init__(self, net: Client) -> None:
        self.where: dict[str, Seen] = {}
        self.ended: Counter[str] = Counter()
        self.evicted: dict[str, float] = {}
        self.joined: Counter[str] = Counter()
        self._net = net
        self._news = asyncio.Event()
        self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        async for event in self._net.events(after=0):
            at, kind, node = perf_counter(), event["type"], event.get("node", "")
            if kind == "task.started":
                self.where[event["task"]] = Seen(node, event["epoch"], at)
            elif kind == "task.completed":
                self.ended[event["task"]] += 1
            elif kind == "node.evicted":
                self.evicted[node] = at
            elif kind == "node.joined":
                self.joined[node] += 1
            self._news.set()

    def held(self, ids: set[str]) -> dict[str, dict[str, int]]:
        """Of these tasks, those that run on each node, with their epochs."""
        found: dict[str, dict[str, int]] = {}
        for task, seen in self.where.items():
            if task in ids:
                found.setdefault(seen.node, {})[task] = seen.epoch
        return found

    async def until(self, true: Callable[[], bool], what: str) -> None:
        """Wait for ``true``. Raises TimedOut, or what ended the events."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while not true():
                    self._news.clear()
                    news = asyncio.ensure_future(self._news.wait())
                    await asyncio.wait([news, self._reading], return_when=asyncio.FIRST_COMPLETED)
                    news.cancel()
                    if self._reading.done():
                        self._reading.result()
        except TimeoutError:
            raise TimedOut(f"it did not come to pass within {LIMIT_S:g} s {what}") from None

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])
