"""The network that a benchmark measures: a server and a controller, nodes in processes of their own, a client here.

CPU is what *all* these processes used, the server's included, as the operating system counts it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import psutil

    from comity import Client

READY_S = 60.0
STOP_S = 15.0
LINE_BYTES, FACT_BYTES = 2**26, 2**16
"""A node says who its agents are in one line; if they are many it is not read."""
WARM = 512
"""Tasks that are run before anything is measured."""

Started = tuple[asyncio.subprocess.Process, dict[str, Any]]


class Up(NamedTuple):
    """A ``comity up`` that takes part, on its data; ``server`` is its server's name in the cluster, "" for one by itself.
    ``ended`` waits for its end: whoever else waits for a child takes its end away from the event loop."""

    process: psutil.Process
    ended: Callable[[], Awaitable[int]]
    data: Path
    server: str
    durability: str


class Bench:
    """A network for one measurement. ``ups``: its servers; ``parts``: its processes by what they are; ``start_s``: from the start
    of ``comity up`` to the first accepted task; ``settings`` is printed with every figure."""

    def __init__(
        self, net: Client, ups: list[Up], folder: Path, stack: contextlib.AsyncExitStack, env: dict[str, str]
    ) -> None:
        self.net = net
        self.ups = ups
        self.folder = folder
        self.start_s = 0.0
        self.settings: dict[str, Any] = {"nodes": 0, "agents": 0}
        self.parts: dict[str, list[psutil.Process]] = {}
        self._stack = stack
        self._env = env

    async def hire(
        self, nodes: int, agents: int, slots: int, data: Path | None = None
    ) -> tuple[list[psutil.Process], list[str]]:
        """Start ``nodes`` node processes that host ``agents`` agents together, each of which takes ``slots`` tasks at a time;
        the processes, and the agents' ids. They find the network by the context in ``data`` (default: as everybody)."""
        import psutil

        first = self.settings["nodes"]
        words = ("run", "comity.cli.bench_agents", "--name")
        starts, ids = [], []
        for i in range(nodes):
            name, mine = f"bench-n{first + i}", (agents + i) // nodes
            env = self._env | {"COMITY_BENCH_AGENTS": str(mine), "COMITY_BENCH_SLOTS": str(slots)}
            env |= {"COMITY_DATA_DIR": str(data)} if data is not None else {}
            starts.append(asyncio.create_task(start(self._stack, env, self.folder / f"{name}.log", *words, name)))
            await asyncio.sleep(0)  # one is started in a turn of the loop
            ids += [f"{name}/bench-{number}" for number in range(mine)]
        processes = [psutil.Process(process.pid) for process, _ in await asyncio.gather(*starts)]
        self.parts.setdefault("nodes", []).extend(processes)
        self.settings |= {"nodes": first + nodes, "agents": self.settings["agents"] + agents, "slots": slots}
        return processes, ids

    async def again(self, number: int) -> None:
        """Start a ``comity up`` that was killed again, and wait until it takes part."""
        known = self.ups[number]
        self.ups[number] = await _ready(known.data, await start(self._stack, self._env, _log(known.data), *_up(known.data)))
        self._part()

    def _part(self) -> None:
        """Which processes are controllers, and which servers."""
        self.parts["controller"] = [up.process for up in self.ups]
        self.parts["server"] = [child for up in self.ups for child in up.process.children()]

    async def warm(self) -> None:
        """Run some tasks, so that every process has done everything once."""
        tasks = await self.net.submit_many("bench.echo", [{"text": "warm"}] * WARM)
        await asyncio.gather(*(task.result() for task in tasks))

    def cpu_s(self) -> dict[str, float]:
        """CPU seconds so far, by part."""
        return {
            part: sum(times.user + times.system for times in (process.cpu_times() for process in processes))
            for part, processes in self.parts.items()
        }

    def peak_rss_mb(self) -> float:
        """The most that one of the processes held so far (Linux), or holds now (elsewhere)."""
        return round(max(peak_bytes(processes) for processes in self.parts.values()) / 1e6, 1)


def rss_bytes(processes: list[psutil.Process]) -> int:
    """Resident memory of processes now."""
    return sum(process.memory_info().rss for process in processes)


def peak_bytes(processes: list[psutil.Process]) -> int:
    """The most that one of them held so far (Linux), or holds now (elsewhere)."""
    return max((_peak(process) for process in processes), default=0)


