"""The ledger: which entries count, the same for every reader."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.core.ledger import Effective, Ledger, LedgerState, Reason, Void
from comity.errors import Corrupt, ForeignData
from comity.model.codec import ROOT_DIGEST, seal
from comity.model.ids import ProcessId
from comity.model.task import Barrier, Command, Entry, Lead

NET = "main"


def sealed(
    term: int, parent: bytes, *, lead: str = "", time_ms: int = 0, network: str = NET, commands: list[Command] | None = None
) -> tuple[bytes, bytes]:
    """An entry's bytes and digest; ``lead`` makes it a term entry."""
    body: list[Command] = [Lead(ProcessId(lead))] if lead else (commands or [Barrier()])
    return seal(Entry(network, term, parent, time_ms, body))


def led(time_ms: int = 0) -> tuple[Ledger, bytes]:
    """A ledger after the first term entry, and that entry's digest."""
    ledger = Ledger(NET)
    data, digest = sealed(1, ROOT_DIGEST, lead="c1", time_ms=time_ms)
    assert isinstance(ledger.offer(1, data), Effective)
    return ledger, digest


def test_a_chain_of_entries_is_effective() -> None:
    ledger, parent = led(time_ms=10)
    data, digest = sealed(1, parent, time_ms=20)
    verdict = ledger.offer(2, data)
    assert isinstance(verdict, Effective)
    assert (verdict.index, verdict.digest, verdict.time_ms) == (2, digest, 20)
    assert verdict.entry.commands == [Barrier()]
    assert ledger.state() == LedgerState(NET, 2, digest, 1, 20, 2)


def test_old_leaders_pipelined_entries_count_for_nothing() -> None:
    ledger, parent = led()
    old6, d6 = sealed(1, parent)
    old7, d7 = sealed(1, d6)
    old8, _ = sealed(1, d7)
    new, new_digest = sealed(2, parent, lead="c2")
    assert isinstance(ledger.offer(2, new), Effective)
    assert ledger.offer(3, old7) == Void(3, Reason.OLD_TERM)
    assert ledger.offer(4, old8) == Void(4, Reason.OLD_TERM)
    assert ledger.offer(5, old6) == Void(5, Reason.OLD_TERM)
    assert ledger.state() == LedgerState(NET, 5, new_digest, 2, 0, 2)
    after, _ = sealed(2, new_digest)
    assert isinstance(ledger.offer(6, after), Effective)


def test_a_parent_other_than_the_last_effective_entry_voids() -> None:
    ledger, parent = led()
    second, digest = sealed(1, parent)
    ledger.offer(2, second)
    sibling, _ = sealed(1, parent, time_ms=5)
    assert ledger.offer(3, sibling) == Void(3, Reason.PARENT)
    rival, _ = sealed(9, parent, lead="c9")
    assert ledger.offer(4, rival) == Void(4, Reason.PARENT)
    assert (ledger.index, ledger.digest, ledger.term, ledger.effective_index, ledger.time_ms) == (4, digest, 1, 2, 0)


@pytest.mark.parametrize("term", [0, 1])
def test_a_term_entry_must_raise_the_term(term: int) -> None:
    ledger, parent = led()
    data, _ = sealed(term, parent, lead="c2")
    assert ledger.offer(2, data) == Void(2, Reason.OLD_TERM)


def test_a_higher_term_must_begin_with_a_term_entry() -> None:
    ledger, parent = led()
    data, _ = sealed(2, parent, commands=[Barrier(), Lead(ProcessId("c2"))])
    assert ledger.offer(2, data) == Void(2, Reason.NOT_LED)
    empty, _ = seal(Entry(NET, 2, parent, 0, []))
    assert ledger.offer(3, empty) == Void(3, Reason.NOT_LED)


def test_entry_time_never_runs_backwards_and_void_entries_do_not_move_it() -> None:
    ledger, parent = led(time_ms=100)
    back, _ = sealed(1, parent, time_ms=40)
    verdict = ledger.offer(2, back)
    assert isinstance(verdict, Effective) and verdict.time_ms == 100
    void, _ = sealed(1, parent, time_ms=10_000)
    assert isinstance(ledger.offer(3, void), Void)
    assert ledger.time_ms == 100


@pytest.mark.parametrize("index", [-1, 0, 1, 3, 9])
def test_an_index_that_does_not_follow_is_corrupt(index: int) -> None:
    ledger, parent = led()
    before = ledger.state()
    with pytest.raises(Corrupt) as caught:
        ledger.offer(index, sealed(1, parent)[0])
    assert caught.value.details["index"] == index
    assert ledger.state() == before


def test_another_networks_entry_is_foreign_even_if_it_would_be_void() -> None:
    ledger, _ = led()
    before = ledger.state()
    for data in (sealed(1, b"x" * 16, network="other")[0], b"", b"hello", b"C2" + bytes(40)):
        with pytest.raises(ForeignData) as caught:
            ledger.offer(2, data)
        assert caught.value.details["index"] == 2
    assert ledger.state() == before


