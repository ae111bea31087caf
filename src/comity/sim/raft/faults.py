"""What befalls a simulated Raft cluster."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from random import Random
from typing import TYPE_CHECKING, Any

from comity.errors import ComityError
from comity.model.raft import Snapshot
from comity.sim.checkers import Violation

if TYPE_CHECKING:
    from comity.raft.member import Member
    from comity.sim.raft.world import RaftWorld

KINDS = (
    "crash", "crash", "crash leader", "crash leader", "power cut", "pause", "pause leader", "cut", "cut leader", "one-way cut",
    "split", "loss", "doubling", "slow network", "slow disk", "full disk", "damage", "change", "change", "replace", "hand over",
)  # fmt: skip
MOST_VOTERS = 5


class Faults:
    """The plan of one life: kinds and moments, drawn from the world's seed."""

    def __init__(self, world: RaftWorld, counts: dict[str, int] | None) -> None:
        self.world = world
        random = world.random
        if counts is None:
            kinds = [random.choice(KINDS) for _ in range(random.randint(2, 14))]
        else:
            kinds = [kind for kind, count in counts.items() for _ in range(count)]
            random.shuffle(kinds)
        plan = [(random.uniform(0.6, world.life_s), kind) for kind in kinds]
        apart = Random(f"{world.seed}/freeze")  # drawn apart: the lives of seeds that were kept stay what they were
        if counts is None and apart.random() < 0.2:
            plan.append((apart.uniform(0.6, world.life_s), "freeze leader"))
        self.plan = sorted(plan)
        self._tasks: list[asyncio.Task[None]] = []

    async def strike(self, until: float) -> None:
        loop = self.world.loop
        began = loop.time()
        for moment, kind in self.plan:
            await asyncio.sleep(max(0.0, began + moment - loop.time()))
            name = kind.replace(" leader", "").replace("one-way ", "").replace(" ", "_").replace("-", "_")
            act: Callable[[str, float], Coroutine[Any, Any, None]] = getattr(self, f"_{name}")
            self.world.note(f"fault: {kind}")
            self._tasks.append(loop.create_task(act(kind, self.world.random.uniform(0.05, 2.5))))
        await asyncio.sleep(max(0.0, until - loop.time()))

    async def heal(self) -> None:
        """End all of it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for task in self._tasks:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error
        world = self.world
        world.closed.clear()
        world.drop = world.twice = 0.0
        world.latency_s = (0.0003, 0.003)
        for place in world.places.values():
            place.disk.is_full = False
            place.disk.latency_s = (0.0002, 0.002)
            if place.process is not None:
                place.process.wake()
            world.start(place.id)

    def _victim(self, kind: str) -> str:
        leader = self.world.leader
        if "leader" in kind and leader is not None:
            return leader.id
        return self.world.random.choice(list(self.world.places))

    def _struck(self, kind: str) -> None:
        self.world.struck[kind] += 1

    async def _crash(self, kind: str, lasts_s: float) -> None:
        victim = self._victim(kind)
        self._struck(kind)
        self.world.crash(victim)
        await asyncio.sleep(lasts_s)
        self.world.start(victim)

    async def _power_cut(self, kind: str, lasts_s: float) -> None:
        self._struck(kind)
        for id in self.world.places:
            self.world.crash(id)
        await asyncio.sleep(lasts_s / 2)
        for id in list(self.world.places):
            self.world.start(id)

    async def _pause(self, kind: str, lasts_s: float) -> None:
        process = self.world.places[self._victim(kind)].process
        if process is not None:
            self._struck(kind)
            process.pause()
            await asyncio.sleep(lasts_s)
            process.wake()

    async def _freeze(self, kind: str, lasts_s: float) -> None:
        """A machine loses its network, stands still, and has its network back first. So what a leader hears when it wakes is what
        the next one says, all at once: its term, its entries, and that they are committed."""
        world, random = self.world, self.world.random
        victim = self._victim(kind)
        process = world.places[victim].process
        if process is None:
            return
        self._struck(kind)
        cut = {(a, b) for a in world.places for b in world.places if (a == victim) != (b == victim)}
        world.closed |= cut
        await asyncio.sleep(random.uniform(0.05, 0.4))  # not long enough to step down
        process.pause()
        await asyncio.sleep(random.uniform(0.6, 1.2))
        world.closed -= cut
        await asyncio.sleep(random.uniform(0.05, 0.3))
        process.wake()

    async def _cut(self, kind: str, lasts_s: float) -> None:
        victim = self._victim(kind)
        others = [id for id in self.world.places if id != victim]
        cut = {(victim, other) for other in others}
        if kind != "one-way cut":
            cut |= {(other, victim) for other in others}
        elif self.world.random.random() < 0.5:
            cut = {(other, victim) for other in others}
        await self._apart(kind, cut, lasts_s)

    async def _split(self, kind: str, lasts_s: float) -> None:
        left = {id for id in self.world.places if self.world.random.random() < 0.5}
        cut = {(a, b) for a in self.world.places for b in self.world.places if (a in left) != (b in left)}
        await self._apart(kind, cut, lasts_s)

    async def _apart(self, kind: str, cut: set[tuple[str, str]], lasts_s: float) -> None:
        self._struck(kind)
        self.world.closed |= cut
        await asyncio.sleep(lasts_s)
        self.world.closed -= cut

    async def _loss(self, kind: str, lasts_s: float) -> None:
        self._struck(kind)
        self.world.drop = self.world.random.uniform(0.02, 0.3)
        await asyncio.sleep(lasts_s)
        self.world.drop = 0.0

    async def _doubling(self, kind: str, lasts_s: float) -> None:
        self._struck(kind)
        self.world.twice = self.world.random.uniform(0.1, 0.5)
        await asyncio.sleep(lasts_s)
        self.world.twice = 0.0

    async def _slow_network(self, kind: str, lasts_s: float) -> None:
        self._struck(kind)
        self.world.latency_s = (0.0003, self.world.random.choice((0.05, 0.2, 0.6)))
        await asyncio.sleep(lasts_s)
        self.world.latency_s = (0.0003, 0.003)

    async def _slow_disk(self, kind: str, lasts_s: float) -> None:
        disk = self.world.places[self._victim(kind)].disk
        self._struck(kind)
        disk.latency_s = (0.0002, self.world.random.choice((0.05, 0.3, 1.0)))
        await asyncio.sleep(lasts_s)
        disk.latency_s = (0.0002, 0.002)

    async def _full_disk(self, kind: str, lasts_s: float) -> None:
        disk = self.world.places[self._victim(kind)].disk
        self._struck(kind)
        disk.is_full = True
        await asyncio.sleep(lasts_s)
        disk.is_full = False

    async def _damage(self, kind: str, lasts_s: float) -> None:
        """A bit of one member's log flips while it is down. It must be refused; that member is lost for this life. Where members
        change too, a majority might be lost by that."""
        world = self.world
        if any(place.is_lost for place in world.places.values()) or any(kind in ("change", "replace") for _, kind in self.plan):
            return
        victim = self._victim(kind)
        self._struck(kind)
        world.crash(victim)
        place = world.places[victim]
        place.disk.recover()  # a write that the crash cut is gone first: it looks damaged, too
        if place.disk.damage() is None:
            raise Violation(f"durability: a damaged log of {victim} was believed")
        place.is_lost = True

    async def _change(self, kind: str, lasts_s: float) -> None:
        """A new member learns and then votes, or one that votes leaves."""
        world = self.world
        leader = world.leader
        if leader is None:
            return
        config = leader.raft.config
        if len(config.voters) < MOST_VOTERS and world.random.random() < 0.6:
            spare = [id for id in world.places if id not in config.voters] or [f"m{len(world.places) + 1}"]
            id = world.random.choice(spare)
            if id not in world.places:
                world.add(id, Snapshot())
                world.start(id)
            self._struck("member added")
            await self._ask(lambda member: member.change(config.voters, (id,), {}))
            await asyncio.sleep(world.random.uniform(0.1, 0.6))
            await self._ask(lambda member: member.change((*member.raft.config.voters, id), (), {}))
        elif len(config.voters) > 3:
            goes = world.random.choice(config.voters)
            self._struck("member removed")
            await self._ask(lambda member: member.change(tuple(v for v in member.raft.config.voters if v != goes), (), {}))

    async def _replace(self, kind: str, lasts_s: float) -> None:
        """All but one of the voters leave, and two that have learnt come: the two groups may have no majority in common."""
        world = self.world
        leader = world.leader
        if leader is None:
            return
        voters = leader.raft.config.voters
        coming = [id for id in world.places if id not in voters][:2]
        while len(coming) < 2:
            coming.append(f"m{len(world.places) + 1}")
            world.add(coming[-1], Snapshot())
            world.start(coming[-1])
        self._struck("voters replaced")
        await self._ask(lambda member: member.change(member.raft.config.voters, tuple(coming), {}))
        await asyncio.sleep(world.random.uniform(0.3, 1.0))
        stays = world.random.choice(voters)
        await self._ask(lambda member: member.change((stays, *coming), (), {}))

    async def _ask(self, ask: Callable[[Member], Awaitable[None]]) -> None:
        leader = self.world.leader
        if leader is None:
            return

        async def asked(member: Member) -> None:
            await ask(member)

        try:
            await self.world.call("operator", leader.id, asked)
        except ComityError:
            return  # it may have been done, or not: the cluster must live with either

    async def _hand_over(self, kind: str, lasts_s: float) -> None:
        leader = self.world.leader
        if leader is not None:
            self._struck(kind)
            target = self.world.random.choice(leader.raft.config.voters)

            async def hand_over(member: Member) -> None:
                member.hand_over(target)

            await self._ask(hand_over)
