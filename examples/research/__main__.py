"""Give a researcher a topic, kill its node half-way, and see another one go on where it was: python examples/research bees"""

from __future__ import annotations

import argparse
import asyncio
import sys
from asyncio.subprocess import Process
from pathlib import Path

import comity

AGENTS = Path(__file__).with_name("agents.py")
FATAL = "read"
"""After this step the node is killed."""


async def node(name: str) -> Process:
    """Start a node with a researcher; return when it may be given work."""
    words = ("-m", "comity", "run", str(AGENTS), "--name", name, "-o", "json")
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    print(f"node {name} is there")
    return process


async def survive(topic: str, slow_s: float, editor: str) -> None:
    async with comity.connect() as net:
        nodes = [await node("ada")]
        try:
            task = await net.submit("research", {"topic": topic, "slow_s": slow_s})
            async for event in task.events(after=0):
                match event["type"]:
                    case "task.step":
                        print(f"  {event['reason']:<8} done on {event['node']}")
                        if event["reason"] == FATAL and event["node"] == "ada":
                            nodes[0].kill()
                            nodes.append(await node("grace"))
                    case "task.retrying" | "task.requeued":
                        print(f"  {event['reason']}")
                    case "task.input_required":
                        name = editor or await asyncio.to_thread(input, "Approve? Your name: ")
                        await task.answer(name, name=event["reason"])
            print(await task.result())
        finally:
            for process in nodes:
                if process.returncode is None:
                    process.terminate()
                    await process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="research", description=__doc__)
    parser.add_argument("topic", nargs="?", default="bees")
    parser.add_argument("--slow", type=float, default=2.0, help="seconds that a step takes")
    parser.add_argument("--editor", default="", help="who approves; asked for if it is not said")
    given = parser.parse_args()
    asyncio.run(survive(given.topic, given.slow, given.editor))
