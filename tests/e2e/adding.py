"""A user with an agent that adds, for networks whose doors lie elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from terminal import Terminal, terminal

from conftest import need_server

AGENT = """
import asyncio
from pathlib import Path

from comity import Agent

agent = Agent("adder")


@agent.capability
async def add(a: int, b: int) -> int:
    return a + b


@agent.capability
async def linger(folder: str) -> str:
    with open(f"{folder}/attempts", "a") as file:
        file.write("x")
    while not Path(folder, "go").exists():
        await asyncio.sleep(0.02)
    return "done"
"""


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path) as user:
        (tmp_path / "adder.py").write_text(AGENT)
        yield user


def verdicts(found: dict[str, Any], check: str) -> list[str]:
    """What the doctor says of each that it looked at under that name."""
    return [one["verdict"] for one in found["checks"] if one["check"] == check]


def add(user: Terminal, a: int, *where: str) -> None:
    assert user.ok("submit", "add", f'{{"a": {a}, "b": 1}}', *where).json == a + 1
