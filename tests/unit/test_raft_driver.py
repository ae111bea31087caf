"""A member at work: who appended is told what became of that entry, and of no other."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
from pathlib import Path

import msgspec
import pytest
from one_member import THREE
from peers import virtually

from comity.core import raft_events as r
from comity.core.raft import Raft
from comity.errors import BadSettings, Corrupt, Disconnected, DiskFull, Unreachable
from comity.model.raft import EMPTY, Append, Appended, Ballot, CampaignNow, Config, LogEntry, Message, Snapshot, Vote
from comity.raft import kept, wire
from comity.raft.__main__ import _serve
from comity.raft.contact import greet
from comity.raft.link import SILENT_S, Link
from comity.raft.member import Member
from comity.raft.records import Record
from comity.raft.wal import Wal


class Disk:
    """Quick, unless it is ``full``."""

    def __init__(self) -> None:
        self.full = False
        self.tried = asyncio.Event()

    async def save(self, records: list[Record]) -> None:
        self.tried.set()
        if self.full:
            raise DiskFull("no room is left")


class Stage:
    """Member ``a`` of three, and what it sends."""

    def __init__(self, config: Config = THREE, terms: tuple[int, ...] = ()) -> None:
        self.sent: list[tuple[str, Message]] = []
        self.disk = Disk()
        entries = [LogEntry(n, term, kept.add(b"", n - 1)) for n, term in enumerate(terms, 1)]
        about = {"ballot": Ballot(max(terms, default=0)), "snapshot": Snapshot(config=config), "entries": entries}
        now = asyncio.get_running_loop().time()
        raft = Raft("a", now, lambda: 0.0, r.Timing(election_s=0.05, heartbeat_s=0.02), **about)
        self.member = Member(raft, self.disk, lambda to, message: self.sent.append((to, message)))

    async def lead(self) -> Member:
        raft = self.member.raft
        async with asyncio.timeout(20):
            changed = asyncio.Event()
            self.member.on_change = changed.set
            await changed.wait()
            assert raft.state.role is r.Role.TRIAL
            self.hear("b", Vote(raft.state.term + 1, True, is_trial=True))
            while raft.leading is None:
                self.hear("b", Vote(raft.state.term, True))
                await asyncio.sleep(0)
        return self.member

    def hear(self, sender: str, message: Message) -> None:
        self.member.step(r.Received(sender, message))


@virtually()
async def test_an_entry_of_the_next_leader_in_its_place_acknowledges_nothing() -> None:
    """The first that a leader hears of the next term can be that the next leader's entry is committed there."""
    stage = Stage()
    member = await stage.lead()
    term, last = member.raft.state.term, member.raft.log.last
    waiting = member.append(b"mine", 0)
    await asyncio.sleep(0)
    assert member.raft.log.last == last + 1
    theirs = [LogEntry(1, term + 1, kind=EMPTY), LogEntry(2, term + 1, kept.add(b"theirs", 0))]
    stage.hear("c", Append(term + 1, 0, 0, theirs, 2))
    assert member.raft.log.commit == last + 1
    with pytest.raises(Disconnected, match="leads no more"):
        await waiting
    member.close()


@virtually()
async def test_what_contradicts_what_was_committed_stops_the_member() -> None:
    """A member that lost its disk and came back under its old name can have such a log."""
    stage = Stage(terms=(1, 1))
    stage.hear("b", Append(1, 2, 1, [], 2))
    member = stage.member
    assert member.kept.last == 2
    with pytest.raises(AssertionError):
        stage.hear("c", Append(2, 2, 1, [LogEntry(2, 2, kept.add(b"other", 1))], 2))
    assert isinstance(member.failed, Corrupt)
    with pytest.raises(Disconnected, match="has stopped"):  # others may have what it lost
        await member.append(b"more", 2)


