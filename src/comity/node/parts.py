"""What streaming capabilities yield, kept until its readers have it.

    yield ──▶ kept (so many parts, so many bytes) ──▶ sent as far as a reader has room ──(acknowledged)──▶ forgotten

While somebody reads, the generator waits once enough is kept: nothing is lost and memory does not grow. While nobody does, the
oldest parts are forgotten and it goes on, but for the first moment, in which the submitter may come.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from comity.bus.base import to
from comity.errors import Fenced, InvalidOutput, TooLarge
from comity.model.ids import ProcessId, TaskId
from comity.model.parts import (
    FOR_MS,
    KEPT_BYTES,
    KEPT_PARTS,
    PART_LIMIT,
    Final,
    NoParts,
    Part,
    PartsEnd,
    PartsOffered,
    ReadParts,
)
from comity.model.signature import Signature
from comity.model.wire import Item, Run

HOLD_S = 1.0
"""How long a full stream waits for its first reader."""
READERS_MAX = 64
LEFT_S = 15.0
LEFT_BYTES = 64 * 1024 * 1024
LEFT_MAX = 10_000
"""How long, and how much of, streams that have ended are kept for who has not read them to the end; who is reading has longer."""
READ_S = 2.0
"""How long after all who read one have left: somebody who got no offer may be about to come."""
LIST_BYTES = 64 * 1024 * 1024
"""Parts that together are the result, for want of a ``Final``."""

Post = Callable[[str, Item], None]


class Reader:
    __slots__ = ("acked", "process", "ref", "sent", "until", "until_s")

    def __init__(self, process: ProcessId, ref: int) -> None:
        self.process = process
        self.ref = ref
        self.acked = self.sent = self.until = 0
        self.until_s = 0.0


class Outgoing:
    """The parts of one attempt. Invariant: ``_parts`` are those numbered up to ``_made``, and ``_size`` their bytes."""

    def __init__(self, run: Run, post: Post, now: Callable[[], float], ended: Callable[[Outgoing], None]) -> None:
        self.task = run.task
        self.epoch = run.epoch
        self.is_over = False
        self._is_blocked = False
        self._part_at = 0.0
        self._post = post
        self._now = now
        self._ended = ended
        self._parts: deque[bytes] = deque()
        self._size = 0
        self._made = 0
        self._total = -1
        self._readers: dict[tuple[ProcessId, int], Reader] = {}
        self._hold_until = now() + HOLD_S
        self._room = asyncio.Event()
        post(to(run.submitter), PartsOffered(run.task, run.epoch, run.number))

    @property
    def size(self) -> int:
        return self._size

    @property
    def is_read(self) -> bool:
        """By somebody who does not have all of it."""
        now = self._now()
        return any(reader.until_s > now and reader.acked < self._made for reader in self._readers.values())

    def shown_at(self, now: float) -> float:
        """When the last part came; now, if the generator waits for a reader."""
        return now if self._is_blocked else self._part_at

    # What the generator does

    async def put(self, data: bytes) -> None:
        """Take the next part, as JSON; waits for room if somebody reads. Raises TooLarge, Fenced."""
        if len(data) > PART_LIMIT:
            raise TooLarge(f"a part of {len(data)} bytes; the limit is {PART_LIMIT}", limit=PART_LIMIT)
        await self._wait_for_room()
        if self.is_over:
            raise Fenced("the attempt is over", task=self.task)
        while self._is_full():  # nobody waits for them
            self._drop()
        self._parts.append(data)
        self._made += 1
        self._part_at = self._now()
        self._size += len(data)
        for reader in self._readers.values():
            self._serve(reader)
        await asyncio.sleep(0)  # so that it leaves, even if the generator awaits nothing

    async def _wait_for_room(self) -> None:
        while self._is_full() and not self.is_over:
            until = self._held_until()
            if until <= self._now():
                self._hold_until = self._now()
                self._trim()
                return
            self._is_blocked = True
            self._room.clear()
            try:
                async with asyncio.timeout_at(until):
                    await self._room.wait()
            except TimeoutError:
                pass  # whoever read it is gone, or nobody came
            finally:
                self._is_blocked = False

    def _is_full(self) -> bool:
        return len(self._parts) >= KEPT_PARTS or self._size >= KEPT_BYTES

    def _held_until(self) -> float:
        return max((reader.until_s for reader in self._readers.values()), default=self._hold_until)

    def _drop(self) -> None:
        self._size -= len(self._parts.popleft())

    def complete(self) -> None:
        """The generator has ended: there will be no more parts."""
        self._total = self._made
        for reader in self._readers.values():
            self._serve(reader)

    def leave(self) -> None:
        """The attempt is over."""
        if not self.is_over:
            self.is_over = True
            if self._total < 0:
                self.complete()
            self._room.set()
            self._ended(self)

    # What readers do

    def read(self, item: ReadParts, process: ProcessId) -> bool:
        """What a reader says of itself. True if it was the last one, and the stream is over."""
        key = (process, item.ref)
        reader = self._readers.get(key)
        if item.for_ms <= 0:
            if reader is None:
                return False
            del self._readers[key]
            self._trim()
            return self.is_over and not self._readers
        if reader is None:
            if len(self._readers) >= READERS_MAX:
                self._post(to(process), NoParts(item.ref, self.epoch))
                return False
            reader = self._readers[key] = Reader(process, item.ref)
            reader.sent = max(0, min(item.after, self._made))
        reader.acked = max(reader.acked, min(item.taken, self._made))
        reader.until = max(reader.until, item.until)
        reader.until_s = self._now() + min(item.for_ms, FOR_MS) / 1000
        if item.again:
            reader.sent = max(0, min(item.after, self._made))
        self._trim()
        if not self._serve(reader) and item.again:
            self._post(to(process), NoParts(item.ref, self.epoch, self._made - len(self._parts)))  # a sign of life
        return False

    def _trim(self) -> None:
        """Forget what all readers have, of those who are still there."""
        now = self._now()
        for key in [key for key, reader in self._readers.items() if reader.until_s <= now]:
            del self._readers[key]
        acked = min((reader.acked for reader in self._readers.values()), default=0)
        while self._parts and self._made - len(self._parts) < acked:
            self._drop()
        if not self._is_full() or not self._readers:
            self._room.set()

    def _serve(self, reader: Reader) -> bool:
        """Send what the reader has room for; whether there was anything."""
        gone, address = self._made - len(self._parts), to(reader.process)
        had = reader.sent
        if reader.sent < gone:
            self._post(address, NoParts(reader.ref, self.epoch, gone))
            reader.sent = gone
        while reader.sent < min(reader.until, self._made):
            self._post(address, Part(reader.ref, self.epoch, reader.sent + 1, self._parts[reader.sent - gone]))
            reader.sent += 1
        if reader.sent == self._total:
            self._post(address, PartsEnd(reader.ref, self.epoch, self._total))
        return reader.sent > had or reader.sent == self._total


class Streams:
    """All streams of this node: of attempts that run, and for a while of those that have ended (``_left``, with the bytes that
    each had then)."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._loop = asyncio.get_running_loop()
        self._open: dict[TaskId, Outgoing] = {}
        self._left: OrderedDict[Outgoing, tuple[asyncio.TimerHandle, int]] = OrderedDict()
        self._left_bytes = 0

    def open(self, run: Run) -> Outgoing:
        older = self._open.get(run.task)
        if older is not None:
            self._forget(older)
        stream = self._open[run.task] = Outgoing(run, self._post, self._loop.time, self._over)
        return stream

    def read(self, item: ReadParts, sender: ProcessId) -> None:
        stream = self._open.get(item.task)
        if stream is None or stream.epoch != item.epoch:
            if item.for_ms > 0:
                self._post(to(sender), NoParts(item.ref, item.epoch))
        elif stream.read(item, sender) and stream in self._left:
            timer, size = self._left[stream]
            timer.cancel()
            self._left[stream] = self._loop.call_later(READ_S, self._expire, stream), size

    def _over(self, stream: Outgoing) -> None:
        if self._open.get(stream.task) is not stream:
            return
        self._left[stream] = self._loop.call_later(LEFT_S, self._expire, stream), stream.size
        self._left_bytes += stream.size
        while len(self._left) > LEFT_MAX or self._left_bytes > LEFT_BYTES:
            self._forget(next(iter(self._left)))

    def _expire(self, stream: Outgoing) -> None:
        if stream.is_read:
            self._left[stream] = self._loop.call_later(LEFT_S, self._expire, stream), self._left[stream][1]
        else:
            self._forget(stream)

    def _forget(self, stream: Outgoing) -> None:
        if self._open.get(stream.task) is stream:
            del self._open[stream.task]
        timer, size = self._left.pop(stream, (None, 0))
        self._left_bytes -= size
        if timer is not None:
            timer.cancel()

    def close(self) -> None:
        for timer, _ in self._left.values():
            timer.cancel()
        self._left.clear()
        self._open.clear()


async def streamed(signature: Signature, parts: AsyncGenerator[Any, None], out: Outgoing | None) -> bytes:
    """Run a capability's generator, and give the task's result as JSON: its ``Final``, or the list of what it yielded. Raises
    InvalidOutput, NotSerializable, TooLarge, and what the function raises."""
    kept: list[bytes] = []
    size = 0
    async with aclosing(parts):
        async for part in parts:
            if isinstance(part, Final):
                return signature.encode(part.value)
            data = signature.encode_part(part)
            if not signature.has_final:
                kept.append(data)
                size += len(data)
                if size > LIST_BYTES:
                    said = f"{signature.name}: its parts make a result of over {LIST_BYTES} bytes: yield comity.Final(result)"
                    raise TooLarge(said, limit=LIST_BYTES)
            if out is not None:
                await out.put(data)
    if signature.has_final:
        raise InvalidOutput(f"{signature.name} ended without the Final that its annotation promises")
    return b"[" + b",".join(kept) + b"]"
