"""An auction: translators of different speed and price, each on a node of its own, bid for a text, and the best bidder translates
it. In the third auction one of them is killed: it is out, and the next best gets the work.

    comity up                        # one terminal
    python examples/auction.py       # another; it starts and kills its nodes itself

    whoever is cheapest: 'all happy families are alike' translated by thrifty, for 5
    who is done within a second: 'all happy families are alike' translated by brisk, for 15
    the same, and brisk dies: 'all happy families are alike' translated by famous, for 45
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import Process

import comity
from comity import Agent, Client, Refuse

TEXT = "all happy families are alike"


def translator(name: str, price: float, seconds: float) -> Agent:
    agent = Agent(name)

    @agent.capability
    async def translate(text: str, within_s: float = 60) -> str:
        await asyncio.sleep(seconds)
        return f"{text!r} translated by {name}"

    @agent.bid("translate")
    def offer(text: str, within_s: float = 60) -> dict[str, float]:
        if seconds > within_s:
            raise Refuse(f"it takes me {seconds:g} s")
        return {"price": price * len(text.split()), "seconds": seconds}

    return agent


thrifty = translator("thrifty", price=1, seconds=1.5)
brisk = translator("brisk", price=3, seconds=0.2)
famous = translator("famous", price=9, seconds=0.4)


async def node(agent: str) -> Process:
    """Start a node with one of the translators; return when it may be given work."""
    words = ("-m", "comity", "run", f"{__file__}:{agent}", "--name", f"{agent}-node", "-o", "json")
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stdout=asyncio.subprocess.PIPE)
    assert process.stdout is not None
    await process.stdout.readline()
    return process


async def buy(net: Client, what: str, within_s: float) -> None:
    award = await net.call_for_proposals(
        "translate", {"text": TEXT, "within_s": within_s}, deadline_s=5, rank=lambda offer: offer.body["price"],
        repeatable=True,
    )
    print(f"{what}: {award.result}, for {award.proposal['price']:g}")


async def main() -> None:
    async with comity.connect() as net:
        nodes = {name: await node(name) for name in ("thrifty", "brisk", "famous")}
        try:
            await buy(net, "whoever is cheapest", within_s=60)
            await buy(net, "who is done within a second", within_s=1)
            auction = asyncio.ensure_future(buy(net, "the same, and brisk dies", within_s=1))
            nodes["brisk"].kill()
            await auction
        finally:
            for process in nodes.values():
                if process.returncode is None:
                    process.terminate()
                    await process.wait()


if __name__ == "__main__":
    asyncio.run(main())
