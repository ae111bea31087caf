"""Real servers of RabbitMQ for tests."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from comity.cluster.tls import CertificateAuthority, server_files
from comity.credentials import write_private
from members import HOST, IN_CI, Members, free_port

VARIABLE = "COMITY_RABBITMQ_SERVER"
INSTALL = "sudo apt-get install --no-install-recommends rabbitmq-server"
EVENTS = "rabbitmq_event_exchange"
CLUSTER = (
    "cluster_formation.peer_discovery_backend = classic_config", "cluster_partition_handling = autoheal",
    "net_ticktime = 5",
)  # fmt: skip
"""What docs/backends.md says of clusters."""
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


class Rabbits(Members):
    """See Members. With a user of its own for each of ``processes``, and one for all."""

    READY_S = 60.0

    def __init__(
        self, folder: Path, size: int = 1, processes: Sequence[str] = (), plugins: Sequence[str] = (EVENTS,), *,
        hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = (),
    ) -> None:  # fmt: skip
        super().__init__(folder, size, hosts=hosts, within=within)
        self.binary, self._epmd = need_rabbit()
        self.ports = [free_port(HOST) for _ in range(size)]
        self.tls_ports = [free_port(HOST) for _ in range(size)]
        self._dist = [free_port(HOST) for _ in range(size)]
        self._names = free_port(HOST)
        self._name_servers: dict[str, subprocess.Popen[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.tls = server_files(folder / "tls", _authority(folder / "tls"), *dict.fromkeys(self.hosts))
        write_private(folder / ".erlang.cookie", secrets.token_hex(16))
        (folder / "plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "definitions.json").write_text(json.dumps(_definitions(processes)))
        for n in self._all:
            (folder / f"m{n}").mkdir()
            (folder / f"m{n}" / "rabbitmq.conf").write_text("\n".join(self._settings(n)) + "\n")

    def _settings(self, n: int) -> list[str]:
        alone = [
            f"load_definitions = {self._folder}/definitions.json", f"listeners.tcp.1 = {self.hosts[n]}:{self.ports[n]}",
            f"listeners.ssl.1 = {self.hosts[n]}:{self.tls_ports[n]}", f"ssl_options.cacertfile = {self.tls.ca}",
            f"ssl_options.certfile = {self.tls.certificate}", f"ssl_options.keyfile = {self.tls.key}",
        ]  # fmt: skip
        if len(self._all) == 1:
            return alone
        return [
            *alone, *CLUSTER,
            *(f"cluster_formation.classic_config.nodes.{k + 1} = {self._name(k)}" for k in self._all),
        ]  # fmt: skip

    def _name(self, n: int) -> str:
        return f"r{self.ports[n]}@{self.hosts[n]}"

    @property
    def port(self) -> int:
        """Of the only one."""
        (port,) = self.ports
        return port

    def url(self, process: str = "", *ports: int) -> str:
        """Where ``process`` connects as its own user, or whoever as the one for all: to any of them, unless ports of this machine
        are told."""
        who = f"{process}:{process}-secret" if process else f"{EVERYBODY['name']}:{EVERYBODY['password']}"
        there = [(HOST, port) for port in ports] or zip(self.hosts, self.ports, strict=True)
        return f"amqp://{who}@{','.join(f'{host}:{port}' for host, port in there)}"

    def urls(self, *ports: int) -> tuple[str, ...]:
        """One names them all."""
        return (self.url("", *ports),)

    def _begin(self, n: int) -> None:
        host = self.hosts[n]
        if host not in self._name_servers:  # Erlang would start one of its own, and leave it behind
            words = [*self._within[n], self._epmd, "-port", str(self._names), "-address", host]
            with self._log(n).open("ab") as log:
                self._name_servers[host] = subprocess.Popen(words, stdout=log, stderr=log)
        super()._begin(n)

    def _words(self, n: int) -> list[str]:
        return [str(self.binary)]

    def _surroundings(self, n: int) -> dict[str, str]:
        folder, host = str(self._folder / f"m{n}"), self.hosts[n]
        kept: Mapping[str, str] = {name: value for name, value in os.environ.items() if not name.startswith("RABBITMQ_")}
        dist = f"-kernel inet_dist_use_interface {{{host.replace('.', ',')}}} +sbwt none"
        return {
            **kept,
            "HOME": str(self._folder),  # for Erlang's cookie
            "ERL_EPMD_PORT": str(self._names),
            "ERL_EPMD_ADDRESS": host,
            "RABBITMQ_USE_LONGNAME": "true",
            "RABBITMQ_NODENAME": self._name(n),
            "RABBITMQ_DIST_PORT": str(self._dist[n]),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": dist,
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/none",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "plugins"),
            "RABBITMQ_MNESIA_BASE": folder,
            "RABBITMQ_LOG_BASE": folder,
            "RABBITMQ_PID_FILE": f"{folder}/pid",
        }

    async def _is_ready(self, n: int) -> bool:
        """Whether it takes connections."""
        try:
            reader, writer = await asyncio.open_connection(self.hosts[n], self.ports[n])
        except OSError:
            return False
        writer.write(b"AMQP\x00\x00\x09\x01")
        try:
            return re.search(rb"versionS", await reader.read(512)) is not None
        except ConnectionError:
            return False
        finally:
            writer.close()

    async def control(self, *words: str, n: int = 0) -> str:
        """What an operator does, ``rabbitmqctl WORDS``, and what it says."""
        program = self.binary.with_name("rabbitmqctl")
        arguments = [*self._within[n], str(program), "--longnames", "-n", self._name(n), *words]
        with self._log(n).open("ab") as log:
            done = await asyncio.create_subprocess_exec(
                *arguments, stdout=subprocess.PIPE, stderr=log, env=self._surroundings(n)
            )
            said, _ = await done.communicate()
        assert done.returncode == 0, words
        return said.decode()

    async def _kill(self, n: int) -> None:
        own = psutil.Process(self.pid(n)).children(recursive=True)
        await super()._kill(n)
        await asyncio.to_thread(psutil.wait_procs, own, 20)  # some are in groups of their own, and end a moment later

    async def close(self) -> None:
        await self.kill()
        for process in self._name_servers.values():
            process.kill()
            await asyncio.to_thread(process.wait)
        self._name_servers.clear()


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
