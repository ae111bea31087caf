"""The command line without a network: what it says of itself, how it writes, what it reads, and how it finds agents."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.main import get_command
from typer.testing import CliRunner, Result

from comity import Agent, Requirements, errors
from comity.cli import looks
from comity.cli.agents import brief
from comity.cli.app import GROUPS, SECTIONS, app
from comity.cli.loading import files_of, load, replicate, split
from comity.cli.logs import configure
from comity.cli.output import Output, exit_code
from comity.cli.submit import requirements
from comity.cli.tasks import age, took
from comity.cli.tools import meanings
from comity.contexts import Context
from comity.credentials import Authority
from comity.errors import BadInput, ModuleFailed


def typed(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def error_of(result: Result) -> dict[str, Any]:
    assert result.stdout == ""
    assert result.exception is None or isinstance(result.exception, SystemExit)
    error: dict[str, Any] = json.loads(result.stderr)["error"]
    return error


# The tree


def test_help_lists_every_command_and_loads_none() -> None:
    code = (
        "import sys\n"
        "from comity.cli.app import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit as done:\n    assert done.code == 0\n"
        "heavy = {'asyncio', 'rich', 'msgspec', 'nats', 'psutil', 'cryptography', 'jsonschema_rs', 'comity.cli.tasks'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    for name in (name for rows in SECTIONS.values() for name in rows):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", [name for rows in SECTIONS.values() for name in rows])
def test_every_command_explains_itself(name: str) -> None:
    shown = typed(name, "--help")
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith(f"Usage: comity {name}")
    if name in GROUPS:
        assert "Commands:" in shown.output
        listed = shown.output.partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
        names = [line.split()[0] for line in listed if line[2] != " "]
        for sub in names:
            help_ = typed(name, sub, "--help").output
            assert "--output table|json" in help_
    else:
        assert "--output table|json" in shown.output


@pytest.mark.parametrize("name", [name for rows in SECTIONS.values() for name in rows])
def test_help_tells_of_every_option_and_every_command(name: str) -> None:
    made: Any = get_command(app)
    found = made.commands[name]
    (summary,) = (rows[name][1] for rows in SECTIONS.values() if name in rows)
    for words, kind in [((name, sub), kind) for sub, kind in getattr(found, "commands", {}).items()] or [((name,), found)]:
        shown = typed(*words, "--help").output
        missing = [option for param in kind.params for option in param.opts if option[:2] == "--" and option not in shown]
        assert not missing, f"comity {' '.join(words)} --help says nothing of {missing}"
        assert len(words) == 1 or words[1] in summary, f"comity --help: {name} can {words[1]}, too"


def test_a_slip_is_told_with_what_was_meant() -> None:
    assert "Did you mean 'tasks'" in typed("taks").output
    assert typed("taks").exit_code == 2
    assert typed("submit", "greet", "-o", "yaml").exit_code == 2
    assert typed("--version").output.startswith("comity ")


# Errors


def test_every_error_can_be_explained() -> None:
    known = meanings()
    for code, kind in errors.by_code().items():
        assert kind.__name__ in known, "say in the tree of errors.py what it means"
        (row,) = [json.loads(typed("explain", code).stdout)]
        assert row["code"] == code
        assert row["meaning"]
        assert row["advice"]
        assert row["exit_code"] != 0
    listed = [row["code"] for row in json.loads(typed("explain").stdout)]
    assert sorted(listed) == sorted(errors.by_code())
    assert error_of(typed("explain", "nonsense"))["code"] == "not-found"
    assert "what to do" in typed("explain", "no-agent", "-o", "table").stdout


def test_an_error_of_inner_use_does_not_stand_for_the_one_it_is_derived_from() -> None:
    class Inner(errors.NotFound):
        def __init__(self, index: int) -> None:
            super().__init__(f"nothing at {index}")

    made = errors.from_wire("not-found", "gone", {"ids": ["t1"]})
    assert type(made) is errors.NotFound and made.details["ids"] == ["t1"]
    assert Inner(7).code == "not-found"


def test_exit_codes_are_stable() -> None:
    expected = {
        errors.TaskFailed: 1, errors.ModuleFailed: 1, errors.InvalidInput: 2, errors.Unreachable: 3, errors.TimedOut: 3,
        errors.AccessDenied: 4, errors.UnknownTask: 5, errors.NoAgent: 6, errors.Overloaded: 6, errors.Conflict: 6,
    }  # fmt: skip
    assert {kind: exit_code(kind) for kind in expected} == expected


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["submit", "greet", "{bad"], "bad-input"),
        (["submit", "greet", "Ada"], "bad-input"),
        (["submit", "greet", "@nowhere.json"], "bad-input"),
        (["submit", "greet", "{}", "--require", "colour=red"], "bad-input"),
        (["stats"], "unreachable"),
        (["stats", "--network", "not a name"], "bad-settings"),
        (["stats", "--context", "nowhere"], "not-found"),
        (["context", "use", "nowhere"], "not-found"),
        (["context", "add", "x", "nats://h", "--credentials", "nowhere"], "not-found"),
        (["context", "add", "x y", "nats://h"], "bad-input"),
        (["run", "nowhere.module"], "module-failed"),
        (["up", "--network", "a.b"], "bad-settings"),
    ],
)
def test_a_mistake_is_one_typed_error(words: list[str], code: str) -> None:
    result = typed(*words)
    assert error_of(result)["code"] == code
    assert result.exit_code == exit_code(errors.by_code()[code])


def test_a_fault_of_our_own_is_told_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def fault() -> None:
        raise ZeroDivisionError("1 / 0")

    monkeypatch.setattr("comity.cli.doctor.server_version", fault)
    result = typed("version")
    assert result.exit_code == 1
    assert error_of(result)["message"] == "unexpected ZeroDivisionError: 1 / 0"
    assert "Traceback" in typed("version", "--debug").stderr


def test_a_text_is_to_be_quoted() -> None:
    assert "'\"Ada\"'" in error_of(typed("submit", "greet", "Ada"))["message"]


# What is typed


def test_requirements_are_read() -> None:
    assert requirements([], []) is None
    found = requirements(
        ["tag=a", "any-tag=b", "any-tag=c", "label=zone:x:y", "gpu=1", "version=>=1.2", "avoid=n/a", "kind=llm"], ["t"]
    )
    assert found == Requirements(
        tags=("t", "a"), any_tags=("b", "c"), labels={"zone": "x:y"}, gpu=1.0, version=">=1.2", avoid=("n/a",), kind="llm"
    )  # fmt: skip
    for bad in ("gpu", "gpu=", "gpu=many", "label=zone", "colour=red"):
        with pytest.raises(BadInput, match="--require"):
            requirements([bad], [])


# How it looks


def test_a_table_is_aligned_and_leaves_empty_columns_out() -> None:
    rows = [("a", None, 5, "x"), ("café", "", 12_345, looks.plain("two\nlines \x1b[31m"))]
    assert looks.table(("NAME", "NOTHING", "COUNT", "WHAT"), rows) == [
        "NAME  COUNT  WHAT",
        "a         5  x",
        "café  12345  two lines �[31m",
    ]
    assert looks.table(("A", "B"), [("日本", 1), ("x", 2)]) == ["A     B", "日本  1", "x     2"]


def test_a_text_is_cut_at_the_edge() -> None:
    assert looks.cut("short", 5) == "short"
    assert looks.cut("rather long", 7) == "rather…"
    assert looks.cut("日本語", 5) == "日本…"
    assert looks.cut("\x1b[31mred text\x1b[0m", 4) == "red…"
    assert looks.width_of("\x1b[31mred\x1b[0m") == 3


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    terminal: Any = Terminal()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert looks.paint("bold red", "x", terminal) == "\x1b[1;31mx\x1b[0m"
    assert looks.paint("", "x", terminal) == "x"
    monkeypatch.setenv("NO_COLOR", "1")
    assert looks.paint("red", "x", terminal) == "x"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert looks.paint("red", "x", terminal) == "x"


def test_times_are_toldbriefly() -> None:
    now = datetime(2026, 1, 2, tzinfo=UTC)
    told = [age((now - timedelta(seconds=s)).isoformat(), now) for s in (-1, 3, 120, 7200, 200_000)]
    assert told == ["0s", "3s", "2m", "2h", "2d"]
    assert age(None, now) == ""
    assert took(now.isoformat(), (now + timedelta(milliseconds=20)).isoformat()) == "20 ms"
    assert took(now.isoformat(), (now + timedelta(seconds=90)).isoformat()) == "90.0 s"
    assert took(None, now.isoformat()) == ""


def test_a_schema_is_told_as_one_would_say_it() -> None:
    schema = {
        "type": "object",
        "properties": {"c": {}, "a": {"type": "string"}, "b": {"anyOf": [{"type": "integer"}, {"type": "null"}]}},
        "required": ["a", "b"],
    }
    assert brief(schema) == "{a: string, b: integer | null, c?: anything}"
    assert brief({"type": "array", "items": {"type": "number"}}) == "[number]"
    assert brief({"$ref": "#/$defs/Order"}) == "Order"
    assert brief({"enum": ["good", None]}) == '"good" | null'
    assert brief({"type": "object", "additionalProperties": {"const": 1}}) == "{string: 1}"
    assert brief({"type": "array", "prefixItems": [{"type": "null"}, schema]}) == f"[null, {brief(schema)}]"
    assert brief({"properties": {"inner": schema}, "type": "object"}) == "{inner?: " + brief(schema) + "}"
    assert brief({"not": {}}) == '{"not": {}}'
    assert brief({}) == brief(True) == "anything"


def test_json_is_for_programs_and_tables_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert Output().as_json, "standard output is no terminal here"
    people = Output("table")
    people.table(("A",), [], "nothing here")
    people.facts([("one", 1), ("none", None), ("empty", "")])
    people.say("hello")
    Output("json").say("aside")
    Output("json").show({"é": Path("x")})
    said = capsys.readouterr()
    assert said.out == 'nothing here\n  one  1\nhello\n{"é": "x"}\n'
    assert said.err == "aside\n"


# Finding agents


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``written(name, text)`` writes a file; modules imported from there are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


MAKES = "from comity import Agent\na = Agent('a')\nmany = [Agent('b'), a]\nname = 'x'\n"


def test_agents_are_found_in_a_file_or_module(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("one_of_mine.py", MAKES)
    assert [agent.name for agent in load(str(path))] == ["a", "b"]
    assert [agent.name for agent in load(f"{path}:many")] == ["b", "a"]
    monkeypatch.chdir(path.parent)
    assert [agent.name for agent in load("one_of_mine:a")] == ["a"]


def test_a_file_of_a_package_is_imported_by_its_whole_name(written: Any) -> None:
    written("a_pack/__init__.py", "")
    written("a_pack/inner/__init__.py", "from comity import Agent\na = Agent('whole')\n")
    written("a_pack/inner/near.py", "from comity import Agent\nb = Agent('near')\n")
    path = written("a_pack/inner/main.py", "from a_pack.inner.near import b\nfrom . import a\n")
    assert [agent.name for agent in load(str(path))] == ["near", "whole"]
    assert "a_pack.inner.main" in sys.modules
    assert [agent.name for agent in load(str(path.parent))] == ["whole"]


@pytest.mark.parametrize(
    ("text", "target", "message"),
    [
        ("import nothing_like_it", "", "No module named 'nothing_like_it'.*broken_one.py, line 1"),
        ("x = (", "", r"was never closed \(.*broken_one.py, line 1\)"),
        ("\n1 / 0", "", r"ZeroDivisionError: division by zero \(.*broken_one.py, line 2\)"),
        ("raise SystemExit(3)", "", "SystemExit: 3"),
        ("raise KeyError", "", "KeyError"),
        ("x = 1", "", "makes no Agent"),
        ("x = 1", ":x", "neither an Agent nor a list"),
        ("x = 1", ":y", "has no 'y'"),
    ],
)
def test_what_keeps_a_module_from_giving_agents(written: Any, text: str, target: str, message: str) -> None:
    path = written("broken_one.py", text)
    with pytest.raises(ModuleFailed, match=message):
        load(f"{path}{target}")


def test_a_file_that_another_module_hides(written: Any, tmp_path: Path) -> None:
    path = written("json.py", MAKES)
    with pytest.raises(ModuleFailed, match="hidden by another module called 'json'"):
        load(str(path))
    with pytest.raises(ModuleFailed, match="no file"):
        load(str(tmp_path / "gone.py"))


def test_the_name_after_the_colon() -> None:
    assert split("a.b:c") == ("a.b", "c")
    assert split("a/b.py") == ("a/b.py", "")
    assert split(r"C:\code\b.py") == (r"C:\code\b.py", "")


def test_replicas_have_the_same_functions() -> None:
    agent = Agent("a", tags={"x"}, concurrency=3)

    @agent.capability
    def work() -> int:
        return 1

    @agent.on("ping")
    def ping() -> str:
        return "pong"

    found = replicate([agent], 3)
    assert [twin.name for twin in found] == ["a-1", "a-2", "a-3"]
    assert found[0] is agent
    assert all(twin.offered["work"].function is work and twin.listeners["ping"].function is ping for twin in found)
    assert {(twin.tags, twin.concurrency) for twin in found} == {(("x",), 3)}
    found[1].withdraw("work")
    assert "work" in agent.offered
    assert replicate([found[2]], 1) == [found[2]]


def test_what_is_watched_for_changes(written: Any) -> None:
    helper = written("a_part.py", "x = 1\n")
    main = written("a_whole.py", "import json, a_part\n" + MAKES)
    before = list(sys.modules)
    load(str(main))
    assert files_of(before, str(main)) == sorted([helper.resolve(), main.resolve()])
    part = written("a_bad_part.py", "1 / 0\n")
    bad = written("a_bad_whole.py", "import a_bad_part\n")
    before = list(sys.modules)
    with pytest.raises(ModuleFailed) as caught:
        load(str(bad))
    assert {part.resolve(), bad.resolve()} <= set(files_of(before, str(bad), caught.value))


# Contexts


def test_contexts_are_kept(tmp_path: Path) -> None:
    assert json.loads(typed("context", "list").stdout) == []
    Authority.create(tmp_path, "main").mint("client", "c1").save(tmp_path / "c.creds")
    added = json.loads(typed("context", "add", "work", "nats://a,nats://b", "--credentials", f"{tmp_path}/c.creds").stdout)
    expected = {"name": "work", "current": True, "urls": ["nats://a", "nats://b"], "network": "main", "authority": None}
    expected["ca"] = None
    assert added == {**expected, "credentials": f"{tmp_path}/c.creds"}
    typed("context", "add", "play", "nats://c", "--network", "games")
    assert [row["current"] for row in json.loads(typed("context", "list").stdout)] == [False, True]
    assert json.loads(typed("context", "use", "play").stdout) == {"current": "play"}
    assert json.loads(typed("context", "show").stdout)["network"] == "games"
    assert json.loads(typed("context", "show", "work").stdout) == {**added, "current": False}
    assert "nats://a, nats://b" in typed("context", "show", "work", "-o", "table").stdout
    assert typed("context", "remove", "play", "-o", "table").stdout == "removed play\n"
    assert [row["name"] for row in json.loads(typed("context", "list").stdout)] == ["work"]
    assert typed("context", "use", "local").exit_code == 0
    assert error_of(typed("context", "show"))["code"] == "unreachable"
    assert error_of(typed("context", "show", "play"))["code"] == "not-found"


# Doctor


def checks(*words: str) -> dict[str, dict[str, str]]:
    result = typed("doctor", *words)
    answer = json.loads(result.stdout)
    assert result.exit_code == (0 if answer["healthy"] else 1)
    assert answer["healthy"] == all(check["verdict"] != "wrong" for check in answer["checks"])
    return {check["check"]: check for check in answer["checks"]}


def test_doctor_before_there_is_anything() -> None:
    found = checks()
    assert (found["data"]["verdict"], found["network"]["verdict"]) == ("note", "note")
    assert "comity up" in found["network"]["advice"]


@pytest.mark.parametrize(
    ("says", "verdict", "word"),
    [
        ("echo nats-server: v2.15.1", "ok", "2.15.1"),
        ("echo nats-server: v2.12.0", "note", "2.15.1 is the version tested"),
        ("echo nats-server: v2.9.1", "wrong", "install 2.11 or newer"),
        ("exit 3", "wrong", "cannot be run"),
        ("echo something else", "wrong", "COMITY_NATS_SERVER"),
    ],
)
def test_doctor_looks_at_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, verdict: str, word: str
) -> None:
    program = tmp_path / "server"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    monkeypatch.setenv("COMITY_NATS_SERVER", str(program))
    found = checks()["nats-server"]
    assert found["verdict"] == verdict
    assert word in found["found"] + found["advice"]
    monkeypatch.setenv("COMITY_NATS_SERVER", str(tmp_path / "gone"))
    assert checks()["nats-server"]["verdict"] == "wrong"


def test_doctor_looks_at_data_and_credentials(tmp_path: Path) -> None:
    data = tmp_path / "data"
    authority = Authority.create(data, "main")
    creds = data / "client.creds"
    authority.mint("client", "c1", ttl_s=-10).save(creds)
    (data / "server.conf").write_text("sync_interval: 2m\n")
    (data / "server.conf").chmod(0o600)
    Context(urls=("nats://127.0.0.1:9",), credentials=str(creds), authority=str(data)).write_local(data)
    found = checks("--data", str(data))
    assert (found["data"]["verdict"], found["durability"]["verdict"]) == ("ok", "wrong")
    assert "expired" in found["credentials"]["found"]
    assert found["network"]["verdict"] == "note"
    assert found["settings"]["found"] == "data_dir (--data)"
    (data / "server.conf").write_text("sync_interval: always\n")
    authority.mint("client", "c1").save(creds)
    assert checks("--data", str(data))["durability"]["verdict"] == "ok"
    creds.chmod(0o644)
    found = checks("--data", str(data))
    assert (found["data"]["verdict"], found["credentials"]["advice"]) == ("wrong", f"chmod go= {creds}")
    creds.write_text("nothing")
    assert checks("--data", str(data), "--credentials", str(creds))["credentials"]["verdict"] == "wrong"
    assert checks("--data", str(data), "--context", "none")["network"]["verdict"] == "wrong"


def test_doctor_looks_at_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("comity.cli.doctor.ROOM", 1 << 60)
    monkeypatch.setattr("comity.cli.doctor.FILES", 1 << 40)
    found = checks()
    assert (found["disk"]["verdict"], found["open files"]["verdict"]) == ("wrong", "note")


# Log lines


@pytest.mark.parametrize("as_json", [False, True])
def test_log_lines_are_one_form_whoever_writes_them(as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    before = root.handlers[:], root.level, structlog.get_config()
    try:
        configure(logging.WARNING, as_json=as_json)
        logging.getLogger("library").warning("from %s", "afar")
        logging.getLogger("library").info("unasked")
        structlog.get_logger().warning("from here", number=1)
        said = capsys.readouterr().err.splitlines()
    finally:
        root.handlers[:], level, options = before
        root.setLevel(level)
        structlog.configure(**options)
    if as_json:
        found = [json.loads(line) for line in said]
        assert [(line["level"], line["event"]) for line in found] == [("warning", "from afar"), ("warning", "from here")]
    else:
        assert [line[9:] for line in said] == ["[warning  ] from afar", "[warning  ] from here number=1"]
