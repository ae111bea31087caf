"""A whole network in one thread and on virtual time: the real controllers, nodes and clients, with faults drawn from a seed.

    from comity.sim import World

    def test_my_agents_survive() -> None:
        async def work(net: Client) -> None:
            task = await net.submit("survey", {"path": "src"})
            assert await task.result() == 42

        for seed in range(100):
            World(seed, agents=lambda: [surveyor()]).run(work)

A life is tortured for a while and then healed. At every step the checkers watch that nothing happens which Comity promises
never happens; after healing, everything must come to an end. ``Violation`` says what went wrong, and with which seed: the same
seed lives the same life, whatever the machine.
"""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from random import Random
from types import ModuleType
from typing import Any, NamedTuple, NoReturn

import msgspec
import structlog

from comity import failpoints
from comity.agent import Agent
from comity.client.client import Client
from comity.config import Settings
from comity.controller import adopting, keeping, snapshot
from comity.controller.controller import Controller
from comity.controller.term import Term
from comity.core.ledger import Effective
from comity.model.codec import digest
from comity.model.ids import AgentId, NetworkId, ProcessId
from comity.node.node import Node
from comity.sim import hosts as programs
from comity.sim.checkers import CHECK_EVERY, Auditor, TaskModel, Truth, Violation
from comity.sim.crew import crew
from comity.sim.doors import Tail
from comity.sim.faults import Faults
from comity.sim.history import History
from comity.sim.hosts import Host, Servers
from comity.sim.liar import liar
from comity.sim.linear import check
from comity.sim.links import Event, Links, Trace
from comity.sim.loop import Life, SimulationError, VirtualLoop, current_process
from comity.sim.sights import Sights
from comity.sim.workload import Caller, Workload
from comity.store.memory import MemoryStore

STOP_S = 30.0
LOOK_S = 0.1
WELL_S = 5.0
"""So long, and a lease's time, after the last fault nobody who is alive may be taken for dead."""
JOBS = 35
"""Of each client: about a hundred tasks in all."""

Work = Callable[[Client], Awaitable[None]]


class Report(NamedTuple):
    """What became of one life. ``lived_s`` is virtual time; ``ends`` counts tasks by how they ended, ``faults`` by kind."""

    seed: int
    hash: str
    lived_s: float
    callbacks: int
    entries: int
    void: int
    terms: int
    ends: dict[str, int]
    faults: dict[str, int]
    operations: int


