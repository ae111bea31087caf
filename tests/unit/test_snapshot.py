"""Snapshots: the state after exactly one entry, whatever happens while it is written."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comity.controller.snapshot import Writing, load
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import Corrupt, ForeignData
from comity.model.ids import AgentId, NetworkId, ProcessId, TaskId
from comity.model.task import (
    Archived,
    Assign,
    Cancel,
    Command,
    Complete,
    Entry,
    NodeUp,
    SnapshotTaken,
    Submit,
    TaskSpec,
)

NET = NetworkId("net")
NODE = ProcessId("n1")


def apply(state: Tasks, *commands: Command) -> None:
    state.apply(Entry("net", 1, b"", state.time_ms + 1, list(commands)), 1)


def submit(name: str, **more: Any) -> Submit:
    return Submit(TaskSpec(TaskId(name), "echo", b"{}", ProcessId("c1"), **more))


def contents(state: Tasks) -> bytes:
    """Everything that is replicated, comparably."""
    return msgspec.msgpack.encode(
        [
            sorted(state.tasks.items()), state.counts, list(state.finished), state.children, state.keys,
            state.nodes, state.archive, state.archived, state.snapshots, state.totals, state.last_epoch, state.generation,
            state.strategies, state.aside,
        ],
        order="sorted",
    )  # fmt: skip


async def bytes_of(writing: Writing) -> bytes:
    return b"".join([frame async for frame in writing.frames()])


async def chunks(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def reload(data: bytes, network: NetworkId = NET) -> tuple[Tasks, Ledger]:
    return await load(chunks(data), network)


def busy_state() -> Tasks:
    state = Tasks(NET)
    apply(state, NodeUp(NODE, 3), *(submit(f"t{i:04}", key=f"k{i}") for i in range(1500)))
    apply(state, *(Assign(TaskId(f"t{i:04}"), i + 1, AgentId("n1/a"), NODE, 3) for i in range(0, 1500, 2)))
    apply(state, *(Complete(TaskId(f"t{i:04}"), i + 1, b"1") for i in range(0, 1500, 6)))
    apply(state, submit("child", parent=TaskId("t0002"), parent_epoch=3))
    apply(state, Archived("chunk", tuple(TaskId(f"t{i:04}") for i in range(0, 60, 6)), 9), SnapshotTaken(1, "s", b"x"))
    return state


async def test_it_comes_back_the_same() -> None:
    state = busy_state()
    ledger = Ledger("net", 7, b"d" * 16, 3, 99)
    again, other = await reload(await bytes_of(Writing(state, ledger)))
    again.check()
    assert contents(again) == contents(state)
    assert (other.index, other.digest, other.term, again.term) == (7, b"d" * 16, 3, 3)


async def test_changes_while_it_is_written_are_not_in_it() -> None:
    state = busy_state()
    before = contents(state)
    writing = Writing(state, Ledger("net", 7))
    data = b""
    step = 0
    async for frame in writing.frames():
        data += frame
        step += 1
        apply(state, submit(f"new{step}"), *(Cancel(TaskId(f"t{i:04}")) for i in range(step * 100, step * 100 + 90)))
        apply(state, Archived(f"c{step}", tuple(TaskId(f"t{i:04}") for i in range(60, 60 + step * 60, 6)), 9))
    again, _ = await reload(data)
    assert step > 3
    assert contents(again) == before
    assert state.before_change is None


@settings(max_examples=50, deadline=None)
@given(cut=st.integers(0, 5_000))
async def test_what_is_cut_short_is_refused(cut: int) -> None:
    state = Tasks(NET)
    apply(state, *(submit(f"t{i:04}") for i in range(50)))
    data = await bytes_of(Writing(state, Ledger("net", 7)))
    with pytest.raises(Corrupt):
        await reload(data[: cut % len(data)])


async def test_another_networks_snapshot_is_foreign() -> None:
    data = await bytes_of(Writing(Tasks(NET), Ledger("other", 7)))
    with pytest.raises(ForeignData):
        await reload(data)


async def test_one_at_a_time() -> None:
    state = Tasks(NET)
    writing = Writing(state, Ledger("net", 7))
    with pytest.raises(AssertionError):
        Writing(state, Ledger("net", 7))
    writing.close()
    Writing(state, Ledger("net", 7)).close()
