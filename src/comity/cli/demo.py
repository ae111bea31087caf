"""``comity demo``: a network of four nodes and 32 agents surveys a folder of Python code; half-way one node is killed.

The crew is ``examples/code_survey``, made of ordinary agents; here is only the stage: a network of its own in a temporary
folder, node processes, somebody who kills one, and a screen.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comity.cli.demo_scene import Scene
from comity.errors import BadInput, ModuleFailed, ServerFailed, TaskFailed, TimedOut
from comity.tie import tied

if TYPE_CHECKING:
    from rich.console import Console

    from comity import Client
    from comity.cli.network import EmbeddedNetwork
    from comity.model.capability import AgentRecord

READY_S = 30.0
"""How long the nodes may take to announce all their agents."""
STOP_S = 10.0
JOB = "code_survey.job"
"""The caller's side. It is no part of the package, so it is imported by name."""
CREW = ("code_survey.agents",)
SURVEYORS = ("code_survey.agents:surveyor", "--replicas", "8")
NODES = {"node-1": CREW, "node-2": SURVEYORS, "node-3": SURVEYORS, "node-4": SURVEYORS}
"""What each node runs: eight agents each. Splitter, cross-referencer and reporter are only on the first."""
EXPENDABLE = ["node-2", "node-3", "node-4"]
AGENTS = 32
SINGLE_TASKS = 3
"""Those of the splitter, the cross-referencer and the reporter."""
LAST_EVENTS_S = 2.0
FRAMES_PER_S = 8


def default_folder() -> Path:
    """The source folder of Python's own standard library."""
    return Path(sysconfig.get_path("stdlib"))


def examples_folder() -> Path:
    """Where the crew's package is: inside an installed wheel, or in the checkout. Raises ModuleFailed."""
    here = Path(__file__).resolve()
    for folder in (here.parents[1] / "examples", here.parents[3] / "examples"):
        if (folder / "code_survey" / "agents.py").is_file():
            return folder
    raise ModuleFailed("the example crew, examples/code_survey, is neither in this installation nor beside it")


async def run_demo(folder: Path, *, progress: bool, out: Path, console: Console) -> dict[str, Any]:
    """Run it all and say how it went: files, seconds, what was killed, how fast its work ran elsewhere, where the report is.

    ``progress``: draw lanes that change in place; else print a line for each turn. Raises BadInput (no such folder, no place
    for the report), ServerFailed or TimedOut (a node does not come up), TaskFailed (a task failed, or the report does not
    cover every file, each once).
    """
    folder, out = _checked(folder, out)
    examples = examples_folder()
    console.print(f"Starting a network of {len(NODES)} nodes, to survey the Python code in {folder}", soft_wrap=True)
    sys.path.append(str(examples))
    try:
        job = importlib.import_module(JOB)
        with _terminable(), tempfile.TemporaryDirectory(prefix="comity-demo-") as scratch:
            async with _Stage(Path(scratch), examples) as stage:
                facts = await _Play(stage, job, console, progress).run(folder, out)
        _show(facts, console)
        return facts
    finally:
        sys.path.remove(str(examples))


