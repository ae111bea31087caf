"""What goes wrong in a simulated life, and when: drawn from the seed.

Swarm testing (Groce and others, 2012): each seed leaves some kinds of fault out entirely and gives the others weights of its
own, so that lives differ more than if every one had a little of everything. A life is tortured for a while, then healed:
after that everything must come to an end.

The whole plan is drawn before the life begins, and each fault has randomness of its own: so any of them can be left out, and
the others stay as they are (``shrink``).
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Collection, Mapping, Sequence
from random import Random
from typing import NamedTuple, Protocol

from comity.errors import BadInput
from comity.failpoints import SIMULATED
from comity.sim.links import Links, Odds
from comity.sim.loop import Crashed, Life, Process, VirtualLoop, current_process

SERVERS = ("bus", "log", "registry", "store")
HARMLESS = ("clock", "duplicates", "")
"""What keeps nobody from being heard in time."""
Undo = Callable[[], None]


class Strike(NamedTuple):
    """One fault of a plan: the ``number`` it has there, when (seconds after the life began), what, and how long it lasts."""

    number: int
    at_s: float
    kind: str
    lasts_s: float

    def __str__(self) -> str:
        return f"{self.number:4}  {self.at_s:8.3f} s  {self.kind:14} for {self.lasts_s:.3f} s"


class Clock:
    """A process's wall clock, in seconds since 1970. It may be set wrong, and run fast or slow."""

    EPOCH = 1_790_000_000.0

    def __init__(self, loop: VirtualLoop) -> None:
        self._loop = loop
        self.set()

    def wall(self) -> float:
        now = self._loop.time()
        return self.EPOCH + now + self._ahead_s + (now - self._since) * (self._rate - 1.0)

    def set(self, ahead_s: float = 0.0, rate: float = 1.0) -> None:
        """Show ``ahead_s`` more than the true time from now on, and gain or lose with ``rate``; the true time by default."""
        self._since = self._loop.time()
        self._ahead_s = ahead_s
        self._rate = rate


class Host(Protocol):
    """Where one process after the other runs under one name. ``kill`` it, and it comes back with ``revive``."""

    name: str
    process: Process
    clock: Clock

    def kill(self, *, noticed: bool) -> None: ...

    def revive(self) -> None: ...

    def disconnect(self, *, noticed: bool) -> None: ...

    def reconnect(self, process: Process) -> None: ...


