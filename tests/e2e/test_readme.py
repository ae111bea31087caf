"""What README.md and docs/ show is true: examples run as they are typed and print what stands there, commands, settings and files
are called so."""

from __future__ import annotations

import os
import pty
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from terminal import LIMIT_S, Terminal, terminal
from typer.main import get_command

from comity import errors
from comity.cli import submit
from comity.cli.app import GROUPS, app
from comity.cli.output import exit_code
from comity.config import Settings
from conftest import need_server

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "guide.md").read_text()
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
STAYS = ("up", "run")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def commands(text: str) -> list[tuple[str, list[str]]]:
    """What is typed in console blocks, with the lines that stand below it."""
    found: list[tuple[str, list[str]]] = []
    for line in "".join(blocks(text, "console")).splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def rows(page: str, heading: str) -> list[list[str]]:
    """The first table after a heading, without its own."""
    lines = page[page.index(f"\n## {heading}\n") :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|---"))
    table = lines[start + 1 : next(n for n in range(start, len(lines)) if not lines[n].startswith("|"))]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


class Seen(NamedTuple):
    """What a person saw: lines of standard output, a terminal, and of standard error."""

    out: list[str]
    err: list[str]


def typed(user: Terminal, line: str) -> Seen:
    """Type a command in a terminal and wait for its end."""
    here, there = pty.openpty()
    words = [sys.executable, "-m", *shlex.split(line)]
    env = user.env | {"NO_COLOR": "1"}
    process = subprocess.Popen(words, env=env, cwd=user.folder, stdin=there, stdout=there, stderr=subprocess.PIPE)
    os.close(there)
    said: list[bytes] = []
    reader = threading.Thread(target=_read, args=(here, said), daemon=True)
    reader.start()
    try:
        _, err = process.communicate(timeout=LIMIT_S)
        reader.join(LIMIT_S)
    finally:
        process.kill()
        os.close(here)
    return Seen(b"".join(said).decode().splitlines(), err.decode().splitlines())


def _read(terminal: int, said: list[bytes]) -> None:
    try:
        while data := os.read(terminal, 4096):
            said.append(data)
    except OSError:  # so the end of the other side shows on Linux
        return


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    """Somebody in a clone, who has typed those commands of the README that go on, and runs the guide's agent."""
    need_server()
    with terminal(tmp_path_factory.mktemp("clone")) as user:
        (user.folder / "examples").symlink_to(ROOT / "examples")
        for line, _ in commands(README):
            words = shlex.split(line, comments=True)
            if words[0] == "comity" and words[1] in STAYS:
                user.start(*words[1:], timely=True).json()
        (user.folder / "reviewer.py").write_text(blocks(GUIDE, "python")[0])
        user.node("reviewer.py", "--name", "guide")
        yield user


def test_the_agent_in_the_readme_is_the_example() -> None:
    text = blocks(README, "python")[0]
    assert text == (ROOT / "examples" / "hello.py").read_text()
    counted = [line for line in text.splitlines() if line]
    assert len(counted) <= 15


@pytest.mark.server
def test_commands_in_the_readme_print_what_stands_there(user: Terminal) -> None:
    answered = 0
    for line, expected in commands(README):
        words = shlex.split(line, comments=True)
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        elif words[1] not in STAYS:
            seen = typed(user, line)
            left = [text for text in expected if text not in seen.err]
            assert seen.out == [text for text in left if not text.startswith("50%")], (line, seen)
            assert not seen.err or seen.err == [text for text in expected if text not in seen.out], (line, seen)
            answered += 1
    assert answered == 3


@pytest.mark.server
def test_the_snippet_in_the_readme_prints_what_stands_there(user: Terminal) -> None:
    code = blocks(README, "python")[1]
    (user.folder / "snippet.py").write_text(code)
    assert printed(user, "snippet.py") == told(code)


@pytest.mark.server
def test_the_guides_agents_and_tasks_do_what_it_says(user: Terminal) -> None:
    tasks = blocks(GUIDE, "python")[1]
    main = f"import asyncio\nimport comity\nasync def main():\n{textwrap.indent(tasks, '    ')}\nasyncio.run(main())\n"
    (user.folder / "tasks.py").write_text(main)
    *types, result = printed(user, "tasks.py")
    assert types[-1] == "task.completed"
    assert [result] == told(tasks)
    assert user.ok("send", "guide/reviewer", "--topic", "ping").json.startswith("pong to client-")
    refused = user.ok("submit", "review", '{"path": "a.c"}', "--no-wait").json["id"]
    follower = user.start("tasks", "watch", refused, timely=True)
    assert follower.until(lambda event: event["type"] == "task.requeued")["reason"] == "I read Python only"
    assert follower.stop() == 130
    user.until(lambda shown: "I read Python only" in shown["reason"], "tasks", "show", refused)  # not as it is offered again
    assert user.ok("tasks", "cancel", refused).json["state"] == "canceled"
    for event in user.ok("events").lines:
        assert f"`{event['type']}`" in OPERATIONS


def printed(user: Terminal, script: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, script], env=user.env, cwd=user.folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def told(code: str) -> list[str]:
    """What the comments beside ``print`` say."""
    return re.findall(r"^ *print\(.*\)  # (.*)$", code, re.MULTILINE)


def test_the_guides_steps_are_the_examples() -> None:
    (code,) = [block for block in blocks(GUIDE, "python") if "attempt.step(" in block]
    assert code in (ROOT / "examples" / "research" / "agents.py").read_text()


def test_the_guides_stream_is_the_examples() -> None:
    example = (ROOT / "examples" / "assistant.py").read_text()
    answering, reading = [block for block in blocks(GUIDE, "python") if "Answer" in block]
    assert answering in example
    for line in reading.splitlines()[1:]:
        assert line.strip() in example


def test_the_guides_simulation_runs() -> None:
    names: dict[str, Any] = {}
    (code,) = [block for block in blocks(GUIDE, "python") if "World(" in block]
    assert "range(20)" in code
    exec(compile(code.replace("range(20)", "range(2)"), "guide.md", "exec", dont_inherit=True), names)
    names["test_my_agents_survive"]()


@pytest.mark.server
def test_the_data_directory_holds_what_the_operations_page_lists(user: Terminal) -> None:
    listed = re.findall(r"`([a-z.]+)/?`", " ".join(row[0] for row in rows(OPERATIONS, "What is on disk")))
    there = [path.name for path in user.data.iterdir() if path.suffix != ".part"]  # such a one is about to replace another
    assert sorted(listed) == sorted(there)


def test_settings_are_called_so_and_have_these_defaults() -> None:
    for names, defaults, _ in rows(OPERATIONS, "Settings"):
        said = re.split(r",\s+", defaults)
        for name, value in zip(re.findall(r"`(\w+)`", names), said, strict=True):
            if name != "data_dir":
                default = getattr(Settings(), name)
                told = value == "true" if isinstance(default, bool) else float(value.replace(",", ""))
                assert default == told, name


def test_exit_codes_are_all_told() -> None:
    (table,) = re.findall(r"^\| exit code .*?\n\n", OPERATIONS, re.DOTALL | re.MULTILINE)
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    assert listed == {0, 130} | {exit_code(kind) for kind in errors.by_code().values()}


def test_what_a_task_may_require_is_told() -> None:
    keys = {*submit._LISTS, *submit._NUMBERS, *submit._WORDS, "label"}
    assert all(f"`{key}=" in GUIDE for key in keys)


def test_commands_and_options_are_called_so() -> None:
    """In the pages and in the advice of errors."""
    texts = [code for page in PAGES for code in re.findall(r"`(comity [^`]+)`", page.read_text())]
    texts += [found for kind in errors.by_code().values() for found in re.findall(r"comity [a-z][^.,;)]*", kind.advice)]
    checked = 0
    for text in texts:
        words = text.split()[1:]
        if words[0].isupper() or words[0].startswith("-"):
            continue
        command: Any = get_command(app)
        for word in words[: 2 if words[0] in GROUPS else 1]:
            if not word.isupper():
                assert word in command.commands, text
                command = command.commands[word]
        flags = {flag for param in command.params for flag in param.opts}
        assert all(word.partition("=")[0] in flags for word in words if word.startswith("-")), text
        checked += 1
    assert checked > 20


def test_pages_link_to_what_is_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_alone_lists_its_commands() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    for name in ("setup", "demo", "up", "test", "check", "bench", "sim"):
        assert f"make {name} " in done.stdout
