"""Makes a backup while the network runs. The leader does nothing for it but confirm a barrier: like a standby, this reads the
newest snapshot and the log from there, so it holds the state after one effective entry; then it copies what that state names.

Nothing is held back meanwhile. If what is to be copied was archived, moved or trimmed away first, the state is read on to the
log's head as it is then, and the copying goes on; what was copied before stays. So a backup is of one moment, or it is not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import msgspec
import structlog

from comity.backup import contents, manifest, pieces
from comity.backup.manifest import Manifest, Object
from comity.backup.targets import Target
from comity.controller.origin import beginning, past
from comity.controller.payloads import Payloads, carried_by
from comity.controller.renewing import KEPT, OWN
from comity.core.ledger import Effective, Ledger
from comity.core.tasks import Tasks
from comity.errors import Conflict, Corrupt, ForeignData, NotFound, TimedOut
from comity.log.base import Log
from comity.model.ids import NetworkId
from comity.model.payload import Payload
from comity.model.task import Stored
from comity.patience import patiently
from comity.store.base import Store

TRIES = 20
"""Moments tried, each later than the last, until nothing of one goes while it is copied."""
BEHIND_S = 30.0
"""How long a replica may show nothing new of what is durable."""
AWAY_S = 60.0
"""How long the log or the store may be away: an election takes seconds, and what was read would have to be read again."""
LOOK_S = 0.05
READ = 8
AT_ONCE = 4
"""Store objects copied at a time."""
_log = structlog.get_logger("comity.backup")


def is_own(key: str) -> bool:
    """Whether the network itself keeps it in the store until it deletes it: then it counts only if state refers to it."""
    return key.startswith(OWN) and not key.startswith(KEPT)


class Made(msgspec.Struct):
    """A new backup, and what it took. ``is_first``: there was none of this network in the target."""

    manifest: Manifest
    wrote: int
    wrote_bytes: int
    reused: int
    tries: int
    is_first: bool


class Reader:
    """Follows the log as a standby does, and changes nothing."""

    def __init__(self, log: Log, store: Store, network: NetworkId) -> None:
        self.state = Tasks(network)
        self.ledger = Ledger(network)
        self.payloads = Payloads(log)
        self.network = network
        self._log = log
        self._store = store
        self._is_loaded = False

    async def reach(self, index: int) -> None:
        """Read to entry ``index`` at least, which is durable. Raises Corrupt with the place, TimedOut (nothing comes)."""
        if not self._is_loaded:
            self.state, self.ledger = await patiently(partial(past, self._store, self.network, None), AWAY_S)
            self._is_loaded = True
        time = asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(BEHIND_S) as limit:

                def extend(*_: object) -> None:
                    limit.reschedule(time() + BEHIND_S)

                while self.ledger.index < index:
                    if await patiently(self._read, AWAY_S, tell=extend):
                        extend()
                    else:
                        await asyncio.sleep(LOOK_S)  # the replica we read from is behind
        except TimeoutError:
            raise TimedOut(f"the log ends at {self.ledger.index} here, though entry {index} is known to be durable") from None

    async def payload(self, payload: Payload) -> Payload:
        """With its bytes. Raises as ``Payloads.load`` does."""
        return await patiently(partial(self.payloads.load, payload), AWAY_S)

    async def _read(self) -> bool:
        """Read on; whether something came. May be done again after an Indefinite error."""
        try:
            items = await self._log.read(self.ledger.index, READ)
        except Corrupt:
            first, _ = await self._log.bounds()
            if self.ledger.index + 1 >= first:
                raise
            self.state, self.ledger = await past(self._store, self.network, None)  # trimmed: go on from a snapshot
            if self.ledger.index + 1 < first:
                raise
            return True
        if items and self.ledger.index == 0:
            self.state, self.ledger = await beginning(items[0], self._store, self.network)
        for index, data in items:
            verdict = self.ledger.offer(index, data)
            if isinstance(verdict, Effective):
                self.payloads.note(index, verdict.entry)
                self.state.apply(verdict.entry, index)
        return bool(items)


class Copied(msgspec.Struct):
    """Of the store: what is there, what of the network's own went meanwhile, and what had expired or is damaged."""

    objects: list[Object]
    gone: set[str]
    missing: list[str]
    damaged: list[str]


