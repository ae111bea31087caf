"""A network whose store is in a bucket: what is large passes through it, and outlives the network's end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from adding import verdicts
from terminal import Terminal, terminal

from buckets import BUCKET, surround
from comity.s3 import Bucket
from comity.store.s3 import S3Store
from conftest import need_server

AGENT = '''
from comity import Agent

echo = Agent("echo")

@echo.capability
async def twice(text: str) -> str:
    return text + text
'''


@pytest.fixture
def user(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Terminal]:
    need_server()
    surround(monkeypatch, s3)
    with terminal(tmp_path) as user:
        (tmp_path / "echo.py").write_text(AGENT)
        yield user


@pytest.mark.server
@pytest.mark.slow
async def test_large_inputs_and_results_pass_through_a_bucket(user: Terminal, tmp_path: Path) -> None:
    where = f"s3://{BUCKET}/{tmp_path.name}"
    up, facts = user.up("--store", where)
    assert facts["durability"] == "verified"
    node = user.node("echo.py", "--name", "n1")
    text = "0123456789" * 100_000
    (tmp_path / "input.json").write_text(f'{{"text": "{text}"}}')
    assert user.ok("submit", "twice", "@input.json").json == text + text
    assert node.stop() == 0
    assert up.stop() == 0
    kept = [row.name async for row in Bucket(where).list("main/large")]
    assert len(kept) >= 2, "input and result"

    again, facts = user.up()  # it remembers where its store is
    assert facts["open_tasks"] == 0
    (task,) = user.ok("tasks", "list").json
    result = user.ok("tasks", "show", task["id"]).json["result"]
    store = await S3Store.join(f"{where}/main")
    assert json.loads(await store.read(result["$stored"])) == text + text
    assert verdicts(user.until(lambda found: found["healthy"], "doctor"), "s3") == ["ok"]
    assert again.stop() == 0
    error = user.comity("up", "--port", "0", "--data", str(tmp_path / "other"), "--store", where, "--output", "json").error
    assert error["code"] == "foreign-data"
