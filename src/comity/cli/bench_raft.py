"""``comity bench raft``: the built-in Raft, three processes on this machine, each on the disk before it counts."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec

from comity.cli.bench_figures import spread
from comity.errors import Indefinite, ServerFailed
from comity.log.raft import RaftLog
from comity.ports import free_port
from comity.tie import tied

COMMAND = bytes(256)
GROUP = 64
"""Commands in an entry, as the leader's group commit packs them."""
IN_FLIGHT = 16
STOP_S = 10.0


class Members:
    """The processes, by id."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.addresses = {f"m{n + 1}": f"127.0.0.1:{free_port()}" for n in range(count)}
        self.processes: dict[str, Process] = {}

    async def start(self, id: str) -> None:
        """Raises ServerFailed."""
        members = ",".join(f"{member}={address}" for member, address in self.addresses.items())
        words = [str(self.folder / id), "--cluster", "bench", "--id", id, "--listen", self.addresses[id], "--members", members]
        process = await asyncio.create_subprocess_exec(*tied(sys.executable, "-m", "comity.raft", *words), stdout=PIPE)
        self.processes[id] = process
        assert process.stdout is not None
        said = msgspec.json.decode(await process.stdout.readline() or b"{}")
        if said.get("id") != id:
            raise ServerFailed(f"member {id} did not start: {said.get('error', {}).get('message', 'it said nothing')}")

    async def kill(self, id: str) -> None:
        process = self.processes.pop(id)
        process.kill()
        await process.wait()

    async def stop(self) -> None:
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        for process in self.processes.values():
            async with asyncio.timeout(STOP_S):
                await process.wait()


async def measure(count: int, rounds: int) -> dict[str, Any]:
    """``count`` appends of one command, one after the other; as many entries of grouped ones, several in flight; then the leader
    is killed, ``rounds`` times: how long until an append is taken again."""
    with tempfile.TemporaryDirectory(prefix="comity-bench-") as folder:
        members = Members(Path(folder), 3)
        try:
            await asyncio.gather(*(members.start(id) for id in members.addresses))
            log = await RaftLog.open(list(members.addresses.values()), "bench")
            try:
                durability = (await log.durability()).level
                single = spread(await _singly(log, count), "append_")
                grouped = await _grouped(log, count)
                outages = await _killed(log, members, rounds)
                lost = max(0, 2 * count + rounds - (await log.bounds())[1])
            finally:
                await log.close()
        finally:
            await members.stop()
    settings = {"members": 3, "group": GROUP, "in_flight": IN_FLIGHT, "command_bytes": len(COMMAND), "durability": durability}
    outage = spread(outages, "new_leader_") if outages else {}
    return {**single, **grouped, **outage, "lost": lost, "count": count, "rounds": rounds, "settings": settings}


async def _singly(log: RaftLog, count: int) -> list[float]:
    _, tail = await log.bounds()
    times = []
    for after in range(tail, tail + count):
        began = perf_counter()
        await log.append(COMMAND, after)
        times.append(perf_counter() - began)
    return times


async def _grouped(log: RaftLog, count: int) -> dict[str, Any]:
    _, tail = await log.bounds()
    waiting: asyncio.Queue[int] = asyncio.Queue()
    for after in range(tail, tail + count):
        waiting.put_nowait(after)
    entry = COMMAND * GROUP

    async def append() -> None:
        while not waiting.empty():
            await log.append(entry, waiting.get_nowait())

    began = perf_counter()
    await asyncio.gather(*(append() for _ in range(IN_FLIGHT)))
    took = perf_counter() - began
    return {"entries_per_s": round(count / took), "commands_per_s": round(count * GROUP / took)}


async def _killed(log: RaftLog, members: Members, rounds: int) -> list[float]:
    outages = []
    for _ in range(rounds):
        leader = (await log.status())["leader"]
        _, tail = await log.bounds()
        began = perf_counter()
        await members.kill(leader)
        while True:
            try:
                await log.append(COMMAND, tail)
                break
            except Indefinite:
                continue  # the next one waits for a leader
        outages.append(perf_counter() - began)
        await members.start(leader)
    return outages
