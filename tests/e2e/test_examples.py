"""The assistant and the relay do what their first lines say."""

from __future__ import annotations

import http.server
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from terminal import LIMIT_S, Terminal, terminal

from conftest import need_server

pytestmark = pytest.mark.server
EXAMPLES = Path(__file__).parents[2] / "examples"
TRIES = 3


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path_factory.mktemp("examples")) as user:
        user.up()
        yield user


def run(user: Terminal, *words: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, *words], env=user.env, cwd=user.folder, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_assistant_makes_up_its_words(user: Terminal) -> None:
    node = user.node(str(EXAMPLES / "assistant.py"), "--name", "offline", timely=True)
    said = run(user, str(EXAMPLES / "assistant.py"), "Who are you?")
    assert said[0].startswith("You ask: Who are you? ")
    assert said[1] == "(21 words by made up)"
    node.stop()


class Completions(http.server.BaseHTTPRequestHandler):
    """As much of OpenAI's chat completions as the assistant uses."""

    asked: ClassVar[list[dict[str, object]]] = []

    def do_POST(self) -> None:
        self.asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()
        for word in ("I ", "am ", "a ", "model."):
            self.wfile.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\n\n")
        self.wfile.write(b'data: {"choices": [{"delta": {}}]}\n\ndata: [DONE]\n\n')

    def log_message(self, *_: object) -> None:
        """Tests say enough."""


def test_the_assistant_asks_a_real_model(user: Terminal) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Completions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        user.env |= {"OPENAI_BASE_URL": f"http://127.0.0.1:{server.server_port}/v1", "OPENAI_MODEL": "small"}
        try:
            node = user.node(str(EXAMPLES / "assistant.py"), "--name", "online", timely=True)
            assert run(user, str(EXAMPLES / "assistant.py"), "Who?") == ["I am a model.", "(4 words by small)"]
            node.stop()
        finally:
            del user.env["OPENAI_BASE_URL"], user.env["OPENAI_MODEL"]
            server.shutdown()
    assert Completions.asked[0]["messages"] == [{"role": "user", "content": "Who?"}]


@pytest.mark.slow
def test_the_relay_moves_a_folder_and_survives_its_node(user: Terminal, tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(40):
        path = source / f"part{number % 4}" / f"{number}.bin"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]) * (number * 20_000))
    (source / "run.sh").write_text("#!/bin/sh\n")
    (source / "run.sh").chmod(0o755)
    words = (str(EXAMPLES / "relay.py"), "--name")
    left, right = user.node(*words, "left", timely=True), user.node(*words, "right", timely=True)
    said, tries = "", 0
    while "begun again" not in said:  # all may have been moved before it is killed
        tries += 1
        target = tmp_path / f"target{tries}"
        moving = subprocess.Popen(
            [sys.executable, "-u", str(EXAMPLES / "relay.py"), str(source), "left", "right", str(target)],
            env=user.env, cwd=user.folder, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert moving.stdout is not None
        lines = [moving.stdout.readline() for _ in range(5)]
        left.process.kill()
        left.process.wait(LIMIT_S)
        left = user.node(*words, "left", timely=True)
        rest, _ = moving.communicate(timeout=LIMIT_S)
        said = "".join(lines) + rest
        assert moving.returncode == 0
        assert "begun again" in said or tries < TRIES
    left.stop()
    right.stop()
    assert said.splitlines()[-1].startswith("41 files, ")
    files = [path.relative_to(source) for path in source.rglob("*") if path.is_file()]
    assert all((target / path).read_bytes() == (source / path).read_bytes() for path in files)
    assert {path.relative_to(target) for path in target.rglob("*") if path.is_file()} == set(files)
    assert (target / "run.sh").stat().st_mode & 0o777 == 0o755
