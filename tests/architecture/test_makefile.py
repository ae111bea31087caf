"""What make offers can be made, and all tests are found."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from source import ROOT


def test_every_target_of_make_can_be_made(tmp_path: Path) -> None:
    """As far as make can tell without doing anything: what it needs has a rule."""
    targets = re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"demo", "test", "bench-peers", "bench-plots"} <= {*targets}
    for target in targets:
        words = ["make", "--dry-run", "SHELL=/bin/true", f"VENV={tmp_path}/venv", target]
        made = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
        assert made.returncode == 0, (target, made.stderr)


def test_no_two_files_of_tests_have_one_name() -> None:
    """They are modules without a package: the second would not be collected."""
    names = [path.name for path in (ROOT / "tests").rglob("*.py")]
    twice = {name for name in names if names.count(name) > 1} - {"conftest.py", "__init__.py"}
    assert not twice
