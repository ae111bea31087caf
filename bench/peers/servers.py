"""The peers' servers: started here as plain processes on free ports of this machine alone, on a directory that goes with them."""

from __future__ import annotations

import asyncio
import re
import shutil
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from bench.peers.processes import Failed, Processes
from comity.embedded import find_binary

HOST = "127.0.0.1"
READY_S = 60.0
LOOK_S = 0.02


class Server(NamedTuple):
    """How to find and start one, what to ``ask`` it, and where its ``version`` stands in the answer, which shows it is ready."""

    name: str
    variable: str
    url: str
    find: Callable[[], str | None]
    start: Callable[[Processes, str, int], Awaitable[object]]
    ask: bytes
    version: re.Pattern[bytes]
    install: str


async def start(server: Server, processes: Processes) -> tuple[dict[str, str], str]:
    """Start it; the variable that tells peers its address, and its version. Raises Failed."""
    binary, port = server.find(), _free_port()
    assert binary is not None, "what is missing is skipped"
    await server.start(processes, binary, port)
    try:
        async with asyncio.timeout(READY_S):
            while (found := await _ask(server, port)) is None:
                processes.check()
                await asyncio.sleep(LOOK_S)  # a refused connection cannot be awaited
    except TimeoutError:
        raise Failed(f"{server.name} was not ready within {READY_S:.0f} s") from None
    return {server.variable: server.url.format(host=HOST, port=port)}, found


async def _ask(server: Server, port: int) -> str | None:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        return None
    writer.write(server.ask)
    said, found = b"", None
    try:
        while found is None and (part := await reader.read(4096)):
            said += part
            found = server.version.search(said)
    except ConnectionError:
        return None
    finally:
        writer.close()
    return found[1].decode() if found else None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


async def _redis(processes: Processes, binary: str, port: int) -> None:
    data = _made(processes.folder / "redis")
    words = ("--port", str(port), "--bind", HOST, "--dir", str(data), "--logfile", str(data / "log"))
    await processes.start(binary, *words, "--save", "", "--appendonly", "yes", "--appendfsync", "everysec")


async def _nats(processes: Processes, binary: str, port: int) -> None:
    data = _made(processes.folder / "nats")
    # Taskiq's results leave a consumer behind for each look at one; 1000 are allowed by default since 2.15.
    limits = "limits { default_max_consumers: 100000 }"
    (data / "conf").write_text(f"listen: '{HOST}:{port}'\njetstream {{ store_dir: '{data}', {limits} }}\n")
    await processes.start(binary, "-c", str(data / "conf"), "-l", str(data / "log"))


async def _rabbit(processes: Processes, binary: str, port: int) -> None:
    data, names = _made(processes.folder / "rabbit"), _free_port()
    (data / "plugins").write_text("[].\n")
    (data / "rabbitmq.conf").write_text(f"listeners.tcp.1 = {HOST}:{port}\n")
    env = {
        "HOME": str(data),  # for Erlang's cookie
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": HOST,
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_DIST_PORT": str(_free_port()),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
        "RABBITMQ_CONF_ENV_FILE": str(data / "none"),
        "RABBITMQ_CONFIG_FILE": str(data / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(data / "plugins"),
        "RABBITMQ_MNESIA_BASE": str(data),
        "RABBITMQ_LOG_BASE": str(data),
    }
    # Erlang would start a name server of its own, and leave it behind.
    await processes.start(_epmd() or "epmd", "-port", str(names), "-address", HOST)
    await processes.start(binary, env=env)


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _epmd() -> str | None:
    return shutil.which("epmd")


def _find_rabbit() -> str | None:
    # Debian's command on the PATH changes the user; what it runs does not.
    inner = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    found = str(inner) if inner.exists() else shutil.which("rabbitmq-server")
    return found if _epmd() else None


APT = "sudo apt-get install --no-install-recommends {}"

REDIS = Server(
    "redis-server", "BENCH_REDIS", "redis://{host}:{port}/0", lambda: shutil.which("redis-server"), _redis,
    b"INFO server\r\n", re.compile(rb"redis_version:(\S+)\s"), APT.format("redis-server"),
)  # fmt: skip
RABBIT = Server(
    "rabbitmq-server", "BENCH_RABBIT", "amqp://guest:guest@{host}:{port}", _find_rabbit, _rabbit,
    b"AMQP\x00\x00\x09\x01", re.compile(rb"versionS\x00\x00\x00.([0-9.]+)", re.DOTALL), APT.format("rabbitmq-server"),
)  # fmt: skip
NATS = Server(
    "nats-server", "BENCH_NATS", "nats://{host}:{port}", lambda: str(find_binary()), _nats,
    b"", re.compile(rb'"version":"([^"]+)"'), "make setup",
)  # fmt: skip
