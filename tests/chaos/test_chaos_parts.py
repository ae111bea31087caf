"""What judges a chaos run is judged here: planted faults must be found, and figures must be those of the calls."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from availability import figures, nines
from disks import Disk
from foreign import STACKS, Foreign
from isolation import way
from load import Job, Said, read_ledger
from nemesis import Fault, Nemesis
from players import Company
from report import Run, summary, timeline, write
from verdict import judge

from comity.cli.bench_proxy import Proxy
from comity.model.codec import digest, to_json
from comity.model.task import TaskState
from comity.sim.checkers import End
from comity.sim.history import History
from conftest import need_server
from members import need_server as need_etcd

TOTALS = {"submitted": 1, "completed": 1, "failed": 0, "canceled": 0}


class Told:
    """A run in which one task was asked for and completed as it should; tests change what was told of it."""

    def __init__(self) -> None:
        self.job = Job(0, 1.0, 1.1, 1.3, "t0", "completed", [0, 5, "mark"])
        self.history = History()
        self.ledger = {"t0": [Said(5, "mark")]}
        self.events: list[dict[str, Any]] = [{"type": "task.completed", "task": "t0", "epoch": 5}]
        self.totals = dict(TOTALS)
        operation = self.history.call("c", "submit", "t0", now=1.0)
        self.history.returns(operation, now=1.1)
        self.sees([0, 5, "mark"])

    def sees(self, result: Any, state: TaskState = TaskState.COMPLETED) -> None:
        operation = self.history.call("c", "result", "t0", now=1.2)
        self.history.returns(operation, End(state, digest(to_json(result))), now=1.3)

    def judged(self) -> str:
        return "\n".join(judge([self.job], self.history, self.ledger, self.events, self.totals))


def test_a_good_run_is_good() -> None:
    assert Told().judged() == ""


def test_what_is_lost_or_ends_twice_is_found() -> None:
    told = Told()
    told.events = []
    assert "never ended" in told.judged()
    told = Told()
    told.events *= 2
    assert "more than once" in told.judged()
    told = Told()
    told.events.append({"type": "events.gap", "from": 1, "to": 5})
    assert "gap" in told.judged()
    told = Told()
    told.totals["completed"] = 2
    assert "counts 1 tasks and 2 ends" in told.judged()


def test_a_result_that_the_accepted_attempt_did_not_return_is_found() -> None:
    told = Told()
    told.ledger = {"t0": [Said(4, "mark")]}
    assert "nobody returned" in told.judged()
    told = Told()
    told.events[0]["epoch"] = 6
    assert "accepted [6]" in told.judged()
    told = Told()
    told.job.result = [1, 5, "mark"]
    assert "the result of job 1" in told.judged()


def test_answers_that_no_order_explains_are_found() -> None:
    told = Told()
    told.sees(None, TaskState.WORKING)
    assert "not linearizable" in told.judged()
    told = Told()
    told.sees([0, 6, "other"])
    assert "not linearizable" in told.judged()


def test_a_refused_or_failed_job_is_found() -> None:
    told = Told()
    told.job.state, told.job.error = "failed", "out-of-attempts"
    assert "refused or failed" in told.judged()


def test_figures_are_those_of_the_calls() -> None:
    """Ten tasks a second for a hundred seconds; from 50 to 54 nothing was answered before 54."""
    jobs = [Job(n, n / 10, done := (54.0 if 500 <= n < 540 else n / 10 + 0.1), done, f"t{n}", "completed") for n in range(1000)]
    found = figures(jobs, [job.accepted or 0.0 for job in jobs], [("pause", 20.0), ("kill", 50.0)], 100.0)
    assert (found.submits, found.faults, found.fault_every_s) == (1000, 2, 40.0)
    assert found.answered == pytest.approx(0.97), "those of the last second were answered within one"
    assert found.finished == 1.0
    assert found.longest_stop_s == pytest.approx(4.0, abs=0.2)
    assert [window.lost_s for window in found.windows] == [0.0, pytest.approx(3.0, abs=0.1)]
    assert [window.stop_s for window in found.windows] == [pytest.approx(0.1), pytest.approx(4.0, abs=0.2)]
    assert found.every_s_answered == pytest.approx(1.5 / 0.0005, rel=0.1), "1.5 s a fault are 0.05 % of 50 minutes"
    assert found.every_s_finished == 0.0


@pytest.mark.parametrize(
    ("share", "said"), [(1.0, "all"), (0.9995, "3.5"), (0.9991, "3"), (0.99, "2"), (0.95, "1.5"), (0.62, "0")]
)
def test_nines(share: float, said: str) -> None:
    assert nines(share) == said


def test_a_report_says_what_was_wrong_and_shows_each_fault(tmp_path: Path) -> None:
    jobs = [Job(n, n / 10, n / 10 + 0.1, n / 10 + 0.2, f"t{n}", "completed") for n in range(100)]
    run = Run("nats", 7, 20.0, 6.0, 10.0, jobs, [Fault("power cut", "a <b>", 3.0, 4.0)], {"disk full": "no mounts"})
    run.figures = figures(jobs, [job.accepted or 0.0 for job in jobs], [("power cut", 3.0)], 10.0)
    assert "nothing lost" in summary(run)[-1]
    run.problems.append("accepted and never ended: 1")
    write(run, tmp_path / "report")
    said = (tmp_path / "report" / "summary.txt").read_text()
    assert "WRONG: accepted and never ended" in said and "left out: disk full (no mounts)" in said
    assert "any rate seen here" in said
    assert "| 3.0 s | power cut: a <b> | 1.0 s |" in (tmp_path / "report" / "report.md").read_text()
    drawn = timeline(run)
    assert drawn.count("power cut: a &lt;b&gt;, 3.0 to 4.0 s") == 1


def test_a_seed_fixes_the_order_of_faults(tmp_path: Path) -> None:
    orders = []
    for number, seed in enumerate((1, 1, 2)):
        (place := tmp_path / f"{number}").mkdir()
        company = Company(place, random.Random(seed), None, mounts=False, disk_mb=1)
        nemesis = Nemesis(company, random.Random(seed), lambda: 0.0, 1.0)
        orders.append(nemesis.order())
        assert nemesis.skipped["partition"] == "network namespaces are not allowed here"
        assert {"power cut", "power cut of all", "disk full", "one-way partition"} <= nemesis.skipped.keys()
    assert orders[0] == orders[1] != orders[2]
    assert len(orders[0]) >= 10
    assert {"bit flipped", "block truncated"} <= set(orders[0])


def test_servers_of_others_have_faults_of_their_own(tmp_path: Path) -> None:
    need_server()
    need_etcd("etcd", "COMITY_ETCD_SERVER")
    foreign = Foreign(tmp_path, random.Random(1), None, STACKS["etcd"])
    nemesis = Nemesis(foreign, random.Random(1), lambda: 0.0, 1.0)
    assert nemesis.skipped.keys() == {"partition", "one-way partition"}
    kinds = {"etcd leader paused", "etcd follower killed", "all of etcd killed", "past compacted", "leases revoked"}
    kinds |= {"nats server killed", "all of nats killed", "leader killed", "node killed", "nodes cut off"}
    assert kinds <= set(nemesis.kinds)


def test_a_ledger_leaves_out_what_was_not_written_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "runs.txt").write_text("t0 5 abc\nt0 6 def\nt1 7")
    assert read_ledger(tmp_path / "runs.txt") == {"t0": [Said(5, "abc"), Said(6, "def")]}


def test_damage_is_done_to_the_log(tmp_path: Path) -> None:
    disk = Disk(tmp_path, "a", 1, mounts=False)
    folder = disk.data / "jetstream" / "account" / "streams" / "CY_main_LOG" / "msgs"
    folder.mkdir(parents=True)
    block = folder / "1.blk"
    record = (100).to_bytes(4, "little") + bytes(96)
    block.write_bytes(10 * record)
    told = disk.flip(random.Random(1))
    (at,) = (at for at, byte in enumerate(block.read_bytes()) if byte != record[at % 100])
    assert told == f"1.blk byte {at}"
    assert "from 1000 to 500" in disk.truncate()
    assert block.stat().st_size == 500


async def test_a_proxy_cuts_heals_and_drops() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    proxy = Proxy(socket.create_server(("127.0.0.1", 0)), "127.0.0.1", port, random.Random(1))
    await proxy.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.cut()
        writer.write(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readexactly(1), 0.2)
        proxy.heal()
        assert await asyncio.wait_for(reader.readexactly(3), 5) == b"two", "late, as after a partition, and not lost"
        proxy.drop = 1.0
        writer.write(b"three")
        assert await asyncio.wait_for(reader.read(5), 5) == b"", "its connection is gone"
    finally:
        writer.close()
        await proxy.stop()
        server.close()


LINKS = """
import os, socket, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from links import Links
from disks import Disk
links = Links("abc")
listener = links.listen("a", links.address["a"], 7000)

