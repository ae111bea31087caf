"""The processes that chaos is made with: three ``comity up``, each with a server and a controller, and nodes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from disks import Disk
from harm_cluster import ClusterHarm
from links import EDGE, HUB, Links

from comity.cli.bench_proxy import Proxy
from comity.cli.cluster import survey
from comity.contexts import Context

if TYPE_CHECKING:
    from nemesis import Harm, Nemesis

SERVERS = "abc"
START_S = 90.0
STOP_S = 20.0
PORT = 4222
NO_LINKS = "network namespaces are not allowed here"
CREW = '''
import asyncio, os, secrets
from comity import Agent, Attempt

runs = open(os.environ["RUNS"], "a", buffering=1)

def worker(name):
    agent = Agent(name, concurrency=64)

    @agent.capability
    async def work(attempt: Attempt, number: int, seconds: float, text: str = "") -> list:
        """Say what nobody else could say: the ledger has it before the network has."""
        await asyncio.sleep(seconds)
        mark = secrets.token_hex(8)
        runs.write(f"{attempt.id} {attempt.epoch} {mark}\\n")
        return [number, attempt.epoch, mark]

    return agent

agents = [worker("a"), worker("b")]
'''


class Player:
    """A process of ours that may die and come back. ``within``: the words that put it into its namespace."""

    def __init__(self, name: str, folder: Path, env: dict[str, str], within: list[str]) -> None:
        self.name = name
        self.process: asyncio.subprocess.Process | None = None
        self._log = folder / f"{name}.err"
        self._env = env
        self._folder = folder
        self._within = within

    @property
    def is_up(self) -> bool:
        return self.process is not None and self.process.returncode is None

    async def launch(self, *words: str) -> dict[str, Any]:
        """Start it; the first line that it says. Raises RuntimeError."""
        with self._log.open("ab") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *self._within, sys.executable, "-m", "comity", *words, "-o", "json",
                env=self._env, cwd=self._folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        return await self.line()

    async def line(self) -> dict[str, Any]:
        """The next line that it says."""
        assert self.process is not None and self.process.stdout is not None
        text = await asyncio.wait_for(self.process.stdout.readline(), START_S)
        if not text:
            status = await self.process.wait()
            raise RuntimeError(f"{self.name} ended with {status}: {self._log.read_text(errors='replace')[-600:]}")
        said: dict[str, Any] = json.loads(text)
        return said

    def processes(self) -> list[psutil.Process]:
        """It, and what it runs."""
        if not self.is_up:
            return []
        assert self.process is not None
        try:
            first = psutil.Process(self.process.pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def pause(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def resume(self) -> None:
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    async def kill(self) -> None:
        """SIGKILL; returns once it and what it ran are gone."""
        victims = self.processes()
        if self.process is not None:
            if self.is_up:
                self.process.kill()
            await self.process.wait()
        _, alive = await asyncio.to_thread(psutil.wait_procs, victims, STOP_S)
        if alive:
            raise RuntimeError(f"{alive} did not end with {self.name}")

    async def stop(self) -> None:
        """Ask it to end; what takes too long is killed, and that is an error."""
        if not self.is_up:
            return
        assert self.process is not None
        self.resume()
        self.process.send_signal(signal.SIGINT)
        try:
            await asyncio.wait_for(self.process.wait(), STOP_S)
        except TimeoutError:
            await self.kill()
            raise RuntimeError(f"{self.name} did not end within {STOP_S:g} s of SIGINT") from None


class Server(Player):
    """A ``comity up`` with its disk. ``member`` is its server's name in the cluster."""

    def __init__(self, name: str, folder: Path, env: dict[str, str], disk: Disk, links: Links | None) -> None:
        super().__init__(name, folder, env, links.within(name) if links is not None else [])
        self.disk = disk
        self.member = ""
        self._words = ["up", "--data", str(disk.data), "--http-port", "0"]
        self._words += ["--listen", links.address[name], "--port", str(PORT)] if links is not None else ["--port", "0"]

    async def begin(self, *words: str) -> dict[str, Any]:
        return await self.launch(*self._words, *words)

    async def join(self, token: str) -> None:
        await self.ready(await self.begin("--join", token))

    async def ready(self, said: dict[str, Any]) -> None:
        """Until it takes part; ``said`` is what it said first."""
        while "waiting_for" in said:
            said = await self.line()
        self.member = said["server"]

    async def start(self) -> None:
        """Start it again. It takes part when this returns."""
        await self.ready(await self.launch(*self._words))


