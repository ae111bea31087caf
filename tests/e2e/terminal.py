"""Real ``comity`` processes, typed as a user types them."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

LIMIT_S = 40.0


class Done(NamedTuple):
    """A command that ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> dict[str, Any]:
        """The one typed error, on stderr; nothing is on stdout, and no traceback anywhere."""
        assert self.out == "", self.out
        assert "Traceback" not in self.err, self.err
        (line,) = self.err.splitlines()
        found: dict[str, Any] = json.loads(line)["error"]
        assert found["advice"]
        return found


class Running:
    """A command that goes on. What it writes on stdout is read as it comes; each wait has a limit."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._lines: queue.Queue[str] = queue.Queue()
        self._notes: queue.Queue[str] = queue.Queue()
        self._said: list[str] = []
        for stream, take in ((process.stdout, self._lines.put), (process.stderr, self._note)):
            threading.Thread(target=_read, args=(stream, take), daemon=True).start()

    def _note(self, line: str) -> None:
        self._said.append(line)
        self._notes.put(line)

    def _next(self, lines: queue.Queue[str]) -> str:
        try:
            line = lines.get(timeout=LIMIT_S)
        except queue.Empty:
            line = ""
        if not line:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(1.0)
            raise AssertionError(f"no line came ({self.process.returncode=}); on stderr: {''.join(self._said)}")
        return line

    @property
    def is_silent(self) -> bool:
        """No line is there to be read."""
        return self._lines.empty()

    def line(self) -> str:
        return self._next(self._lines)

    def json(self) -> Any:
        return json.loads(self.line())

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first JSON line for which ``wanted`` holds."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            found: dict[str, Any] = self.json()
            if wanted(found):
                return found
        raise AssertionError("what was waited for did not come")

    def told(self, word: str) -> str:
        """The next line on stderr that holds ``word``."""
        while word not in (line := self._next(self._notes)):
            pass
        return line

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)

    def stop(self) -> int:
        """Ctrl-C; its exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGINT)
        return self.wait()


def _read(stream: Any, take: Callable[[str], Any]) -> None:
    with stream:
        for line in stream:
            take(line)
    take("")


class Terminal:
    """One user: folders, settings and processes of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "home" / "data" / "comity" / "main"
        self.env = {name: value for name, value in os.environ.items() if not name.startswith("COMITY_")}
        if "COMITY_NATS_SERVER" in os.environ:
            self.env["COMITY_NATS_SERVER"] = os.environ["COMITY_NATS_SERVER"]
        self.env |= {"XDG_CONFIG_HOME": str(folder / "home" / "config"), "XDG_DATA_HOME": str(folder / "home" / "data")}
        self.limit_s = LIMIT_S
        """For a command that ends."""
        self._running: list[Running] = []

    def comity(self, *words: str, env: dict[str, str] | None = None, given: str | None = None) -> Done:
        """Type a command and wait for its end."""
        done = subprocess.run(
            [sys.executable, "-m", "comity", *words],
            env=self.env | (env or {}), cwd=self.folder, capture_output=True, text=True, timeout=self.limit_s, check=False,
            input=given, stdin=subprocess.DEVNULL if given is None else None,
        )  # fmt: skip
        return Done(done.returncode, done.stdout, done.stderr)

    def ok(self, *words: str) -> Done:
        done = self.comity(*words)
        assert done.code == 0, done
        return done

    def until(self, wanted: Callable[[Any], bool], *words: str) -> Any:
        """Type a command again and again, until what it says in JSON is as wanted; that. Who is slow to answer a question to
        all is missing in one answer."""
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            done = self.comity(*words)
            if done.out and wanted(found := done.json):
                return found
        raise AssertionError(f"what was waited for did not come: {done}")

    def begun(self, *words: str) -> str:
        """Submit a task; its id, once an attempt at it runs."""
        task: str = self.ok("submit", *words, "--no-wait").json["id"]
        watching = self.start("tasks", "watch", task, timely=True)
        watching.until(lambda event: event["type"] == "task.started")
        assert watching.stop() == 130
        return task

    def each(self, *commands: list[str]) -> list[Done]:
        """Type several, at the same time."""
        with ThreadPoolExecutor(4) as pool:
            return list(pool.map(lambda words: self.comity(*words), commands))

    def start(self, *words: str, timely: bool = False) -> Running:
        """Type a command that stays. ``timely``: without measuring its coverage, which makes it slow."""
        env = {name: value for name, value in self.env.items() if not (timely and name.startswith("COVERAGE_"))}
        process = subprocess.Popen(
            [sys.executable, "-m", "comity", *words],
            env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        running = Running(process)
        self._running.append(running)
        return running

    def up(self, *words: str) -> tuple[Running, dict[str, Any]]:
        """A network on any free port; the process, and what it says of itself."""
        running = self.start("up", "--port", "0", "--http-port", "0", *words)
        return running, running.json()

    def node(self, *words: str, timely: bool = False) -> Running:
        """A node that is ready."""
        running = self.start("run", *words, timely=timely)
        assert "node" in running.json()
        return running

    def close(self) -> None:
        for running in reversed(self._running):
            if running.process.poll() is None:
                running.process.kill()
                running.process.wait(LIMIT_S)


@contextmanager
def terminal(folder: Path) -> Iterator[Terminal]:
    opened = Terminal(folder)
    try:
        yield opened
    finally:
        opened.close()
