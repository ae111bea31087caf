"""Makes a new network of a backup: another id, a higher generation, a log whose first entry says where it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import msgspec

from comity.backup import contents, manifest, pieces
from comity.backup.check import state_of
from comity.backup.create import is_own
from comity.backup.manifest import Manifest
from comity.backup.targets import Target
from comity.controller.origin import ORIGIN
from comity.controller.snapshot import Writing
from comity.core.ledger import Ledger
from comity.errors import Conflict, Corrupt
from comity.log.base import Log
from comity.model.codec import ROOT_DIGEST, UNREADABLE, seal
from comity.model.ids import EPOCH_BITS, NetworkId, ProcessId
from comity.model.task import Entry, Lead, Restored, Stored
from comity.store.base import Store

RESTORES = "restores/"
AT_ONCE = 16
"""Values written to the store at a time."""


class Record(msgspec.Struct, frozen=True):
    """One network made from this target's backups."""

    network_id: str
    origin: str
    backup: str
    generation: int
    at_ms: int


async def next_generation(target: Target, of: Manifest) -> int:
    """One above any that the backup, or a network restored from this target, has given. Raises Corrupt."""
    highest = max(of.generation, of.last_epoch >> EPOCH_BITS)
    for name in await target.list(RESTORES):
        try:
            record = msgspec.json.decode(await target.get(name), type=Record)
        except UNREADABLE as error:
            raise Corrupt(f"{name} cannot be read: {error}", place=name) from error
        highest = max(highest, record.generation)
    return highest + 1


async def record(target: Target, of: Manifest, network_id: NetworkId, generation: int, now_ms: int) -> None:
    """Write down, before it lives, that a network of this generation is made: the next one will have a higher one."""
    said = Record(network_id, of.network_id, of.name, generation, now_ms)
    await target.put(f"{RESTORES}{network_id}.json", msgspec.json.encode(said) + b"\n")


async def restore(
    target: Target, of: Manifest, log: Log, store: Store, *,
    network_id: NetworkId, generation: int, now_ms: int, keep_s: float,
) -> Restored:  # fmt: skip
    """Fill an empty network's log and store. Payloads that processes stored are kept for ``keep_s`` from now on. Every byte is
    checked as it is read. Raises Conflict (not empty), Corrupt, ForeignData, and what the doors and the target raise."""
    _, tail = await log.bounds()
    if tail or await store.list(""):
        raise Conflict("a backup is restored into an empty network only")
    state, ledger = await state_of(target, of)
    await _fill(target, of, store, keep_s)
    state.network = network_id
    writing = Writing(state, Ledger(network_id, time_ms=ledger.time_ms))
    base = await store.put(f"{ORIGIN}base", writing.frames())
    said = Restored(of.network_id, of.index, bytes.fromhex(of.log_digest), of.name, generation, base)
    who = ProcessId("restore")
    data, _ = seal(Entry(network_id, of.term + 1, ROOT_DIGEST, max(now_ms, of.entry_ms), [Lead(who), said]))
    await log.append(data, 0)
    return said


async def _fill(target: Target, of: Manifest, store: Store, keep_s: float) -> None:
    turn = asyncio.Semaphore(AT_ONCE)

    async def put(key: str, data: bytes | AsyncIterator[bytes]) -> Stored:
        async with turn:
            return await store.put(key, data, ttl_s=None if is_own(key) else keep_s)

    async def copy(held: manifest.Object) -> None:
        stored = await put(held.key, pieces.stream(target, held.parts, held.key))
        if (stored.digest.hex(), stored.size) != (held.digest, held.size):
            raise Corrupt(f"backup {of.name}: {held.key} is not what its pieces make", place=held.key)

    await _all(copy(held) for held in of.objects)
    for piece in of.payloads:
        packed = contents.unpack(await pieces.read(target, piece, "payloads"), piece.name)
        await _all(put(pack.key, pack.data) for pack in packed)


async def _all(works: Any) -> None:
    """Do them all; the first fault ends them."""
    listed: list[Coroutine[Any, Any, Any]] = list(works)
    try:
        async with asyncio.TaskGroup() as group:
            for work in listed:
                group.create_task(work)
    except ExceptionGroup as faults:
        raise faults.exceptions[0] from faults