@virtually()
async def test_a_leader_without_room_hands_over_to_one_that_is_there_and_tries_until_it_did() -> None:
    stage = Stage()
    member = await stage.lead()
    last = member.raft.log.last
    stage.disk.full = True
    waiting = member.append(b"entry", 0)
    handed = {to for to, message in stage.sent if isinstance(message, CampaignNow)}
    async with asyncio.timeout(20):
        while "c" not in handed:
            stage.hear("c", Appended(member.raft.state.term, last + 1))  # b says nothing any more
            await asyncio.sleep(0.005)
            stage.sent, sent = [], stage.sent
            handed |= {to for to, message in sent if isinstance(message, CampaignNow)}
    stage.disk.tried.clear()
    await asyncio.wait_for(stage.disk.tried.wait(), 20)
    member.close()
    with pytest.raises(Disconnected):
        await waiting
    assert member._saving is not None
    await asyncio.wait_for(member._saving, 20)


@virtually()
async def test_each_voter_has_one_vote_however_often_it_is_named() -> None:
    stage = Stage()
    member = await stage.lead()
    stage.hear("b", Appended(member.raft.state.term, member.raft.log.last))
    member.step(r.Change(99, ("a", "a", "b"), ("d", "d"), {}))
    assert (member.raft.config.voters, member.raft.config.learners) == (("a", "b"), ("d",))
    member.close()


async def test_a_greeting_that_is_given_up_leaves_no_connection() -> None:
    ended = asyncio.Event()
    came = asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.set()
        try:
            while await reader.read(100):
                continue
        except ConnectionError:
            pass
        writer.close()
        ended.set()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    greeting = asyncio.create_task(greet(address, wire.Hello(wire.VERSION, "net"), None))
    await came.wait()
    await asyncio.sleep(0)
    greeting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await greeting
    await asyncio.wait_for(ended.wait(), 20)
    server.close()


async def test_a_host_that_cannot_be_one_is_refused() -> None:
    with pytest.raises(BadSettings, match="no address"):
        await greet("a..b:7400", wire.Hello(wire.VERSION, "net"), None)


def test_a_greeting_says_something() -> None:
    with pytest.raises(msgspec.ValidationError):
        wire.decode_hellos(msgspec.msgpack.encode([]))


def test_a_new_folder_is_on_the_disk_as_well_as_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[Path] = set()
    sync = os.fsync

    def noted(file: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{file}")))
        sync(file)

    monkeypatch.setattr(os, "fsync", noted)
    Wal.open(tmp_path / "raft" / "m1", "net", "m1").close()
    assert {tmp_path, tmp_path / "raft", tmp_path / "raft" / "m1"} <= synced


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="this system cannot be told")
async def test_the_machine_ends_a_connection_on_which_nothing_is_acknowledged() -> None:
    came = asyncio.Event()
    server = await asyncio.start_server(lambda _reader, writer: (writer.close(), came.set()), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    make = lambda: Link(wire.decode_greetings, lambda *_: None, lambda *_: None)  # noqa: E731
    transport, _ = await asyncio.get_running_loop().create_connection(make, "127.0.0.1", port)
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENT_S * 1000
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    transport.abort()
    await asyncio.wait_for(came.wait(), 20)  # else it would be left behind unclosed
    server.close()


async def test_a_connection_that_was_given_up_before_it_stood_does_not_stay() -> None:
    link = Link(wire.decode_hellos, lambda link, values: None, lambda link, error: None)
    link.abort(Disconnected("too late"))
    ours, theirs = socket.socketpair()
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: link, sock=ours)
    assert transport.is_closing()
    theirs.close()


async def test_what_is_no_folder_for_a_log_has_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(Unreachable, match="cannot open"):
            Wal.open(folder, "net", "m1")

    def refuses(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuses)
    with pytest.raises(Unreachable, match="Permission denied"):
        Wal.open(tmp_path / "m1", "net", "m1")


@pytest.mark.parametrize("members", ["foo", "m1=h", "m1=h:1,m1=h:2"])
async def test_members_that_are_none_are_refused(tmp_path: Path, members: str, capsys: pytest.CaptureFixture[str]) -> None:
    about = {"cluster": "net", "id": "m1", "listen": "127.0.0.1:1", "election": 0.5, "heartbeat": 0.1}
    assert await _serve(argparse.Namespace(folder=tmp_path, members=members, **about)) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "bad-settings"
