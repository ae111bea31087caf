"""The example of a contract net does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from terminal import LIMIT_S, terminal

from conftest import need_server

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "auction.py"


def test_the_guides_negotiation_is_the_example() -> None:
    guide = (ROOT / "docs" / "guide.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", guide[guide.index("\n## Negotiations\n") :], re.DOTALL | re.MULTILINE)
    assert blocks[0] in EXAMPLE.read_text()
    assert textwrap.indent(blocks[1], "    ") in EXAMPLE.read_text()
    assert sum(len(block.splitlines()) for block in blocks[:2]) <= 20


@pytest.mark.server
@pytest.mark.slow
def test_the_best_bidder_translates_and_the_next_best_if_that_dies(tmp_path: Path) -> None:
    need_server()
    told = re.findall(r"^    (.*: .* translated by .*)$", EXAMPLE.read_text(), re.MULTILINE)
    assert len(told) == 3
    with terminal(tmp_path) as user:
        user.up()
        words = [sys.executable, str(EXAMPLE)]
        done = subprocess.run(words, env=user.env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == told
