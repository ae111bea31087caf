"""Stage for ``core.raft``: members whose messages arrive at once, in their order. The clock starts at 0; members begin with their
turns in the order of their names: the first campaigns first.

begin a,b,c [learners=d] [KEY=VALUE ...]     these are the network's first members; the rest is ``Timing``
join d                               a member that knows nothing yet
say all|little|nothing               messages too; what members become and commit; nothing (at first: little)
at TIME                              let time pass, keeping every deadline
propose A TEXT ...                   entries, given to A     read A     hand A B     lost A B
change A voters=a,b learners=c       another membership, asked of A
compact A INDEX [TEXT]               a snapshot stands for A's entries
disk A slow|well                     slow: what it saves is not on the disk until it is well again
cut A B     mend A B     hold A B    nothing passes from A to B any more; it does; what is sent waits until ``mend``
crash A     start A                  what is not on the disk is gone
show                                 roles, terms and logs; * what is not saved, | how far it is committed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

from transcript import Command

from comity.core import raft_events as r
from comity.core.raft import Raft
from comity.model.raft import CONFIG, EMPTY, Append, Ballot, Config, LogEntry, Message, Snapshot, founding


class Disk:
    def __init__(self, snapshot: Snapshot) -> None:
        self.ballot = Ballot()
        self.snapshot = snapshot
        self.entries: list[LogEntry] = []
        self.is_slow = False
        self.waiting: list[r.Save] = []

    def write(self, save: r.Save) -> None:
        if save.ballot is not None:
            self.ballot = save.ballot
        if save.snapshot is not None:
            at = save.snapshot.index
            kept = any((entry.index, entry.term) == (at, save.snapshot.term) for entry in self.entries)
            self.entries = [entry for entry in self.entries if entry.index > at] if kept else []
            self.snapshot = save.snapshot
        if save.entries:
            self.entries = [entry for entry in self.entries if entry.index < save.entries[0].index] + save.entries


class RaftStage:
    def __init__(self) -> None:
        self.now = 0.0
        self.members: dict[str, Raft] = {}
        self.disks: dict[str, Disk] = {}
        self.timing = r.Timing()
        self.loudness = "little"
        self.closed: set[tuple[str, str]] = set()
        self.held: dict[tuple[str, str], list[Message]] = {}
        self.post: deque[tuple[str, str, Message]] = deque()
        self.keys = 0

    def do(self, command: Command) -> Iterator[str]:
        name, words, options = command
        lines = getattr(self, f"on_{name}")(*words, **options)
        yield from lines or ()
        yield from self.deliver()

    def on_begin(self, names: str, learners: str = "", **timing: str) -> Iterator[str]:
        self.timing = r.Timing(**{key: type(getattr(r.Timing(), key))(value) for key, value in timing.items()})
        config = Config(tuple(names.split(",")), learners=tuple(filter(None, learners.split(","))))
        for member in config.members:
            self.disks[member] = Disk(founding(config))
            yield from self.on_start(member)

    def on_join(self, name: str) -> Iterator[str]:
        self.disks[name] = Disk(Snapshot())
        yield from self.on_start(name)

    def on_start(self, name: str) -> Iterator[str]:
        disk = self.disks[name]
        turn = 0.1 + 0.2 * sorted(self.disks).index(name)
        about: Any = {"ballot": disk.ballot, "snapshot": disk.snapshot, "entries": disk.entries}
        self.members[name] = Raft(name, self.now, lambda: turn, self.timing, **about)
        yield from ()

    def on_crash(self, name: str) -> None:
        del self.members[name]
        self.disks[name].waiting.clear()

    def on_say(self, loudness: str) -> None:
        self.loudness = loudness

    def on_propose(self, name: str, *texts: str) -> Iterator[str]:
        self.keys += len(texts)
        keys = range(self.keys - len(texts) + 1, self.keys + 1)
        yield from self.step(name, r.Propose([(key, text.encode()) for key, text in zip(keys, texts, strict=True)]))

    def on_read(self, name: str) -> Iterator[str]:
        self.keys += 1
        yield from self.step(name, r.Read(self.keys))

    def on_hand(self, name: str, target: str) -> Iterator[str]:
        yield from self.step(name, r.HandOver(target))

    def on_lost(self, name: str, other: str) -> Iterator[str]:
        yield from self.step(name, r.Lost(other))

    def on_change(self, name: str, voters: str, learners: str = "") -> Iterator[str]:
        self.keys += 1
        groups = [tuple(filter(None, group.split(","))) for group in (voters, learners)]
        yield from self.step(name, r.Change(self.keys, groups[0], groups[1], {}))

    def on_compact(self, name: str, index: str, text: str = "") -> Iterator[str]:
        yield from self.step(name, r.Compact(int(index), text.encode()))

    def on_disk(self, name: str, state: str) -> Iterator[str]:
        disk = self.disks[name]
        disk.is_slow = state == "slow"
        waiting, disk.waiting = disk.waiting, []
        for save in waiting:
            yield from self.write(name, save)

    def on_cut(self, source: str, target: str) -> None:
        self.closed.add((source, target))

    def on_hold(self, source: str, target: str) -> None:
        self.held[source, target] = []

    def on_mend(self, source: str, target: str) -> None:
        self.closed.discard((source, target))
        self.post += [(source, target, message) for message in self.held.pop((source, target), [])]

    def on_at(self, time: str) -> Iterator[str]:
        until = float(time)
        while True:
            yield from self.deliver()
            deadlines = {name: member.next_deadline() for name, member in self.members.items()}
            due = [(at, name) for name, at in deadlines.items() if at is not None and at <= until]
            if not due:
                self.now = until
                return
            at, name = min(due)
            self.now = max(self.now, at)
            yield from self.step(name, r.Tick())

    def on_show(self) -> Iterator[str]:
        for name, member in sorted(self.members.items()):
            log, state = member.log, member.state
            shown = [f"{log.snapshot.index}=[{log.snapshot.data.decode()}]"] if log.snapshot.index > 1 else []
            for entry in log.entries:
                unsaved = "*" if entry.index > log.saved else ""
                shown.append(f"{entry.term}:{text(entry)}{unsaved}{' |' if entry.index == log.commit else ''}")
            leader = f" of {state.leader}" if state.leader and state.role is r.Role.FOLLOWER else ""
            yield f"{name} {state.role}{leader} term={state.term} {' '.join(shown)}".rstrip()

    # What the machines want

    def step(self, name: str, event: r.Event) -> Iterator[str]:
        member = self.members[name]
        effects = member.step(event, self.now)
        member.check()
        for effect in effects:
            match effect:
                case r.Send(to, message):
                    self.send(name, to, message)
                case r.Save():
                    yield from self.save(name, effect)
                case _ if self.loudness != "nothing":
                    yield f"{self.now:.3f} {name} {told(effect)}"

    def send(self, source: str, target: str, message: Message) -> None:
        if (source, target) in self.held:
            self.held[source, target].append(message)
        elif (source, target) not in self.closed:
            self.post.append((source, target, message))

    def deliver(self) -> Iterator[str]:
        while self.post:
            source, target, message = self.post.popleft()
            if target in self.members and (source, target) not in self.closed:
                if self.loudness == "all":
                    yield f"{self.now:.3f}   {source} -> {target} {spelled(message)}"
                yield from self.step(target, r.Received(source, message))

    def save(self, name: str, save: r.Save) -> Iterator[str]:
        if self.disks[name].is_slow:
            self.disks[name].waiting.append(save)
        else:
            yield from self.write(name, save)

    def write(self, name: str, save: r.Save) -> Iterator[str]:
        self.disks[name].write(save)
        yield from self.step(name, r.Saved(save.number))


def text(entry: LogEntry) -> str:
    return {EMPTY: "-", CONFIG: "members"}.get(entry.kind) or entry.data.decode()


def group(config: Config) -> str:
    parts = ("", config.voters), ("leaving ", config.outgoing), ("learning ", config.learners)
    return "; ".join(what + ",".join(members) for what, members in parts if members)


def spelled(message: Message) -> str:
    fields = {name: getattr(message, name) for name in message.__struct_fields__}
    if isinstance(message, Append):
        fields["entries"] = ",".join(f"{entry.term}:{text(entry)}" for entry in message.entries)
    said = [f"{name}={group(v) if isinstance(v, Config) else v}" for name, v in fields.items() if v or name == "term"]
    return f"{type(message).__name__} {' '.join(said)}"


def told(effect: r.Effect) -> str:
    match effect:
        case r.Commit(entries):
            return f"commits {', '.join(f'{entry.index}={text(entry)}' for entry in entries)}"
        case r.Restore(snapshot):
            return f"is restored to {snapshot.index}=[{snapshot.data.decode()}]"
        case r.Became(role, term, leader):
            return f"is {role} in term {term}" + (f" of {leader}" if leader and role is r.Role.FOLLOWER else "")
        case r.Members(config):
            return f"has members {group(config)}"
        case r.Proposed(key, index, _):
            return f"has {key} at {index}"
        case r.Readable(key, index):
            return f"may answer {key} once it has applied {index}"
        case r.Refused(key, reason):
            return f"refuses {key}: {reason}"
        case _:
            raise AssertionError(effect)


stage = RaftStage
