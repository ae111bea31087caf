"""The log in one SQLite file, for a single process: write-ahead log with ``synchronous=FULL``, so a commit is on the disk.

All statements run in one thread, in the order they were started. The file is locked for as long as it is open.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from comity.errors import (
    AlreadyRunning,
    ComityError,
    Conflict,
    Corrupt,
    Disconnected,
    ForeignData,
    TooLarge,
    Unreachable,
)
from comity.failpoints import durable
from comity.log.base import Durability, Item

APPLICATION_ID = 0x434F4D31
"""Marks the file as a log of Comity's, format 1 (``COM1``)."""

T = TypeVar("T")


class SqliteLog:
    """One process's log. Several controllers in it share one object."""

    entry_limit = 1024 * 1024
    lag_s = 0.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="comity-log")
        self._grown = asyncio.Condition()
        self._last = 0
        self._closed = False
        self._db: sqlite3.Connection

    @classmethod
    async def open(cls, path: Path) -> SqliteLog:
        """Open the file, or make it. Raises AlreadyRunning (another process has it), ForeignData, Corrupt."""
        log = cls(path)
        try:
            log._last = await log._do(log._connect)
        except ComityError:
            log._thread.shutdown(wait=False)
            raise
        return log

    async def append(self, entry: bytes, after: int) -> int:
        if len(entry) > self.entry_limit:
            raise TooLarge(f"an entry of {len(entry)} bytes; the limit is {self.entry_limit}")
        index = await self._do(lambda: self._insert(entry, after))
        async with self._grown:
            self._last = max(self._last, index)
            self._grown.notify_all()
        return index

    async def bounds(self) -> tuple[int, int]:
        return await self._do(self._bounds)

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        return await self._do(lambda: self._select(after, limit))

    async def follow(self, after: int) -> AsyncIterator[list[Item]]:
        while not self._closed:
            items = await self.read(after)
            if items:
                after = items[-1].index
                yield items
            else:
                async with self._grown:
                    while self._last <= after and not self._closed:
                        await self._grown.wait()

    async def trim(self, upto: int) -> None:
        await self._do(lambda: self._delete(upto))

    async def durability(self) -> Durability:
        def level() -> int:
            return int(self._db.execute("PRAGMA synchronous").fetchone()[0])

        if await self._do(level) >= 2:
            return Durability("verified", "SQLite write-ahead log with synchronous=FULL: a commit waits for the disk")
        return Durability("unverified", "SQLite does not wait for the disk")

    async def close(self) -> None:
        if self._closed:
            return
        await self._do(self._db.close)
        self._closed = True
        self._thread.shutdown()
        async with self._grown:
            self._grown.notify_all()

    async def _do(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the log's thread, after all that was started before."""
        if self._closed:
            raise Disconnected("the log is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except sqlite3.OperationalError as error:
            raise Unreachable(f"SQLite: {error}", path=str(self._path)) from error
        except sqlite3.DatabaseError as error:
            raise Corrupt(f"SQLite: {error}", path=str(self._path)) from error

    def _connect(self) -> int:
        db = sqlite3.connect(self._path, isolation_level=None, timeout=0.2, check_same_thread=False)
        self._db = db
        try:
            db.execute("PRAGMA locking_mode=EXCLUSIVE")
            db.execute("PRAGMA journal_mode=WAL")
            db.execute("PRAGMA synchronous=FULL")
            db.execute("PRAGMA fullfsync=1")
            db.execute("BEGIN IMMEDIATE")
            mark = db.execute("PRAGMA application_id").fetchone()[0]
            tables = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if mark != APPLICATION_ID and tables:
                raise ForeignData(f"{self._path} is not a log of Comity's", path=str(self._path))
            db.execute(f"PRAGMA application_id={APPLICATION_ID}")
            db.execute("CREATE TABLE IF NOT EXISTS entries (position INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT")
            db.execute("CREATE TABLE IF NOT EXISTS bounds (first INTEGER NOT NULL, last INTEGER NOT NULL) STRICT")
            if not tables:
                db.execute("INSERT INTO bounds VALUES (1, 0)")
            with durable("sqlite.create"):
                db.execute("COMMIT")
        except ForeignData:
            db.close()
            raise
        except sqlite3.DatabaseError as error:
            db.close()
            if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
                raise AlreadyRunning(f"another process has {self._path} open", path=str(self._path)) from error
            if error.sqlite_errorcode == sqlite3.SQLITE_NOTADB:
                raise ForeignData(f"{self._path} is not a SQLite file", path=str(self._path)) from error
            raise
        return self._bounds()[1]

    def _bounds(self) -> tuple[int, int]:
        first, last = self._db.execute("SELECT first, last FROM bounds").fetchone()
        return first, last

    def _insert(self, entry: bytes, after: int) -> int:
        _, last = self._bounds()
        if after != last:
            raise Conflict(f"the log's tail is {last}, not {after}", after=after, last=last)
        with durable("sqlite.append"), self._db:
            self._db.execute("BEGIN")
            self._db.execute("INSERT INTO entries VALUES (?, ?)", (after + 1, entry))
            self._db.execute("UPDATE bounds SET last = ?", (after + 1,))
        return after + 1

    def _select(self, after: int, limit: int) -> list[Item]:
        first, _ = self._bounds()
        if after + 1 < first:
            raise Corrupt(f"log entry {after + 1} was trimmed away; the first is {first}", index=after + 1)
        rows = self._db.execute(
            "SELECT position, data FROM entries WHERE position > ? ORDER BY position LIMIT ?", (after, limit)
        ).fetchall()
        for expected, (position, _) in enumerate(rows, start=after + 1):
            if position != expected:
                raise Corrupt(f"log entry {expected} is missing", index=expected)
        return [Item(position, data) for position, data in rows]

    def _delete(self, upto: int) -> None:
        _, last = self._bounds()
        upto = min(upto, last)
        with durable("sqlite.trim"), self._db:
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM entries WHERE position <= ?", (upto,))
            self._db.execute("UPDATE bounds SET first = max(first, ?)", (upto + 1,))
