"""What is typed, or given in a pipe or a file, and cannot be used: one typed error, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from comity.cli.app import app
from comity.cli.choosing import find_task, meant
from comity.cli.command import read_json
from comity.errors import BadInput, UnknownTask


def typed(*words: str, given: bytes | None = None) -> Result:
    return CliRunner().invoke(app, list(words), input=given)


def error_of(result: Result) -> dict[str, Any]:
    assert result.stdout == ""
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1
    error: dict[str, Any] = json.loads(result.stderr)["error"]
    return error


ODD = "a\udcff"


@pytest.mark.parametrize(
    "words",
    [
        ["submit", "greet", f'{{"name":"{ODD}"}}'],
        ["submit", ODD],
        ["submit", "greet", "{}", "--key", ODD],
        ["submit", "greet", "{}", "--tag", ODD],
        ["submit", "greet", f"@{ODD}"],
        ["send", ODD, "1"],
        ["send", "a", "1", "--topic", ODD],
        ["broadcast", "1", "--topic", ODD],
        ["tasks", "cancel", "0" * 24, "--reason", ODD],
        ["tasks", "list", "--capability", ODD],
        ["run", f"{ODD}.py"],
        ["stats", "--connect", f"nats://{ODD}"],
        [ODD],
    ],
)
def test_an_argument_is_utf8(words: list[str]) -> None:
    result = typed(*words)
    assert (error_of(result)["code"], result.exit_code) == ("bad-input", 2)
    shown = typed(*words, "-o", "table")
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "error[bad-input] an argument is not UTF-8: " in shown.stderr


@pytest.mark.parametrize(
    "url", ["nats://127.0.0.1:99999", "foo://bar", "nats://", "nats://a b", "nats://h:x", "ws://h", "nats://h/x", "h:0"]
)
def test_an_address_is_checked(url: str) -> None:
    error = error_of(typed("stats", "--connect", url))
    assert error["code"] == "bad-settings"
    assert repr(url) in error["message"]
    assert error_of(typed("context", "add", "x", url))["code"] == "bad-settings"


def test_an_addresss_password_is_not_told() -> None:
    message = error_of(typed("stats", "--connect", "nats://me:secret@h:99999"))["message"]
    assert "@h:99999" in message
    assert "secret" not in message


def test_a_context_needs_an_address() -> None:
    assert error_of(typed("context", "add", "x", " , "))["code"] == "bad-input"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--replicas", "0", "x.py"], "'--replicas'"),
        (["run", "--nothing"], "--nothing"),
        (["submit"], "CAPABILITY"),
        (["submit", "x", "--priority", "high"], "'--priority'"),
        (["submit", "x", "-o", "yaml"], "--output"),
        (["taks"], "Did you mean 'tasks'"),
        (["tasks", "lst"], "lst"),
        (["tasks", "list", "--state", "foo"], "'foo'; one of: submitted, waiting"),
    ],
)
def test_bad_usage_is_told_as_every_other_error(words: list[str], said: str) -> None:
    if "-o" not in words:
        shown = typed(*words, "-o", "table")
        assert shown.exit_code == 2
        assert shown.stderr.startswith("Usage: comity")
        assert said in shown.stderr
    result = typed(*words)
    error = error_of(result)
    assert (error["code"], result.exit_code) == ("bad-usage", 2)
    assert said in error["message"]


def test_help_is_no_error() -> None:
    for words in ([], ["tasks"]):
        assert "Usage: comity" in typed(*words).output
    assert typed("--help").exit_code == typed("tasks", "list", "--help").exit_code == 0


@pytest.mark.parametrize("timeout", ["nan", "inf", "1e300", "-5", "0"])
def test_a_timeout_is_looked_at_before_anything_is_sent(timeout: str) -> None:
    result = typed("submit", "greet", "{}", "--timeout", timeout)
    assert (error_of(result)["code"], result.exit_code) == ("bad-input", 2)


@pytest.mark.parametrize(
    ("variable", "value"),
    [("REQUEST_TIMEOUT_S", "1e300"), ("REQUEST_TIMEOUT_S", "nan"), ("RETRIES", "99999999999999999999"), ("BEACON_S", "inf")],
)
def test_a_setting_has_its_bounds(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(f"COMITY_{variable}", value)
    error = error_of(typed("stats"))
    assert error["code"] == "bad-settings"
    assert variable.lower() in error["message"]


# What is read


@pytest.mark.parametrize("data", [b"\xff", b'{"name":"\xff"}', b"\xff\xfe{\x00}\x00", b"", b'"\\ud800"'])
def test_what_comes_in_a_pipe_or_a_file_is_json(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "input.json").write_bytes(data)
    for words in (["submit", "x", "-"], ["submit", "x", f"@{tmp_path}/input.json"], ["send", "x", "-"], ["broadcast", "-"]):
        result = typed(*words, given=data)
        error = error_of(result)
        assert (error["code"], result.exit_code) == ("bad-input", 2)
        assert "not JSON" in error["message"]
    assert error_of(typed("submit", "x", "@a\0b"))["code"] == "bad-input"


def test_a_mark_of_the_byte_order_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_bytes(b'\xef\xbb\xbf{"name":"\xc3\xa9"}')
    assert read_json(f"@{tmp_path}/input.json") == {"name": "é"}


def test_the_locale_has_no_say(tmp_path: Path) -> None:
    (tmp_path / "input.json").write_bytes('{"name":"é"}'.encode())
    code = (
        "import sys\nfrom comity.cli.command import read_json\nfrom comity.cli import main\n"
        f"assert read_json('@{tmp_path}/input.json') == read_json(sys.argv[1]) == read_json('-') == {{'name': '\\xe9'}}\n"
        "from comity.cli.output import Output\n"
        "sys.argv = ['comity', 'explain', '\\u00e9'.encode().decode('ascii', 'surrogateescape')]\n"
        "Output('json').show('\\xe9')\n"
        "main()\n"
    )
    env = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    given = '{"name":"é"}'.encode()
    done = subprocess.run([sys.executable, "-c", code, given], input=given, env=env, capture_output=True, timeout=30, check=False)
    assert done.returncode == 5, done.stderr
    assert json.loads(done.stdout) == "é"
    assert json.loads(done.stderr)["error"]["code"] == "not-found"


# Modules


SULKY = "class Sulky(Exception):\n    def __str__(self):\n        raise ValueError('no')\n\nraise Sulky\n"


def test_an_exception_that_cannot_say_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "a_sulky_one.py").write_text(SULKY)
    error = error_of(typed("run", str(tmp_path / "a_sulky_one.py")))
    assert error["code"] == "module-failed"
    assert "Sulky: a Sulky that cannot say what it is (ValueError)" in error["message"]
    assert "a_sulky_one.py, line 5" in error["message"]


def test_a_fault_that_cannot_say_what_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sulky(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    def fault() -> None:
        raise Sulky

    monkeypatch.setattr("comity.cli.doctor.server_version", fault)
    assert error_of(typed("version"))["message"] == "unexpected Sulky: a Sulky that cannot say what it is (ValueError)"


# Ids cut short


def test_an_id_may_be_cut_short() -> None:
    ids = ["hello-10", "hello-11", "hello-1", "other"]
    assert meant("hello-10", ids, "nodes") == "hello-10"
    assert meant("hello-1", ids, "nodes") == "hello-1"
    assert meant("oth", ids, "nodes") == "other"
    assert meant("x", ids, "nodes") is None
    with pytest.raises(BadInput, match="3 nodes begin with 'hello', such as hello-10 and hello-11"):
        meant("hello", ids, "nodes")


class Tasks:
    """A client that knows two tasks."""

    async def tasks(self, **_: Any) -> list[dict[str, Any]]:
        return [{"id": "00a" + "0" * 21}, {"id": "00b" + "0" * 21}]


async def test_a_task_is_found_by_the_beginning_of_its_id() -> None:
    assert await find_task(Tasks(), "00b") == "00b" + "0" * 21
    assert await find_task(Tasks(), "00c" + "0" * 21) == "00c" + "0" * 21
    with pytest.raises(UnknownTask):
        await find_task(Tasks(), "xx")
    for bad in ("00", "!" * 24, "0" * 25):
        with pytest.raises(BadInput):
            await find_task(Tasks(), bad)
