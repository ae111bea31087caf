"""Mail in a simulated life: senders, receivers, attempts that send, and the judge of what arrives.

What Comity promises of mail, and this judge holds it to: what was acknowledged is given to the function of each receiver, or is
a dead letter; what was refused is given to nobody; mail of one sender to one receiver is given in the order in which it was
sent; one life of a node gives a mail once, and what may have been given by an earlier one is marked as a repeat; mail of a fenced
attempt is never sent, that of the one that counts is sent once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any, NamedTuple

from comity.agent import Agent
from comity.client.client import Client
from comity.errors import ComityError, Definite, Indefinite
from comity.handles import Attempt
from comity.message import Message
from comity.sim.checkers import Violation
from comity.sim.loop import VirtualLoop
from comity.sim.world import Report, World

LARGE = "x" * 3000
LOOK_S = 0.5
BOXES = ("n1/box", "n2/box")


class Said(NamedTuple):
    """What a body says: who sent it as his ``number``-th, and in which attempt (0: none)."""

    sender: str
    number: int
    epoch: int


class MailJudge:
    """Told of everything that is sent and given; raises ``Violation`` at the first thing that must not be."""

    def __init__(self) -> None:
        self.repeats = 0
        self._accepted: dict[Said, tuple[str, tuple[str, ...]]] = {}
        self._refused: set[Said] = set()
        self._given: dict[tuple[str, Said], list[tuple[str, int, bool]]] = {}
        self._newest: dict[tuple[str, str], int] = {}
        self._epochs: dict[tuple[str, int], int] = {}
        self._completed: dict[str, int] = {}

    def accepted(self, said: Said, id: str, receivers: tuple[str, ...]) -> None:
        """Its sender was told that it is durable, as mail ``id``."""
        self._accepted[said] = id, receivers

    def refused(self, said: Said, code: str) -> None:
        """Its sender was told that it is not sent."""
        self._refused.add(said)
        for (receiver, other), _ in self._given.items():
            if other == said:
                raise Violation(f"{said} was refused ({code}), and {receiver} had it")

    def completed(self, task: str, mails: int) -> None:
        """A task that sent so many mails has its result."""
        self._completed[task] = mails

    def given(self, receiver: str, message: Message, said: Said) -> None:
        """A receiver's function is called with it. What is wrong ends the life: a function's own error would be its failure."""
        try:
            self._given_to(receiver, message, said)
        except Violation as violation:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            loop.abort(violation)
            raise

    def _given_to(self, receiver: str, message: Message, said: Said) -> None:
        if said in self._refused:
            raise Violation(f"{said} was refused, and {receiver} has it")
        past = self._given.setdefault((receiver, said), [])
        for id, fence, _ in past:
            if id != message.id:
                raise Violation(f"{receiver} has {said} as {id} and as {message.id}")
            if fence == message.fence:
                raise Violation(f"{receiver} has {said} twice in one life of its node")
        if past and not message.is_repeat:
            raise Violation(f"{receiver} has {said} again, and it is said to be the first time")
        self.repeats += bool(past)
        past.append((message.id, message.fence, message.is_repeat))
        if said.epoch:
            before = self._epochs.setdefault((said.sender, said.number), said.epoch)
            if before != said.epoch:
                raise Violation(f"mail {said.number} of task {said.sender} came from attempts {before} and {said.epoch}")
        newest = self._newest.get((receiver, said.sender), 0)
        if len(past) == 1:
            if said.number <= newest:
                raise Violation(f"{receiver} has {said} for the first time after number {newest} of the same sender")
            self._newest[receiver, said.sender] = said.number

    def finish(self, dead: list[dict[str, Any]]) -> None:
        """No mail waits any more; ``dead`` are all dead letters."""
        died = {(letter["receiver"], letter["id"]) for letter in dead}
        for said, (id, receivers) in self._accepted.items():
            for receiver in receivers:
                if (receiver, said) not in self._given and (receiver, id) not in died:
                    raise Violation(f"{said} was acknowledged, and {receiver} never had it")
        for task, mails in self._completed.items():
            if any(letter["id"].startswith(f"{task}/") for letter in dead):
                continue
            came = sorted(said.number for _, said in self._given if said.sender == task)
            if came != list(range(1, mails + 1)):
                raise Violation(f"task {task} has sent {mails} mails, and numbers {came} came")


def crew(judge: MailJudge) -> list[Agent]:
    """What each node hosts: a receiver, one that fails, and one that sends mail while it works."""
    box = Agent("box", tags={"reader"})
    box.join("readers")

    async def read(message: Message, body: dict[str, Any]) -> None:
        judge.given(message.envelope.receiver, message, Said(*body["said"]))
        await asyncio.sleep(0.01 if not body.get("slow") else 0.7)

    box.on("news")(read)
    courier = Agent("courier", concurrency=2)

    async def leg(odds: float, key: str) -> None:
        await asyncio.sleep(0.1)
        if Random(key).random() < odds:
            raise ConnectionError("the road was closed")

    async def carry(attempt: Attempt, mails: int, to: str) -> int:
        number = 0

        async def send() -> None:
            nonlocal number
            number += 1
            said = {"said": Said(attempt.id, number, attempt.epoch)}
            await attempt.send(to, said, topic="news", durable=True)

        for _ in range(mails - 1):
            await send()
            await attempt.step(f"leg {number}", leg, 0.3, f"{attempt.epoch}/{number}")
        await send()
        await asyncio.sleep(0.3)
        return number

    courier.capability(retries=20)(carry)
    return [box, courier]


class Sender:
    """One client: ``count`` mails, one after the other or several at a time, spread over ``until``."""

    def __init__(self, client: Client, judge: MailJudge, random: Random, count: int, until: float) -> None:
        self.client = client
        self.random = random
        self._judge = judge
        self._count = count
        self._until = until
        self._number = 0
        self._life = f"{client.process}-{random.getrandbits(32)}"

    async def run(self) -> None:
        """Raises Violation."""
        loop = asyncio.get_running_loop()
        jobs: list[asyncio.Task[None]] = []
        while self._number < self._count:
            await asyncio.sleep(self.random.expovariate(self._count / max(0.1, self._until - loop.time()) / 2))
            for _ in range(self.random.choice([1, 1, 1, 5])):
                jobs.append(loop.create_task(self._one()))
                await asyncio.sleep(0)
        await asyncio.gather(*jobs, *[self._carry() for _ in range(self.random.randrange(3))])

    async def _one(self) -> None:
        self._number += 1
        said, random = Said(self._life, self._number, 0), self.random
        body: dict[str, Any] = {"said": said, "slow": random.random() < 0.05}
        if random.random() < 0.05:
            body["large"] = LARGE
            await asyncio.sleep(0)
            self._number += 1
            said = Said(f"{self._life}-large-{self._number}", 1, 0)  # it goes by the store: others overtake it
            body["said"] = said
        await self._tell(said, body, random.choice([*BOXES, *BOXES, "tag", "group"]))

    async def _tell(self, said: Said, body: dict[str, Any], to: str) -> None:
        try:
            if to == "tag":
                id = await self.client.broadcast(body, topic="news", tags="reader", durable=True)
            elif to == "group":
                id = await self.client.broadcast(body, topic="news", group="readers", durable=True)
            else:
                id = await self.client.send(to, body, topic="news", durable=True)
        except Definite as error:
            self._judge.refused(said, error.code)
        except Indefinite:
            return
        else:
            self._judge.accepted(said, id, (to,) if to in BOXES else ())

    async def _carry(self) -> None:
        """Have a task send some."""
        mails = self.random.randrange(1, 5)
        try:
            task = await self.client.submit("carry", {"mails": mails, "to": self.random.choice(BOXES)})
            await task.result()
        except ComityError:
            return
        self._judge.completed(task.id, mails)


async def all_taken(client: Client) -> list[dict[str, Any]]:
    """Once no mail waits: the dead letters."""
    while True:
        try:
            if not (await client.stats())["mail"]["waiting"]:
                return list(await client.mail.dead(limit=200))
        except Indefinite:
            pass
        await asyncio.sleep(LOOK_S)


def live(seed: int, prepare: Callable[[World], None] | None = None, **options: Any) -> tuple[MailJudge, Report]:
    """One life of senders and receivers, judged; the judge and the world's report. ``prepare`` is given the world before it
    begins. Raises Violation."""
    judge, random = MailJudge(), Random(f"{seed}/mail")
    torture_s = options.pop("torture_s", random.choice([5.0, 10.0]))
    settings = {"retries": 20, "poison_nodes": 0, **options.pop("settings", {})}
    senders: list[str] = []
    finished: list[str] = []
    options = {"nodes": 2, "agents": lambda: crew(judge), "torture_s": torture_s, "settings": settings} | options
    world = World(seed, **options)
    until = world.loop.time() + torture_s
    if prepare is not None:
        prepare(world)

    async def work(client: Client) -> None:
        senders.append(client.process)
        await Sender(client, judge, Random(f"{seed}/{client.process}/{len(senders)}"), 60, until).run()
        await asyncio.sleep(max(0.0, until - asyncio.get_running_loop().time()))
        dead = await all_taken(client)
        finished.append(client.process)
        if len(set(finished)) == len(world.clients):
            judge.finish(dead)

    return judge, world.run(work)
