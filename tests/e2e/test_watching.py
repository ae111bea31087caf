"""Figures that are watched, when they cannot come."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from terminal import Terminal, terminal

from comity.credentials import Authority
from conftest import need_server

pytestmark = pytest.mark.server


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path) as user:
        yield user


@pytest.mark.slow
def test_figures_that_are_old_are_said_to_be(user: Terminal) -> None:
    """And they come again when somebody leads again."""
    up, _ = user.up()
    watching = user.start("stats", "--watch")
    assert watching.json()["totals"]["submitted"] == 0
    up.signal(signal.SIGSTOP)
    try:
        assert "the last figures are of" in watching.told("no leader answers")
    finally:
        up.signal(signal.SIGCONT)
    assert "id" in user.ok("submit", "greet", "{}", "--no-wait").json
    assert watching.until(lambda numbers: numbers["totals"]["submitted"] == 1)
    assert watching.stop() == 130


@pytest.mark.slow
def test_figures_that_cannot_come_any_more_are_not_waited_for(user: Terminal) -> None:
    user.up()
    (url,) = user.ok("context", "show").json["urls"]
    Authority.load(user.data).mint("client", "guest", ttl_s=12).save(user.data / "guest.creds")
    watching = user.start("stats", "--watch", "--connect", url, "--credentials", str(user.data / "guest.creds"), timely=True)
    watching.json()
    assert "disconnected" in watching.told("disconnected")
    assert watching.wait() == 3
