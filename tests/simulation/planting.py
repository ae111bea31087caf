"""What a planted bug is, and the list of them all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

Plant = Callable[[pytest.MonkeyPatch], None]
CLOSE_LIMITS = {"snapshot_every": 10, "keep_finished": 20, "dedup_window_s": 10.0}


class Planted(NamedTuple):
    """A bug, and the ``World`` in which it must show, or the test (its node id) that must fail."""

    name: str
    plant: Plant
    world: dict[str, Any]
    test: str = ""


PLANTED: list[Planted] = []


def plant(test: str = "", **world: Any) -> Callable[[Plant], Plant]:
    """Register a bug."""

    def add(function: Plant) -> Plant:
        PLANTED.append(Planted(function.__name__, function, world, test))
        return function

    return add
