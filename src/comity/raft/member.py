"""One member at work: performs what its machine asks for, and answers those who append and read.

The machine decides, this drives: it saves on a disk, sends by a function, applies what is committed, keeps the machine's
deadlines. While one save is on its way the next ones gather, so many entries share an fsync. Nobody who waits is forgotten: when
a leader steps down, what it has not answered may have happened or not, and that is what they are told.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from comity.core import raft_events as r
from comity.core.raft import Raft
from comity.errors import ComityError, Conflict, Corrupt, Disconnected, DiskFull, NotLeader, TooLarge
from comity.log.base import Item
from comity.model.raft import CONFIG, Config, LogEntry, Message
from comity.raft import kept
from comity.raft.records import Record

FULL_AGAIN_S = 0.2
"""How often a full disk is tried again."""
ENTRY_LIMIT = 1024 * 1024
ANSWER_BYTES = 4 << 20
"""A read gives no more at once, or one entry."""


class Disk(Protocol):
    async def save(self, records: list[Record]) -> None:
        """Returns when it is on the disk. Raises DiskFull: nothing was written. After any other error the disk is not to be
        trusted, and the member stops."""
        ...


class Member:
    """``send`` takes a message to a member, or loses it. ``on_change`` is called when role, leader, members or health have
    changed. ``full``, ``failed``: why nothing is taken now, or ever again. Who asks one that
    failed hears Disconnected."""

    def __init__(self, raft: Raft, disk: Disk, send: Callable[[str, Message], None]) -> None:
        self.raft = raft
        self.id = raft.state.id
        self.kept = kept.Kept(raft.log.snapshot.data)
        self.full: DiskFull | None = None
        self.failed: ComityError | None = None
        self.on_change: Callable[[], None] = _nothing
        self._disk = disk
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._wakes_at = 0.0
        self._events: deque[r.Event] = deque()
        self._is_stepping = False
        self._saves: list[r.Save] = []
        self._saving: asyncio.Task[None] | None = None
        self._key = 0
        self._batch: list[tuple[int, bytes]] = []
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._proposed: deque[tuple[int, int, int]] = deque()  # index, term and key, in order
        self._changing: list[asyncio.Future[Any]] = []
        self._readable: deque[tuple[int, int]] = deque()
        self._watchers: list[asyncio.Future[None]] = []
        self._keep_time()

    # What is asked

    def append(self, entry: bytes, after: int) -> asyncio.Future[int]:
        """As the log's door promises. Fails with NotLeader, too, which is definite."""
        if len(entry) > ENTRY_LIMIT:
            return self._refused(TooLarge(f"an entry of {len(entry)} bytes; the limit is {ENTRY_LIMIT}"))
        return self._propose(kept.add(entry, after))

    def trim(self, upto: int) -> asyncio.Future[int]:
        return self._propose(kept.trim(upto))

    async def claim(self, mark: bytes) -> bytes:
        """Whose the log is; from now on ``mark`` (b"": nobody asks for that), unless somebody was first."""
        if mark:
            await self._propose(kept.claim(mark))
        else:
            await self._barrier()
        return self.kept.mark

    async def read(self, after: int, limit: int) -> list[Item]:
        """What was acknowledged before the call is in what it gives."""
        await self._barrier()
        return self.known(after, limit)

    async def bounds(self) -> tuple[int, int]:
        await self._barrier()
        return self.kept.first, self.kept.last

    async def follow(self, after: int, limit: int) -> list[Item]:
        """What follows ``after``, as soon as this member knows of something."""
        while not (items := self.known(after, limit)):
            self._check()
            watcher: asyncio.Future[None] = self._loop.create_future()
            self._watchers.append(watcher)
            await watcher
        return items

    def known(self, after: int, limit: int) -> list[Item]:
        """What this member knows to be committed."""
        log, size = self.raft.log, 0
        first = log.snapshot.index + 1
        items: list[Item] = []
        for number, place in enumerate(self.kept.between(after, limit), after + 1):
            data = kept.content(log.entries[place - first])
            size += len(data)
            if size > ANSWER_BYTES and items:
                break
            items.append(Item(number, data))
        return items

    async def change(self, voters: tuple[str, ...], learners: tuple[str, ...], addresses: dict[str, str]) -> None:
        """Have another membership. Returns when it alone counts."""
        future = self._ask()
        self.step(r.Change(self._key, voters, learners, addresses))
        await future
        if self.raft.config.outgoing or self.raft.log.config_index > self.raft.log.applied:
            done: asyncio.Future[Any] = self._loop.create_future()
            self._changing.append(done)
            await done

    def hand_over(self, target: str) -> None:
        """Have ``target`` lead, if it can be."""
        self.step(r.HandOver(target))

    def status(self) -> dict[str, Any]:
        """What an operator wants to know of this member, and of the others if it leads."""
        state, log = self.raft.state, self.raft.log
        said = {
            "id": self.id, "role": str(state.role), "term": state.term, "leader": state.leader, "commit": log.commit,
            "applied": log.applied, "last": log.last, "saved": log.saved, "first": log.snapshot.index + 1,
            "voters": list(log.config.voters), "outgoing": list(log.config.outgoing), "learners": list(log.config.learners),
            "addresses": log.config.addresses, "full": self.full is not None,
        }  # fmt: skip
        if self.raft.leading is not None:
            others = self.raft.leading.progress.items()
            said["members"] = {member: {"match": p.match, "phase": str(p.phase)} for member, p in others}
        return said

    def close(self) -> None:
        """Do nothing more. Who waits is told that it is not known."""
        self.fail(Disconnected("it was closed"))

    # Waiting

    def _check(self) -> None:
        if self.failed is not None:
            raise self._stopped(self.failed)

    def _stopped(self, why: ComityError) -> Disconnected:
        """What others hear: their log goes on without this member, or it will."""
        return Disconnected(f"member {self.id} has stopped: {why.message}")

    def _refused(self, error: ComityError) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        future.set_exception(error)
        return future

    def _ask(self) -> asyncio.Future[Any]:
        self._check()
        self._key += 1
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting[self._key] = future
        return future

    def _propose(self, data: bytes) -> asyncio.Future[int]:
        if self.failed is not None:
            return self._refused(self._stopped(self.failed))
        if self.full is not None:
            return self._refused(self.full)
        future = self._ask()
        if not self._batch:
            self._loop.call_soon(self._flush)
        self._batch.append((self._key, data))
        return future

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if batch and self.failed is None:
            self.step(r.Propose(batch))

    async def _barrier(self) -> None:
        future = self._ask()
        self.step(r.Read(self._key))
        await future

    def _answer(self, key: int, outcome: Any) -> None:
        future = self._waiting.pop(key, None)
        if future is not None and not future.done():
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _wake(self) -> None:
        watchers, self._watchers = self._watchers, []
        for watcher in watchers:
            if not watcher.done():
                watcher.set_result(None)

    # The machine

    def step(self, event: r.Event) -> None:
        """Tell the machine, and do what it says. What is told meanwhile comes after."""
        if self.failed is not None:
            return
        self._events.append(event)
        if self._is_stepping:
            return
        self._is_stepping = True
        try:
            while self._events:
                for effect in self.raft.step(self._events.popleft(), self._loop.time()):
                    self._perform(effect)
                while self._readable and self._readable[0][0] <= self.raft.log.applied:
                    self._answer(self._readable.popleft()[1], None)
        except Exception as error:  # what was half done cannot be gone on from
            self.fail(Corrupt(f"member {self.id} was told what contradicts its log: {error!r}"))
            raise
        finally:
            self._is_stepping = False
        self._keep_time()

    def _perform(self, effect: r.Effect) -> None:
        match effect:
            case r.Send(to, message):
                self._send(to, message)
            case r.Save():
                self._saves.append(effect)
                if self._saving is None:
                    self._saving = self._loop.create_task(self._save())
            case r.Commit(entries):
                self._apply(entries)
            case r.Proposed(key, index, term):
                self._proposed.append((index, term, key))
            case r.Readable(key, index):
                self._readable.append((index, key))
            case r.Refused(key, reason):
                self._answer(key, self._refusal(reason))
            case r.Restore(snapshot):
                self.kept.restore(snapshot.data)
                self._wake()
            case r.Became(role, _, _):
                if role is not r.Role.LEADER:
                    self._let_go()
                self._wake()
                self.on_change()
            case r.Members():
                self.on_change()

    def _refusal(self, reason: r.Refusal) -> ComityError:
        leader = self.raft.state.leader
        if reason in (r.Refusal.NOT_LEADER, r.Refusal.HANDING_OVER):
            return NotLeader(f"member {self.id} does not lead, or no more for long", leader=leader)
        return Conflict(f"member {self.id} refuses: {reason}", reason=str(reason))

    def _apply(self, entries: list[LogEntry]) -> None:
        trimmed = self.kept.first
        proposed = self._proposed
        for entry in entries:
            outcome = self.kept.apply(entry)
            if proposed and proposed[0][0] == entry.index:
                _, term, key = proposed.popleft()  # the next leader may have put another one in its place
                self._answer(key, outcome if term == entry.term else self._lost())
            if entry.kind == CONFIG and not self._is_joint():
                done, self._changing = self._changing, []
                for future in done:
                    if not future.done():
                        future.set_result(None)
        self._wake()
        if self.kept.first > trimmed:
            self.step(r.Compact(*self.kept.snapshot(entries[-1].index)))

    def _is_joint(self) -> bool:
        config: Config = self.raft.config
        return bool(config.outgoing)

    def _let_go(self) -> None:
        """Of what was proposed and not yet committed the next leader decides."""
        while self._proposed:
            self._answer(self._proposed.popleft()[2], self._lost())
        changing, self._changing = self._changing, []
        for future in changing:
            if not future.done():
                future.set_exception(self._lost())

    def _lost(self) -> Disconnected:
        return Disconnected(f"member {self.id} leads no more")

    def _keep_time(self) -> None:
        """Wake up at the machine's deadline; too early does no harm, and costs less than a new timer at each step."""
        deadline = self.raft.next_deadline()
        if deadline is None or self.failed is not None:
            return
        if self._timer is not None and self._wakes_at > deadline:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._wakes_at = deadline
            self._timer = self._loop.call_at(deadline, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.step(r.Tick())

    # The disk

    async def _save(self) -> None:
        try:
            while self._saves and self.failed is None:
                saves, self._saves = self._saves, []
                await self._write([Record(save.ballot, save.entries, save.snapshot) for save in saves])
                self.step(r.Saved(saves[-1].number))
        except ComityError as error:
            self.fail(error)
        except Exception as error:
            self.fail(ComityError(f"member {self.id} could not save: {error!r}"))
            raise
        finally:
            self._saving = None

    async def _write(self, records: list[Record]) -> None:
        while self.failed is None:
            try:
                await self._disk.save(records)
            except DiskFull as error:
                if self.full is None:
                    self.full = error
                    self.on_change()
                self.stand_aside()
                await asyncio.sleep(FULL_AGAIN_S)
                continue
            if self.full is not None:
                self.full = None
                self.on_change()
            return

    def stand_aside(self) -> None:
        """A leader without room is none, nor is one that will stop: whoever is there and has most of the log shall lead."""
        if self.raft.leading is not None:
            others = self.raft.leading.progress
            since = self._loop.time() - self.raft.state.timing.election_s
            voters = [voter for voter in self.raft.config.voters if voter in others]
            if voters:
                self.hand_over(max(voters, key=lambda voter: (others[voter].heard > since, others[voter].match)))

    def fail(self, error: ComityError) -> None:
        """Stop for good: the disk can no more be trusted, or the program ends."""
        if self.failed is not None:
            return
        self.failed = error
        if self._timer is not None:
            self._timer.cancel()
        unknown = self._stopped(error)
        for key in list(self._waiting):
            self._answer(key, unknown)
        self._let_go()
        self._wake()
        self.on_change()


def _nothing() -> None:
    """Nobody wants to know."""
