"""Plays every file in ``MACHINE/*.txt`` on the stage in ``stage_MACHINE.py``. A new machine is a new pair of the two.

``pytest tests/scenarios --rewrite`` writes the traces anew.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from transcript import play

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*/*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    stage = importlib.import_module(f"stage_{path.parent.name}").stage()
    text = path.read_text()
    played = play(text, stage)
    if request.config.getoption("--rewrite"):
        path.write_text(played)
    else:
        assert played == text


def test_a_wrong_trace_is_noticed() -> None:
    stage = importlib.import_module("stage_ledger").stage()
    assert play("show\n----\nindex=1\n", stage) == "show\n----\nindex=0 effective=0 last=root term=0 time=0\n"


def test_every_machine_with_a_stage_has_scenarios() -> None:
    stages = {path.stem.removeprefix("stage_") for path in HERE.glob("stage_*.py")}
    assert stages == {path.parent.name for path in FILES}