class Creating:
    """``head`` confirms a barrier and gives the index of an entry that is durable. ``keys``: the network's, if wanted."""

    def __init__(
        self, log: Log, store: Store, target: Target, head: Callable[[], Awaitable[int]], *,
        network: str, network_id: NetworkId, version: str, now_ms: Callable[[], int], keys: bytes | None = None,
    ) -> None:  # fmt: skip
        self._store = store
        self._log = log
        self._target = target
        self._head = head
        self._reader = Reader(log, store, network_id)
        self._network = network
        self._version = version
        self._now_ms = now_ms
        self._keys = keys

    async def run(self) -> Made:
        """Raises Conflict (the network changes faster than it can be copied), Corrupt (it is damaged), and what the doors and the
        target raise."""
        names = [name for name in await manifest.names(self._target) if manifest.network_of(name) == self._reader.network]
        last = await self._last(names)
        writer = pieces.Writer(self._target, await self._target.list("pieces/"), last.objects if last is not None else ())
        gone: set[str] = set()
        try:
            for tries in range(1, TRIES + 1):
                await self._reader.reach(await patiently(self._head, AWAY_S))
                self._check(gone)
                found = await self._moment(writer)
                if isinstance(found, Manifest):
                    await self._target.put(found.file, manifest.encode(found))
                    return Made(found, writer.wrote, writer.wrote_bytes, writer.reused, tries, not names)
                gone = found
        finally:
            self._reader.payloads.end()
        raise Conflict(f"the network changed {TRIES} times while it was copied: try again when it is less busy")

    async def _last(self, names: list[str]) -> Manifest | None:
        """The newest that can be read: what it has need not be read again. A damaged one must not keep others from being made."""
        for name in reversed(names):
            try:
                return await manifest.read(self._target, name)
            except (Corrupt, ForeignData) as error:
                _log.error("an earlier backup cannot be read", backup=name, error=error.message)
        return None

    def _check(self, gone: set[str]) -> None:
        """What was gone before state was read on must not be named by it any more: that it goes is told before it does."""
        named = referred(self._reader.state)
        lost = sorted(key for key in gone if key in named)
        if lost:
            raise Corrupt(f"the store lacks {lost[0]}, which the network's state names", key=lost[0])

    async def _moment(self, writer: pieces.Writer) -> Manifest | set[str]:
        """The backup of what the reader holds now; or what of it went while it was copied."""
        state, ledger, at_ms = self._reader.state, self._reader.ledger, self._now_ms()
        found = contents.logged(state)
        payloads = [await writer.put(pack) async for pack in contents.packs(state, self._reader.payload, found)]
        if found.unread:
            first, _ = await patiently(self._log.bounds, AWAY_S)
            if min(found.unread)[0] < first:
                return set()  # trimmed: its payloads were moved to the store before, as state will say
            _log.error("left out of the backup, for the log is damaged", entries=sorted({at for at, _ in found.unread}))
        copied = await self._objects(writer)
        if copied.gone:
            return copied.gone
        frames = [await writer.put(frame) for frame in contents.frames(state, ledger, found)]
        counts = {str(kind): count for kind, count in state.counts.items() if count} | {"archived": state.archived}
        return Manifest(
            version=self._version, name=manifest.name_for(at_ms, ledger.effective_index, self._reader.network),
            network=self._network, network_id=self._reader.network, at_ms=at_ms, index=ledger.effective_index,
            log_digest=ledger.digest.hex(), term=ledger.term, generation=state.generation, last_epoch=state.last_epoch,
            entry_ms=ledger.time_ms, state=frames, payloads=payloads, objects=copied.objects, tasks=counts,
            missing=copied.missing, damaged=sorted([*copied.damaged, *found.unread.values()]),
            keys=await writer.put(self._keys) if self._keys is not None else None,
        )  # fmt: skip

    async def _objects(self, writer: pieces.Writer) -> Copied:
        wanted = referred(self._reader.state)
        listed = await patiently(partial(self._store.list, ""), AWAY_S)
        mine = [stored for stored in listed if stored.key in wanted or not is_own(stored.key)]
        turn = asyncio.Semaphore(AT_ONCE)
        damaged: list[str] = []

        async def copy(stored: Stored) -> Object | None:
            async with turn:
                known = writer.reuse(stored)
                if known is not None:
                    return known
                again = partial(self._copy, writer, stored)
                try:
                    return await patiently(again, AWAY_S, progress=lambda: writer.wrote)  # what was written is not again
                except NotFound:
                    return None
                except Corrupt as error:
                    damaged.append(stored.key)
                    _log.error("left out of the backup, for it is damaged", key=stored.key, error=error.message)
                    return None

        try:
            async with asyncio.TaskGroup() as group:
                copies = [group.create_task(copy(stored)) for stored in mine]
        except ExceptionGroup as faults:
            raise faults.exceptions[0] from faults
        objects = {held.key: held for held in (task.result() for task in copies) if held is not None}
        absent = [key for key in wanted if key not in objects and key not in damaged]
        gone = {key for key in absent if is_own(key)}
        missing = sorted(key for key in absent if key not in gone)
        return Copied([objects[key] for key in sorted(objects)], gone, missing, sorted(damaged))

    async def _copy(self, writer: pieces.Writer, stored: Stored) -> Object:
        return await writer.copy(stored, self._store.get(stored.key))


def referred(state: Tasks) -> dict[str, None]:
    """Keys of the store's objects that ``state`` names, and a backup holds."""
    keys = dict.fromkeys([*(held.key for held in state.archive), *state.dead.objects])
    for task in state.tasks.values():
        for _, payload in carried_by(task):
            if type(payload) is Stored:
                keys[payload.key] = None
    keys.update(dict.fromkeys(body.key for body in state.mail.bodies()))
    return keys
