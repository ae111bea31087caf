"""What ``bench/peers`` makes of what it measured: statistics, tables, and a load that counts what went wrong."""

from __future__ import annotations

import importlib
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from bench.peers import measure, processes, table
from bench.peers.servers import NATS, RABBIT, REDIS
from bench.peers.systems import HERE, SYSTEMS


def system(name: str, *rounds: dict[str, float], problem: str | None = None) -> dict[str, Any]:
    words = {
        "accepted": "on disk",
        "killed": "nothing",
        "power_cut": "a|b",
        "settings": "as shipped",
        "versions": ["it 1"],
    }
    return {
        "name": name,
        **words,
        "problem": problem,
        "rounds": list(rounds),
        "figures": table.over_rounds(list(rounds)),
    }


SETTINGS = {"count": 5000, "payload": 256, "sequential": 500, "workers": 2, "rounds": 3, "machine": "2 cores"}


def test_rounds_become_medians_with_their_ends() -> None:
    rounds = [{"tasks_per_s": 30, "lost": 0}, {"tasks_per_s": 10, "lost": 2}, {"tasks_per_s": 20, "lost": 0}]
    figures = table.over_rounds(rounds)
    assert figures["tasks_per_s"] == {"median": 20, "min": 10, "max": 30}
    assert figures["lost"]["max"] == 2
    assert table.over_rounds([]) == {}


def test_the_table_shows_spread_losses_and_what_is_missing() -> None:
    rates = {12345: 0, 9000: 3, 20000: 0}
    fast = system("Fast", *({"tasks_per_s": rate, "p50_ms": 2.5, "lost": lost} for rate, lost in rates.items()))
    text = table.tables({"settings": SETTINGS, "systems": [fast, system("Absent", problem="not measured: get it")]})
    assert "| Fast | 12,345 (9,000-20,000) | - | 2.50 | - | - | 3 | - | - |" in text
    assert "| Absent | not measured: get it |" in text
    assert r"| Fast | on disk | nothing | a\|b |" in text
    assert "- **Fast** (it 1): as shipped." in text


def test_the_page_keeps_what_is_around_the_tables(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{table.BEGIN}\nold\n{table.END}\nafter\n")
    for text in ("new", "newer"):
        table.write_into(page, text)
        assert page.read_text() == f"before\n{table.BEGIN}\n\n{text}\n\n{table.END}\nafter\n"
    page.write_text("no marks")
    with pytest.raises(ValueError, match="no place"):
        table.write_into(page, "new")
    assert page.read_text() == "no marks"


def test_the_benchmarks_page_has_a_place_for_the_tables() -> None:
    text = (HERE.parent / "README.md").read_text()
    assert 0 < text.index(table.BEGIN) < text.index(table.END)


@pytest.mark.parametrize("peer", [one for one in SYSTEMS if not one.ours], ids=lambda one: one.key)
def test_a_peer_is_locked_with_hashes_and_says_how_durable_it_is(peer: Any) -> None:
    lock = (HERE / f"{peer.key}.lock").read_text()
    assert len(peer.versions) == len(peer.packages)
    assert lock.count("==") <= lock.count("--hash=sha256:")
    assert not re.search("https?://", lock)
    assert (HERE / f"{peer.key}.py").exists()
    assert all((peer.settings, peer.accepted, peer.killed, peer.power_cut))


def test_a_missing_server_is_named_with_what_installs_it() -> None:
    absent = REDIS._replace(find=lambda: None)
    peer = next(one for one in SYSTEMS if one.key == "celery_redis")._replace(servers=(absent,))
    assert "apt-get install --no-install-recommends redis-server" in (measure.missing(peer) or "")
    assert measure.missing(SYSTEMS[0]) is None


@pytest.mark.parametrize(
    ("server", "said", "version"),
    [
        (REDIS, b"$4000\r\n# Server\r\nredis_version:7.0.15\r\n", "7.0.15"),
        (RABBIT, b"\x01\x00\x00versionS\x00\x00\x00\x063.10.8\x08platform", "3.10.8"),
        (NATS, b'INFO {"server_id":"x","version":"2.15.1"}\r\n', "2.15.1"),
    ],
    ids=["redis", "rabbitmq", "nats"],
)
def test_a_server_is_known_by_its_greeting(server: Any, said: bytes, version: str) -> None:
    found = server.version.search(said)
    assert found is not None and found[1].decode() == version


CHILD = "import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE).pid)"


async def test_processes_are_counted_and_ended_with_their_children() -> None:
    async with processes.Processes() as started:
        parent = await started.start(sys.executable, "-c", f"{CHILD}; sys.stdout.flush(); input()")
        assert parent.stdout is not None
        child = psutil.Process(int(await parent.stdout.readline()))
        assert started.cpu_s() > 0
        started.check()
    assert parent.returncode is not None
    assert psutil.wait_procs([child], timeout=10)[1] == [] or child.status() == psutil.STATUS_ZOMBIE
    assert not started.folder.exists()


async def test_a_process_that_ended_is_reported_with_its_last_words() -> None:
    async with processes.Processes() as started:
        process = await started.start(sys.executable, "-c", "raise SystemExit('no such queue')")
        await process.wait()
        with pytest.raises(processes.Failed, match=r"ended \(1\): no such queue"):
            started.check()


class FakePeer:
    """Runs a task at once. Of those it was given, the third has no result, the fifth a wrong one, and the sixth runs twice."""

    late = KeyError
    waiters = 2

    def __init__(self, work: Any) -> None:
        self.given = 0
        self._work = work

    async def submit(self, texts: list[str]) -> list[int]:
        first, self.given = self.given + 1, self.given + len(texts)
        for number in range(first, self.given + 1):
            for _ in range(2 if number == 6 else 1):
                self._work(texts[0])
        return list(range(first, self.given + 1))

    async def result(self, task: int, timeout_s: float) -> int:
        assert timeout_s > 0
        if task == 3:
            raise KeyError(task)
        return 0 if task == 5 else 256


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("BENCH_RAN", str(tmp_path))
    return importlib.reload(importlib.import_module("bench.peers.load"))


async def test_the_load_counts_what_is_lost_and_what_ran_twice(
    load: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    orders = [
        '{"mode": "all", "count": 10, "payload": 256}\n',
        '{"mode": "one", "count": 4, "payload": 256}\n',
        '{"mode": "warm", "count": 0, "payload": 256, "workers": 1}\n',
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("".join(orders)))
    await load.serve(FakePeer(load.work))
    busy, idle, warm = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (busy["lost"], busy["ran"]) == (2, 11)
    assert busy["took_s"] > 0
    assert (idle["lost"], idle["ran"], len(idle["latencies_s"])) == (0, 4, 4)
    assert (warm["lost"], warm["workers"], warm["ran"]) == (0, 1, load.WARM)
