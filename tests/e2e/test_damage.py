"""What happened to a data directory while the network was down, or in a crash, is noticed at the next start: nothing that was
accepted is lost without a word."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from terminal import Terminal, terminal

import comity
from comity.cli import marking
from comity.cli.network import EmbeddedNetwork
from comity.config import Loaded, Settings
from comity.errors import Corrupt, ForeignData
from conftest import need_server

pytestmark = pytest.mark.server


def settings(data: Path, **more: Any) -> Loaded:
    return Settings.load({"data_dir": data, "port": 0, "http_port": 0, **more}, env={})


@asynccontextmanager
async def up(data: Path, tasks: int | None = None, **more: Any) -> AsyncIterator[EmbeddedNetwork]:
    """The network runs; it has so many open tasks."""
    network = await EmbeddedNetwork.start(settings(data, **more).settings, metrics=False)
    try:
        if tasks is not None:
            assert len(network.controller.state.tasks) == tasks
        yield network
    finally:
        await network.stop()


async def submit(data: Path, count: int) -> None:
    async with comity.connect(settings=settings(data)) as net:
        for number in range(count):
            await net.submit("nothing", number)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a network that accepted three tasks and was shut down."""
    need_server()
    data = tmp_path_factory.mktemp("lived") / "data"
    async with up(data):
        await submit(data, 3)
    return data


@pytest.fixture
def data(tmp_path: Path, lived: Path) -> Path:
    """A copy of that."""
    return Path(shutil.copytree(lived, tmp_path / "data"))


@pytest.fixture
def user(tmp_path: Path, lived: Path) -> Iterator[Terminal]:
    """Somebody who has a copy of it."""
    with terminal(tmp_path) as user:
        shutil.copytree(lived, user.data)
        yield user


def log_of(data: Path) -> Path:
    (found,) = (data / "jetstream").glob("*/streams/CY_main_LOG")
    return found


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 0xFF
    path.write_bytes(content)


def mark_of(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((data / "log.mark").read_text())
    return found


async def refused(data: Path) -> str:
    """What is said of the damage, again and again; the mark stays, and takes note of it."""
    kept = mark_of(data)
    for _ in range(2):
        with pytest.raises(Corrupt) as caught:
            await EmbeddedNetwork.start(settings(data).settings, metrics=False)
        assert caught.value.details["path"] in caught.value.message
        assert mark_of(data) == {**kept, "fault": caught.value.message}
    return caught.value.message


@pytest.mark.slow
def test_up_refuses_a_log_that_lost_its_end_and_doctor_names_the_place(user: Terminal, lived: Path) -> None:
    assert user.ok("doctor").json["healthy"]
    for index in log_of(user.data).glob("msgs/index.db"):
        index.unlink()  # as after a crash: the server reads the block itself
    flip(log_of(user.data) / "msgs" / "1.blk", 400)
    done = user.comity("up", "--port", "0", "--http-port", "0")
    assert (done.error["code"], done.code) == ("corrupt", 1)
    said = done.error["message"]
    assert str(log_of(user.data)) in said
    assert "the log ends at entry 1, but log.mark tells of entry" in said
    told = user.comity("doctor")
    assert told.code == 1
    (finding,) = [check for check in told.json["checks"] if check["check"] == "log mark"]
    assert (finding["verdict"], finding["found"]) == ("wrong", f"comity up found: {said}")
    shutil.copytree(lived, user.data, dirs_exist_ok=True)  # restored from a copy
    running, facts = user.up()
    assert facts["open_tasks"] == 3
    assert user.until(lambda found: found["healthy"], "doctor")
    assert running.stop() == 0


async def test_a_mark_is_for_the_owner_only_and_grows_with_the_log(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert stat.S_IMODE((data / "log.mark").stat().st_mode) == 0o600
    before = mark_of(data)
    assert before["index"] >= 4
    monkeypatch.setattr(marking, "PACE_S", 3600.0)
    async with up(data, 3) as network:
        await submit(data, 1)
        head = network.controller.ledger.effective_index
        assert mark_of(data)["index"] < head, "marked at a bounded pace"
    after = mark_of(data)
    assert after["index"] >= head
    assert after["digest"] != before["digest"]
    async with up(data, 4):
        pass


async def test_an_entry_that_the_server_does_not_know_to_be_damaged(data: Path) -> None:
    block = log_of(data) / "msgs" / "1.blk"
    flip(block, block.stat().st_size - 40)
    assert f"log entry {mark_of(data)['index']} cannot be read" in await refused(data)


@pytest.mark.parametrize("stream", ["CY_main_LOG", "CY_main_STORE"])
async def test_a_stream_that_is_gone_is_not_made_anew(data: Path, stream: str) -> None:
    gone = log_of(data).with_name(stream)
    shutil.rmtree(gone)
    assert await refused(data) == f"{gone} is missing: it was there when this network ran before"
    assert not gone.exists()


async def test_the_streams_of_another_network_are_not_ours(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    async with up(other):
        pass
    shutil.rmtree(data / "jetstream")
    shutil.copytree(other / "jetstream", data / "jetstream")
    assert "CY_main_LOG is missing" in await refused(data)
    shutil.copyfile(other / "log.mark", data / "log.mark")
    with pytest.raises(ForeignData, match=r"log\.mark is of network"):
        await EmbeddedNetwork.start(settings(data).settings)


async def test_a_registry_is_made_anew(data: Path) -> None:
    shutil.rmtree(log_of(data).with_name("CY_main_REG"))
    async with up(data, 3):
        pass


async def test_a_damaged_mark_is_no_mark(data: Path) -> None:
    for content in ("{}", "{", json.dumps({**mark_of(data), "digest": "no hex"})):
        (data / "log.mark").write_text(content)
        with pytest.raises(Corrupt, match="cannot be read") as caught:
            await EmbeddedNetwork.start(settings(data).settings)
        assert caught.value.details["path"] == str(data / "log.mark")
    (data / "log.mark").write_text(json.dumps({"network_id": "x", "format": 2}))
    with pytest.raises(ForeignData, match="has format 2"):
        await EmbeddedNetwork.start(settings(data).settings)


async def test_a_snapshot_newer_than_the_log_is_noticed_at_once(
    data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The mark is gone too, so only the snapshot tells of it."""
    async with up(data, 3, snapshot_every=1) as network, comity.connect(settings=settings(data)) as net:
        while not network.controller.state.snapshots:
            await net.submit("nothing", 0)
    (data / "log.mark").unlink()
    shutil.rmtree(log_of(data))
    capfd.readouterr()
    with pytest.raises(Corrupt, match="but a snapshot tells of entry"):
        await EmbeddedNetwork.start(settings(data).settings, metrics=False)
    assert capfd.readouterr() == ("", ""), "nothing is said beside the error"


async def test_without_fsync_no_more_is_marked_than_that_there_are_streams(tmp_path: Path) -> None:
    need_server()
    data = tmp_path / "data"
    async with up(data, fsync=False):
        await submit(data, 2)
    assert mark_of(data)["index"] == 0
    shutil.rmtree(log_of(data))
    assert "is missing" in await refused(data)
