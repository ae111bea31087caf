"""A cluster of three ``comity up`` on loopback, each on a data directory of its own, and the nodes and clients of a town."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from town import LIMIT_S, Town

from comity.bus.nats import NatsBus
from comity.cli.cluster import survey
from comity.cluster.handover import hand_over
from comity.connect import identity, secured
from comity.contexts import Context
from comity.jetstream import JetStream


class Up(NamedTuple):
    """A ``comity up`` that is ready, and what it said then."""

    process: asyncio.subprocess.Process
    said: dict[str, Any]

    @property
    def server(self) -> psutil.Process:
        """The nats-server it runs."""
        (server,) = psutil.Process(self.process.pid).children()
        return server


class Trio(Town):
    """``ups`` by name: a, b, c. Clients and nodes come by way of b, unless told."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ups: dict[str, Up] = {}
        self.tokens: list[str] = []
        self.use("b")

    def use(self, name: str) -> None:
        self.data = self.folder / name
        self.env["COMITY_DATA_DIR"] = str(self.data)

    async def form(self, *words: str) -> None:
        """Found a cluster, with ``words`` for the first server, and have two join."""
        first, waiting = await self.launch("a", "--servers", "3", *words)
        assert (waiting["waiting_for"], waiting["servers"]) == (2, 1)
        self.tokens = waiting["tokens"]
        joining = [self.launch(name, "--join", token) for name, token in zip("bc", self.tokens, strict=True)]
        started = [first, *[process for process, _ in await asyncio.gather(*joining)]]
        for name, process in zip("abc", started, strict=True):
            self.ups[name] = await self.ready(process) if name == "a" else self.ups[name]

    async def launch(self, name: str, *words: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
        """Start ``comity up`` for server ``name``; what it says first."""
        process, said = await self.start(*self.typed(name), *words)
        while name != "a" and "waiting_for" in said:
            said = await line(process)
        if "waiting_for" not in said:
            self.ups[name] = Up(process, said)
        return process, said

    def typed(self, name: str) -> list[str]:
        return ["-m", "comity", "up", "--data", str(self.folder / name), "--port", "0", "--http-port", "0", "-o", "json"]

    async def ready(self, process: asyncio.subprocess.Process) -> Up:
        said = await line(process)
        while "waiting_for" in said:
            said = await line(process)
        return Up(process, said)

    async def again(self, name: str) -> None:
        """Start server ``name`` again, and wait until it takes part."""
        process, said = await self.start(*self.typed(name))
        self.ups[name] = Up(process, said) if "waiting_for" not in said else await self.ready(process)

    def context(self, name: str = "") -> Context:
        found = Context.read_local(self.folder / name if name else self.data)
        assert found is not None
        return found

    async def status(self, name: str = "") -> dict[str, Any]:
        return await survey(self.context(name))

    async def until(self, true: Callable[[dict[str, Any]], bool], name: str = "") -> dict[str, Any]:
        """The first status for which ``true`` holds. A group or controller that is slow to answer is missing in one."""
        async with asyncio.timeout(LIMIT_S):
            while not true(status := await self.status(name)):
                print(status["survives"]["text"], file=sys.stderr)
        return status

    async def until_whole(self, name: str = "", controllers: int = 2) -> dict[str, Any]:
        """Until one more server may fail and no copy is damaged, as all groups and so many controllers say; the status then."""

        def is_whole(status: dict[str, Any]) -> bool:
            seen = len(status["groups"]) == 4 and len(status["controllers"]) >= controllers and status["leader"] is not None
            return seen and status["survives"]["more"] >= 1 and not status["damaged"]

        return await self.until(is_whole, name)

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[JetStream]:
        """JetStream, as a controller may use it."""
        context = self.context()
        process, known = identity(context, "controller")
        assert known is not None
        options = secured(known.connect_options(), context.ca)
        bus = await NatsBus.connect(context.urls, process=process, options=options)
        js = await JetStream(bus.connection, 5.0).open()
        yield js
        await js.close()
        await bus.close()

    async def lead_log_elsewhere(self, name: str) -> None:
        """Have the log's stream led by another server than ``name``."""
        async with self.stream() as js, asyncio.timeout(LIMIT_S):
            while failed := await hand_over(js, None, "main", self.ups[name].said["server"], 3):
                print(failed, file=sys.stderr)

    async def comity(self, *words: str) -> tuple[int, str, str]:
        """Type a command and wait for its end: exit code, what it said, and its errors."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "comity", *words,
            env=self.env, cwd=self.folder, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await asyncio.wait_for(process.communicate(), LIMIT_S)
        assert process.returncode is not None
        return process.returncode, out.decode(), err.decode()

    def leading(self, status: dict[str, Any]) -> str:
        """Which server's ``up`` has the controller that leads."""
        place = next(row["place"] for row in status["controllers"] if row["role"] == "leader")
        return next(name for name, up in self.ups.items() if up.said["server"] == place)


async def line(process: asyncio.subprocess.Process) -> dict[str, Any]:
    assert process.stdout is not None
    text = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
    assert text, f"ended with {await process.wait()}"
    said: dict[str, Any] = json.loads(text)
    return said