def check(covered: Any, out: Path) -> None:
    """Raises TaskFailed unless the report, going by the crew's ``Coverage``, covers every file once."""
    if not covered.is_exact:
        raise TaskFailed(
            f"{out} does not cover every file once: {len(covered.missing)} are missing, {len(covered.twice)} twice",
            missing=covered.missing[:20], twice=covered.twice[:20], unasked=covered.unasked[:20],
        )  # fmt: skip


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends this as Ctrl-C does, so that no node is left running; the exit code is 143."""
    loop, task, asked = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    assert task is not None

    def end() -> None:
        asked.set()
        task.cancel()

    loop.add_signal_handler(signal.SIGTERM, end)
    try:
        yield
    except asyncio.CancelledError:
        if asked.is_set():
            raise SystemExit(128 + signal.SIGTERM) from None
        raise
    finally:
        loop.remove_signal_handler(signal.SIGTERM)


def _checked(folder: Path, out: Path) -> tuple[Path, Path]:
    """Both as absolute paths."""
    folder, out = folder.absolute(), out.absolute()
    if not folder.is_dir():
        raise BadInput(f"{folder} is not a folder", folder=str(folder))
    if not out.parent.is_dir() or not os.access(out.parent, os.W_OK):
        raise BadInput(f"{out.parent}, where the report should go, is no folder to write to", folder=str(out.parent))
    return folder, out


class _Stage:
    """An embedded network in a scratch folder, its node processes, and a client. All are gone when it is left."""

    net: Client
    network: EmbeddedNetwork

    def __init__(self, scratch: Path, examples: Path) -> None:
        self.scratch = scratch
        self.examples = examples
        self.nodes: dict[str, asyncio.subprocess.Process] = {}
        self._exits = contextlib.AsyncExitStack()

    async def __aenter__(self) -> _Stage:
        import comity
        from comity.cli.network import EmbeddedNetwork
        from comity.config import Settings

        data = self.scratch / "data"
        try:
            loaded = Settings.load({"data_dir": data, "network": "demo", "port": 0}, env={})
            self.network = await EmbeddedNetwork.start(loaded.settings, metrics=False)
            self._exits.push_async_callback(self.network.stop)
            self._exits.push_async_callback(self._stop_nodes)
            for node, target in NODES.items():
                self.nodes[node] = await self._start_node(node, target, data)
            self.net = await self._exits.enter_async_context(comity.connect(settings=loaded))
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(self, *failure: object) -> None:
        await self._exits.aclose()

    async def _start_node(self, node: str, target: Sequence[str], data: Path) -> asyncio.subprocess.Process:
        env = {name: value for name, value in os.environ.items() if not name.startswith("COMITY_")}
        paths = [str(self.examples), env.get("PYTHONPATH", "")]
        env |= {"COMITY_DATA_DIR": str(data), "COMITY_NETWORK": "demo", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
        with self._log(node).open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *tied(sys.executable, "-m", "comity", "run", *target, "--name", node, "-o", "json"),
                env=env, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.scratch,
            )  # fmt: skip

    def _log(self, node: str) -> Path:
        return self.scratch / f"{node}.log"

    async def agents(self) -> dict[str, list[str]]:
        """Wait until all agents are there; their ids by node. Raises ServerFailed (a node ended) or TimedOut."""
        found: dict[str, list[str]] = {}
        exits = {asyncio.create_task(process.wait()): node for node, process in self.nodes.items()}
        changes = aiter(self.net.watch())
        waits: set[asyncio.Future[Any]] = set(exits)
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    change = asyncio.ensure_future(anext(changes))
                    waits.add(change)
                    found = _by_node(await self.net.discover())
                    if sum(map(len, found.values())) == AGENTS:
                        return found
                    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                    waits.discard(change)
                    for ended, node in exits.items():
                        if ended.done():
                            raise ServerFailed(f"{node} ended at once; it said: {self._last_words(node)}", node=node)
        except TimeoutError:
            silent = next(node for node in NODES if len(found.get(node, ())) < AGENTS // len(NODES))
            said = f"{silent} did not bring up its agents within {READY_S:g} s; it said: {self._last_words(silent)}"
            raise TimedOut(said, node=silent) from None
        finally:
            for wait in waits:
                wait.cancel()

    def _last_words(self, node: str) -> str:
        return self._log(node).read_text(errors="replace")[-600:].strip() or "nothing"

    async def _stop_nodes(self) -> None:
        running = [process for process in self.nodes.values() if process.returncode is None]
        for process in running:
            process.terminate()
        for process in running:
            try:
                await asyncio.wait_for(process.wait(), STOP_S)
            except TimeoutError:
                process.kill()
                await process.wait()


class _Play:
    """One run on the stage: the job, the kill, and what is shown of it."""

    def __init__(self, stage: _Stage, job: Any, console: Console, live: bool) -> None:
        self.stage = stage
        self.job = job
        self.console = console
        self.live = live
        self.progress = job.Progress(on_batch=self._on_batch)
        self.scene = Scene(self._say)
        self._told_tenths = 0
        self._all_told = asyncio.Event()

    async def run(self, folder: Path, out: Path) -> dict[str, Any]:
        scene = self.scene
        scene.enter(await self.stage.agents())
        scene.say(f"{len(NODES)} nodes with {AGENTS} agents are up, at {self.stage.network.url}")
        with self._screen() as refresh:
            work = [asyncio.create_task(self._watch()), asyncio.create_task(self._draw(refresh))]
            try:
                covered = await self.job.survey_folder(self.stage.net, folder, out, self.progress)
                with contextlib.suppress(TimeoutError):  # events may be late, or lost with a leader
                    await asyncio.wait_for(self._all_told.wait(), LAST_EVENTS_S)
                scene.say(f"the report covers {covered.surveyed:,} of {covered.listed:,} files, {len(covered.twice)} twice")
            finally:
                for task in work:
                    task.cancel()
                await asyncio.wait(work)
                refresh()
        check(covered, out)
        return self._facts(folder, out)

    def _on_batch(self) -> None:
        """A batch of files is surveyed. Half-way, the node with most work in hand is killed."""
        scene, progress = self.scene, self.progress
        scene.files, scene.files_done = progress.files, progress.done
        tenths = progress.done * 10 // progress.files
        if tenths > self._told_tenths:
            self._told_tenths = tenths
            if not self.live:
                self.console.print(scene.line(f"{progress.done:,} of {progress.files:,} files"))
        if not scene.victim and progress.done * 2 >= progress.files:
            victim = scene.busiest(EXPENDABLE)
            at = time.time()
            self.stage.nodes[victim].kill()
            progress.lost[victim] = datetime.fromtimestamp(at, UTC)
            scene.kill(victim, round(at * 1000))

    async def _watch(self) -> None:
        async for event in self.stage.net.events(after=0):
            self.scene.event(event)
            if self.scene.done == self.progress.batches + SINGLE_TASKS:
                self._all_told.set()

    async def _draw(self, refresh: Callable[[], None]) -> None:
        while True:
            self.scene.files = self.progress.files
            refresh()
            await asyncio.sleep(1 / FRAMES_PER_S)

    @contextlib.contextmanager
    def _screen(self) -> Iterator[Callable[[], None]]:
        """A picture that changes in place, and what redraws it; nothing if lines are wanted."""
        if not self.live:
            yield lambda: None
            return
        from rich.live import Live

        with Live(self.scene, console=self.console, auto_refresh=False) as live:
            yield live.refresh

    def _say(self, line: str) -> None:
        if not self.live:
            self.console.print(line)

    def _facts(self, folder: Path, out: Path) -> dict[str, Any]:
        scene, run = self.scene, self.progress.run
        lanes = {
            node: {"agents": len(lane.agents), "tasks": lane.done, "taken_over": lane.taken_over, "killed": lane.is_gone}
            for node, lane in scene.lanes.items()
        }
        return {
            "folder": str(folder),
            "files": self.progress.files,
            "batches": self.progress.batches,
            "missing": 0,
            "twice": 0,
            "survey_s": round(run.seconds, 2),
            "killed": scene.victim,
            "noticed_after_s": scene.noticed_after_s,
            "moved_tasks": len(run.moved()),
            "moved_within_s": run.gap(),
            "nodes": lanes,
            "report": str(out),
        }


def _show(facts: dict[str, Any], console: Console) -> None:
    """The closing table, and what it comes to."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
    for title in ("node", "agents", "tasks done", "taken over", ""):
        table.add_column(title, justify="right" if title.startswith(("ag", "ta")) else "left")
    for node, lane in facts["nodes"].items():
        fate = "[red]killed[/]" if lane["killed"] else ""
        table.add_row(node, str(lane["agents"]), str(lane["tasks"]), str(lane["taken_over"] or ""), fate)
    console.print()
    console.print(table)
    files = f"{facts['files']:,}"
    console.print(f"\n[bold green]Every file once:[/] {files} listed, {files} surveyed, 0 missing, 0 twice")
    if facts["moved_within_s"] is not None:
        moved = f"the {facts['moved_tasks']} tasks" if facts["moved_tasks"] > 1 else "the one task"
        within = f"[bold]{facts['moved_within_s']:.2f} s[/]"
        console.print(f"[bold]{facts['killed']}[/] was killed; {moved} it was at ran elsewhere within {within}")
    console.print(f"The report: [bold]{facts['report']}[/]", soft_wrap=True)


def _by_node(records: Sequence[AgentRecord]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {node: [] for node in NODES}
    for record in records:
        found[record.node].append(record.id)
    return {node: sorted(ids, key=_natural) for node, ids in found.items()}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts surveyor-10 after surveyor-9."""
    return [(int(part) if part.isdigit() else 0, part) for part in name.replace("-", " ").split()]
