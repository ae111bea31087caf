"""``comity bench recovery --fault leader|server|restart|broker``: how long the network finishes nothing when one of its three
servers is killed, with the controller beside it, or stopped in order and started again; or when its only server is killed alone.

A round is made with a cluster that is whole. ``leader``: the victim's controller leads, and its server leads no stream, so that
the figure is that of the controllers. ``server``: the victim's server leads the log, and the figure holds the servers' own
election too. Tasks were accepted just before; they must end, and once. The figure is the time from just before the signal until a
task that was submitted after it has ended. ``restart``: tasks are submitted one after the other until the server, which led the
log, is back; the figure is the longest time that one took.
"""

from __future__ import annotations

import asyncio
import random
from time import perf_counter
from typing import Any

import psutil

from comity.cli.bench import Fault
from comity.cli.bench_figures import spread
from comity.cli.bench_network import Bench, Up
from comity.cli.bench_recovery import AGENTS, LIMIT_S, Watch
from comity.cli.cluster import survey
from comity.cluster.handover import hand_over
from comity.connect import identity, secured
from comity.contexts import Context
from comity.errors import Indefinite, TimedOut

LOOK_S = 0.1
PAUSE_S = 0.5
GONE_S = 10.0
APART_S = 1.5
"""Between two deaths of the only server: one that soon dies again and again is started later and later, and then given up."""


async def measure(bench: Bench, fault: Fault, count: int, nodes: int, tasks: int) -> dict[str, Any]:
    """``count`` rounds, each with ``tasks`` tasks that were accepted just before the fault. Raises ServerFailed, TimedOut."""
    await bench.hire(nodes, AGENTS * nodes, tasks)
    await bench.warm()
    watch = Watch(bench.net)
    trial = Trial(bench, fault, tasks)
    try:
        took = [await trial.round() for _ in range(count)]
        await watch.until(lambda: len(trial.ids & watch.ended.keys()) == len(trial.ids), "that every task ended")
    finally:
        await watch.stop()
    bench.settings |= {"attempts": tasks, "fault": str(fault)}
    return {
        **spread(took),
        "count": count,
        "tasks": len(trial.ids),
        "lost": trial.wrong,
        "duplicated": sum(watch.ended[task] - 1 for task in trial.ids),
        "settings": bench.settings,
    }


class Trial:
    """``ids`` of all tasks that were accepted, ``wrong`` results among them."""

    def __init__(self, bench: Bench, fault: Fault, tasks: int) -> None:
        self.ids: set[str] = set()
        self.wrong = 0
        self._bench = bench
        self._fault = fault
        self._tasks = tasks

    async def round(self) -> float:
        """Seconds until the network had accepted and finished a task again."""
        net = self._bench.net
        number = await self._victim()
        if self._fault is Fault.BROKER:
            await asyncio.sleep(APART_S)
        given = await net.submit_many("bench.echo", [{"text": "x" * n} for n in range(self._tasks)])
        self.ids |= {task.id for task in given}
        await asyncio.sleep(random.uniform(0, PAUSE_S))  # at any moment
        victim = self._bench.ups[number].process
        took = await self._restart(number) if self._fault is Fault.RESTART else await self._kill(victim)
        results = await asyncio.gather(*(task.result(LIMIT_S) for task in given), return_exceptions=True)
        self.wrong += sum(result != length for length, result in enumerate(results))
        if self._fault in (Fault.LEADER, Fault.SERVER):
            await asyncio.wait_for(self._bench.ups[number].ended(), GONE_S)
            await self._bench.again(number)
        return took

    async def _kill(self, victim: psutil.Process) -> float:
        """Seconds from the signal until a task submitted after it has ended."""
        dying = victim.children()
        began = perf_counter()
        if self._fault is Fault.BROKER:
            (server,) = dying
            server.kill()
        else:
            victim.kill()
        await self._next()
        took = perf_counter() - began
        await asyncio.to_thread(psutil.wait_procs, dying, GONE_S)
        return took

    async def _restart(self, number: int) -> float:
        """The longest time that a task took while the server went and came back."""
        victim, took = self._bench.ups[number].process, 0.0

        async def restart() -> None:
            victim.terminate()
            await asyncio.wait_for(self._bench.ups[number].ended(), LIMIT_S)
            await self._bench.again(number)

        restarting = asyncio.create_task(restart())
        while not restarting.done():
            began = perf_counter()
            await self._next()
            took = max(took, perf_counter() - began)
        await restarting
        return took

    async def _next(self) -> None:
        task = await self._bench.net.submit("bench.echo", {"text": "next"})
        self.ids.add(task.id)
        self.wrong += await task.result(LIMIT_S) != len("next")

    async def _victim(self) -> int:
        """Which server to kill. The cluster is whole then, and led as the fault wants it."""
        try:
            async with asyncio.timeout(LIMIT_S):
                while True:
                    status = await self._status()
                    if self._fault is Fault.BROKER and status["leader"]:
                        return 0
                    if status["survives"]["more"] >= 1 and status["leader"]:
                        victim = await self._led(status)
                        if victim is not None:
                            return victim
                    await asyncio.sleep(LOOK_S)  # that a replica has caught up cannot be awaited
        except TimeoutError:
            raise TimedOut(f"the cluster was not whole again within {LIMIT_S:g} s") from None

    async def _status(self) -> dict[str, Any]:
        return await survey(_context(self._bench.ups[0]))

    async def _led(self, status: dict[str, Any]) -> int | None:
        """The victim, or None if leaders have to move first: then they have been told to."""
        names = [up.server for up in self._bench.ups]
        leads = {group["name"]: group["leader"] for group in status["groups"]}
        if self._fault is not Fault.LEADER:
            return names.index(leads["log"]) if leads.get("log") in names else None
        place = next((row["place"] for row in status["controllers"] if row["role"] == "leader"), "")
        if place not in names:
            return None
        if place in leads.values():
            await self._relieve(place)
            return None
        return names.index(place)

    async def _relieve(self, server: str) -> None:
        """Have other servers lead the streams that ``server`` leads."""
        from comity.bus.nats import NatsBus
        from comity.cluster.status import SystemView
        from comity.credentials import Authority
        from comity.jetstream import JetStream

        up = self._bench.ups[0]
        context = _context(up)
        process, known = identity(context, "controller")
        assert known is not None
        options = secured(known.connect_options(), context.ca)
        bus = await NatsBus.connect(context.urls, process=process, network=context.network, options=options)
        view = await SystemView.connect(
            context.urls, f"{process}-view", Authority.load(up.data).mint("system", f"{process}-view").connect_options()
        )
        js = await JetStream(bus.connection, 1.0).open()
        try:
            await hand_over(js, view, context.network, server, len(self._bench.ups))
        except Indefinite:
            return  # it is looked at again
        finally:
            await js.close()
            await view.close()
            await bus.close()


def _context(up: Up) -> Context:
    found = Context.read_local(up.data)
    assert found is not None
    return found
