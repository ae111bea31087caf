"""What members agree on: one outcome, wherever Raft's log begins."""

from __future__ import annotations

import pytest

from comity.errors import Conflict, Corrupt, ForeignData
from comity.model.raft import LogEntry
from comity.raft import kept
from comity.raft.kept import Kept
from comity.raft.mark import Mark

STORY = [
    kept.add(b"a", 0), kept.claim(b"first"), kept.add(b"b", 1), kept.add(b"no", 1), kept.trim(1), kept.claim(b"second"),
    kept.add(b"c", 2), kept.trim(2), kept.add(b"d", 3),
]  # fmt: skip


def entry(index: int) -> LogEntry:
    return LogEntry(index, 1, STORY[index - 1])


def test_the_first_claim_counts_from_wherever_it_is_replayed() -> None:
    whole = Kept()
    outcomes = [whole.apply(entry(n)) for n in range(1, len(STORY) + 1)]
    assert isinstance(outcomes[3], Conflict)
    assert (whole.mark, whole.first, whole.last, list(whole.places)) == (b"first", 3, 4, [7, 9])
    for stop in range(1, len(STORY) + 1):
        part = Kept()
        for n in range(1, stop + 1):
            part.apply(entry(n))
        begins, snapshot = part.snapshot(stop)
        again = Kept(snapshot)
        for n in range(begins + 1, len(STORY) + 1):
            again.apply(entry(n))
        assert (again.mark, again.first, again.last, again.places) == (whole.mark, whole.first, whole.last, whole.places), stop


def test_a_snapshot_of_before_there_were_claims_is_nobodys() -> None:
    assert (Kept(b"\x05" + bytes(7)).first, Kept(b"\x05" + bytes(7)).mark) == (5, b"")


def test_whose_it_is_is_read_back_or_refused() -> None:
    assert Mark.decode(Mark("main", "n1").encode()) == Mark("main", "n1")
    with pytest.raises(Corrupt):
        Mark.decode(b"{")
    with pytest.raises(ForeignData, match="format 2"):
        Mark.decode(Mark("main", "n1", 2).encode())
