"""Move a folder, however large, from one node to another.

    comity run examples/relay.py --name left
    comity run examples/relay.py --name right
    python examples/relay.py FOLDER left right TARGET

Files go through the network's store in small pieces; neither node holds one in memory. If a node dies on the way, the next
attempt finds the files that are over there already, and goes on with the others.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import comity
from comity import Agent, Attempt, Break, FileRef, Final, Requirements
from comity.errors import BadInput
from comity.model.ids import AgentId

AT_ONCE = 4
agent = Agent("relay", concurrency=AT_ONCE + 1)


@dataclass
class Moved:
    path: str
    size: int


@dataclass
class Summary:
    files: int
    size: int


@agent.capability(retries=10)
async def move(attempt: Attempt, folder: str, to: str, target: str) -> AsyncIterator[Moved | Final[Summary]]:
    """Copy a folder of this node's to a folder of node ``to``, and say which files are there as they arrive."""
    root, left = Path(folder), files_in(folder)
    under_way: set[asyncio.Task[Moved]] = set()
    moved: list[Moved] = []
    try:
        while left or under_way:
            while left and len(under_way) < AT_ONCE:
                under_way.add(asyncio.create_task(one(attempt, left[0], left.pop(0).relative_to(root).as_posix(), to, target)))
            done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                moved.append(each.result())
                yield moved[-1]
    finally:
        for each in under_way:
            each.cancel()
    yield Final(Summary(len(moved), sum(file.size for file in moved)))


def files_in(folder: str) -> list[Path]:
    return sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.is_symlink())


async def one(attempt: Attempt, path: Path, name: str, to: str, target: str) -> Moved:
    """Hand one file over. The key makes it the same task in the next attempt, done already or not."""
    file = await attempt.put_file(path)
    given = {"file": file, "path": name, "target": target, "mode": os.stat(path).st_mode & 0o777}
    task = await attempt.submit("receive", given, key=f"{attempt.id}/{name}", requirements=relay_on(to), retries=10)
    await task.result()
    return Moved(name, file.size)


def relay_on(node: str) -> Requirements:
    return Requirements(agent=AgentId(f"{node}/{agent.name}"))


@agent.capability
async def receive(attempt: Attempt, file: FileRef, path: str, target: str, mode: int) -> None:
    """Write a file that another node sent under ``target``."""
    place = place_for(path, target)
    await attempt.get_file(file, place)
    os.chmod(place, mode)


def place_for(path: str, target: str) -> Path:
    place = Path(target, path)
    if not place.resolve().is_relative_to(Path(target).resolve()):
        raise BadInput(f"{path} leads out of {target}")
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


async def main(folder: str, source: str, to: str, target: str) -> None:
    given = {"folder": folder, "to": to, "target": target}
    async with comity.connect() as net, net.stream("move", given, requirements=relay_on(source)) as parts:
        async for part in parts:
            print("begun again" if isinstance(part, Break) else f"{part['size']:>12,}  {part['path']}")
        whole = await parts.result(as_type=Summary)
    print(f"{whole.files} files, {whole.size:,} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit("usage: python examples/relay.py FOLDER SOURCE-NODE TARGET-NODE TARGET-FOLDER")
    _, folder, source, to, target = sys.argv
    asyncio.run(main(os.path.abspath(folder), source, to, os.path.abspath(target)))
