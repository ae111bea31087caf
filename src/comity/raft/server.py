"""A member as a server: its write-ahead log in a thread, TCP to the other members and from those who use the log.

Each member connects to each other one and sends by that; what the other sends comes by the other's connection. A member's
address is that of the membership, or what it said when it connected: one that joins knows nobody yet.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import ssl
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from comity.core import raft_events as r
from comity.core.raft import Raft
from comity.core.raft_events import Timing
from comity.errors import BadSettings, ComityError, Disconnected, ForeignData, NotLeader, Unreachable
from comity.model.raft import Config, Message, founding
from comity.raft import wire
from comity.raft.contact import GREETING_S, greet, parse_address
from comity.raft.link import MOST_BYTES, Link
from comity.raft.member import Member
from comity.raft.records import Record, Torn
from comity.raft.wal import Wal

AGAIN_S = (0.02, 0.5)
"""Between tries to connect: at first, and at most."""
HELLO_BYTES = 64 * 1024
"""Of a frame, before we know who sends it."""
MOST_STRANGERS = 256
"""Connections that have not said hello yet; for one more the oldest goes. None is kept for longer than ``GREETING_S``."""
CLOSE_S = 1.0
"""Who has not read by then what was still to be sent does not get it."""


class ThreadDisk:
    """A write-ahead log, in a thread of its own."""

    def __init__(self, wal: Wal) -> None:
        self.wal = wal
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="comity-raft")

    async def save(self, records: list[Record]) -> None:
        await asyncio.get_running_loop().run_in_executor(self.thread, self.wal.save, records)

    def close(self) -> None:
        self.thread.shutdown()
        self.wal.close()


class Peer:
    """Our connection to another member, made again when it breaks, if it still takes part. ``trouble``: why there is none."""

    def __init__(self, server: RaftServer, id: str) -> None:
        self.id = id
        self.trouble: ComityError | None = None
        self._server = server
        self._link: Link | None = None
        self._broken = asyncio.Event()
        self._task = asyncio.create_task(self._keep(), name=f"raft {server.id} to {id}")

    def send(self, message: Message) -> None:
        if self._link is not None:
            self._link.send(message)

    async def _keep(self) -> None:
        pause = AGAIN_S[0]
        server = self._server
        while True:
            hello = wire.Hello(wire.VERSION, server.cluster, server.id, server.address, self.id)
            try:
                self._link, _ = await greet(server.address_of(self.id), hello, server.to_tls, may_lose=True)
            except ComityError as error:
                self.trouble = error
                if server.forgets(self):
                    return
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                pause = min(pause * 2, AGAIN_S[1])
                continue
            pause, self.trouble = AGAIN_S[0], None
            self._broken.clear()
            if self._link.ended is None:
                self._link.on_end = self._ended
                await self._broken.wait()
            self._link = None
            server.member.step(r.Lost(self.id))
            if server.forgets(self):
                return

    def _ended(self, _: Link, error: ComityError) -> None:
        self.trouble = error
        self._broken.set()

    async def close(self) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        if self._link is not None:
            self._link.close()


class RaftServer:
    """Made by ``start``. ``torn`` is what was cut off its log's end, if anything; ``led`` is set while it knows who leads."""

    def __init__(self, member: Member, disk: ThreadDisk, cluster: str, address: str, to_tls: ssl.SSLContext | None) -> None:
        self.member = member
        self.id = member.id
        self.cluster = cluster
        self.address = address
        self.to_tls = to_tls
        self._disk = disk
        self._listening: asyncio.Server | None = None
        self._peers: dict[str, Peer] = {}
        self._said: dict[str, str] = {}  # addresses that members told when they connected
        self._links: set[Link] = set()
        self._strangers: dict[Link, asyncio.TimerHandle] = {}  # that have not said hello, in order
        self._users: set[Link] = set()
        self._tasks: dict[asyncio.Task[None], Link] = {}
        self._was_leader = False
        self._ended = asyncio.Event()
        self._follows = asyncio.Event()
        self.led = asyncio.Event()

    @property
    def torn(self) -> Torn | None:
        return self._disk.wal.torn

    @classmethod
    async def start(
        cls, folder: Path, *, cluster: str, id: str, listen: str, members: dict[str, str] | None = None,
        address: str = "", timing: Timing | None = None, tls: tuple[ssl.SSLContext, ssl.SSLContext] | None = None,
    ) -> RaftServer:  # fmt: skip
        """Be member ``id`` of ``cluster``, with its log in ``folder``.

        ``members``: the founding members' addresses by id, the same for all of them; None for one that joins later. Both only
        count where the folder is new. ``address``: where the others reach it, if not at ``listen``. ``tls``: contexts for
        connections that come, and that we make. Raises BadSettings, and what ``Wal.open`` raises.
        """
        timing = (timing or Timing()).validate()
        host, port = parse_address(listen)
        if members is not None and id not in members:
            raise BadSettings(f"{id!r} is not among the founding members {', '.join(members)}", setting="members")
        start = founding(Config(tuple(members), addresses=members)) if members else None
        wal = await asyncio.to_thread(Wal.open, folder, cluster, id, start)
        disk = ThreadDisk(wal)
        about: dict[str, Any] = {"ballot": wal.ballot, "snapshot": wal.snapshot, "entries": wal.entries}
        raft = Raft(id, asyncio.get_running_loop().time(), random.random, timing, **about)
        wal.entries = []
        member = Member(raft, disk, lambda to, message: server.send(to, message))  # noqa: PLW0108 - it is made below
        server = cls(member, disk, cluster, address or listen, tls[1] if tls else None)
        member.on_change = server._changed
        loop = asyncio.get_running_loop()
        try:
            secure: dict[str, Any] = {"ssl": tls[0], "ssl_handshake_timeout": GREETING_S} if tls else {}
            server._listening = await loop.create_server(server._accept, host, port, **secure)
        except OSError as error:
            await server.close()
            raise BadSettings(f"cannot listen on {listen}: {error.strerror}", setting="listen", value=listen) from error
        server._changed()
        return server

    async def wait(self) -> None:
        """Raise why the member takes part no more, once it does not."""
        await self._ended.wait()
        assert self.member.failed is not None
        raise self.member.failed

    async def leave(self) -> None:
        """Let another one lead, if this one does and one can, and close."""
        self.member.stand_aside()
        if len(self.member.raft.config.voters) > 1:
            with contextlib.suppress(TimeoutError):  # then it leaves all the same
                await asyncio.wait_for(self._follows.wait(), self.member.raft.state.timing.election_s)
        await self.close()

    async def close(self) -> None:
        """Leave without a word, as a crash would; the log is closed properly."""
        links = list(self._links)
        self.member.close()
        if self._listening is not None:
            self._listening.close()
        for peer in self._peers.values():
            await peer.close()
        for link in links:
            link.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self._disk.close)
        if self._listening is not None:
            try:
                await asyncio.wait_for(self._listening.wait_closed(), CLOSE_S)
            except TimeoutError:  # since Python 3.12 it waits for all connections, and somebody may read nothing
                for link in links:
                    link.abort(Disconnected("it did not read what was still to be sent"))
                await self._listening.wait_closed()

    # Others

    def send(self, to: str, message: Message) -> None:
        peer = self._peers.get(to)
        if peer is None and (to in self._said or to in self.member.raft.config.addresses):
            peer = self._peers[to] = Peer(self, to)
        if peer is not None:
            peer.send(message)

    def address_of(self, member: str) -> str:
        """Raises Unreachable."""
        address = self.member.raft.config.addresses.get(member) or self._said.get(member)
        if address is None:
            raise Unreachable(f"the address of member {member} is not known")
        return address

    def forgets(self, peer: Peer) -> bool:
        """Whether it is not to be connected again: it is in no membership any more. To answer it, ``send`` makes another one."""
        if peer.id in self.member.raft.config.members:
            return False
        del self._peers[peer.id]
        return True

    def _changed(self) -> None:
        leads = self.member.raft.leading is not None and self.member.failed is None
        if self._was_leader and not leads:  # so that those who use the log look for whoever does
            for link in list(self._users):
                link.close(Disconnected(f"member {self.id} leads no more"))
        self._was_leader = leads
        if leads:
            self._follows.clear()
        else:
            self._follows.set()
        if self.member.failed is not None:
            self._ended.set()
        if self.member.raft.state.leader:
            self.led.set()
        else:
            self.led.clear()
        for member in self.member.raft.config.members:
            if member != self.id and member not in self._peers and self.member.failed is None:
                self._peers[member] = Peer(self, member)

    # Who comes

    def _accept(self) -> Link:
        link = Link(wire.decode_hellos, self._greeted, lambda link, _: self._gone(link), may_lose=False)
        link.most_bytes = HELLO_BYTES
        self._links.add(link)
        if len(self._strangers) >= MOST_STRANGERS:
            next(iter(self._strangers)).abort(Disconnected("too many say nothing"))
        silent = Disconnected(f"it said nothing for {GREETING_S} s")
        self._strangers[link] = asyncio.get_running_loop().call_later(GREETING_S, link.abort, silent)
        return link

    def _known(self, link: Link) -> None:
        if (deadline := self._strangers.pop(link, None)) is not None:
            deadline.cancel()

    def _gone(self, link: Link) -> None:
        self._known(link)
        self._links.discard(link)
        self._users.discard(link)
        for task in [task for task, asker in self._tasks.items() if asker is link]:
            task.cancel()

    def _greeted(self, link: Link, hellos: list[wire.Hello]) -> None:
        hello = hellos[0]
        error = self._objection(hello)
        if error is not None:
            link.send(wire.Refusal(error.code, error.message, error.details))
            link.close(error)
            return
        leader = self.member.raft.state.leader
        try:
            address = self.address if leader == self.id else self.address_of(leader)
        except Unreachable:
            address = ""
        self._known(link)
        link.most_bytes = MOST_BYTES
        link.send(wire.Welcome(self.id, leader, address))
        if hello.sender:
            self._said[hello.sender] = hello.address
            link.decode = wire.decode_messages
            link.on_values = partial(self._heard, hello.sender)
        else:
            self._users.add(link)
            link.decode, link.on_values = wire.decode_requests, self._requested

    def _objection(self, hello: wire.Hello) -> ComityError | None:
        if hello.version != wire.VERSION:
            return ForeignData(f"member {self.id} speaks version {wire.VERSION}, not {hello.version}", version=wire.VERSION)
        if hello.cluster != self.cluster:
            return ForeignData(f"this is a member of cluster {self.cluster!r}, not of {hello.cluster!r}", cluster=self.cluster)
        if hello.target and hello.target != self.id:
            return ForeignData(f"this is member {self.id!r}, not {hello.target!r}", member=self.id)
        return self.member.failed

    def _heard(self, sender: str, _: Link, messages: list[Message]) -> None:
        for message in messages:
            self.member.step(r.Received(sender, message))

    def _requested(self, link: Link, requests: list[wire.Request]) -> None:
        for request in requests:
            match request:
                case wire.Append(key, after, data):
                    self.member.append(data, after).add_done_callback(partial(_reply, link, key))
                case wire.Trim(key, upto):
                    self.member.trim(upto).add_done_callback(partial(_reply, link, key))
                case wire.Ping(key):
                    link.send(wire.Done(key))
                case _:
                    task = asyncio.create_task(self._serve(link, request))
                    self._tasks[task] = link
                    task.add_done_callback(self._tasks.pop)

    async def _serve(self, link: Link, request: wire.Request) -> None:
        try:
            link.send(await self._answer(request))
        except ComityError as error:
            link.send(wire.Failed(request.key, error.code, error.message, error.details))

    async def _answer(self, request: wire.Request) -> wire.Answer:
        member = self.member
        match request:
            case wire.Read(key, after, limit, is_patient):
                if member.raft.leading is None:
                    raise NotLeader(f"member {self.id} does not lead")
                items = await (member.follow if is_patient else member.read)(after, limit)
                return wire.Items(key, [(item.index, item.data) for item in items])
            case wire.Bounds(key):
                return wire.Done(key, await member.bounds())
            case wire.Claim(key, mark):
                return wire.Done(key, await member.claim(mark))
            case wire.Status(key):
                troubles = {id: peer.trouble.message for id, peer in self._peers.items() if peer.trouble is not None}
                return wire.Done(key, {**member.status(), "troubles": troubles})
            case wire.Change(key, voters, learners, addresses):
                await member.change(voters, learners, addresses)
                return wire.Done(key)
            case wire.HandOver(key, target):
                member.hand_over(target)
                return wire.Done(key)
            case _:
                raise AssertionError(request)


def _reply(link: Link, key: int, done: asyncio.Future[int]) -> None:
    error = done.exception()
    if error is None:
        link.send(wire.Done(key, done.result()))
    else:
        assert isinstance(error, ComityError)
        link.send(wire.Failed(key, error.code, error.message, error.details))
