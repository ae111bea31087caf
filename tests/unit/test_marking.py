"""The mark beside the log, while the disk is full: it is tried again each second, and said once."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog

from comity.cli import marking
from comity.cli.marking import FILE, Mark, Marking
from comity.model.ids import NetworkId

FULL, READ_ONLY = (OSError(code, os.strerror(code)) for code in (errno.ENOSPC, errno.EROFS))


async def told(monkeypatch: pytest.MonkeyPatch, data: Path, outcomes: list[OSError | None]) -> list[dict[str, Any]]:
    """What is said while the mark is written so often, with these outcomes."""
    loop, over, script, write = asyncio.get_running_loop(), asyncio.Event(), iter(outcomes), marking.write_private
    index = 0

    def ledger() -> Any:
        nonlocal index
        index += 1
        return SimpleNamespace(effective_index=index, digest=b"\x01")

    def attempt(path: Path, text: str) -> None:
        outcome = next(script, None)
        if outcome is not None:
            raise outcome
        write(path, text)
        if next(rest, None) is None:
            loop.call_soon_threadsafe(over.set)

    rest = iter([True] * (sum(outcome is None for outcome in outcomes) - 1))
    monkeypatch.setattr(marking, "write_private", attempt)
    monkeypatch.setattr(marking, "PACE_S", 0.0)
    with structlog.testing.capture_logs() as lines:
        kept = Marking(data, NetworkId("net"), data / "log")
        kept.keep(ledger)
        await asyncio.wait_for(over.wait(), 10)
        await kept.stop()
    mark = Mark.load(data)
    assert mark is not None and mark.index == index, "the last one is written"
    return [{key: line[key] for key in line if key != "log_level"} for line in lines]


async def test_a_full_disk_is_said_once_and_when_it_is_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = str(tmp_path / FILE)
    said = await told(monkeypatch, tmp_path, [None, FULL, FULL, FULL, None, None, FULL, None])
    begins = {"event": "cannot mark how far the log reaches", "path": path, "error": "No space left on device"}
    ends = {"event": "how far the log reaches is marked again", "path": path}
    assert said == [begins, ends, begins, ends]


async def test_another_reason_is_said_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = await told(monkeypatch, tmp_path, [FULL, FULL, READ_ONLY, READ_ONLY, None])
    assert [line.get("error") for line in said] == ["No space left on device", "Read-only file system", None]


async def test_a_disk_with_room_is_not_worth_a_word(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert await told(monkeypatch, tmp_path, [None, None, None]) == []
