"""A network on servers of others: one that carries messages, and clusters of three that keep log and registry. Two controllers,
of which one leads. The store is a folder."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from harm_foreign import ForeignHarm
from harm_links import MEMBERS
from links import EDGE, HUB, Links
from players import NO_LINKS, Crew, Player

from comity.contexts import Context
from comity.embedded import find_binary
from comity.ports import free_port, greet
from consuls import Consuls
from etcds import HOST, Etcds
from rabbits import Rabbit
from raft_processes import Rafts

if TYPE_CHECKING:
    from nemesis import Harm, Nemesis

CONTROLLERS = ("k1", "k2")
START_S = 30.0


class Carrier(Protocol):
    """The server that carries messages."""

    port: int

    def url(self, process: str = "", port: int = 0) -> str: ...
    async def start(self) -> None: ...
    async def kill(self) -> None: ...
    async def stop(self) -> None: ...
    async def close(self) -> None: ...
    def signal(self, signum: signal.Signals) -> None: ...


class Keepers(Protocol):
    """A cluster of servers that keeps the log, the registry, or both."""

    hosts: list[str]
    ports: list[int]

    @property
    def address(self) -> str: ...
    async def start(self, *which: int) -> None: ...
    async def kill(self, *which: int) -> None: ...
    async def stop(self, *which: int) -> None: ...
    async def leader(self) -> int: ...
    async def end_leases(self) -> int: ...
    def signal(self, signum: signal.Signals, *which: int) -> None: ...


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


class Nats:
    """A nats-server that carries messages, and keeps nothing."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port(HOST)
        self._log = folder / "nats.log"
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, process: str = "", port: int = 0) -> str:
        return f"nats://{HOST}:{port or self.port}"

    async def start(self) -> None:
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([find_binary(), "-a", HOST, "-p", str(self.port)], stdout=log, stderr=log)
        async with asyncio.timeout(START_S):
            while not await greet(HOST, self.port):  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.05)

    def signal(self, signum: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(signum)

    async def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            await asyncio.to_thread(self._process.wait)
            self._process = None

    async def stop(self) -> None:
        assert self._process is not None
        self._process.terminate()
        await asyncio.to_thread(self._process.wait, START_S)
        self._process = None

    async def close(self) -> None:
        await self.kill()


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
        self.bus: Carrier = Rabbit(_made(folder / "rabbit")) if stack.bus == "rabbitmq" else Nats(folder)
        hosts = [links.address[name] for name in MEMBERS] if links is not None else []
        within = [links.within(name) for name in MEMBERS] if links is not None else []
        self.keepers: dict[str, Keepers] = {
            name: MAKES[name](folder / name, len(MEMBERS), hosts=hosts, within=within)
            for name in dict.fromkeys((stack.log, stack.registry))
        }
        words = [
            "--bus" if stack.bus == "rabbitmq" else "--connect", self.bus.url(), "--store", f"file://{folder}/store",
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
        Context(urls=(self.bus.url(),)).write_local(self.crew.folder / HUB)
        bus = self.bus.url(port=await self.crew.reach(HOST, self.bus.port))
        doors = {}
        for name, keepers in self.keepers.items():
            ports = [await self.crew.reach(host, port) for host, port in zip(keepers.hosts, keepers.ports, strict=True)]
            if name == self.stack.registry and self.crew.links is None:
                doors["registry"] = f"{name}://{','.join(f'{HOST}:{port}' for port in ports)}"
        Context(urls=(bus,), doors=doors).write_local(self.crew.folder / EDGE)

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


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder
