"""The processes of one network, to be killed: a test has a client in them, and reads what agents wrote down."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import comity
from comity import Client
from comity.config import Settings
from comity.embedded import EmbeddedServer

LIMIT_S = 30.0
CREW = '''
import asyncio, os, sys
from comity import Agent, Attempt

runs = open(os.environ["RUNS"], "a", buffering=1)

def worker(name):
    agent = Agent(name, concurrency=8)

    @agent.capability
    async def work(attempt: Attempt, number: int, seconds: float, until: str = "") -> int:
        """It takes so long, and until there is a file ``until``."""
        runs.write(f"begin {number} {attempt.epoch} {attempt.agent}\\n")
        await asyncio.sleep(seconds)
        while until and not os.path.exists(until):
            await asyncio.sleep(0.02)
        runs.write(f"end {number} {attempt.epoch} {attempt.agent}\\n")
        return number * number

    @agent.on("ask")
    async def answer(body: float) -> str:
        await asyncio.sleep(body)
        return name

    return agent

agents = [worker("a"), worker("b")]
'''


class Town:
    """``runs`` counts what agents began, by the task's number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.nodes: dict[str, asyncio.subprocess.Process] = {}
        """By name."""
        self._stack = contextlib.AsyncExitStack()
        (folder / "crew.py").write_text(CREW)
        self._ledger = folder / "runs.txt"
        self._ledger.touch()
        (folder / "err.txt").touch()
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("COMITY_")}
        self.env |= {"COMITY_DATA_DIR": str(self.data), "COMITY_CONFIG": str(folder / "config"), "RUNS": str(self._ledger)}
        if server := os.environ.get("COMITY_NATS_SERVER"):
            self.env["COMITY_NATS_SERVER"] = server

    async def __aenter__(self) -> Town:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()
        print(self.said())  # pytest shows it if the test failed

    async def up(self, port: int = 0) -> asyncio.subprocess.Process:
        process, _ = await self.start("-m", "comity", "up", "--port", str(port), "--http-port", "0", "-o", "json")
        return process

    async def rule(self, server: EmbeddedServer, name: str) -> asyncio.subprocess.Process:
        """Start a controller that follows the log of ``server``, and leads when nobody does."""
        process, _ = await self.start(str(Path(__file__).with_name("controlling.py")), str(server.data), server.url, name)
        return process

    async def hire(self, *names: str) -> None:
        """Start node processes; return when they may be given work."""
        words = ("-m", "comity", "run", "crew.py", "-o", "json", "--name")
        for name, (process, _) in zip(names, await asyncio.gather(*(self.start(*words, n) for n in names)), strict=True):
            self.nodes[name] = process

    async def start(self, *words: str) -> tuple[asyncio.subprocess.Process, dict[str, Any]]:
        """A Python process that has said it is ready, and what it said. It is killed in the end."""
        env = {name: value for name, value in self.env.items() if not name.startswith("COVERAGE_")}
        with (self.folder / "err.txt").open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                sys.executable, *words,
                env=env, cwd=self.folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        self._stack.push_async_callback(kill, process)
        assert process.stdout is not None
        line = await asyncio.wait_for(process.stdout.readline(), LIMIT_S)
        assert line, f"ended with {await process.wait()}: {self.said()}"
        return process, json.loads(line)

    def said(self) -> str:
        """What processes wrote on stderr."""
        return (self.folder / "err.txt").read_text()

    def held(self, number: int) -> dict[str, Any]:
        """The input of work that does not end before ``let_go``."""
        return {"number": number, "seconds": 0.0, "until": str(self.folder / "go")}

    def let_go(self) -> None:
        (self.folder / "go").touch()

    async def client(self) -> Client:
        loaded = Settings.load({"data_dir": self.data}, env={}, cwd=self.folder)
        return await self._stack.enter_async_context(comity.connect(settings=loaded))

    def runs(self, word: str = "begin") -> dict[int, list[str]]:
        """By the number of a task: who began it (or ended it), in order."""
        found: dict[int, list[str]] = {}
        for line in self._ledger.read_text().splitlines():
            said, number, _, agent = line.split()
            if said == word:
                found.setdefault(int(number), []).append(agent)
        return found


async def kill(process: asyncio.subprocess.Process) -> None:
    """SIGKILL, and wait for its end. A server that it ran dies with it."""
    if process.returncode is None:
        process.kill()
    await process.wait()


class Story:
    """The network's events as they come, for a test to wait for."""

    def __init__(self, net: Client) -> None:
        self.told: list[dict[str, Any]] = []
        self._net = net
        self._news = asyncio.Event()
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for event in self._net.events(after=0):
            self.told.append(event)
            self._news.set()

    async def until(self, true: Callable[[dict[str, Any]], bool], limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The first event for which ``true`` holds, told already or to come."""
        seen = 0
        async with asyncio.timeout(limit_s):
            while True:
                for event in self.told[seen:]:
                    if true(event):
                        return event
                seen = len(self.told)
                self._news.clear()
                await self._news.wait()

    def count(self, kind: str) -> Counter[str]:
        """How often each task had such an event."""
        return Counter(event["task"] for event in self.told if event["type"] == kind)

    async def stop(self) -> None:
        self._reading.cancel()
        await asyncio.wait([self._reading])


@contextlib.asynccontextmanager
async def story(net: Client) -> AsyncIterator[Story]:
    told = Story(net)
    try:
        yield told
    finally:
        await told.stop()