def reaches(by):
    code = "import socket, sys; socket.create_connection((sys.argv[1], 7000), 1).close()"
    words = [*links.within(by), sys.executable, "-c", code, links.address["a"]]
    return subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0

seen = [reaches("b"), reaches("hub"), reaches("edge")]
links.cut("b", "a")
seen += [reaches("b"), reaches("c")]
links.heal()
links.cut("a", "b")
seen += [reaches("b"), reaches("c")]
links.heal()
seen += [reaches("b")]
disk = Disk(Path(sys.argv[2]), "a", 16, mounts=True)
disk.data.mkdir()
disk.fill()
try:
    (disk.data / "more").write_bytes(bytes(8192))
    seen += ["room"]
except OSError:
    seen += ["full"]
disk.empty()
(disk.data / "more").unlink(missing_ok=True)
if disk.image is not None:
    with (disk.data / "synced").open("wb") as file:
        file.write(b"kept")
        file.flush()
        os.fsync(file.fileno())
    (disk.data / "lazy").write_bytes(b"lost")
    disk.copy()
    disk.power_on()
    kept, lost = disk.data / "synced", disk.data / "lazy"
    assert kept.read_bytes() == b"kept" and not (lost.exists() and lost.read_bytes() == b"lost"), list(disk.data.iterdir())
print(seen)
"""


def test_links_and_disks_have_faults_and_leave_nothing_behind(tmp_path: Path) -> None:
    inside = way()
    if not inside:
        pytest.skip("namespaces are not allowed here")
    before = (os.listdir("/sys/class/net"), Path("/proc/mounts").read_text())
    words = [*inside, sys.executable, "-c", LINKS, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=50)
    assert done.stdout.strip() == str([True, True, False, False, True, False, True, True, "full"]), done.stderr
    assert (os.listdir("/sys/class/net"), Path("/proc/mounts").read_text()) == before
