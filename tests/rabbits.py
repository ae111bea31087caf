"""A real RabbitMQ for tests: a plain process on free ports of this machine, its data in a folder, to be killed and paused."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from comity.cluster.tls import CertificateAuthority, server_files
from comity.ports import free_port
from etcds import IN_CI

HOST = "127.0.0.1"
VARIABLE = "COMITY_RABBITMQ_SERVER"
INSTALL = "sudo apt-get install --no-install-recommends rabbitmq-server"
EVENTS = "rabbitmq_event_exchange"
EVERYBODY = {"name": "comity", "password": "shared", "tags": ""}
"""A user that may do everything, for processes that share one."""


def need_rabbit() -> tuple[Path, str]:
    """The server, and Erlang's name server beside it: else a failure in CI, a skip on a laptop."""
    # Debian's command on the PATH changes the user; what it runs does not.
    inner = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    named, epmd = os.environ.get(VARIABLE), shutil.which("epmd")
    binary = Path(named) if named else inner if inner.exists() else shutil.which("rabbitmq-server")
    if binary is not None and epmd is not None:
        return Path(binary), epmd
    said = f"no rabbitmq-server here: {INSTALL} (Debian, Ubuntu), or {VARIABLE}=/path/to/rabbitmq-server"
    if IN_CI:
        pytest.fail(f"CI must have a server: {said}")
    pytest.skip(said)


def user(process: str, network: str = "main") -> dict[str, list[dict[str, str]]]:
    """A process's own user, who may be no other: as docs/backends.md says it."""
    heard = r"[^.]+" if process.startswith("k") else r"(?!leader\.)[^.]+"  # a controller's begins so
    queues, exchange = rf"cy\.{network}\.(q\.{process}\.|any\.).*", rf"cy\.{network}"
    return {
        "users": [{"name": process, "password": f"{process}-secret", "tags": ""}],
        "permissions": [
            {
                "user": process, "vhost": "/", "configure": f"^{queues}$", "write": f"^({queues}|{exchange})$",
                "read": rf"^({queues}|{exchange}|amq\.rabbitmq\.event)$",
            }
        ],
        "topic_permissions": [
            {
                "user": process, "vhost": "/", "exchange": f"cy.{network}",
                "write": r"^[a-z]+\.[\w-]+\.{username}$",
                "read": rf"^((to|re)\.{{username}}|any\.[^.]+|topic\.{heard})\.\*$",
            }
        ],
    }  # fmt: skip


class Rabbit:
    """A server in ``folder``, with a user of its own for each of ``processes`` and one for all. It can be killed, paused and
    started again on its data."""

    def __init__(self, folder: Path, processes: Sequence[str] = (), plugins: Sequence[str] = (EVENTS,)) -> None:
        self.binary, self._epmd = need_rabbit()
        self.port, self.tls_port, self._names, self._dist = (free_port(HOST) for _ in range(4))
        self.tls = server_files(folder / "tls", _authority(folder / "tls"), HOST)
        self._folder = folder
        self._server: subprocess.Popen[bytes] | None = None
        self._name_server: subprocess.Popen[bytes] | None = None
        (folder / "plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "definitions.json").write_text(json.dumps(_definitions(processes)))
        lines = [
            f"load_definitions = {folder}/definitions.json", f"listeners.tcp.1 = {HOST}:{self.port}",
            f"listeners.ssl.1 = {HOST}:{self.tls_port}", f"ssl_options.cacertfile = {self.tls.ca}",
            f"ssl_options.certfile = {self.tls.certificate}", f"ssl_options.keyfile = {self.tls.key}",
        ]  # fmt: skip
        (folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")

    def url(self, process: str = "", port: int = 0) -> str:
        """Where ``process`` connects as its own user, or whoever as the one for all; at the server's port unless told."""
        who = f"{process}:{process}-secret" if process else f"{EVERYBODY['name']}:{EVERYBODY['password']}"
        return f"amqp://{who}@{HOST}:{port or self.port}"

    async def start(self) -> None:
        """Returns once it takes connections."""
        with (self._folder / "log").open("ab") as log:
            if self._name_server is None:  # Erlang would start one of its own, and leave it behind
                words = [self._epmd, "-port", str(self._names), "-address", HOST]
                self._name_server = subprocess.Popen(words, stdout=log, stderr=log)
            # A script that starts others: they are signalled together.
            self._server = subprocess.Popen(
                [str(self.binary)], stdout=log, stderr=log, env=self._surroundings(), start_new_session=True
            )
        async with asyncio.timeout(60):
            while not await self._answers():
                if self._server.poll() is not None:
                    pytest.fail(f"RabbitMQ ended: {(self._folder / 'log').read_text()[-2000:]}")
                await asyncio.sleep(0.05)

    def _surroundings(self) -> dict[str, str]:
        folder = str(self._folder)
        kept: Mapping[str, str] = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        return {
            **kept,
            "HOME": folder,  # for Erlang's cookie
            "ERL_EPMD_PORT": str(self._names),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": f"r{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(self._dist),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/plugins",
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
        }

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.write(b"AMQP\x00\x00\x09\x01")
        try:
            return re.search(rb"versionS", await reader.read(512)) is not None
        except ConnectionError:
            return False
        finally:
            writer.close()

    def signal(self, signum: signal.Signals) -> None:
        assert self._server is not None
        os.killpg(self._server.pid, signum)

    async def control(self, *words: str) -> None:
        """What an operator does: ``rabbitmqctl WORDS``."""
        program, node = self.binary.with_name("rabbitmqctl"), f"r{self.port}@localhost"
        with (self._folder / "log").open("ab") as log:
            done = await asyncio.create_subprocess_exec(
                program, "-n", node, *words, stdout=log, stderr=log, env=self._surroundings()
            )
            assert await done.wait() == 0, words

    async def kill(self) -> None:
        """As when its machine loses power."""
        if self._server is not None:
            # Some are in groups of their own, and end a moment later.
            own = psutil.Process(self._server.pid).children(recursive=True)
            self.signal(signal.SIGKILL)
            await asyncio.to_thread(self._server.wait)
            await asyncio.to_thread(psutil.wait_procs, own, 20)
            self._server = None

    async def stop(self) -> None:
        """As an operator stops it: it tells those who are connected."""
        assert self._server is not None
        self.signal(signal.SIGTERM)
        await asyncio.to_thread(self._server.wait, 60)
        self._server = None

    async def close(self) -> None:
        await self.kill()
        if self._name_server is not None:
            self._name_server.kill()
            await asyncio.to_thread(self._name_server.wait)
            self._name_server = None


def _authority(folder: Path) -> CertificateAuthority:
    made = CertificateAuthority.create("main")
    made.save(folder)
    return made


def _definitions(processes: Sequence[str]) -> dict[str, Any]:
    every = {"user": EVERYBODY["name"], "vhost": "/", "configure": ".*", "write": ".*", "read": ".*"}
    exchange = {"name": "cy.main", "vhost": "/", "type": "topic", "durable": True, "auto_delete": False, "internal": False}
    made: dict[str, Any] = {
        "vhosts": [{"name": "/"}], "users": [EVERYBODY], "permissions": [every], "topic_permissions": [],
        "exchanges": [{**exchange, "arguments": {}}],
    }  # fmt: skip
    for process in processes:
        for kind, entries in user(process).items():
            made[kind] += entries
    return made
