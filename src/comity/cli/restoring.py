"""Fills a new data directory from a backup, beside its place, and moves it there when all is written: half a network is never
left where ``comity up`` would start it."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from comity.errors import AlreadyRunning, BadInput, ComityError, Conflict, Corrupt

if TYPE_CHECKING:
    from comity.backup.manifest import Manifest
    from comity.backup.targets import Target
    from comity.config import Settings
    from comity.log.base import Log
    from comity.model.ids import NetworkId
    from comity.store.base import Store


class Restoration(NamedTuple):
    network_id: NetworkId
    generation: int
    took_s: float


async def restore_into(
    settings: Settings, target: Target, found: Manifest, *, network: str, generation: int | None
) -> Restoration:
    """A new network in ``settings.data_dir``. Raises AlreadyRunning or Conflict (there is something), Corrupt, ForeignData,
    ServerFailed, and what the target raises."""
    from comity.backup.pieces import read
    from comity.backup.restore import next_generation, record
    from comity.model.ids import NetworkId, check_token

    began = time.perf_counter()
    data = settings.data_dir.absolute()
    check_token(network, "network")
    _must_be_empty(data)
    if found.keys is not None and network != found.network:
        raise BadInput(f"this backup holds the keys of network {found.network!r}: it cannot be called {network!r}")
    least = await next_generation(target, found)
    if generation is not None and generation < least:
        raise BadInput(f"generation {generation} would not be above all that were given: at least {least}", value=generation)
    network_id = NetworkId(secrets.token_hex(8))
    now_ms = int(time.time() * 1000)
    try:
        await record(target, found, network_id, generation or least, now_ms)
    except ComityError as error:
        if generation is None:
            raise type(error)(
                f"{error.message}; where restores cannot be written down, choose a --generation above all that were given",
                **error.details,
            ) from error
    keys = await read(target, found.keys, "keys") if found.keys is not None else None
    part = data.with_name(f".{data.name}.{network_id}")
    try:
        _prepare(part, network, network_id, keys)
        await _fill(settings, part, target, found, network, generation or least, now_ms)
        _must_be_empty(data)
        os.rename(part, data)
        _sync(data.parent)
    except OSError as error:
        raise Conflict(f"cannot move the restored network to {data}: {error.strerror}", path=str(data)) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Restoration(network_id, generation or least, time.perf_counter() - began)


def _must_be_empty(data: Path) -> None:
    if not data.exists():
        return
    if not data.is_dir():
        raise Conflict(f"{data} is not a folder", path=str(data))
    strange = next((path.name for path in sorted(data.iterdir())), None)
    if strange is None:
        return
    if _is_alive(data):
        raise AlreadyRunning(f"a network runs on {data}: a backup is restored into an empty folder only", path=str(data))
    raise Conflict(f"{data} is not empty (it holds {strange}): a backup is restored into an empty folder only", path=str(data))


def _is_alive(data: Path) -> bool:
    import psutil

    try:
        return psutil.pid_exists(int((data / "lock").read_text()))
    except (OSError, ValueError):
        return False


def _prepare(part: Path, network: str, network_id: NetworkId, keys: bytes | None) -> None:
    from comity.credentials import Authority, write_private
    from comity.embedded import identify

    part.mkdir(mode=0o700, parents=True)
    if keys is not None:
        (part / "keys").mkdir(mode=0o700)
        files: dict[str, Any] = json.loads(keys)
        for name, text in files.items():
            if "/" in name or not isinstance(text, str):
                raise Corrupt("the backup's keys are not a network's keys", place="keys")
            write_private(part / "keys" / name, text)
        Authority.load(part)
    identify(part, network, network_id)


async def _fill(
    settings: Settings, part: Path, target: Target, found: Manifest, network: str, generation: int, now_ms: int
) -> None:
    from comity.backends import Elsewhere
    from comity.backup.restore import restore
    from comity.bus.nats import NatsBus
    from comity.contexts import Context
    from comity.embedded import EmbeddedServer
    from comity.log.jetstream import JetStreamLog
    from comity.model.ids import NetworkId, ProcessId
    from comity.store.jetstream import JetStreamStore

    server = await EmbeddedServer.start(part, network=network, port=0, binary=settings.nats_server)
    try:
        options = server.authority.mint("controller", "restore").connect_options()
        bus = await NatsBus.connect(server.url, process=ProcessId("restore"), network=network, options=options)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(bus.close)
            elsewhere = Elsewhere(stack, settings.doors)
            log: Log
            store: Store
            if elsewhere.has("log"):
                log, _ = await elsewhere.log(network, create=True, network_id=server.network_id)
            else:
                log = await JetStreamLog.open(bus.connection, network, create=True)
                stack.push_async_callback(log.close)
            if elsewhere.has("store"):
                store = await elsewhere.store(network, network_id=server.network_id)
            else:
                store = await JetStreamStore.open(bus.connection, network, create=True)
                stack.push_async_callback(store.close)
            await restore(
                target, found, log, store, network_id=NetworkId(server.network_id), generation=generation, now_ms=now_ms,
                keep_s=settings.keep_finished_s,
            )  # fmt: skip
        if settings.doors:
            Context(urls=(), network=network, doors=settings.doors).write_local(part)
    finally:
        await server.stop()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
