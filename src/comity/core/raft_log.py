"""A Raft member's log: a snapshot, what follows it, and how far that is saved, committed and handed out.

    snapshot.index <= applied <= commit <= last,   saved <= last

Entries up to ``commit`` never change. ``saved`` is how far the disk has what is here. A membership counts from the moment its
entry is in the log, committed or not (thesis, 4.1), and no longer if the entry is cut off again.
"""

from __future__ import annotations

import msgspec

from comity.model.raft import CONFIG, Config, LogEntry, Snapshot

_decode_config = msgspec.msgpack.Decoder(Config).decode
encode_config = msgspec.msgpack.Encoder().encode


class RaftLog:
    def __init__(self, snapshot: Snapshot, entries: list[LogEntry]) -> None:
        self.snapshot = snapshot
        self.entries: list[LogEntry] = []
        self.commit = self.applied = snapshot.index
        self._configs = [(snapshot.index, snapshot.config)]
        self.append(entries)
        self.saved = self.last

    @property
    def last(self) -> int:
        return self.snapshot.index + len(self.entries)

    @property
    def last_term(self) -> int:
        return self.entries[-1].term if self.entries else self.snapshot.term

    @property
    def config(self) -> Config:
        return self._configs[-1][1]

    @property
    def config_index(self) -> int:
        """Where the newest membership stands."""
        return self._configs[-1][0]

    def term_at(self, index: int) -> int | None:
        """None for what is cut away, and for what is not there yet."""
        place = index - self.snapshot.index
        if place == 0:
            return self.snapshot.term
        return self.entries[place - 1].term if 0 < place <= len(self.entries) else None

    def is_newer(self, last: int, last_term: int) -> bool:
        """Whether this log is more up to date than one that ends so (5.4.1)."""
        return (self.last_term, self.last) > (last_term, last)

    def between(self, after: int, upto: int) -> list[LogEntry]:
        first = self.snapshot.index
        return self.entries[max(after - first, 0) : max(upto - first, 0)]

    def batch(self, after: int, most_bytes: int) -> list[LogEntry]:
        """Entries that follow ``after``, at least one if there is any, of at most so many bytes."""
        size = 0
        found: list[LogEntry] = []
        for place in range(after - self.snapshot.index, len(self.entries)):
            entry = self.entries[place]
            size += len(entry.data)
            if size > most_bytes and found:
                break
            found.append(entry)
        return found

    def append(self, entries: list[LogEntry]) -> None:
        """Add what follows the last entry."""
        self.entries += entries
        for entry in entries:
            if entry.kind == CONFIG:
                self._configs.append((entry.index, _decode_config(entry.data)))

    def merge(self, entries: list[LogEntry]) -> list[LogEntry]:
        """Take in a leader's entries that fit: those in conflict with them go with all that follows, others stay (5.3, step 3
        and 4). Returns those that are new."""
        for place, entry in enumerate(entries):
            if self.term_at(entry.index) != entry.term:
                if entry.index <= self.last:
                    self._cut(entry.index)
                self.append(entries[place:])
                return entries[place:]
        return []

    def _cut(self, index: int) -> None:
        """Drop ``index`` and all that follows."""
        if index <= self.commit:
            raise AssertionError(f"entry {index} is committed")
        del self.entries[index - self.snapshot.index - 1 :]
        self.saved = min(self.saved, index - 1)
        while self._configs[-1][0] >= index:
            self._configs.pop()

    def agreement(self, index: int, term: int) -> int:
        """The last place up to ``index`` where this log could be one that has ``term`` at ``index``."""
        index = min(index, self.last)
        while (found := self.term_at(index)) is not None and found > term:
            index -= 1
        return index

    def compact(self, index: int, data: bytes) -> Snapshot:
        """Let a snapshot stand for the entries up to ``index``, which were handed out."""
        term = self.term_at(index)
        if term is None or index > self.applied:
            raise AssertionError(f"entry {index} is not there, or was not handed out yet")
        config = next(config for place, config in reversed(self._configs) if place <= index)
        del self.entries[: index - self.snapshot.index]
        self.snapshot = Snapshot(index, term, config, data)
        self._configs = [(index, config), *(kept for kept in self._configs if kept[0] > index)]
        return self.snapshot

    def restore(self, snapshot: Snapshot) -> None:
        """Begin anew from a leader's snapshot. Until that is saved, what is on the disk is what was known to be committed, if it
        had come so far."""
        self.saved = min(self.saved, self.commit)
        self.entries.clear()
        self.snapshot = snapshot
        self.commit = self.applied = snapshot.index
        self._configs = [(snapshot.index, snapshot.config)]

    def check(self) -> None:
        assert self.snapshot.index <= self.applied <= self.commit <= self.last
        assert self.saved <= self.last
        terms = [self.snapshot.term, *(entry.term for entry in self.entries)]
        assert terms == sorted(terms)
        assert [entry.index for entry in self.entries] == list(range(self.snapshot.index + 1, self.last + 1))
        assert self._configs[0][0] == self.snapshot.index
