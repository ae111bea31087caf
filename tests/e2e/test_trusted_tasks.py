"""Retries, delays, schedules, stuck attempts and dead letters as a user types them, on a real server, over a restart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from terminal import Terminal, terminal

from conftest import need_server

pytestmark = pytest.mark.server
FLAKY = '''
import asyncio, os
from comity import Agent, Attempt, Retry

flaky = Agent("flaky")

@flaky.capability(retry=Retry(retries=2, first_s=0.05, no_retry=("LookupError",)))
def divide(number: int, by: int) -> float:
    if by < 0:
        raise KeyError(by)
    return number / by

@flaky.capability(progress_timeout_s=1.0)
async def silent(attempt: Attempt) -> int:
    if attempt.number == 1:
        await asyncio.sleep(600)
    return attempt.number

@flaky.capability(retries=0)
async def fatal() -> None:
    os._exit(1)
'''


@pytest.fixture
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path_factory.mktemp("trust")) as user:
        (user.folder / "flaky.py").write_text(FLAKY)
        yield user


def failed(user: Terminal, *words: str) -> dict[str, Any]:
    """A task that fails, as it is then."""
    id_ = user.ok("submit", "divide", *words, "--no-wait").json["id"]
    user.ok("tasks", "watch", id_)
    found: dict[str, Any] = user.ok("tasks", "show", id_).json
    assert found["state"] == "failed"
    return found


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_trust_over_a_restart(user: Terminal) -> None:
    network, _ = user.up()
    user.node("flaky.py", "--name", "first")
    assert user.ok("schedules", "add", "ticks", "* * * * * *", "divide", '{"number": 1, "by": 4}').json["zone"] == "UTC"
    later = user.ok("submit", "divide", '{"number": 6, "by": 2}', "--in", "12s", "--deadline", "60", "--no-wait").json["id"]
    seen = user.ok("tasks", "show", later).json
    assert seen["state"] == "submitted" and seen["not_before"] is not None
    assert seen["reason"].startswith("it may start at")
    assert user.ok("submit", "silent", "--retries", "1").json == 2
    zero = failed(user, '{"number": 1, "by": 0}', "--retry-first", "50ms")
    assert (len(zero["attempts"]), zero["retry"]) == (3, {"first_s": 0.05, "no_retry": ["LookupError"]})
    assert len(failed(user, '{"number": 1, "by": -1}')["attempts"]) == 1
    assert len(failed(user, '{"number": 2, "by": 0}', "--no-retry", "ArithmeticError")["attempts"]) == 1
    network.stop()
    user.up()
    shown = user.ok("schedules", "show", "ticks").json
    assert shown["fired"] >= 2 and shown["tasks"]
    assert [one["name"] for one in user.ok("schedules", "list").json] == ["ticks"]
    watcher = user.start("tasks", "watch", later, timely=True)
    assert watcher.until(lambda event: event["type"] == "task.completed")["agent"] == "first/flaky"
    assert user.ok("schedules", "remove", "ticks").json["fired"] >= shown["fired"]
    assert user.comity("schedules", "remove", "ticks").error["code"] == "not-found"
    letters = user.ok("dead", "list", "--since", "1h").json
    assert [letter["code"] for letter in letters] == ["ZeroDivisionError", "KeyError", "ZeroDivisionError"]
    assert user.ok("dead", "show", zero["id"]).json["input"] == {"number": 1, "by": 0}
    assert user.comity("dead", "replay", zero["id"], "--input", '{"number": "one"}').error["code"] == "invalid-input"
    (made,) = user.ok("dead", "replay", zero["id"], "--input", '{"number": 1, "by": 2}').json
    user.ok("tasks", "watch", made["as"])
    replayed = user.ok("tasks", "show", made["as"]).json
    assert (replayed["result"], replayed["replays"]) == (0.5, zero["id"])
    assert len(user.ok("dead", "replay", "--all", "--code", "KeyError").json) == 1
    assert user.comity("dead", "drop").error["code"] == "bad-input"
    assert len(user.ok("dead", "drop", "--all", "--capability", "divide").json) >= 1
    assert user.comity("submit", "divide", "--at", "soon").error["code"] == "bad-input"
    assert user.ok("stats").json["totals"]["stuck"] == 1


def test_a_task_that_kills_its_node_at_once_does_not_kill_them_all(user: Terminal) -> None:
    user.up()
    for name in ("a", "b", "c", "d"):
        user.node("flaky.py", "--name", name, timely=True)
    id_ = user.ok("submit", "fatal", "--no-wait").json["id"]
    user.ok("tasks", "watch", id_)
    found = user.ok("tasks", "show", id_).json
    assert (found["state"], found["error"]["code"]) == ("failed", "poison")
    assert len({attempt["node"] for attempt in found["attempts"]}) == len(found["attempts"]) == 3
    assert len(user.ok("nodes", "list").json) == 1


@pytest.mark.slow
def test_tables_tell_of_them(user: Terminal) -> None:
    user.up()
    user.node("flaky.py")
    user.ok("schedules", "add", "nightly", "30 2 * * *", "divide", '{"number": 1, "by": 4}', "--zone", "Europe/Berlin")
    failed(user, '{"number": 1, "by": 0}', "--retries", "0")
    table = ("-o", "table")
    for words, told in (
        (("schedules", "list"), ("nightly", "Europe/Berlin", "NEXT IN")),
        (("schedules", "show", "nightly"), ("30 2 * * *", "none of the last")),
        (("dead", "list"), ("ZeroDivisionError", "division by zero")),
    ):
        out = user.ok(*words, *table).out
        assert all(text in out for text in told), out
    (letter,) = user.ok("dead", "list").json
    assert "not after LookupError" in user.ok("dead", "show", letter["id"][:22], *table).out
    assert letter["id"] in user.ok("dead", "replay", letter["id"], *table).out
    assert "fires next" in user.ok("schedules", "add", "nightly", "@daily", "divide", '{"number": 1, "by": 4}', *table).out