class World:
    """One life, by its seed. How many ``controllers``, ``nodes`` and ``clients`` there are, how long faults go on (``torture_s``;
    0: none), how much each kind of fault weighs (``faults``; {}: none) and the settings are drawn from the seed, but for what is
    given. ``liars`` say what is not so, as long as faults go on. ``agents()`` makes the agents of one node, anew whenever a node
    starts (default: ``crew.crew``). ``only`` names the faults of the plan that strike, by number (default: all)."""

    def __init__(
        self,
        seed: int,
        *,
        controllers: int | None = None,
        nodes: int | None = None,
        clients: int | None = None,
        liars: int = 0,
        agents: Callable[[], Iterable[Agent]] = crew,
        torture_s: float | None = None,
        faults: Mapping[str, float] | None = None,
        settings: Mapping[str, Any] | None = None,
        only: Collection[int] | None = None,
    ) -> None:
        self.seed = seed
        self.random = Random(f"{seed}/world")
        sizes = self.random.choice([1, 2, 2, 2, 3]), self.random.choice([1, 2, 3, 3, 4]), self.random.choice([1, 2, 2])
        controllers, nodes, clients = [
            drawn if given is None else given
            for drawn, given in zip(sizes, (controllers, nodes, clients), strict=True)
        ]
        self.loop = VirtualLoop()
        self.trace = Trace(self.loop)
        self.links = Links(self.loop, Random(f"{seed}/links"), self.trace)
        self.settings = msgspec.structs.replace(self._settings(), **(settings or {}))
        self.truth = Truth()
        self.auditor = Auditor(NetworkId(programs.NETWORK), self.truth, self._is_well)
        self.history = History()
        self.servers = Servers(self.links, Tail(self.links, self._appended))
        self.torture_s = self.random.choice([5.0, 10.0, 18.0]) if torture_s is None else torture_s
        self.settle_s = 120.0
        """How soon after healing everything must have ended."""
        self.sights = Sights(self.servers.registry, [f"n{n}" for n in range(1, nodes + 1)], self.loop.abort)
        self.known: list[str] = []
        self._work: Work | None = None
        self._unfinished: dict[str, None] = {}  # clients at work
        self._until = self.loop.time() + self.torture_s
        node = programs.node(agents, self.truth)
        self.controllers = [self._host(f"c{n}", programs.controller) for n in range(1, controllers + 1)]
        self.nodes = [self._host(f"n{n}", node) for n in range(1, nodes + 1)]
        self.clients = [self._host(f"u{n}", programs.client(self._client)) for n in range(1, clients + 1)]
        self.hosts = [*self.controllers, *self.nodes, *self.clients]
        lies = liar(lambda: self.auditor.state, [host.name for host in self.hosts], self._until)
        self.liars = [self._host(f"x{n}", lies) for n in range(1, liars + 1)]
        self.faults = Faults(
            self.links, self.hosts, f"{seed}/faults", self.controllers, faults, torture_s=self.torture_s, only=only
        )

        self.limits = {
            keeping: {
                "CHUNK_AGE_MS": self.random.choice([500, 500, keeping.CHUNK_AGE_MS]),
                "CHUNK_TASKS": self.random.choice([5, keeping.CHUNK_TASKS]),
            },
            snapshot: {"SLICE": self.random.choice([1, 3, snapshot.SLICE])},
            adopting: {"ADOPT_AFTER_MS": self.random.choice([300, 300, adopting.ADOPT_AFTER_MS])},
        }

    def _host(self, name: str, program: programs.Program) -> Host:
        return Host(name, self.servers, self.settings, str(self.seed), program)

    def _settings(self) -> Settings:
        """Short times, and limits low enough to be met; drawn from the seed."""
        choose = self.random.choice
        return Settings(
            network=programs.NETWORK, beacon_s=0.5, lease_s=choose([2.0, 3.0]), orphan_s=choose([4.0, 20.0]),
            drain_timeout_s=5.0, cancel_grace_s=choose([0.5, 2.0]), start_timeout_s=choose([2.0, 10.0]),
            attempt_timeout_s=choose([5.0, 20.0]), retries=choose([0, 1, 3]), request_timeout_s=6.0, submit_timeout_s=8.0,
            dedup_window_s=choose([10.0, 600.0]), max_waiting=choose([5, 1000, 1000, 1000]),
            snapshot_every=choose([10, 30, 100_000]), keep_finished=choose([20, 1_000_000, 1_000_000]),
            breaker_failures=choose([1, 2, 5]), breaker_open_s=choose([0.1, 0.3]),
            inspect_rate_mb=0,  # no disk is simulated that could be damaged
        )  # fmt: skip

    # Running it

    def run(self, work: Work | None = None) -> Report:
        """Live the life. ``work(client)`` is what each client does (default: a mixed workload whose history is checked); it may
        meet any error of ``comity.errors`` while faults last. Raises Violation."""
        self._work = work
        self.loop.set_exception_handler(self._unhandled)
        collecting = gc.isenabled()
        gc.disable()
        try:
            with _logs_to(self.trace), _instead(self.limits), failpoints.watched(self.faults.at_write):
                try:
                    self.loop.run_until_complete(self._life())
                    return self.report()
                finally:
                    self.loop.bury()
        except SimulationError as error:
            error.add_note(f"seed {self.seed}; live it again with: python -m comity.sim {self.seed} --trace")
            raise
        finally:
            self.loop.close()
            if collecting:
                gc.enable()

    async def _life(self) -> None:
        for host in [*self.hosts, *self.liars]:
            host.revive()
        await self.faults.torture()
        await asyncio.sleep(max(0.0, self._until - self.loop.time()))
        self.faults.heal()
        await self._by(self.settle_s, self._settled(), "everything to end")
        await self._by(STOP_S, self._stop(), "everything to stop")
        self._judge()
        await self._judge_snapshots()

    async def _by(self, limit_s: float, wait: Awaitable[None], what: str) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await wait
        except TimeoutError:
            open_ = [str(self.auditor.state.tasks.get(task)) for task in self.auditor.open_tasks()]
            lines = [f"{what} took more than {limit_s:g} s", f"clients at work: {list(self._unfinished)}"]
            lines += [told for host in self.clients if (told := self.sights.differ(host.name))]
            lines += [f"in the leader's books: {load} running at {agent}" for agent, load in self._loads()]
            lines += [f"{len(open_)} open tasks:", *open_[:5], "waiting:", *self.loop.waiting()[:60]]
            raise Violation("\n".join(lines)) from None

    async def _settled(self) -> None:
        """Everybody is back, the clients have done their work and see who is here, every task has ended, nothing is on its way to
        the log, and nothing runs according to the leader."""
        while (
            not all(host.running for host in self.hosts)
            or self._unfinished
            or self.auditor.open_tasks()
            or self.links.late
            or self._loads()
            or any(self.sights.differ(host.name) for host in self.clients)
        ):
            await asyncio.sleep(LOOK_S)

    def _leaders(self) -> list[tuple[Host, Term]]:
        """Controllers that lead, or believe so."""
        found = []
        for host in self.controllers:
            term = host.running.leading if isinstance(host.running, Controller) else None
            if term is not None and host.process.life is not Life.DEAD:
                found.append((host, term))
        return found

    def _loads(self) -> list[tuple[AgentId, int]]:
        """What runs where, according to who leads."""
        return [(agent.id, load) for _, term in self._leaders() for load, agent in term.reconcile.scheduling.busiest(10)]

    def _is_well(self, name: ProcessId, incarnation: int) -> bool:
        host = next((host for host in self.nodes if host.name == name), None)
        made = host.running if host is not None else None
        if host is None or not isinstance(made, Node) or made.incarnation != incarnation:
            return False
        return host.process.life is Life.RUNNING and self.faults.is_quiet(self.settings.lease_s + WELL_S)

    async def _stop(self) -> None:
        """Clients leave, nodes drain, everybody has read the whole log, controllers stop."""
        for group in (self.clients, self.nodes):
            await asyncio.gather(*[_leave(host) for host in group])
        while not all(self._has_read(host) for host in self.controllers):
            await asyncio.sleep(LOOK_S)
        await asyncio.gather(*[_leave(host) for host in self.controllers])

    def _has_read(self, host: Host) -> bool:
        """Whether a controller has read the whole log; then it must hold the same tasks as the auditor."""
        made = host.running
        if not isinstance(made, Controller) or made.ledger.index != self.auditor.ledger.index:
            return False
        self.auditor.compare(host.name, made.state)
        return True

    def _check(self) -> None:
        """The invariants that the programs themselves state."""
        for host, leading in self._leaders():
            leading.reconcile.check()
            leading.liveness.machine.check()
            members = {node: incarnation for node, incarnation, _ in leading.liveness.machine.members()}
            leases = {node: lease.incarnation for node, lease in leading.reconcile.state.nodes.items()}
            if members != leases:
                raise Violation(f"{host.name} leads and takes {members} for members, and leases are {leases}")

    def _judge(self) -> None:
        self.auditor.finish()
        for key, operations in self.history.by_key().items():
            found = check(operations, TaskModel(self.settings.keep_finished), key) if key else None
            if found is not None:
                raise Violation(str(found))

    async def _judge_snapshots(self) -> None:
        """Whoever starts from a stored snapshot and reads on comes to the same state as who read the whole log."""
        store = MemoryStore(self.servers.store)
        kept = {stored.key for stored in await store.list(keeping.DEAD)}
        if not {*self.auditor.state.dead.objects} <= kept:
            raise Violation(f"bodies of dead letters are gone: {self.auditor.state.dead.objects.keys() - kept}")
        for stored in await store.list(keeping.SNAPSHOTS):
            chunks = store.get(stored.key)
            state, ledger = await snapshot.load(chunks, self.auditor.network)
            for index, data in self.auditor.items[ledger.index :]:
                verdict = ledger.offer(index, data)
                if isinstance(verdict, Effective):
                    state.apply(verdict.entry, index)
            self.auditor.compare(stored.key, state)

    # What the programs do and report

    async def _client(self, host: Host, client: Client) -> None:
        self._unfinished[host.name] = None
        self.sights.follow(host.name, client)
        if self._work is not None:
            await self._work(client)
        else:
            random = host.random()
            caller = Caller(
                client, host.process, self.history, self.auditor, random, self.known, lambda: self.links.has_doubled
            )
            jobs = max(1, round(JOBS * (self._until - self.loop.time()) / max(self.torture_s, 1.0)))
            await Workload(caller, jobs, self._until, self.settings.submit_timeout_s).run()
        self._unfinished.pop(host.name, None)

    def _appended(self, index: int, data: bytes, writer: ProcessId) -> None:
        try:
            self.auditor.appended(index, data, writer)
            if index % CHECK_EVERY == 0:
                self._check()
        except (SimulationError, AssertionError) as error:
            self.loop.abort(error if isinstance(error, SimulationError) else Violation(str(error)))
            raise

    def _unhandled(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """An exception that nobody caught: a fault of the program, whatever the world did to it."""
        error = context.get("exception")
        if isinstance(error, SimulationError):
            self.loop.abort(error)
            return
        process = current_process()
        where = process.name if process is not None else "the world"
        violation = Violation(f"in {where}: {context['message']}: {error!r}")
        violation.__cause__ = error
        self.loop.abort(violation)

    def report(self) -> Report:
        """What happened, in figures."""
        kinds = Counter(event.what.removeprefix("fault: ") for event in self.trace.events if event.what.startswith("fault"))
        return Report(
            self.seed, trace_hash(self.trace.events), round(self.loop.time() - 1000.0, 3), self.loop.callbacks,
            len(self.auditor.items), self.auditor.void, len(self.auditor.leaders),
            dict(sorted(Counter(str(end.state) for end in self.auditor.ends.values()).items())),
            dict(sorted(kinds.items())), len(self.history.operations),
        )  # fmt: skip


def trace_hash(events: list[Event]) -> str:
    return digest(msgspec.msgpack.encode(events)).hex()


async def _leave(host: Host) -> None:
    """Have its program leave; if its process dies meanwhile, the next one."""
    while True:
        while host.process.life is Life.DEAD or host.running is None:
            await asyncio.sleep(LOOK_S)
        process = host.process
        leaving = process.spawn(_end(host))
        while not leaving.done() and process.life is not Life.DEAD:
            await asyncio.sleep(LOOK_S)
        if process.life is not Life.DEAD:
            return leaving.result()


async def _end(host: Host) -> None:
    made = host.running
    if isinstance(made, Client):
        await made.close()
    elif isinstance(made, Node):
        await made.drain()
        await made.stop()
    elif isinstance(made, Controller):
        await made.stop()


@contextmanager
def _instead(limits: dict[ModuleType, dict[str, int]]) -> Iterator[None]:
    """Lower limits, so that a short life meets them."""
    before = {module: {name: getattr(module, name) for name in names} for module, names in limits.items()}
    for module, names in limits.items():
        vars(module).update(names)
    try:
        yield
    finally:
        for module, names in before.items():
            vars(module).update(names)


@contextmanager
def _logs_to(trace: Trace) -> Iterator[None]:
    """What programs log becomes part of the trace."""

    def note(_logger: Any, method: str, event: MutableMapping[str, Any]) -> NoReturn:
        process = current_process()
        about = ", ".join(f"{key}={value}" for key, value in event.items() if key not in {"event", "exc_info"})
        trace(process.name if process is not None else "world", f"log {method}", f"{event['event']}: {about}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[note], wrapper_class=structlog.make_filtering_bound_logger(0))
    try:
        yield
    finally:
        structlog.configure(**before)
