"""What goes wrong in a simulated life, and when: drawn from the seed.

Swarm testing (Groce and others, 2012): each seed leaves some kinds of fault out entirely and gives the others weights of its
own, so that lives differ more than if every one had a little of everything. A life is tortured for a while, then healed:
after that everything must come to an end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Protocol

from comity.errors import BadInput
from comity.sim.links import Links, Odds
from comity.sim.loop import Life, Process, VirtualLoop

SERVERS = ("bus", "log", "registry", "store")
Undo = Callable[[], None]


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
    each kind of fault strikes (default: drawn from the seed)."""

    def __init__(
        self,
        links: Links,
        hosts: Sequence[Host],
        random: Random,
        favourites: Sequence[Host] = (),
        weights: Mapping[str, float] | None = None,
    ) -> None:
        self.links = links
        self.hosts = hosts
        self.favourites = favourites or hosts
        self.random = random
        kinds: dict[str, Callable[[float], Undo]] = {
            "pause": self._pause,
            "crash": self._crash,
            "power cut": self._power_cut,
            "partition": self._partition,
            "one-way cut": self._one_way,
            "deaf": self._deaf,
            "server cut off": self._server_cut,
            "disconnect": self._disconnect,
            "loss": self._loss,
            "slow": self._slow,
            "bad writes": self._bad_writes,
            "slow server": self._slow_server,
            "stale reads": self._stale_reads,
            "stall": self._stall,
            "split": self._split,
            "clock": self._clock,
            "lag": self._lag,
            "outage": self._outage,
        }
        unknown = [kind for kind in weights or {} if kind not in kinds]
        if unknown:
            raise BadInput(f"no fault is called {unknown[0]!r}; one of: {', '.join(kinds)}", fault=unknown[0])
        drawn = {kind: random.random() ** 2 for kind in kinds if random.random() < 0.5}
        self.weights = drawn if weights is None else dict(weights)
        self.every_s = random.choice([0.15, 0.4, 1.0, 3.0])
        self.lasting_s = random.choice([0.3, 1.0, 3.0, 6.0])
        self._kinds = kinds
        self._undo: dict[int, Undo] = {}
        self._count = 0

    async def torture(self, until: float) -> None:
        """Let things go wrong until then."""
        loop = self.links.loop
        while self.weights:
            await asyncio.sleep(self.random.expovariate(1 / self.every_s))
            if loop.time() >= until:
                return
            kind = self.random.choices(list(self.weights), list(self.weights.values()))[0]
            least_s = 3.0 if kind in ("stall", "split") else 0.0
            self.strike(kind, least_s + min(self.random.expovariate(1 / self.lasting_s), 15.0))

    def strike(self, kind: str, lasts_s: float) -> None:
        """Do ``kind`` now, and undo it after ``lasts_s``."""
        undo = self._kinds[kind](lasts_s)
        self._count += 1
        number = self._count
        self._undo[number] = undo
        self.links.loop.call_later(lasts_s, self._end, number)

    def _end(self, number: int) -> None:
        undo = self._undo.pop(number, None)
        if undo is not None:
            undo()

    def heal(self) -> None:
        """Undo everything, and bring all back to life."""
        if "power cut" in self.weights and self.random.random() < 0.5:
            self.strike("power cut", 0.0)
        self.links.trace("world", "heal")
        for number in list(self._undo):
            self._end(number)
        for host in self.hosts:
            host.process.wake()
            if host.process.life is Life.DEAD:
                host.revive()

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

    def _lag(self, lasts_s: float) -> Undo:
        """Its event loop keeps being late."""
        process = self._victim().process
        self._tell("lag", f"{process.name} for {lasts_s:.3f} s")
        worst_s = self.random.uniform(0.02, 0.6)
        stumbling = True

        def stumble() -> None:
            if stumbling:
                process.pause()
                self.links.loop.call_later(self.random.uniform(0.0, worst_s), recover)

        def recover() -> None:
            process.wake()
            if stumbling:
                self.links.loop.call_later(self.random.uniform(0.0, worst_s), stumble)

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

    def _slow(self, lasts_s: float) -> Undo:
        name = self._victim().name
        extra_s = self.random.choice([0.02, 0.2, 1.0])
        self._tell("slow", f"{name} by {extra_s} s")
        self.links.slow_s[name] = extra_s

        def end() -> None:
            self.links.slow_s.pop(name, None)

        return end

    # Servers

    def _change(self, server: str, **odds: float) -> Undo:
        self._tell(server, ", ".join(f"{name} {value:.3f}" for name, value in odds.items()))
        self.links.odds[server] = self.links.odds.get(server, Odds())._replace(**odds)

        def end() -> None:
            self.links.odds[server] = self.links.odds[server]._replace(**dict.fromkeys(odds, 0.0))

        return end

    def _bad_writes(self, lasts_s: float) -> Undo:
        server = self.random.choice(["log", "log", "registry", "store"])
        share = self.random.choice([0.02, 0.1, 0.3])
        fates = ("never", "lost", "late")
        return self._change(server, **{fate: share * self.random.random() for fate in fates})

    def _slow_server(self, lasts_s: float) -> Undo:
        return self._change(self.random.choice(SERVERS[1:]), slow_s=self.random.choice([0.02, 0.3, 2.5]))

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
        return self._change("log", stale_s=self.random.choice([0.05, 0.5, 3.0]))


def _nothing() -> None:
    pass
