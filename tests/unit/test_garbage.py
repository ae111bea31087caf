"""Looking for garbage: what has lasted is set aside, and looked at again in time."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest

from comity.cli import garbage


class Node:
    """Something that can be part of a cycle."""

    def __init__(self) -> None:
        self.other: Any = None


def cycle() -> weakref.ref[Node]:
    one, other = Node(), Node()
    one.other, other.other = other, one
    return weakref.ref(one)


async def test_what_survived_a_full_collection_is_set_aside() -> None:
    async with garbage.without_stops():
        gc.collect()
        assert gc.get_freeze_count() > 1000
        found = cycle()
        assert found() is not None
        gc.collect()
        assert found() is None, "what comes later is looked at"
    assert garbage._set_aside not in gc.callbacks


async def test_cycles_among_what_was_set_aside_are_found_once_they_may_be_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_S", 0.01)
    monkeypatch.setattr(garbage, "FEW", 0)
    monkeypatch.setattr(garbage, "GROWTH", 0)
    monkeypatch.setattr(garbage, "GROWTH_AT_MOST", 0)
    async with garbage.without_stops():
        other = cycle()()
        gc.freeze()
        gc.collect()
        gone = asyncio.Event()
        weakref.finalize(other, gone.set)
        del other
        await gone.wait()