def _peak(process: psutil.Process) -> int:
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return int(process.memory_info().rss)
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@contextlib.asynccontextmanager
async def network(nodes: int, agents: int, *, slots: int, servers: int = 1, **settings: Any) -> AsyncIterator[Bench]:
    """An embedded network in processes of its own on fresh directories; gone afterwards. ``nodes`` 0: hire them later. More than
    one of ``servers`` form a cluster, all on this machine. ``settings`` are the network's, where they are not the default."""
    import psutil

    import comity
    from comity.config import Settings

    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="comity-bench-")))
        data = folder / "data"
        env = clean_env() | {"COMITY_DATA_DIR": str(data), "COMITY_CONFIG": str(folder / "config")}
        env |= {f"COMITY_{name.upper()}": str(value) for name, value in settings.items()}
        began = perf_counter()
        ups = await _form(stack, env, data, servers)
        where = {name: settings[name] for name in ("urls", "network") if "urls" in settings}
        loaded = Settings.load({"data_dir": data, **where}, env={}, cwd=folder)
        net = await stack.enter_async_context(comity.connect(settings=loaded))
        bench = Bench(net, ups, folder, stack, env)
        first = await net.submit("bench.echo", {"text": "first"})
        bench.start_s = perf_counter() - began
        bench.settings |= {"servers": servers, "durability": ups[0].durability}
        bench.parts["client"] = [psutil.Process()]
        bench._part()
        if nodes:
            await bench.hire(nodes, agents, slots)
            await first.result()
            await bench.warm()
        yield bench


async def _form(stack: contextlib.AsyncExitStack, env: dict[str, str], data: Path, servers: int) -> list[Up]:
    """Start all servers, the first on ``data`` and the others beside it."""
    first = await start(stack, env, _log(data), *_up(data), *(("--servers", str(servers)) if servers > 1 else ()))
    begun = [(data, first)]
    for number, token in enumerate(first[1].get("tokens", ()), 2):
        folder = data.with_name(f"{data.name}-{number}")
        begun.append((folder, await start(stack, env, _log(folder), *_up(folder), "--join", token)))
    return await asyncio.gather(*(_ready(folder, started) for folder, started in begun))


def _up(data: Path) -> tuple[str, ...]:
    return ("up", "--data", str(data), "--port", "0", "--http-port", "0")


def _log(data: Path) -> Path:
    return data.with_suffix(".log")


async def _ready(data: Path, started: Started) -> Up:
    """Once it no longer waits for other servers. Raises ServerFailed."""
    import psutil

    from comity.errors import ServerFailed

    process, facts = started
    assert process.stdout is not None
    try:
        while "waiting_for" in facts:
            facts = json.loads(await asyncio.wait_for(process.stdout.readline(), READY_S))
    except (TimeoutError, ValueError) as error:
        raise ServerFailed(f"a server of the cluster did not start: {_end_of(_log(data))}") from error
    return Up(psutil.Process(process.pid), process.wait, data, facts.get("server", ""), facts["durability"])


def clean_env() -> dict[str, str]:
    """Without the user's settings, and without what would measure the children's coverage."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("COMITY_", "COVERAGE_"))}
    return kept | {name: os.environ[name] for name in ("COMITY_NATS_SERVER",) if name in os.environ}


async def start(stack: contextlib.AsyncExitStack, env: dict[str, str], log: Path, *words: str) -> Started:
    """A ``comity`` process that is ready, and what it said then. It is ended with ``stack``. Raises ServerFailed."""
    from msgspec import MsgspecError, Raw
    from msgspec.json import decode

    from comity.errors import ServerFailed
    from comity.tie import tied

    with log.open("wb") as errors:
        process = await asyncio.create_subprocess_exec(
            *tied(sys.executable, "-m", "comity", *words, "-o", "json"),
            env=env, cwd=log.parent, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=errors,
            limit=LINE_BYTES,
        )  # fmt: skip
    stack.push_async_callback(_end, process)
    assert process.stdout is not None
    try:
        line = await asyncio.wait_for(process.stdout.readline(), READY_S)
        facts = decode(line, type=dict[str, Raw])
    except (TimeoutError, ValueError, MsgspecError) as error:
        raise ServerFailed(f"comity {words[0]} did not start: {_end_of(log)}") from error
    return process, {name: decode(value) for name, value in facts.items() if len(bytes(value)) < FACT_BYTES}


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-500:].strip()


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), STOP_S)
        except TimeoutError:
            process.kill()
            await process.wait()
