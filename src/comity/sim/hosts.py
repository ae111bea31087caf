"""The programs of a simulated world, each in a process that can be killed and comes back as a new one under the same name."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable, Iterable
from random import Random
from typing import NamedTuple

import structlog

from comity.agent import Agent
from comity.bus.base import Link
from comity.bus.memory import MemoryBus, MemoryNetwork
from comity.client.client import Client
from comity.config import Settings
from comity.controller.controller import Controller
from comity.errors import Indefinite, Unreachable
from comity.log.memory import MemoryLog, MemoryLogState
from comity.model.ids import ProcessId
from comity.node.measure import Load
from comity.node.node import Node
from comity.registry.memory import MemoryRegistry, MemoryRegistryState
from comity.sim.checkers import Truth, Violation
from comity.sim.doors import SimBus, SimLog, SimRegistry, SimStore, Tail
from comity.sim.faults import Clock
from comity.sim.links import Links
from comity.sim.loop import Crashed, Life, Process, SimulationError, VirtualLoop
from comity.sim.stage import Stage
from comity.store.memory import MemoryStore, MemoryStoreState

RESTART_S = 0.3
"""How soon a program that could not start, or stopped, is started again by whoever watches over it."""
NETWORK = "sim"

_log = structlog.get_logger("comity.sim")


class Doors(NamedTuple):
    bus: SimBus
    log: SimLog
    registry: SimRegistry
    store: SimStore


class Servers:
    """What stands behind the doors of one world."""

    def __init__(self, links: Links, tail: Tail) -> None:
        self.links = links
        self.tail = tail
        self.network = MemoryNetwork(links.carry)
        self.log = MemoryLogState()
        self.registry = MemoryRegistryState()
        self.store = MemoryStoreState()

    def doors(self, process: Process) -> Doors:
        """Fresh doors for a new process. Raises Unreachable if it cannot get to the bus."""
        if not (self.links.is_open(process.name, "bus") and self.links.is_open("bus", process.name)):
            raise Unreachable(f"{process.name} cannot connect")
        return Doors(
            SimBus(MemoryBus(self.network, ProcessId(process.name)), process, self.links),
            SimLog(MemoryLog(self.log), process, self.links, self.tail),
            SimRegistry(MemoryRegistry(self.registry), process, self.links),
            SimStore(MemoryStore(self.store), process, self.links),
        )


class Host:
    """One place where ``program`` runs, in one process after another; ``lives`` counts them. Once under way, the program puts
    what it runs into ``running``."""

    def __init__(self, name: str, servers: Servers, settings: Settings, seed: str, program: Program) -> None:
        self.name = name
        self.servers = servers
        self.settings = settings
        self.loop: VirtualLoop = servers.links.loop
        self.clock = Clock(self.loop)
        self.process: Process = self.loop.process(name)
        self.lives = 0
        self.running: Controller | Node | Client | None = None
        self._program = program
        self._seed = seed
        self._bus: MemoryBus | None = None
        self._main: asyncio.Task[None] | None = None

    def random(self) -> Random:
        """Randomness of its own for each life."""
        return Random(f"{self._seed}/{self.name}/{self.lives}")

    def revive(self) -> None:
        """Start a new process."""
        self.disconnect(noticed=False)
        self.lives += 1
        self.running = None
        self._bus = None
        self.process = self.loop.process(self.name)
        self.servers.links.processes[self.name] = self.process
        self._main = self.process.spawn(self._run(self.process))
        self._main.add_done_callback(self._ended)

    def _ended(self, main: asyncio.Task[None]) -> None:
        error = main.exception() if not main.cancelled() else None
        if error is not None and not isinstance(error, Crashed):
            violation = Violation(f"{self.name} failed: {error!r}")
            violation.__cause__ = error
            self.loop.abort(error if isinstance(error, SimulationError) else violation)

    def kill(self, *, noticed: bool) -> None:
        """As ``kill -9`` (the bus sees its connection close at once), or as the loss of its machine (the bus learns it later)."""
        self.process.kill()
        if noticed:
            self.disconnect(noticed=True)
        else:
            self.loop.call_later(self.servers.links.random.uniform(2.0, 10.0), self._found_dead, self.process)

    def _found_dead(self, process: Process) -> None:
        if self.process is process:
            self.disconnect(noticed=True)

    def disconnect(self, *, noticed: bool) -> None:
        """Its connection to the bus breaks."""
        if self._bus is not None and self._bus.link is Link.UP:
            self.servers.network.disconnect(self._bus.process, noticed=noticed)

    def reconnect(self, process: Process) -> None:
        """Mend the connection, if it is still that of ``process``."""
        if self.process is process and process.life is not Life.DEAD and self._bus is not None:
            self.servers.network.reconnect(self._bus.process)

    async def _run(self, process: Process) -> None:
        try:
            doors = self.servers.doors(process)
            self._bus = doors.bus.inner
            await self._program(self, doors)
        except Indefinite as error:
            _log.info("could not start; starting anew", error=error.message)
            self.loop.call_later(RESTART_S, self._again, process, context=contextvars.Context())

    def _again(self, process: Process) -> None:
        if self.process is process:
            self.kill(noticed=True)
            self.revive()


Program = Callable[[Host, Doors], Awaitable[None]]


async def controller(host: Host, doors: Doors) -> None:
    """A controller: nothing that may go wrong with doors may stop it."""
    made = Controller(
        *doors, host.settings, network_id=NETWORK, wall=host.clock.wall, random=host.random().random
    )
    await made.start()
    host.running = made
    await made.failed.wait()
    stopped = Violation(f"controller {host.name} stopped: {made.failure}")
    stopped.__cause__ = made.failure
    host.loop.abort(stopped)


def node(agents: Callable[[], Iterable[Agent]], truth: Truth) -> Program:
    """A node that hosts ``agents()``, made anew for each life."""

    async def run(host: Host, doors: Doors) -> None:
        made = Node(
            doors.bus, doors.registry, doors.store, host.settings,
            agents=agents(), wall=host.clock.wall, rng=host.random(),
            measure=lambda: Load(0.1, 100.0, 1.0, 1000.0), performer=lambda _: Stage(truth, host.loop),
        )  # fmt: skip
        await made.start()
        host.running = made
        await made.failed.wait()
        host.loop.abort(Violation(f"node {host.name} failed: {made.failure}"))

    return run


def client(work: Callable[[Host, Client], Awaitable[None]]) -> Program:
    """A client that does ``work``, and stays."""

    async def run(host: Host, doors: Doors) -> None:
        made = Client(doors.bus, doors.registry, doors.store, host.settings, wall=host.clock.wall, rng=host.random())
        await made.open()
        host.running = made
        await work(host, made)

    return run
