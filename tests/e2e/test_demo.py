"""The demo and its crew, with real processes: a node is killed and every file is in the report once."""

from __future__ import annotations

import asyncio
import email
import importlib
import json
import os
import shutil
import signal
import sys
from io import StringIO
from pathlib import Path
from typing import Any

import psutil
import pytest
from rich.console import Console

from comity.cli import demo
from comity.cli.network import EmbeddedNetwork
from comity.config import Settings
from comity.errors import BadInput, ModuleFailed, ServerFailed, TaskFailed, TimedOut
from conftest import need_server

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def server_is_here() -> None:
    need_server()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A little real code: enough that agents are at work when half of it is done."""
    code = tmp_path / "code"
    shutil.copytree(Path(email.__file__).parent, code, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "broken.py").write_text("def f(:\n")
    return code


def console(live: bool = False) -> Console:
    return Console(file=StringIO(), force_terminal=live, highlight=False, width=120)


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, StringIO)
    return shown.file.getvalue()


async def test_a_node_is_killed_and_every_file_is_there_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "LAST_EVENTS_S", 30.0)  # what lanes show is counted here
    out, shown = tmp_path / "report.html", console(live=True)
    facts = await demo.run_demo(folder, progress=True, out=out, console=shown)
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    assert facts["files"] == len(files)
    assert facts["killed"] in demo.EXPENDABLE
    assert [node for node, lane in facts["nodes"].items() if lane["killed"]] == [facts["killed"]]
    assert sum(lane["agents"] for lane in facts["nodes"].values()) == demo.AGENTS
    assert sum(lane["tasks"] for lane in facts["nodes"].values()) == facts["batches"] + demo.SINGLE_TASKS
    page = out.read_text()
    assert f"{len(files)} listed, {len(files)} surveyed, 0 missing, 0 twice" in page
    assert f"{facts['killed']} killed at" in page
    assert "broken.py" in page
    said = text_of(shown)
    assert f"{facts['killed']} killed (SIGKILL)" in said
    assert "Every file once" in said
    assert str(out) in said
    assert "\x1b[" in said


def test_a_report_that_misses_a_file_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    report = importlib.import_module("code_survey.report")
    demo.check(report.Coverage(3, 3), Path("r.html"))
    with pytest.raises(TaskFailed, match=r"r.html does not cover every file once: 1 are missing, 0 twice") as failed:
        demo.check(report.Coverage(3, 2, missing=["gone.py"]), Path("r.html"))
    assert failed.value.details["missing"] == ["gone.py"]
    with pytest.raises(TaskFailed, match="1 twice"):
        demo.check(report.Coverage(3, 3, twice=["a.py"]), Path("r.html"))


async def test_a_node_that_does_not_come_up_is_told_of(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "report.html"
    with monkeypatch.context() as patch:
        patch.setitem(demo.NODES, "node-3", ("no_such_module",))
        with pytest.raises(ServerFailed, match=r"node-3 ended at once; it said: .*no_such_module"):
            await demo.run_demo(folder, progress=False, out=out, console=console())
    monkeypatch.setattr(demo, "READY_S", 0.05)
    with pytest.raises(TimedOut, match=r"node-\d did not bring up its agents within 0.05 s"):
        await demo.run_demo(folder, progress=False, out=out, console=console())


async def test_what_cannot_be_surveyed_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="is not a folder"):
        await demo.run_demo(tmp_path / "gone", progress=False, out=tmp_path / "r.html", console=console())
    with pytest.raises(BadInput, match="no folder to write to"):
        await demo.run_demo(tmp_path, progress=False, out=tmp_path / "gone" / "r.html", console=console())
    monkeypatch.setattr(demo, "__file__", str(tmp_path / "a" / "b" / "c" / "demo.py"))
    with pytest.raises(ModuleFailed, match="neither in this installation nor beside it"):
        await demo.run_demo(tmp_path, progress=False, out=tmp_path / "r.html", console=console())


async def run(*words: str, **options: Any) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable, *words, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, **options
    )


async def test_the_command_prints_lines_in_a_pipe(folder: Path, tmp_path: Path) -> None:
    process = await run("-m", "comity", "demo", str(folder), cwd=tmp_path, stderr=asyncio.subprocess.PIPE)
    said, noted = await process.communicate()
    assert (process.returncode, noted) == (0, b"")
    lines = said.decode().splitlines()
    assert "\x1b" not in said.decode()
    assert sum("files" in line and " of " in line for line in lines) >= 10
    assert any("Every file once" in line for line in lines)
    assert (tmp_path / "report.html").is_file()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
async def test_a_signal_leaves_nothing_behind(tmp_path: Path, signum: signal.Signals, code: int) -> None:
    process = await run(
        "-m", "comity", "demo", "-o", "json", cwd=tmp_path, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    said = b""
    while b" files" not in said:
        said = await process.stderr.readline()
        assert said
    started = psutil.Process(process.pid).children(recursive=True)
    assert len(started) >= 5
    if signum == signal.SIGINT:
        os.killpg(process.pid, signum)  # as a terminal does
    else:
        process.send_signal(signum)
    answer, rest = await process.communicate()
    assert (process.returncode, answer) == (code, b"")
    assert b"Traceback" not in rest
    _, alive = psutil.wait_procs(started, timeout=20)
    assert alive == []


async def test_the_crew_runs_as_its_readme_says(folder: Path, tmp_path: Path) -> None:
    data, out = tmp_path / "data", tmp_path / "own.html"
    network = await EmbeddedNetwork.start(Settings.load({"data_dir": data, "port": 0}, env={}).settings, metrics=False)
    try:
        env = os.environ | {"COMITY_DATA_DIR": str(data)}
        nodes = []
        for target in ([], [":surveyor", "--replicas", "2"]):
            path = str(EXAMPLES / "code_survey" / "agents.py") + "".join(target[:1])
            nodes.append(await run("-m", "comity", "run", path, *target[1:], "-o", "json", env=env))
        for node, count in zip(nodes, (8, 2), strict=True):
            assert node.stdout is not None
            assert len(json.loads(await node.stdout.readline())["agents"]) == count
        job = await run(str(EXAMPLES / "code_survey"), str(folder), str(out), env=env)
        said, _ = await job.communicate()
        files = len(list(folder.rglob("*.py")))
        assert (job.returncode, said.decode()) == (0, f"{files} of {files} files are in {out}\n")
        assert "Every file once" in out.read_text()
        for node in nodes:
            node.terminate()
            await node.wait()
    finally:
        await network.stop()
