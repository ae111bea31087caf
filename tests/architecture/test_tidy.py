"""Small files, short functions, one word for one thing, no notes to self, no waiting by the clock.

What must differ stands in ``exceptions.txt`` with its reason: ``lines``, ``length`` or ``word`` or ``sleep``, then the place
(``path`` or ``path:name``), then why.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from source import ROOT, imports, python_files, tree

FILE_LINES = 500
FUNCTION_LINES = 60
CODE = ("src", "examples", "bench")
REFUSED = ("manager", "service", "engine", "helper", "util", "utility", "session", "handler", "runtime")
REFUSED_NAMES = frozenset([*REFUSED, *(word + "s" for word in REFUSED), "utilities"])
NOTES = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
ONCE = re.compile(r"exactly[- ]" + "once", re.IGNORECASE)
TEXTS = (".py", ".md", ".toml", ".txt", ".html", ".css", ".js", ".yml", ".cfg")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class Fault(NamedTuple):
    rule: str
    place: str
    what: str


class Excuse(NamedTuple):
    rule: str
    place: str
    reason: str


def excuses() -> list[Excuse]:
    lines = (Path(__file__).parent / "exceptions.txt").read_text().splitlines()
    return [Excuse(*line.split(None, 2)) for line in lines if line.strip() and not line.startswith("#")]


def judge(rule: str, faults: list[Fault]) -> None:
    """Fail for faults without an excuse, and for excuses without a fault."""
    mine = {excuse.place: excuse for excuse in excuses() if excuse.rule == rule}
    places = {fault.place for fault in faults}
    found = [f"{fault.place}: {fault.what}" for fault in faults if fault.place not in mine]
    found += [f"exceptions.txt: {rule} {place} is needed no longer: take the line out" for place in mine if place not in places]
    assert not found, "\n" + "\n".join(found)


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[tuple[str, Function]]:
    """Every function of ``path`` by its dotted name."""

    def walk(node: ast.AST, prefix: str) -> Iterator[tuple[str, Function]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | Function):
                name = f"{prefix}{child.name}"
                if isinstance(child, Function):
                    yield name, child
                yield from walk(child, name + ".")
            else:
                yield from walk(child, prefix)

    yield from walk(tree(path), "")


def defined_names(path: Path) -> Iterator[tuple[str, int]]:
    """The names ``path`` itself gives: of files, classes, functions, parameters, variables and fields."""
    yield path.stem, 1
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef | Function):
            yield node.name, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield (node.id if isinstance(node, ast.Name) else node.attr), node.lineno
        elif isinstance(node, ast.alias) and node.asname:
            yield node.asname, getattr(node, "lineno", 1)


def words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def sleeps(path: Path) -> list[int]:
    """Lines that wait for time to pass. ``sleep(0)`` only lets others run, and one in a ``while`` looks again at a condition."""
    found = []

    def walk(node: ast.AST, looking_again: bool) -> None:
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "sleep":
            zero = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            ours = isinstance(node.func.value, ast.Name) and node.func.value.id in ("asyncio", "time")
            if ours and not zero and not looking_again:
                found.append(node.lineno)
        for child in ast.iter_child_nodes(node):
            walk(child, isinstance(node, ast.While) or (looking_again and not isinstance(node, ast.For | Function)))

    walk(tree(path), False)
    return found


def on_virtual_time(path: Path) -> bool:
    """On the simulated loop a sleep takes no time."""
    names = {name for _, name in imports(path, set(), ROOT / "tests")}
    return "simulation" in path.parts or any(name.startswith("comity.sim") for name in names)


def test_files_are_short() -> None:
    sizes = {where(path): len(path.read_text().splitlines()) for path in python_files(*CODE, "tests")}
    judge("lines", [
        Fault("lines", place, f"{size} lines; at most {FILE_LINES}: split it along its ideas")
        for place, size in sizes.items() if size > FILE_LINES
    ])  # fmt: skip


def test_functions_are_short() -> None:
    faults = []
    for path in python_files(*CODE, "tests"):
        for name, node in functions(path):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > FUNCTION_LINES:
                text = f"{size} lines; at most {FUNCTION_LINES}: name its parts"
                faults.append(Fault("length", f"{where(path)}:{name}", text))
    judge("length", faults)


def test_names_say_what_a_thing_is() -> None:
    faults = []
    for path in python_files(*CODE):
        for name, line in defined_names(path):
            if refused := REFUSED_NAMES.intersection(words(name)):
                text = f"line {line}: {sorted(refused)[0]!r} says nothing: name what it is or does"
                faults.append(Fault("word", f"{where(path)}:{name}", text))
            elif re.search(r"_v\d+$", name):
                text = f"line {line}: change the one there is, or name the difference"
                faults.append(Fault("word", f"{where(path)}:{name}", text))
    judge("word", faults)


def texts() -> Iterator[tuple[str, str]]:
    for folder in (*CODE, "tests", "docs", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in TEXTS and "__pycache__" not in path.parts:
                yield where(path), path.read_text()
    for path in sorted(ROOT.iterdir()):
        if path.is_file() and (path.suffix in TEXTS or path.name == "Makefile"):
            yield where(path), path.read_text()


def test_nothing_is_left_to_do() -> None:
    found = [f"{place}: {match.group()}" for place, text in texts() for match in [NOTES.search(text)] if match]
    assert not found, "do it, or file it as an issue:\n" + "\n".join(found)


def test_nothing_is_promised_that_cannot_be_kept() -> None:
    found = [place for place, text in texts() if place.startswith(("src/", "docs/", "README")) and ONCE.search(text)]
    assert not found, f"an attempt may run twice and is counted once: say that instead, in {found}"


def test_tests_wait_for_conditions() -> None:
    faults = []
    for path in python_files("tests"):
        if not on_virtual_time(path) and (lines := sleeps(path)):
            text = f"lines {lines}: wait for the condition (an event, a future, a watch) under a timeout, not for time to pass"
            faults.append(Fault("sleep", where(path), text))
    judge("sleep", faults)


def test_every_exception_has_a_reason() -> None:
    for excuse in excuses():
        assert excuse.rule in ("lines", "length", "word", "sleep"), excuse
        assert len(excuse.reason.split()) >= 4, f"a reason, please: {excuse}"


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("TaskManager", ["task", "manager"]),
        ("HTTPService", ["http", "service"]),
        ("_run_engine2", ["run", "engine", "2"]),
        ("handled", ["handled"]),
        ("sessionId", ["session", "id"]),
    ],
)
def test_names_come_apart_into_words(name: str, parts: list[str]) -> None:
    assert words(name) == parts


def test_the_look_itself_sees(tmp_path: Path) -> None:
    path = tmp_path / "task_manager.py"
    path.write_text(
        "import asyncio, time\n"
        "class Engine:\n"
        "    def run(self, helper):\n"
        "        self.session = utils = 1\n"
        "        def inner(): ...\n"
        "async def wait():\n"
        "    await asyncio.sleep(0)\n"
        "    await asyncio.sleep(0.1)\n"
        "    time.sleep(1)\n"
        "    while not ready():\n"
        "        await asyncio.sleep(0.1)\n"
        "        for _ in range(3):\n"
        "            await asyncio.sleep(0.2)\n"
    )
    given = {name for name, _ in defined_names(path) if REFUSED_NAMES.intersection(words(name))}
    assert given == {"task_manager", "Engine", "helper", "session", "utils"}
    assert [name for name, _ in functions(path)] == ["Engine.run", "Engine.run.inner", "wait"]
    assert sleeps(path) == [8, 9, 13]
