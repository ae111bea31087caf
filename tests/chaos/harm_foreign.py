"""What befalls servers of others that a network runs on, and the controllers that run beside them."""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from harm_links import MEMBERS, LinkHarm
from harm_nodes import NodeHarm

from etcds import Etcds

if TYPE_CHECKING:
    from foreign import Controller, Foreign, Keepers, Servers
    from nemesis import Harm, Nemesis

LOOK_S = 0.2
ASK_S = 10.0
LEASE_S = 3.0
"""A node's, by default."""
PATIENCE_S = 60.0
Chooses = Callable[[], Awaitable[int]]
T = TypeVar("T")


class ForeignHarm:
    def __init__(self, nemesis: Nemesis, foreign: Foreign) -> None:
        self._nemesis = nemesis
        self._foreign = foreign

    def kinds(self) -> Mapping[str, Harm]:
        nodes = NodeHarm(self._nemesis, self._foreign.crew)
        kinds: dict[str, Harm] = {
            "leader killed": self.kill_leader,
            "controller paused": self.pause_leader,
            "controller restarted": self.restart_controller,
            **nodes.kinds(),
            "node restarted": nodes.restart,
            "lease outlasted": partial(self.outlast_lease, nodes),
            "leases revoked": self.revoke_leases,
        }
        kinds |= ServerHarm(self._nemesis, self._foreign.stack.bus, self._foreign.bus).kinds()
        for name, keepers in self._foreign.keepers.items():
            kinds |= KeeperHarm(self._nemesis, name, keepers).kinds()
        return {**kinds, **LinkHarm(self._nemesis, self._foreign.crew.links, self._one_that_leads).kinds()}

    async def _one_that_leads(self) -> str:
        """The place of a member that leads its cluster, or carries messages. Members of other clusters are there too."""
        name = self._nemesis.chance.choice([self._foreign.stack.bus, *sorted(self._foreign.keepers)])
        if name == self._foreign.stack.bus:
            return self._nemesis.chance.choice(MEMBERS)
        return MEMBERS[await KeeperHarm(self._nemesis, name, self._foreign.keepers[name]).leader()]

    # Controllers

    async def _leading(self) -> Controller:
        """The one that leads; any if nobody does for long."""
        until = self._nemesis.now() + ASK_S
        while self._nemesis.now() < until:
            for controller in self._foreign.controllers.values():
                if await controller.leads():
                    return controller
            await self._nemesis.hold(LOOK_S)
        return self._any_controller()

    def _any_controller(self) -> Controller:
        return self._foreign.controllers[self._nemesis.chance.choice(sorted(self._foreign.controllers))]

    async def kill_leader(self) -> str:
        controller = await self._leading()
        self._nemesis.begins()
        await controller.kill()
        await self._nemesis.wait_a_moment()
        await controller.start()
        return controller.name

    async def pause_leader(self) -> str:
        return await self._nemesis.paused(await self._leading())

    async def restart_controller(self) -> str:
        controller = self._any_controller()
        await controller.stop()
        await controller.start()
        return controller.name

    async def outlast_lease(self, nodes: NodeHarm) -> str:
        """A node stands still until it was given up, and its records were taken out of the registry."""
        return await self._nemesis.paused(nodes.any(), 2 * LEASE_S)

    async def revoke_leases(self) -> str:
        """The registry forgets all that is bounded in time, though nobody is away."""
        keepers = self._foreign.keepers[self._foreign.stack.registry]
        return f"{await _patiently(self._nemesis, keepers.end_leases)} of them"


class ServerHarm:
    """What befalls a cluster of ``name`` whose servers are all alike."""

    def __init__(self, nemesis: Nemesis, name: str, servers: Servers) -> None:
        self._nemesis = nemesis
        self._name = name
        self._servers = servers

    def kinds(self) -> Mapping[str, Harm]:
        kinds: dict[str, Harm] = {f"all of {self._name} killed": self.kill_all}
        for role, choose in self.roles().items():
            kinds[f"{self._name} {role} killed"] = partial(self.kill, choose)
            kinds[f"{self._name} {role} paused"] = partial(self.pause, choose)
            kinds[f"{self._name} {role} restarted"] = partial(self.restart, choose)
        return kinds

    def roles(self) -> Mapping[str, Chooses]:
        return {"server": self.any}

    async def any(self) -> int:
        return self._nemesis.chance.randrange(len(MEMBERS))

    async def kill(self, choose: Chooses) -> str:
        one = await choose()
        self._nemesis.begins()
        await self._servers.kill(one)
        await self._nemesis.wait_a_moment()
        await self._servers.start(one)
        return MEMBERS[one]

    async def pause(self, choose: Chooses) -> str:
        one, seconds = await choose(), self._nemesis.for_a_while()
        self._nemesis.begins()
        self._servers.signal(signal.SIGSTOP, one)
        await self._nemesis.hold(seconds)
        self._servers.signal(signal.SIGCONT, one)
        return f"{MEMBERS[one]} for {seconds:.1f} s"

    async def restart(self, choose: Chooses) -> str:
        one = await choose()
        self._nemesis.begins()
        await self._servers.stop(one)
        await self._servers.start(one)
        return MEMBERS[one]

    async def kill_all(self) -> str:
        await self._servers.kill()
        await self._nemesis.wait_a_moment()
        await self._servers.start()
        return " ".join(MEMBERS)


class KeeperHarm(ServerHarm):
    """And a cluster of which one leads."""

    def __init__(self, nemesis: Nemesis, name: str, keepers: Keepers) -> None:
        super().__init__(nemesis, name, keepers)
        self._keepers = keepers

    def kinds(self) -> Mapping[str, Harm]:
        kinds = dict(super().kinds())
        if isinstance(self._keepers, Etcds):
            kinds["past compacted"] = partial(self.compact, self._keepers)
        return kinds

    def roles(self) -> Mapping[str, Chooses]:
        return {"leader": self.leader, "follower": self.follower}

    async def leader(self) -> int:
        """The number of the member that leads; any if nobody does for long."""
        until = self._nemesis.now() + ASK_S
        while self._nemesis.now() < until:
            try:
                return await self._keepers.leader()
            except (AssertionError, OSError):  # they elect one
                await self._nemesis.hold(LOOK_S)
        return self._nemesis.chance.randrange(len(MEMBERS))

    async def follower(self) -> int:
        return (await self.leader() + self._nemesis.chance.choice([1, 2])) % len(MEMBERS)

    async def compact(self, etcds: Etcds) -> str:
        """Whoever watches is cut off just as what it has not seen yet is forgotten: at one member after the other."""
        for one in range(len(MEMBERS)):
            await _patiently(self._nemesis, etcds.compact)
            await etcds.kill(one)
            await etcds.start(one)
        return "under all watches"


async def _patiently(nemesis: Nemesis, ask: Callable[[], Awaitable[T]]) -> T:
    """What ``ask`` gets of servers that may still be busy with the last fault."""
    until = nemesis.now() + PATIENCE_S
    while True:
        try:
            return await ask()
        except OSError:
            if nemesis.now() > until:
                raise
            await nemesis.hold(LOOK_S)
