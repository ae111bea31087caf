"""The agent in JavaScript is one of ours, by what docs/wire.md says."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import LIMIT_S, Terminal, terminal

from conftest import IN_CI, need_server

pytestmark = [pytest.mark.server, pytest.mark.slow]
EXAMPLE = Path(__file__).parents[2] / "examples" / "node-agent"


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with what it depends on."""
    def give_up(why: str) -> None:
        if IN_CI:
            pytest.fail(f"CI must be able to run the example in JavaScript: {why}")
        pytest.skip(why)

    if shutil.which("node") is None or shutil.which("npm") is None:
        give_up("node and npm are not installed (Debian: nodejs, npm)")
    folder = tmp_path_factory.mktemp("javascript")
    for name in ("agent.js", "package.json", "package-lock.json", ".npmrc"):
        shutil.copy(EXAMPLE / name, folder)
    done = subprocess.run(
        ["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, timeout=120, check=False
    )
    if done.returncode:
        give_up(f"npm ci: {done.stderr[-300:]}")
    return folder


@pytest.fixture
def user(code: Path, tmp_path: Path) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path) as user:
        yield user


def started(code: Path, invitation: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(["node", str(code / "agent.js"), str(invitation)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        assert json.loads(process.stdout.readline())["agent"] == "parrot/parrot"
    return process


def test_the_example_in_javascript_works_and_survives_a_kill(user: Terminal, code: Path) -> None:
    user.up()
    invitation = user.folder / "parrot.invite"
    user.ok("context", "invite", "parrot", "--role", "node")
    process = started(code, invitation)
    try:
        assert user.ok("submit", "shout", '{"text": "hello"}').json == "HELLO!"
        parts = user.ok("submit", "spell", '{"text": "abc"}', "--stream").lines
        assert parts == [{"part": "a"}, {"part": "b"}, {"part": "c"}, {"result": "abc"}]
        assert user.ok("send", "parrot/parrot", '{"text": "hey"}', "--topic", "shout").json == "HEY!"
        assert user.comity("send", "parrot/parrot", '{"text": "hey"}', "--topic", "none").error["code"] == "bad-input"
        assert user.comity("submit", "shout", '{"text": 3}').error["code"] == "invalid-input"
        (agent,) = user.ok("agents", "list").json
        assert agent["capabilities"] == ["shout", "spell"] and agent["tags"] == ["javascript"]
        process.kill()
        process.wait(LIMIT_S)
        task = user.ok("submit", "shout", '{"text": "again"}', "--no-wait").json["id"]
        process = started(code, invitation)
        assert user.ok("tasks", "watch", task).lines[-1]["type"] == "task.completed"
        many = user.each(*[["submit", "shout", json.dumps({"text": f"n{number}"})] for number in range(8)])
        assert [done.json for done in many] == [f"N{number}!" for number in range(8)]
        process.terminate()
        assert process.wait(LIMIT_S) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(LIMIT_S)
