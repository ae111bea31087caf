"""The example of a task that resumes does what its README says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import LIMIT_S, terminal

from conftest import need_server

pytestmark = pytest.mark.server
EXAMPLES = Path(__file__).parents[2] / "examples"
TOO_LATE = "  compare  done on ada"
"""The node was killed half a second after the step before, or later."""


def test_the_researcher_goes_on_where_its_killed_node_was(tmp_path: Path) -> None:
    need_server()
    told = re.findall(r"^    (  \w.*|node .*|\{.*)$", (EXAMPLES / "research" / "README.md").read_text(), re.MULTILINE)
    with terminal(tmp_path) as user:
        user.up()
        words = [sys.executable, str(EXAMPLES / "research"), "bees", "--slow", "0.5", "--editor", "Ada"]
        lines = [TOO_LATE]
        for _ in range(3):
            if TOO_LATE in lines:
                done = subprocess.run(words, env=user.env, capture_output=True, text=True, timeout=LIMIT_S, check=False)
                assert done.returncode == 0, done.stderr
                lines = done.stdout.splitlines()
    assert [line for line in lines if "node ada:" not in line] == [line for line in told if "node ada:" not in line]
    assert len([line for line in lines if "node ada:" in line]) == 1
