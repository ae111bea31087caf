"""What all tests share: a real server, names that do not collide, and a look at what a test leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import itertools
import os
import signal
from asyncio.selector_events import BaseSelectorEventLoop
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
import nats
import psutil
import pytest
import pytest_asyncio
import structlog
from nats.aio.client import Client

import members
from buckets import bucket_server
from comity.credentials import Authority, Credentials, Role
from comity.embedded import EmbeddedServer, find_binary
from comity.errors import ServerFailed
from etcds import STEADY, Etcds
from rabbits import Rabbits

hypothesis.settings.register_profile("comity", derandomize=True, deadline=None, database=None, print_blob=True)
hypothesis.settings.load_profile("comity")

SERVERS = ("COMITY_NATS_SERVER", "COMITY_ETCD_SERVER", "COMITY_CONSUL_SERVER", "COMITY_RABBITMQ_SERVER")
IN_CI = os.environ.get("CI", "").lower() in {"1", "true", "yes"}
_counter = itertools.count(1)
_ended = itertools.count(1)
_LIVES_ON = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="write the traces of scenario files anew; then read the difference")


def pytest_sessionstart() -> None:
    """Collect garbage only between tests. What a test leaves behind is then reported as the next one begins; and no finaliser
    runs inside the coverage tracer, whose lock it would wait for on the very thread that holds it."""
    gc.disable()
    _close_what_comes_too_late()


def _close_what_comes_too_late() -> None:
    """asyncio takes a connection in two steps, and loses it, unclosed, if the server ends between them (python/cpython#109564).
    It was found as garbage, in whatever test ran then."""
    accept = BaseSelectorEventLoop._accept_connection2  # type: ignore[attr-defined]

    async def accept_or_close(loop: BaseSelectorEventLoop, *words: Any, **more: Any) -> None:
        connection, server = words[1], words[4]
        if server is not None and server._sockets is None:
            connection.close()
        else:
            await accept(loop, *words, **more)

    BaseSelectorEventLoop._accept_connection2 = accept_or_close  # type: ignore[attr-defined]


def pytest_collection_finish() -> None:
    """What is there now stays: modules, and thousands of tests. To look at it again and again took a third of all the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _logs_as_before() -> Iterator[None]:
    """A command that a test ran in this process has set where logs go: to a stream that ends with the test."""
    yield
    structlog.reset_defaults()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    result = yield
    gc.collect(1 if next(_ended) % 20 else 2)
    return result


def need_server() -> None:
    """End the test if there is no nats-server: a failure in CI, a skip on a laptop."""
    try:
        find_binary()
    except ServerFailed as error:
        if IN_CI:
            pytest.fail(f"CI must have a server: {error}")
        pytest.skip(str(error))


async def pause(pid: int) -> None:
    """Stop a process, and return once all its threads stand still: those on other processors may run on for a moment."""
    os.kill(pid, signal.SIGSTOP)
    async with asyncio.timeout(10):
        while True:
            stats = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/stat")]
            if {stat.rpartition(")")[2].split()[0] for stat in stats} == {"T"}:
                return
            await asyncio.sleep(0.001)


class RealNetwork(NamedTuple):
    """A network token of one's own on the shared server: streams and subjects of other tests are elsewhere."""

    url: str
    network: str
    authority: Authority
    server: EmbeddedServer

    def mint(self, role: Role, process: str, *, ttl_s: float | None = None) -> Credentials:
        return self.authority.mint(role, process, ttl_s=ttl_s)

    async def connect(self, role: Role, process: str, **options: Any) -> Client:
        """A bare client with the credentials of ``process``; the caller closes it."""
        options = {"connect_timeout": 20, "max_reconnect_attempts": 0, **options}
        credentials = self.mint(role, process).connect_options()
        return await nats.connect(self.url, name=process, inbox_prefix=f"_INBOX_{process}", **credentials, **options)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EmbeddedServer]:
    """One real server for the whole run. Tests that kill or stop a server start their own."""
    need_server()
    started = await EmbeddedServer.start(tmp_path_factory.mktemp("server") / "data", network="test", port=0)
    yield started
    await started.stop()


@pytest.fixture
def real_network(server: EmbeddedServer) -> RealNetwork:
    token = f"t{next(_counter)}"
    return RealNetwork(server.url, token, dataclasses.replace(server.authority, network=token), server)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def etcds(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Etcds]:
    """Three servers of etcd for the whole run. Tests that kill or stop servers start their own."""
    started = Etcds(tmp_path_factory.mktemp("etcd"), 3, STEADY)
    await started.start()
    yield started
    await started.kill()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def rabbit(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Rabbits]:
    """One RabbitMQ for the whole run, which takes seconds to start. Tests that kill or stop one start their own."""
    started = Rabbits(
        tmp_path_factory.mktemp("rabbit") / "data", 1, ("a", "b", "c", "m1", "m2", "m3", "k1", "n1", "c1")
    )
    try:
        await started.start()
        yield started
    finally:
        await started.close()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The address of a server that speaks S3, with one bucket, for the whole run; "" if there is none here."""
    with bucket_server() as address:
        yield address


@pytest.fixture(autouse=True)
def own_surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings, contexts or data of the user's own reach a test, nor a test's reach the user."""
    for name in list(os.environ):
        if name.startswith("COMITY_") and name not in SERVERS:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home" / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home" / "data"))


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    """Fail a test that leaves a process running, and end the process."""
    before = _children()
    yield
    left = {pid: name for pid, name in _children().items() if pid not in before}
    for pid in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            psutil.Process(pid).kill()
    if left:
        pytest.fail(f"left running: {left}")


def _children() -> dict[int, str]:
    """Our running child processes. The kernel's own list is read where there is one: asking psutil walks all processes."""
    listed = list(Path("/proc/self/task").glob("*/children"))
    pids = [] if listed else _walk()
    for path in listed:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            pids += [int(pid) for pid in path.read_text().split()]
    found = {}
    for pid in pids:
        try:
            process = psutil.Process(pid)
            name = " ".join(process.cmdline())
            if process.status() != psutil.STATUS_ZOMBIE and not any(known in name for known in _LIVES_ON):
                found[pid] = name
        except psutil.NoSuchProcess:
            continue
    return found


def _walk() -> list[int]:
    return [child.pid for child in psutil.Process().children()]


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Gives ports on which nobody listens now."""
    return members.free_port
