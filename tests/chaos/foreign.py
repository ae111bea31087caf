"""A network on servers of others: one that carries messages, and clusters of three that keep log and registry. Two controllers,
of which one leads. The store is a folder."""

from __future__ import annotations

import asyncio
import random
import signal
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from harm_foreign import ForeignHarm
from harm_links import MEMBERS
from links import EDGE, HUB, Links
from players import NO_LINKS, Crew, Player

from comity.contexts import Context
from consuls import Consuls
from etcds import Etcds
from members import HOST
from natses import Natses
from rabbits import Rabbits
from raft_processes import Rafts

if TYPE_CHECKING:
    from nemesis import Harm, Nemesis

CONTROLLERS = ("k1", "k2")


class Servers(Protocol):
    """A cluster of them."""

    hosts: list[str]
    ports: list[int]

    async def start(self, *which: int) -> None: ...
    async def kill(self, *which: int) -> None: ...
    async def stop(self, *which: int) -> None: ...
    def signal(self, signum: signal.Signals, *which: int) -> None: ...


class Carrier(Servers, Protocol):
    """It carries messages. No server leads the others."""

    def urls(self, *ports: int) -> tuple[str, ...]: ...
    async def close(self) -> None: ...


class Keepers(Servers, Protocol):
    """It keeps the log, the registry, or both."""

    @property
    def address(self) -> str: ...
    async def leader(self) -> int: ...
    async def end_leases(self) -> int: ...


class Stack(NamedTuple):
    """Which servers keep what."""

    bus: str
    log: str
    registry: str


MAKES: dict[str, Callable[..., Keepers]] = {"etcd": Etcds, "consul": Consuls, "raft": Rafts}
STACKS = {
    "classic": Stack("rabbitmq", "etcd", "etcd"),
    "etcd": Stack("nats", "etcd", "etcd"),
    "consul": Stack("rabbitmq", "raft", "consul"),
}


class Controller(Player):
    """A ``comity up`` without a server."""

    def __init__(self, name: str, folder: Path, env: dict[str, str], words: list[str]) -> None:
        super().__init__(name, folder, env | {"COMITY_DATA_DIR": str(folder / name)}, [])
        self._words = words
        self._metrics = ""

    async def start(self) -> None:
        """It takes part when this returns."""
        said = await self.launch("up", "--http-port", "0", *self._words)
        self._metrics = said["metrics"]

    async def leads(self) -> bool:
        return await asyncio.to_thread(self._says_so)

    def _says_so(self) -> bool:
        try:
            with urllib.request.urlopen(self._metrics, timeout=2) as reply:
                return b"\ncomity_leader 1.0" in reply.read()
        except OSError:
            return False


class Foreign:
    """``keepers``: the clusters, by what they are."""

    def __init__(self, folder: Path, chance: random.Random, links: Links | None, stack: Stack) -> None:
        self.crew = Crew(folder, chance, links)
        self.stack = stack
        hosts = [links.address[name] for name in MEMBERS] if links is not None else []
        within = [links.within(name) for name in MEMBERS] if links is not None else []
        place, size = folder / stack.bus, len(MEMBERS)
        self.bus: Carrier = (
            Rabbits(place, size, hosts=hosts, within=within) if stack.bus == "rabbitmq"
            else Natses(place, size, hosts=hosts, within=within, tells=links is not None)
        )  # fmt: skip
        self.keepers: dict[str, Keepers] = {
            name: MAKES[name](folder / name, len(MEMBERS), hosts=hosts, within=within)
            for name in dict.fromkeys((stack.log, stack.registry))
        }
        words = [
            "--bus" if stack.bus == "rabbitmq" else "--connect", ",".join(self.bus.urls()), "--store", f"file://{folder}/store",
            "--log", self.keepers[stack.log].address, "--registry", self.keepers[stack.registry].address,
        ]  # fmt: skip
        self.controllers = {name: Controller(name, folder, self.crew.env, words) for name in CONTROLLERS}

    async def form(self) -> None:
        """Start servers, controllers and nodes."""
        await asyncio.gather(self.bus.start(), *(keepers.start() for keepers in self.keepers.values()))
        await self._leave_contexts()
        await asyncio.gather(*(controller.start() for controller in self.controllers.values()))
        await self.crew.begin()

    async def _leave_contexts(self) -> None:
        """How clients and nodes find the network: those at the edge by way of proxies."""
        Context(urls=self.bus.urls()).write_local(self.crew.folder / HUB)
        bus = await self._reached(self.bus)
        doors = {}
        for name, keepers in self.keepers.items():
            ports = await self._reached(keepers)
            if name == self.stack.registry and self.crew.links is None:
                doors["registry"] = f"{name}://{','.join(f'{HOST}:{port}' for port in ports)}"
        # What runs in a namespace has the servers' own addresses: only there it is the proxies that have them.
        urls = self.bus.urls() if self.crew.links is not None else self.bus.urls(*bus)
        Context(urls=urls, doors=doors).write_local(self.crew.folder / EDGE)

    async def _reached(self, servers: Servers) -> list[int]:
        """The ports by which proxies pass on to them."""
        return [await self.crew.reach(host, port) for host, port in zip(servers.hosts, servers.ports, strict=True)]

    def harm(self, nemesis: Nemesis) -> Mapping[str, Harm]:
        return ForeignHarm(nemesis, self).kinds()

    def lacks(self, kind: str) -> str:
        return NO_LINKS if "partition" in kind and self.crew.links is None else ""

    async def stop(self) -> list[str]:
        """End everything; what did not go well."""
        problems = await self.crew.end(list(self.controllers.values()))
        for keepers in self.keepers.values():
            await keepers.kill()
        await self.bus.close()
        return problems
