"""The log on the built-in Raft: one process's door, over TCP, to whichever member leads.

It looks for the leader, and stays with it. When the leader is another one, or the connection breaks, what was asked and not
answered may have happened; what is asked next is asked of the next leader. Reads are linearizable (read-index), so nothing that
was acknowledged is ever missing from one.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from itertools import count
from typing import Any

from comity.errors import (
    AccessDenied,
    ComityError,
    Disconnected,
    DiskFull,
    ForeignData,
    NotFound,
    NotLeader,
    TimedOut,
    TooLarge,
    Unreachable,
)
from comity.log.base import Durability, Item
from comity.raft import wire
from comity.raft.contact import Contact, parse_address
from comity.raft.mark import Mark
from comity.raft.member import ENTRY_LIMIT

ANSWER_S = 10.0
"""For so long an answer is waited for, and a leader looked for."""
PING_S = 1.0
"""How often a leader is asked whether it is there; it has three times as long to answer."""
LOOK_S = (0.02, 0.2)
"""Between two looks for a leader, at first and at most."""


class RaftLog:
    """Made by ``open``, or by ``join`` for a network."""

    entry_limit = ENTRY_LIMIT
    lag_s = 0.0

    def __init__(self, addresses: Sequence[str], cluster: str, tls: ssl.SSLContext | None, answer_s: float) -> None:
        self.network_id = ""
        self._addresses = list(addresses)
        self._cluster = cluster
        self._tls = tls
        self._answer_s = answer_s
        self._keys = count(1)
        self._contact: Contact | None = None
        self._queue: deque[tuple[wire.Request, asyncio.Future[Any]]] = deque()  # what waits for a leader
        self._looking: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._led_at = ""
        self._why: dict[str, str] = {}
        """Why none of these addresses led to a leader when we last looked."""
        self._closed = False

    @classmethod
    async def open(
        cls, addresses: Sequence[str], cluster: str, *, tls: ssl.SSLContext | None = None, answer_s: float = ANSWER_S
    ) -> RaftLog:
        """The log of ``cluster``, whose members (some, at least) are at ``addresses``, ``host:port``. Raises BadSettings,
        ForeignData (it is another cluster's), AccessDenied, and Indefinite errors."""
        for address in addresses:
            parse_address(address)
        log = cls(addresses, cluster, tls, answer_s)
        try:
            await log.bounds()
        except BaseException:
            await log.close()
            raise
        return log

    @classmethod
    async def join(
        cls, addresses: Sequence[str], cluster: str, network: str, *, create: bool, network_id: str = "", new_id: str = "",
        tls: ssl.SSLContext | None = None, answer_s: float = ANSWER_S,
    ) -> RaftLog:  # fmt: skip
        """As ``open``, and it must be the log of ``network``, whose id is ``network_id`` ("": any). ``create``: if it is nobody's
        yet it shall be, with that id, or ``new_id``. Raises NotFound (it is nobody's), ForeignData (another network's)."""
        log = await cls.open(addresses, cluster, tls=tls, answer_s=answer_s)
        try:
            wanted = Mark(network, network_id or new_id).encode() if create else b""
            found = await log._patiently(lambda key: wire.Claim(key, wanted))
            if not found:
                raise NotFound(f"the log of cluster {cluster!r} is no network's yet", network=network)
            mark = Mark.decode(found)
            if mark.network != network or network_id not in ("", mark.id):
                said = f"the log of cluster {cluster!r} belongs to network {mark.network!r} ({mark.id})"
                raise ForeignData(f"{said}, not to {network!r}{f' ({network_id})' if network_id else ''}", network=mark.network)
        except BaseException:
            await log.close()
            raise
        log.network_id = mark.id
        return log

    async def append(self, entry: bytes, after: int) -> int:
        if len(entry) > self.entry_limit:
            raise TooLarge(f"an entry of {len(entry)} bytes; the limit is {self.entry_limit}")
        return int(await self._ask(lambda key: wire.Append(key, after, entry)))

    async def bounds(self) -> tuple[int, int]:
        first, last = await self._patiently(wire.Bounds)
        return first, last

    async def read(self, after: int, limit: int = 256) -> list[Item]:
        return [Item(*item) for item in await self._patiently(lambda key: wire.Read(key, after, limit))]

    async def follow(self, after: int) -> AsyncIterator[list[Item]]:
        while not self._closed:
            answer = self._send(lambda key: wire.Read(key, after, 256, is_patient=True))  # noqa: B023 - asked at once
            try:
                items = [Item(*item) for item in await answer]
            except (Disconnected, NotLeader, Unreachable):
                continue  # the next one is asked of the next leader; looking for it takes its time
            after = items[-1].index
            yield items

    async def trim(self, upto: int) -> None:
        await self._ask(lambda key: wire.Trim(key, upto))

    async def durability(self) -> Durability:
        return Durability("verified", "a majority of Raft's members has each entry on its disk (fdatasync) before it counts")

    async def status(self) -> dict[str, Any]:
        """What the leader says of itself and the others."""
        said: dict[str, Any] = await self._patiently(wire.Status)
        return said

    async def change(self, voters: Sequence[str], learners: Sequence[str], addresses: dict[str, str]) -> None:
        """Have another membership. Raises Conflict: another change is under way, or a new voter lacks too much."""
        await self._ask(lambda key: wire.Change(key, tuple(voters), tuple(learners), addresses))

    async def hand_over(self, target: str) -> None:
        """Have ``target`` lead, if it can."""
        await self._ask(lambda key: wire.HandOver(key, target))

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        tasks = [task for task in (self._looking, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        closed = Disconnected("the log is closed")
        self._give_up(closed)
        if self._contact is not None:
            self._contact.close(closed)

    # Asking

    async def _patiently(self, request: Callable[[int], wire.Request]) -> Any:
        """What may be asked twice: again when the leader that was asked is gone."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._answer_s
        while True:
            try:
                return await self._ask(request)
            except Disconnected:
                if self._closed or loop.time() > until:
                    raise
    async def _ask(self, request: Callable[[int], wire.Request]) -> Any:
        answer = self._send(request)
        try:
            async with asyncio.timeout(self._answer_s):
                return await answer
        except TimeoutError:
            if self._contact is None or self._contact.ended is not None:
                raise self._nobody() from None
            raise TimedOut(f"the log did not answer within {self._answer_s} s") from None
        except NotLeader as error:
            raise Disconnected(error.message) from error
        except DiskFull as error:  # as elsewhere: it is taken again once there is room
            raise Unreachable(f"the log has no room: {error.message}", **error.details) from error

    def _send(self, make: Callable[[int], wire.Request]) -> asyncio.Future[Any]:
        """Ask now, or once there is a leader, in the order of the calls."""
        if self._closed:
            raise Disconnected("the log is closed")
        request = make(next(self._keys))
        if self._contact is not None and self._contact.ended is None:
            return self._contact.ask(request)
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._queue.append((request, answer))
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return answer

    async def _look(self) -> None:
        """Find who leads, and ask what waits."""
        try:
            async with asyncio.timeout(self._answer_s):
                contact = await self._find()
        except TimeoutError:
            self._give_up(self._nobody())
        except ComityError as error:
            self._give_up(error)
        else:
            self._contact = contact
            queue, self._queue = self._queue, deque()
            for request, answer in queue:
                if not answer.done():
                    answer = contact.ask(request, answer)
            if self._watching is not None:
                self._watching.cancel()
            self._watching = asyncio.create_task(self._watch(contact))
        finally:
            self._looking = None

    async def _find(self) -> Contact:
        hint = ""
        pause = LOOK_S[0]
        while True:
            self._why = {}
            refusal: ComityError | None = None
            is_welcome = False
            known = sorted(self._addresses, key=lambda address: address == self._led_at)  # who is gone may be silent
            for address in dict.fromkeys([*([hint] if hint else []), *known]):
                try:
                    contact = await Contact.make(address, self._cluster, self._tls)
                except ComityError as error:
                    self._why[address] = error.message
                    refusal = error if isinstance(error, ForeignData | AccessDenied) else refusal
                    continue
                is_welcome = True
                if contact.welcome.leader == contact.welcome.id:
                    self._led_at = address
                    return contact
                contact.close()
                self._why[address] = f"{address} does not lead"
                hint = contact.welcome.leader_address
                if hint and hint != address:
                    break
            else:
                hint = ""
            if refusal is not None and not is_welcome:
                raise refusal
            await asyncio.sleep(pause)
            pause = min(2 * pause, LOOK_S[1])

    async def _watch(self, contact: Contact) -> None:
        """End a connection on which nothing comes back any more."""
        while contact.ended is None:
            await asyncio.sleep(PING_S)
            try:
                async with asyncio.timeout(3 * PING_S):
                    await contact.ask(wire.Ping(next(self._keys)))
            except TimeoutError:
                contact.abort(Disconnected("the leader does not answer"))
            except ComityError:
                return

    def _nobody(self) -> Unreachable:
        why = "; ".join(self._why.values())
        return Unreachable(f"nobody leads the log at {', '.join(self._addresses)}{f' ({why})' if why else ''}")

    def _give_up(self, error: ComityError) -> None:
        queue, self._queue = self._queue, deque()
        for answer in [answer for _, answer in queue if not answer.done()]:
            answer.set_exception(error)