class Faults:
    """The faults of one life. ``hosts`` are its victims, ``favourites`` those that are struck most. ``weights`` says how often
    each kind of fault strikes (default: drawn from the seed), ``only`` which numbers of the plan do (default: all)."""

    def __init__(
        self,
        links: Links,
        hosts: Sequence[Host],
        seed: str,
        favourites: Sequence[Host] = (),
        weights: Mapping[str, float] | None = None,
        *,
        torture_s: float,
        only: Collection[int] | None = None,
    ) -> None:
        self.links = links
        self.hosts = hosts
        self.favourites = favourites or hosts
        self.random = Random(seed)
        self.doomed: tuple[str, int] | None = None
        """The write at which the next process to come there dies, and how many pass before."""
        self.restless_at = 0.0
        """When something that may keep two processes apart, or one from running, went on last; see ``is_quiet``."""
        self._seed = seed
        self._kinds = self._all()
        unknown = [kind for kind in weights or {} if kind not in self._kinds]
        if unknown:
            kinds = ", ".join(self._kinds)
            raise BadInput(f"no fault is called {unknown[0]!r}; one of: {kinds}", fault=unknown[0])
        drawn = {kind: self.random.random() ** 2 for kind in self._kinds if self.random.random() < 0.5}
        self.weights = drawn if weights is None else dict(weights)
        plan = self._draw(torture_s)
        self.plan = [strike for strike in plan if only is None or strike.number in only]
        """What strikes, in the order of time. A power cut at the very end comes just before all is healed."""
        self._torture_s = torture_s
        self._undo: dict[int, tuple[str, Undo]] = {}
        self._count = 0

    def _all(self) -> dict[str, Callable[[float], Undo]]:
        return {
            "pause": self._pause,
            "crash": self._crash,
            "power cut": self._power_cut,
            "crash at a write": self._crash_at_write,
            "partition": self._partition,
            "one-way cut": self._one_way,
            "deaf": self._deaf,
            "server cut off": self._server_cut,
            "disconnect": self._disconnect,
            "loss": self._loss,
            "duplicates": self._duplicates,
            "disorder": self._disorder,
            "slow": self._slow,
            "bad writes": self._bad_writes,
            "server crash": self._server_crash,
            "slow server": self._slow_server,
            "slow disk": self._slow_disk,
            "full disk": self._full_disk,
            "stale reads": self._stale_reads,
            "stall": self._stall,
            "split": self._split,
            "clock": self._clock,
            "lag": self._lag,
            "outage": self._outage,
        }

    def _draw(self, torture_s: float) -> list[Strike]:
        random = self.random
        every_s = random.choice([0.15, 0.4, 1.0, 3.0])
        lasting_s = random.choice([0.3, 1.0, 3.0, 6.0])
        plan: list[Strike] = []
        at_s = random.expovariate(1 / every_s)
        while self.weights and at_s < torture_s:
            kind = random.choices(list(self.weights), list(self.weights.values()))[0]
            least_s = 3.0 if kind in ("stall", "split") else 0.0
            plan.append(Strike(len(plan), at_s, kind, least_s + min(random.expovariate(1 / lasting_s), 15.0)))
            at_s += random.expovariate(1 / every_s)
        if "power cut" in self.weights and torture_s and random.random() < 0.5:
            plan.append(Strike(len(plan), torture_s, "power cut", 0.0))
        return plan

    async def torture(self) -> None:
        """Let things go wrong as planned, but for what waits for ``heal``."""
        began = self.links.loop.time()
        for strike in self.plan:
            if strike.at_s < self._torture_s:
                await asyncio.sleep(began + strike.at_s - self.links.loop.time())
                self.strike(strike.kind, strike.lasts_s, strike.number)

    def strike(self, kind: str, lasts_s: float, number: int = 0) -> None:
        """Do ``kind`` now, and undo it after ``lasts_s``. ``number`` is what the details are drawn from."""
        self.random = Random(f"{self._seed}/{number}")
        self._count += 1
        self._undo[self._count] = kind, self._kinds[kind](lasts_s)
        self.links.loop.call_later(lasts_s, self._end, self._count)

    def _end(self, number: int) -> None:
        kind, undo = self._undo.pop(number, ("", _nothing))
        if kind not in HARMLESS:
            self.restless_at = self.links.loop.time()
        undo()

    def heal(self) -> None:
        """Undo everything, and bring all back to life."""
        for strike in self.plan:
            if strike.at_s >= self._torture_s:
                self.strike(strike.kind, strike.lasts_s, strike.number)
        self.links.trace("world", "heal")
        for number in list(self._undo):
            self._end(number)
        for host in self.hosts:
            host.process.wake()
            if host.process.life is Life.DEAD:
                host.revive()

    def is_quiet(self, for_s: float) -> bool:
        """Whether for so long nothing has gone on but what must not matter to who is alive: clocks."""
        going_on = any(kind not in HARMLESS for kind, _ in self._undo.values())
        return not going_on and self.links.loop.time() >= self.restless_at + for_s

    def _tell(self, what: str, detail: str = "") -> None:
        self.links.trace("world", f"fault: {what}", detail)

    def _victim(self) -> Host:
        return self.random.choice(self.favourites if self.random.random() < 0.5 else self.hosts)

    # Processes

    def _pause(self, lasts_s: float) -> Undo:
        process = self._victim().process
        self._tell("pause", f"{process.name} for {lasts_s:.3f} s")
        process.pause()
        return process.wake

    def _crash(self, lasts_s: float) -> Undo:
        host = self._victim()
        if host.process.life is Life.DEAD:
            return _nothing
        noticed = self.random.random() < 0.7
        self._tell("crash", f"{host.name}{'' if noticed else ' with its machine'}, back after {lasts_s:.3f} s")
        host.kill(noticed=noticed)
        return lambda: host.revive() if host.process.life is Life.DEAD else None

    def _power_cut(self, lasts_s: float) -> Undo:
        """All controllers die, or everybody: what lives on is in the log and the store."""
        victims = self.hosts if self.random.random() < 0.3 else self.favourites
        self._tell("power cut", f"{[host.name for host in victims]}, back after {lasts_s:.3f} s")
        for host in victims:
            host.kill(noticed=False)

        def restore() -> None:
            for host in victims:
                if host.process.life is Life.DEAD:
                    host.revive()

        return restore

    def _crash_at_write(self, lasts_s: float) -> Undo:
        """Who comes next to a certain write dies just before it, or just after."""
        point = f"{self.random.choice(SIMULATED)}.{self.random.choice(['before', 'after'])}"
        self._tell("crash at a write", point)
        self.doomed = point, self.random.choice([0, 0, 1, 3])

        def end() -> None:
            self.doomed = None

        return end

    def at_write(self, point: str) -> None:
        """A process has come to ``point``."""
        if self.doomed is None or self.doomed[0] != point:
            return
        process = current_process()
        host = next((host for host in self.hosts if process is not None and host.process is process), None)
        if host is None:
            return
        passes = self.doomed[1]
        self.doomed = (point, passes - 1) if passes else None
        if not passes:
            self.links.trace("world", "crash", f"{host.name} at {point}")
            host.kill(noticed=True)
            back = self.links.random.uniform(0.0, 2.0)
            self.links.loop.call_later(back, self._back, host, context=contextvars.Context())
            raise Crashed(point)

    @staticmethod
    def _back(host: Host) -> None:
        if host.process.life is Life.DEAD:
            host.revive()

    def _lag(self, lasts_s: float) -> Undo:
        """Its event loop keeps being late."""
        process, random = self._victim().process, self.random
        self._tell("lag", f"{process.name} for {lasts_s:.3f} s")
        worst_s = random.uniform(0.02, 0.6)
        stumbling = True

        def stumble() -> None:
            if stumbling:
                process.pause()
                self.links.loop.call_later(random.uniform(0.0, worst_s), recover)

        def recover() -> None:
            process.wake()
            if stumbling:
                self.links.loop.call_later(random.uniform(0.0, worst_s), stumble)

        def end() -> None:
            nonlocal stumbling
            stumbling = False
            process.wake()

        stumble()
        return end

    def _clock(self, lasts_s: float) -> Undo:
        host = self.random.choice(self.hosts)
        ahead_s = self.random.choice([-1, 1]) * self.random.choice([0.5, 5.0, 600.0, 86_400.0])
        rate = self.random.choice([1.0, 1.0, 0.9, 1.1])
        self._tell("clock", f"{host.name} is {ahead_s:g} s ahead and runs at {rate}")
        host.clock.set(ahead_s, rate)
        return host.clock.set

    # Links

    def _cut_all(self, pairs: list[tuple[str, str]]) -> Undo:
        for source, target in pairs:
            self.links.cut(source, target)

        def mend() -> None:
            for source, target in pairs:
                self.links.mend(source, target)

        return mend

    def _partition(self, lasts_s: float) -> Undo:
        names = [host.name for host in self.hosts]
        self.random.shuffle(names)
        size = self.random.randrange(1, len(names))
        left, right = names[:size], names[size:]
        self._tell("partition", f"{left} from {right}")
        return self._cut_all([pair for a in left for b in right for pair in ((a, b), (b, a))])

    def _one_way(self, lasts_s: float) -> Undo:
        source, target = self.random.sample([host.name for host in self.hosts], 2)
        self._tell("one-way cut", f"{source} to {target}")
        return self._cut_all([(source, target)])

    def _deaf(self, lasts_s: float) -> Undo:
        """It is heard, and hears nobody."""
        deaf = self._victim().name
        self._tell("deaf", deaf)
        return self._cut_all([(host.name, deaf) for host in self.hosts if host.name != deaf])

    def _server_cut(self, lasts_s: float) -> Undo:
        host, server = self._victim().name, self.random.choice(SERVERS)
        ways = self.random.choice([[(host, server)], [(server, host)], [(host, server), (server, host)]])
        self._tell("server cut off", f"{ways}")
        return self._cut_all(ways)

    def _disconnect(self, lasts_s: float) -> Undo:
        """Its connection to the bus breaks."""
        host = self._victim()
        process = host.process
        if process.life is Life.DEAD:
            return _nothing
        self._tell("disconnect", host.name)
        host.disconnect(noticed=self.random.random() < 0.7)
        return lambda: host.reconnect(process)

    def _outage(self, lasts_s: float) -> Undo:
        """All servers are gone, and with them every connection."""
        self._tell("outage", f"{lasts_s:.3f} s")
        names = [host.name for host in self.hosts]
        mend = self._cut_all([pair for a in names for b in SERVERS for pair in ((a, b), (b, a))])
        before = [(host, host.process) for host in self.hosts if host.process.life is not Life.DEAD]
        for host, _ in before:
            host.disconnect(noticed=False)

        def restore() -> None:
            mend()
            for host, process in before:
                host.reconnect(process)

        return restore

    def _loss(self, lasts_s: float) -> Undo:
        share = self.random.choice([0.01, 0.1, 0.5])
        self._tell("loss", f"{share:.0%} of all messages")
        self.links.drop = share

        def end() -> None:
            self.links.drop = 0.0

        return end

    def _duplicates(self, lasts_s: float) -> Undo:
        share = self.random.choice([0.05, 0.3])
        self._tell("duplicates", f"{share:.0%} of all messages arrive twice")
        self.links.twice = share

        def end() -> None:
            self.links.twice = 0.0

        return end

    def _disorder(self, lasts_s: float) -> Undo:
        share = self.random.choice([0.05, 0.5])
        self._tell("disorder", f"{share:.0%} of all messages leave their order")
        self.links.astray = share

        def end() -> None:
            self.links.astray = 0.0

        return end

    def _slow(self, lasts_s: float) -> Undo:
        name = self._victim().name
        extra_s = self.random.choice([0.02, 0.2, 1.0])
        self._tell("slow", f"{name} by {extra_s} s")
        self.links.slow_s[name] = extra_s

        def end() -> None:
            self.links.slow_s.pop(name, None)

        return end

    # Servers

    def _change(self, what: str, server: str, **odds: float) -> Undo:
        self._tell(what, ", ".join([server, *(f"{name} {value:.3f}" for name, value in odds.items())]))
        self.links.odds[server] = self.links.odds.get(server, Odds())._replace(**odds)

        def end() -> None:
            self.links.odds[server] = self.links.odds[server]._replace(**dict.fromkeys(odds, 0.0))

        return end

    def _bad_writes(self, lasts_s: float) -> Undo:
        server = self.random.choice(["log", "log", "registry", "store"])
        share = self.random.choice([0.02, 0.1, 0.3])
        fates = ("never", "lost", "late")
        return self._change("bad writes", server, **{fate: share * self.random.random() for fate in fates})

    def _server_crash(self, lasts_s: float) -> Undo:
        """The log's server in most cases: it comes back without what it was just writing."""
        server = self.random.choice(["log", "log", "registry", "store"])
        self._tell("server crash", f"{server}, back after {lasts_s:.3f} s")
        self.links.crash(server)
        return lambda: self.links.restart(server)

    def _slow_disk(self, lasts_s: float) -> Undo:
        return self._change("slow disk", self.random.choice(SERVERS[1:]), disk_s=self.random.choice([0.01, 0.1, 0.4]))

    def _full_disk(self, lasts_s: float) -> Undo:
        return self._change("full disk", self.random.choice(SERVERS[1:]), full=self.random.choice([0.3, 1.0]))

    def _slow_server(self, lasts_s: float) -> Undo:
        return self._change("slow server", self.random.choice(SERVERS[1:]), slow_s=self.random.choice([0.02, 0.3, 2.5]))

    def _stall(self, lasts_s: float) -> Undo:
        """What a controller writes is held up, several entries together, until a rival has written a few."""
        controllers = self.links.callers("log") or [self.hosts[0].name]
        name = self.random.choice(controllers)
        rivals = [rival for rival in controllers if rival != name] if self.random.random() < 0.7 else ["bus"]
        left = self.random.randrange(1, 5)
        self._tell("stall", f"{name}, cut off from {rivals}, until others wrote {left} entries")
        self.links.hold(name, "log")
        mend = self._cut_all([pair for rival in rivals for pair in ((name, rival), (rival, name))])

        def wrote(writer: str) -> None:
            nonlocal left
            left -= writer != name
            if left == 0:
                self.links.release(name, "log")

        self.links.on_append.append(wrote)

        def end() -> None:
            self.links.on_append.remove(wrote)
            self.links.release(name, "log")
            mend()

        return end

    def _split(self, lasts_s: float) -> Undo:
        """A controller and half of all others are on their own; what it writes is held up, so that it does not notice."""
        names = [host.name for host in self.hosts]
        left = [self.random.choice(self.favourites).name]
        right = [name for name in names if name != left[0]]
        self.random.shuffle(right)
        while len(right) > len(left):
            left.append(right.pop())
        self._tell("split", f"{left} from {right}")
        mend = self._cut_all([pair for a in left for b in right for pair in ((a, b), (b, a))])
        self.links.hold(left[0], "log")

        def end() -> None:
            self.links.release(left[0], "log")
            mend()

        return end

    def _stale_reads(self, lasts_s: float) -> Undo:
        return self._change("stale reads", "log", stale_s=self.random.choice([0.05, 0.5, 3.0]))


def _nothing() -> None:
    pass
