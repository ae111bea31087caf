"""A network that last ran long ago, as far as this machine's clock can be believed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from adding import verdicts
from terminal import Terminal, terminal

import comity
from comity.cli import network
from comity.cli.network import EmbeddedNetwork
from comity.config import Settings
from conftest import need_server

pytestmark = pytest.mark.server
DAY_S = 86_400.0


@pytest.fixture
def user(tmp_path: Path) -> Iterator[Terminal]:
    need_server()
    with terminal(tmp_path) as user:
        yield user


async def test_a_network_is_not_started_on_a_clock_that_is_months_ahead(user: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = Settings.load({"data_dir": user.data, "port": 0, "http_port": 0}, env={})
    monkeypatch.setattr(network, "time", SimpleNamespace(time=lambda: time.time() - 100 * DAY_S))
    past = await EmbeddedNetwork.start(loaded.settings, metrics=False)
    async with comity.connect(settings=loaded) as net:
        await net.submit("nothing", 1)
    monkeypatch.undo()
    numbers = past.controller.stats()
    assert round(numbers["time_ahead_s"] / DAY_S) == 0, "by the clock that it has"
    await past.stop()
    done = user.comity("up", "--port", "0", "--http-port", "0")
    assert (done.error["code"], done.code) == ("clock-ahead", 1)
    assert "100.0 days after the network last ran" in done.error["message"]
    assert "comity up --clock-is-right" in done.error["advice"]
    running, facts = user.up("--clock-is-right")
    assert facts["open_tasks"] == 1
    healthy = user.until(lambda found: found["healthy"], "doctor")
    assert verdicts(healthy, "network's time") == ["ok"]
    assert running.stop() == 0
    running, facts = user.up()
    assert facts["open_tasks"] == 1
    assert running.stop() == 0
