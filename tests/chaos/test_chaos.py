"""The short chaos run, as CI has it: under three minutes, with as many kinds of faults as fit. ``make chaos`` is the long one."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import need_server

RUN = Path(__file__).with_name("run.py")
LIMIT_S = 240.0


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(LIMIT_S + 30)
def test_nothing_accepted_is_lost_whatever_happens(tmp_path: Path) -> None:
    """The seed is a new one each time: it is printed, and ``SEED=N`` takes it again."""
    need_server()
    seed = os.environ.get("SEED") or str(random.randrange(100_000))
    words = ["--minutes", "1.7", "--every", "7", "--longest", "6", "--seed", seed, "--report", str(tmp_path / "report")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, str(RUN), *words], check=False, env=env, capture_output=True, text=True, timeout=LIMIT_S
    )
    print(done.stdout, done.stderr)
    assert done.returncode == 0, f"seed {seed}"
    assert "nothing lost" in done.stdout
    assert done.stdout.count(" s  ") > 5, "faults were told"
    assert (tmp_path / "report" / "timeline.svg").read_text().startswith("<svg")
    assert "| at | fault |" in (tmp_path / "report" / "report.md").read_text()


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.timeout(100)
def test_a_run_whose_starter_is_killed_leaves_nothing(tmp_path: Path) -> None:
    need_server()
    words = [sys.executable, str(RUN), "--minutes", "1", "--report", str(tmp_path / "report")]
    env = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")} | {"TMPDIR": str(tmp_path)}
    starter = subprocess.Popen(words, env=env, stdout=subprocess.DEVNULL)
    until = time.monotonic() + 40
    while not list(tmp_path.glob("comity-chaos-*/a.err")):
        assert time.monotonic() < until and starter.poll() is None, "it does not begin"
        time.sleep(0.05)
    assert _running(str(tmp_path))
    starter.kill()
    starter.wait()
    while list(tmp_path.glob("comity-chaos-*")) or _running(str(tmp_path)):
        assert time.monotonic() < until + 40, (list(tmp_path.iterdir()), _running(str(tmp_path)))
        time.sleep(0.05)


def _running(folder: str) -> list[list[str]]:
    """The command lines of processes that name ``folder``."""
    lines = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [words for words in lines if any(folder in word for word in words)]