@given(st.data())
def test_any_damage_behind_the_format_mark_is_corrupt(data: st.DataObject) -> None:
    ledger, parent = led()
    before = ledger.state()
    good, _ = sealed(1, parent)
    if data.draw(st.booleans(), label="torn"):
        bad = good[: data.draw(st.integers(2, len(good) - 1), label="kept")]
    else:
        at = data.draw(st.integers(2, len(good) - 1), label="byte")
        bad = good[:at] + bytes([good[at] ^ (1 << data.draw(st.integers(0, 7), label="bit"))]) + good[at + 1 :]
    with pytest.raises(Corrupt) as caught:
        ledger.offer(2, bad)
    assert caught.value.details["index"] == 2
    assert ledger.state() == before
    assert isinstance(ledger.offer(2, good), Effective)


def test_restored_ledger_goes_on_where_the_first_one_was() -> None:
    ledger, parent = led(time_ms=7)
    ledger.offer(2, sealed(1, b"y" * 16)[0])
    twin = Ledger.restore(ledger.state())
    nxt, _ = sealed(1, parent)
    assert twin.offer(3, nxt) == ledger.offer(3, nxt)
    assert twin.state() == ledger.state()


class Writer:
    """A controller that follows no rule but one: what it writes is sealed. It may act on an old view."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.term = 0
        self.parent = ROOT_DIGEST

    def look(self, ledger: Ledger) -> None:
        self.parent = ledger.digest
        self.term = max(self.term, ledger.term)

    def write(self, lead: bool, time_ms: int) -> bytes:
        if lead:
            self.term += 1
        data, self.parent = sealed(self.term, self.parent, lead=self.name if lead else "", time_ms=time_ms)
        return data


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.booleans(), st.booleans(), st.integers(0, 50)), min_size=1, max_size=40
    ),
    st.integers(0, 39),
)
def test_any_log_gives_one_chain_and_every_reader_the_same_verdicts(
    moves: list[tuple[int, bool, bool, int]], cut: int
) -> None:
    """Writers with arbitrary views write in any order; whatever lands, effective entries form one chain of growing terms."""
    judge = Ledger(NET)
    writers = [Writer(f"c{n}") for n in range(3)]
    log: list[bytes] = []
    verdicts = []
    for who, looks, leads, time_ms in moves:
        if looks:
            writers[who].look(judge)
        log.append(writers[who].write(leads, time_ms))
        verdicts.append(judge.offer(len(log), log[-1]))
        judge.check()

    parent, term, leader_of, clock = ROOT_DIGEST, 0, {}, 0
    for verdict in verdicts:
        if isinstance(verdict, Void):
            continue
        entry = verdict.entry
        assert entry.parent == parent
        assert entry.term >= term and verdict.time_ms >= clock
        head = entry.commands[0]
        if isinstance(head, Lead):
            assert entry.term > term and entry.term not in leader_of
            leader_of[entry.term] = head.controller
        else:
            assert entry.term == term
        parent, term, clock = verdict.digest, entry.term, verdict.time_ms

    twin = Ledger(NET)
    again = []
    for index, data in enumerate(log, start=1):
        if index == cut:
            twin = Ledger.restore(twin.state())
        again.append(twin.offer(index, data))
    assert again == verdicts
    assert twin.state() == judge.state()


@pytest.mark.parametrize(
    "state",
    [
        LedgerState(NET, 3, ROOT_DIGEST, 0, 0, 4),
        LedgerState(NET, 3, b"short", 1, 0, 3),
        LedgerState(NET, 3, b"d" * 16, 1, -1, 3),
        LedgerState(NET, 3, b"d" * 16, 1, 0, 0),
    ],
)
def test_check_finds_a_broken_invariant(state: LedgerState) -> None:
    with pytest.raises(AssertionError):
        Ledger.restore(state).check()


def test_a_leaders_own_entries_are_taken_in_unread() -> None:
    reader, parent = led(time_ms=50)
    leader = Ledger.restore(reader.state())
    entry = Entry(NET, 1, parent, 40, [Barrier()])
    data, digest = seal(entry)
    assert leader.accept(entry, digest) == 2
    assert isinstance(reader.offer(2, data), Effective)
    assert leader.state() == reader.state()


@pytest.mark.parametrize("entry", [Entry(NET, 1, b"x" * 16, 0, [Barrier()]), Entry(NET, 2, ROOT_DIGEST, 0, [Barrier()])])
def test_a_leader_never_takes_in_what_readers_would_void(entry: Entry) -> None:
    ledger, _ = led()
    before = ledger.state()
    with pytest.raises(AssertionError):
        ledger.accept(entry, seal(entry)[1])
    assert ledger.state() == before