class Crew:
    """Nodes, and what all processes of a run share. Nodes n3 and n4 reach the servers by way of ``proxies``."""

    def __init__(self, folder: Path, chance: random.Random, links: Links | None) -> None:
        self.folder = folder
        self.links = links
        self.proxies: list[Proxy] = []
        self.ledger = folder / "runs.txt"
        self.ledger.touch()
        (folder / "crew.py").write_text(CREW)
        env = {name: value for name, value in os.environ.items() if not name.startswith(("COMITY_", "COVERAGE_"))}
        env |= {name: os.environ[name] for name in ("COMITY_NATS_SERVER",) if name in os.environ}
        self.env = env | {"COMITY_CONFIG": str(folder / "config"), "RUNS": str(self.ledger)}
        self.env["COMITY_POISON_NODES"] = "0"  # no task is to blame for what the nemesis does
        self.nodes: dict[str, Player] = {}
        self._chance = chance

    async def begin(self) -> None:
        """Start the nodes: those near to the servers, and those behind the proxies."""
        for name, place in (("n1", HUB), ("n2", HUB), ("n3", EDGE), ("n4", EDGE)):
            env = self.env | {"COMITY_DATA_DIR": str(self.folder / place)}
            within = self.links.within(place) if self.links is not None else []
            self.nodes[name] = Player(name, self.folder, env, within)
        await asyncio.gather(*(self.hire(name) for name in self.nodes))

    async def hire(self, name: str) -> None:
        """Start a node; return when it may be given work."""
        await self.nodes[name].launch("run", "crew.py", "--name", name)

    def context(self) -> Context:
        found = Context.read_local(self.folder / HUB)
        assert found is not None
        return found

    async def status(self) -> dict[str, Any]:
        return await survey(self.context())

    async def reach(self, host: str, port: int) -> int:
        """Make a way from behind the proxies to a server there; the port by which it goes."""
        links = self.links
        listener = links.listen(EDGE, host, port) if links is not None else socket.create_server(("127.0.0.1", 0))
        proxy = Proxy(listener, host, port, self._chance)
        self.proxies.append(proxy)
        await proxy.start()
        return proxy.port

    async def end(self, others: Sequence[Player]) -> list[str]:
        """End everything, nodes first; what did not go well."""
        problems = []
        for crowd in (self.nodes.values(), others):
            ended = await asyncio.gather(*(player.stop() for player in crowd), return_exceptions=True)
            problems += [str(error) for error in ended if isinstance(error, BaseException)]
        for proxy in self.proxies:
            await proxy.stop()
        return problems


class Company:
    """A network on servers of its own: three, with a controller each."""

    def __init__(self, folder: Path, chance: random.Random, links: Links | None, *, mounts: bool, disk_mb: int) -> None:
        self.crew = Crew(folder, chance, links)
        disks = {name: Disk(folder, name, disk_mb, mounts=mounts) for name in SERVERS}
        self.servers = {name: Server(name, folder, self.crew.env, disks[name], links) for name in SERVERS}

    async def form(self) -> None:
        """Found the cluster, and start the nodes."""
        first = self.servers["a"]
        said = await first.begin("--servers", "3")
        joining = zip("bc", said["tokens"], strict=True)
        await asyncio.gather(first.ready(said), *(self.servers[name].join(token) for name, token in joining))
        self._leave_context(HUB, ())
        ports = [await self.crew.reach(*_place(url)) for url in self.crew.context().urls]
        self._leave_context(EDGE, () if self.crew.links is not None else tuple(f"nats://127.0.0.1:{port}" for port in ports))
        await self.crew.begin()

    def harm(self, nemesis: Nemesis) -> Mapping[str, Harm]:
        return ClusterHarm(nemesis, self).kinds()

    def lacks(self, kind: str) -> str:
        disk = self.servers["a"].disk
        if "partition" in kind and self.crew.links is None:
            return NO_LINKS
        if kind.startswith("power cut") and disk.image is None:
            return disk.why
        if kind == "disk full" and not disk.can_fill:
            return disk.why
        return ""

    def leaving(self, member: str) -> Server | None:
        """The server with this name in the cluster."""
        return next((server for server in self.servers.values() if server.member == member), None)

    def _leave_context(self, place: str, urls: tuple[str, ...]) -> None:
        """How clients and nodes find the network: with keys and certificates that no server's disk takes away."""
        data, own = self.servers["a"].disk.data, self.crew.folder / place
        found = Context.read_local(data)
        assert found is not None
        known = [url for server in self.servers.values() if (c := Context.read_local(server.disk.data)) for url in c.urls[:1]]
        own.mkdir()
        shutil.copytree(data / "keys", own / "keys")
        shutil.copytree(data / "tls", own / "tls")
        ca = str(own / "tls" / "ca.pem") if found.ca else ""
        Context(urls=urls or tuple(known), network=found.network, authority=str(own), ca=ca).write_local(own)

    async def stop(self) -> list[str]:
        """End everything; what did not go well."""
        return await self.crew.end(list(self.servers.values()))


def _place(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("/")[2].rpartition(":")
    return host, int(port)
