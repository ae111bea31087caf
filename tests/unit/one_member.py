"""One Raft machine, ``a``, and the messages that it is sent and sends."""

from __future__ import annotations

from typing import Any, TypeVar

from comity.core import raft_events as r
from comity.core.raft import Raft
from comity.model.raft import Append, Ballot, Config, LogEntry, Message, Snapshot, Vote

THREE, FIVE = Config(("a", "b", "c")), Config(("a", "b", "c", "d", "e"))
E = TypeVar("E")


class Member:
    """Member ``a``. Its disk is quick unless ``is_slow``."""

    def __init__(self, config: Config = THREE, terms: tuple[int, ...] = (), **about: Any) -> None:
        entries = [LogEntry(n, term, b"%d" % n) for n, term in enumerate(terms, 1)]
        about = {"snapshot": Snapshot(config=config), "ballot": Ballot(max(terms, default=0)), "entries": entries} | about
        self.machine = Raft("a", 0.0, lambda: 0.5, **about)
        self.now = 0.0
        self.is_slow = False
        self.saves: list[r.Save] = []
        self.sent: list[tuple[str, Message]] = []
        self.effects: list[r.Effect] = []

    def step(self, event: r.Event) -> list[r.Effect]:
        effects = self.machine.step(event, self.now)
        self.machine.check()
        self.effects += effects
        self.sent += [(effect.to, effect.message) for effect in effects if isinstance(effect, r.Send)]
        for effect in effects:
            if isinstance(effect, r.Save):
                self.saves.append(effect)
                if not self.is_slow:
                    self.step(r.Saved(effect.number))
        return effects

    def hear(self, sender: str, message: Message) -> list[Message]:
        """What it answers."""
        before = len(self.sent)
        self.step(r.Received(sender, message))
        return [said for _, said in self.sent[before:]]

    def at(self, now: float) -> None:
        self.now = now
        self.step(r.Tick())

    def terms(self) -> list[int]:
        return [entry.term for entry in self.machine.log.entries]

    def found(self, kind: type[E]) -> list[E]:
        return [effect for effect in self.effects if isinstance(effect, kind)]

    def last(self, kind: type[E]) -> E:
        return [message for _, message in self.sent if isinstance(message, kind)][-1]

    def lead(self) -> Member:
        """Be elected by ``b`` and, in a network of five, by ``c``."""
        self.at(self.machine.next_deadline() or 0.0)
        term = self.machine.state.term + 1
        for voter in ("b", "c", "d"):
            self.hear(voter, Vote(term, True, True))
        for voter in ("b", "c"):
            self.hear(voter, Vote(term, True))
        assert self.role is r.Role.LEADER
        return self

    @property
    def role(self) -> r.Role:
        return self.machine.state.role


def append(term: int, after: int, after_term: int, *terms: int, commit: int = 0) -> Append:
    return Append(term, after, after_term, [LogEntry(after + n, t, b"%d" % (after + n)) for n, t in enumerate(terms, 1)], commit)
