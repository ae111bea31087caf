"""Which entries of the log count.

Compare-and-append on the index alone does not fence a leader that has several entries in flight: when a new leader's term
entry takes index 6, the old leader's 6 is refused but its 7 and 8 are accepted. So every reader passes the log through this
machine, and all come to the same verdicts:

    damaged bytes, or an index that does not follow the last one    Corrupt, the reader stops
    another network's entry, or not Comity's                        ForeignData, the reader stops
    a term entry (its first command is Lead) of a higher term       effective, if its parent is the last effective entry
    any other entry of the current term                             effective, likewise
    everything else that is intact                                  void: it uses up its index and changes nothing

The chain of parents is the hash chain of CORFU-style shared logs; terms are Raft's.
"""

from __future__ import annotations

import enum

import msgspec

from comity.errors import Corrupt, ForeignData
from comity.model.codec import DIGEST_SIZE, ROOT_DIGEST, unseal
from comity.model.task import Entry, Lead


class Reason(enum.StrEnum):
    """Why an intact entry does not count."""

    OLD_TERM = "old-term"
    NOT_LED = "not-led"
    """A higher term that no term entry began."""
    PARENT = "parent"
    """It continues something other than the last effective entry."""


class Effective(msgspec.Struct, frozen=True, gc=False):
    """The entry counts. Apply it at ``time_ms``, which never runs backwards, rather than at the entry's own time."""

    index: int
    entry: Entry
    digest: bytes
    time_ms: int


class Void(msgspec.Struct, frozen=True, gc=False):
    """The entry used up its index and changes nothing."""

    index: int
    reason: Reason


Verdict = Effective | Void


class LedgerState(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a snapshot keeps of a ledger, fields as the properties of ``Ledger``."""

    network: str
    index: int
    digest: bytes
    term: int
    time_ms: int
    effective_index: int


class Ledger:
    """Judges the entries of one network's log, in order.

    ``index`` is the last entry judged, void ones included; ``digest``, ``term`` and ``effective_index`` are those of the last
    effective one; ``time_ms`` is entry time. Invariants: all but ``digest`` only grow; ``effective_index <= index``.
    """

    __slots__ = ("digest", "effective_index", "index", "network", "term", "time_ms")

    def __init__(
        self, network: str, index: int = 0, digest: bytes = ROOT_DIGEST, term: int = 0, time_ms: int = 0
    ) -> None:
        self.network = network
        self.index = index
        self.digest = digest
        self.term = term
        self.time_ms = time_ms
        self.effective_index = index

    @classmethod
    def restore(cls, state: LedgerState) -> Ledger:
        """The ledger that ``state()`` described."""
        ledger = cls(state.network, state.index, state.digest, state.term, state.time_ms)
        ledger.effective_index = state.effective_index
        return ledger

    def state(self) -> LedgerState:
        return LedgerState(self.network, self.index, self.digest, self.term, self.time_ms, self.effective_index)

    def offer(self, index: int, data: bytes) -> Verdict:
        """Judge the log's next entry. Raises Corrupt or ForeignData, with ``index`` in their details, and then has not moved."""
        if index != self.index + 1:
            raise Corrupt(f"log entry {index} follows entry {self.index}", index=index)
        try:
            entry, digest = unseal(data)
        except (Corrupt, ForeignData) as error:
            raise type(error)(f"log entry {index}: {error.message}", index=index) from error
        if entry.network != self.network:
            raise ForeignData(f"log entry {index} belongs to network {entry.network!r}", index=index)
        self.index = index
        reason = self._fault(entry)
        if reason is not None:
            return Void(index, reason)
        self.digest = digest
        self.term = entry.term
        self.time_ms = max(self.time_ms, entry.time_ms)
        self.effective_index = index
        return Effective(index, entry, digest, self.time_ms)

    def accept(self, entry: Entry, digest: bytes) -> int:
        """Take in an entry the caller itself appended right after ``index`` (the log accepted it there) as a leader whose every
        earlier entry is effective; its index. Spares the leader from reading back and decoding its own entries."""
        if entry.parent != self.digest or self._fault(entry) is not None:
            raise AssertionError("a leader's own entry continues its last effective one, in its own term")
        self.index += 1
        self.digest = digest
        self.term = entry.term
        self.time_ms = max(self.time_ms, entry.time_ms)
        self.effective_index = self.index
        return self.index

    def _fault(self, entry: Entry) -> Reason | None:
        begins_term = bool(entry.commands) and type(entry.commands[0]) is Lead
        if entry.term < self.term or (begins_term and entry.term == self.term):
            return Reason.OLD_TERM
        if entry.term > self.term and not begins_term:
            return Reason.NOT_LED
        return None if entry.parent == self.digest else Reason.PARENT

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        assert 0 <= self.effective_index <= self.index
        assert len(self.digest) == DIGEST_SIZE
        assert self.term >= 0 and self.time_ms >= 0
        assert self.effective_index > 0 or (self.digest == ROOT_DIGEST and self.term == 0)
