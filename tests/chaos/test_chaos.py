"""The short chaos runs, as CI has them: each under three minutes, with as many kinds of faults as fit. ``make chaos`` is the long
one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from conftest import need_server
from members import need_server as need_etcd
from rabbits import need_rabbit

RUN = Path(__file__).with_name("run.py")
LIMIT_S = 240.0
FOREIGN = {
    "classic": [
        "rabbitmq server killed", "etcd leader killed", "leader killed", "partition", "leases revoked", "node killed",
        "etcd follower paused", "past compacted", "all of etcd killed", "rabbitmq server paused",
    ],
    "etcd": [
        "etcd leader paused", "controller paused", "one-way partition", "lease outlasted", "all of nats killed",
        "etcd follower restarted", "connections dropped", "past compacted", "all of etcd killed", "controller restarted",
    ],
}  # fmt: skip


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(LIMIT_S + 30)
def test_nothing_accepted_is_lost_whatever_happens(tmp_path: Path) -> None:
    """``SEED=N`` for another life."""
    need_server()
    run(tmp_path, "--minutes", "1.7", "--every", "7", "--longest", "6")


@pytest.mark.server
@pytest.mark.slow
@pytest.mark.chaos
@pytest.mark.timeout(LIMIT_S + 30)
@pytest.mark.parametrize("stack", FOREIGN)
def test_nothing_accepted_is_lost_on_servers_of_others(tmp_path: Path, stack: str) -> None:
    need_etcd("etcd", "COMITY_ETCD_SERVER")
    (need_rabbit if stack == "classic" else need_server)()
    kinds = [word for kind in FOREIGN[stack] for word in ("--only", kind)]
    run(tmp_path, "--stack", stack, "--minutes", "0.88", "--every", "5", "--longest", "4.5", *kinds)


def run(tmp_path: Path, *words: str) -> None:
    """A run as it is typed. Nothing may be wrong in it."""
    seed = os.environ.get("SEED") or "7"
    words = (*words, "--seed", seed, "--report", str(tmp_path / "report"))
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
