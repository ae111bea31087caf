"""The built-in Raft against the log's contract, alone and as three members over TCP; and what is special to it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import uvloop
from log_contract import LogContract, Place, fill, read_all, take
from rafts import Rafts

from comity.cli.bench_raft import Members
from comity.cluster.tls import CertificateAuthority, server_files
from comity.core.raft_events import Tick
from comity.errors import (
    AccessDenied,
    BadSettings,
    Conflict,
    Corrupt,
    Disconnected,
    DiskFull,
    ForeignData,
    Indefinite,
    NotFound,
    Unreachable,
)
from comity.log.base import Log
from comity.log.raft import RaftLog
from comity.raft import server, wire
from comity.raft.contact import Contact
from comity.raft.records import Record
from comity.raft.server import RaftServer, ThreadDisk


class TestRaftAlone(LogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[Place]:
        rafts = Rafts(tmp_path, 1)
        await rafts.start()
        yield Place(rafts.door)
        await rafts.close()


class TestRaftOfThree(LogContract):
    @pytest.fixture
    async def log(self, tmp_path: Path) -> AsyncIterator[Place]:
        rafts = Rafts(tmp_path)
        await rafts.start()
        await rafts.lead_on()
        yield Place(rafts.door)
        await rafts.close()


@pytest.fixture
async def rafts(tmp_path: Path) -> AsyncIterator[Rafts]:
    """Three members, running. One leads."""
    rafts = Rafts(tmp_path)
    await rafts.start()
    await rafts.lead_on()
    yield rafts
    await rafts.close()


async def append(log: Log, entry: bytes) -> int:
    """Append it at the tail, whatever happens meanwhile; it may be there twice then."""
    async with asyncio.timeout(20):
        while True:
            try:
                _, tail = await log.bounds()
                return await log.append(entry, tail)
            except (Indefinite, Conflict, DiskFull):
                await asyncio.sleep(0.01)


class TestLife:
    async def test_everything_is_there_again_after_all_have_stopped(self, rafts: Rafts) -> None:
        log = await rafts.door()
        entries = await fill(log, 30)
        await log.trim(10)
        for id in list(rafts.servers):
            await rafts.stop(id)
        await rafts.start()
        await rafts.lead_on()
        assert [item.data for item in await read_all(log, 10)] == entries[10:]
        assert await log.bounds() == (11, 30)
        assert await log.append(b"goes on", 30) == 31

    async def test_a_torn_end_is_cut_and_reported_and_what_is_missing_comes_from_the_others(self, rafts: Rafts) -> None:
        log = await rafts.door()
        entries = await fill(log, 10)
        victim = next(id for id in rafts.servers if rafts.servers[id].member.raft.leading is None)
        await rafts.stop(victim)
        path = max((rafts.folder / victim).glob("*.wal"))
        path.write_bytes(path.read_bytes()[:-3])
        await rafts.start(victim)
        torn = rafts.servers[victim].torn
        assert torn is not None
        assert torn.name == str(path)
        await append(log, b"more")
        member = rafts.servers[victim].member
        async with asyncio.timeout(20):
            assert [item.data for item in await member.follow(0, 10)][:10] == entries

    async def test_damaged_or_foreign_data_is_refused(self, rafts: Rafts) -> None:
        log = await rafts.door()
        await fill(log, 10)
        victim = next(iter(rafts.servers))
        await rafts.elect_soon()
        await rafts.stop(victim)
        with pytest.raises(ForeignData, match="belongs to member"):
            await rafts.start(victim, cluster="other")
        path = max((rafts.folder / victim).glob("*.wal"))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(Corrupt) as caught:
            await rafts.start(victim)
        assert caught.value.details["path"] == str(path)
        assert 0 < caught.value.details["offset"] <= len(data) // 2
        await append(log, b"the others go on")

    async def test_one_dead_member_slows_no_commit(self, rafts: Rafts) -> None:
        log = await rafts.door()
        leader = await rafts.leader()
        await rafts.stop(next(id for id in rafts.servers if id != leader))
        times = []
        for after in range(50):
            began = time.perf_counter()
            await log.append(b"x", after)
            times.append(time.perf_counter() - began)
        assert sorted(times)[5] < 0.1, "of some: the disk may be busy, but a dead member would slow all"
        assert await rafts.leader() == leader

    async def test_who_reads_when_the_leader_goes_is_answered_by_the_next(self, rafts: Rafts) -> None:
        log = await rafts.door()
        entries = await fill(log, 5)
        over = asyncio.Event()

        async def look() -> None:
            while not over.is_set():
                assert [item.data for item in await log.read(0)] == entries
                assert await log.bounds() == (1, 5)

        looking = [asyncio.create_task(look()) for _ in range(8)]
        await log.read(0)
        await rafts.elect_soon()
        await rafts.stop(await rafts.leader())
        await rafts.leader()
        over.set()
        await asyncio.gather(*looking)

    async def test_a_member_whose_disk_fails_takes_part_no_more_and_says_why(
        self, rafts: Rafts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = await rafts.door()
        leader = await rafts.leader()
        broken = rafts.servers[leader]
        save = ThreadDisk.save

        async def fail(self: ThreadDisk, records: list[Record]) -> None:
            if self is broken._disk:
                raise Unreachable("the disk does not keep what it took")
            await save(self, records)

        monkeypatch.setattr(ThreadDisk, "save", fail)
        await rafts.elect_soon()
        await append(log, b"x")
        with pytest.raises(Unreachable, match="does not keep"):
            await broken.wait()

    async def test_a_leader_that_leaves_lets_another_one_lead_first(self, rafts: Rafts) -> None:
        log = await rafts.door()
        await fill(log, 3)
        leader = await rafts.leader()
        leaving = rafts.servers.pop(leader)
        term = leaving.member.raft.state.term
        await leaving.leave()
        assert leaving.member.raft.state.term == term + 1, "another one has campaigned before it was gone"
        assert await append(log, b"four") == 4

    async def test_a_leader_can_hand_over_and_nothing_is_lost(self, rafts: Rafts) -> None:
        log = await rafts.door()
        entries = await fill(log, 5)
        leader = await rafts.leader()
        target = next(id for id in rafts.servers if id != leader)
        term = rafts.servers[leader].member.raft.state.term
        await log.hand_over(target)
        assert await append(log, b"six") == 6
        status = await log.status()
        assert (status["leader"], status["term"]) == (target, term + 1)
        assert [item.data for item in await read_all(log)] == [*entries, b"six"]

    async def test_status_tells_of_every_member(self, rafts: Rafts) -> None:
        log = await rafts.door()
        await fill(log, 3)
        status = await log.status()
        assert status["role"] == "leader"
        assert status["commit"] == status["applied"] >= 5
        assert set(status["members"]) == set(rafts.servers) - {status["id"]}
        assert sorted(status["voters"]) == sorted(rafts.servers)


class TestMembership:
    async def test_members_come_by_learning_and_go(self, rafts: Rafts) -> None:
        log = await rafts.door()
        entries = await fill(log, 20)
        await rafts.start("m4")
        voters = tuple(rafts.founders)
        with pytest.raises(Conflict, match="behind"):
            await log.change((*voters, "m4"), (), {"m4": rafts.addresses["m4"]})
        await log.change(voters, ("m4",), {"m4": rafts.addresses["m4"]})
        async with asyncio.timeout(20):
            assert [item.data for item in await rafts.servers["m4"].member.follow(0, 20)] == entries
        await log.change((*voters, "m4"), (), {})
        leader = await rafts.leader()
        await rafts.elect_soon()
        left = tuple(id for id in (*voters, "m4") if id != leader)
        async with asyncio.timeout(20):
            while sorted((await log.status())["voters"]) != sorted(left):
                with contextlib.suppress(Indefinite, Conflict):  # whoever would answer leads no more
                    await log.change(left, (), {})
                await append(log, b"without the first leader")
        await rafts.stop(leader)
        await append(log, b"it is not needed")
        async with asyncio.timeout(20):
            while any(leader in member._peers for member in rafts.servers.values()):  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)


class TestWhoseItIs:
    async def test_the_first_network_has_it_and_another_is_turned_away(self, rafts: Rafts) -> None:
        with pytest.raises(NotFound, match="no network's yet"):
            await rafts.join("main", create=False)
        assert (await rafts.join("main", create=True, network_id="n1")).network_id == "n1"
        assert (await rafts.join("main", create=True, new_id="n2")).network_id == "n1"
        assert (await rafts.join("main", create=False)).network_id == "n1"
        with pytest.raises(ForeignData, match=r"belongs to network 'main' \(n1\), not to 'main' \(n3\)"):
            await rafts.join("main", create=True, network_id="n3")
        with pytest.raises(ForeignData, match="not to 'town'"):
            await rafts.join("town", create=True, new_id="n4")

    async def test_of_two_that_begin_at_once_one_is_first(self, rafts: Rafts) -> None:
        found = await asyncio.gather(*(rafts.join("main", create=True, new_id=f"n{n}") for n in range(8)))
        assert len({log.network_id for log in found}) == 1

    async def test_it_is_known_after_trims_and_starts_and_to_who_joins_late(self, rafts: Rafts) -> None:
        log = await rafts.join("main", create=True, network_id="n1")
        await fill(log, 30)
        await log.trim(30)
        for id in list(rafts.servers):
            await rafts.stop(id)
        await rafts.start()
        await rafts.lead_on()
        assert (await rafts.join("main", create=False)).network_id == "n1"
        await rafts.start("m4")
        await log.change(tuple(rafts.founders), ("m4",), {"m4": rafts.addresses["m4"]})
        async with asyncio.timeout(20):
            while rafts.servers["m4"].member.kept.last < 30:  # noqa: ASYNC110 - it comes as a snapshot
                await asyncio.sleep(0.01)
        assert b'"n1"' in rafts.servers["m4"].member.kept.mark

    async def test_one_wrong_address_among_others_does_no_harm(self, rafts: Rafts, tmp_path: Path) -> None:
        stranger = Rafts(tmp_path / "other", 1, "other")
        await stranger.start()
        log = await RaftLog.join([stranger.addresses["m1"], *rafts.addresses.values()], "net", "main", create=True, new_id="n1")
        assert await log.append(b"x", 0) == 1
        await log.close()
        await stranger.close()


class TestWhoIsLetIn:
    async def test_another_clusters_door_is_refused(self, rafts: Rafts) -> None:
        with pytest.raises(ForeignData, match="cluster 'net', not of 'other'"):
            await RaftLog.open(list(rafts.addresses.values()), "other")

    async def test_another_clusters_member_changes_nothing_and_is_told(self, rafts: Rafts, tmp_path: Path) -> None:
        log = await rafts.door()
        stranger = Rafts(tmp_path / "other", 2, "other")
        one, two = stranger.addresses
        stranger.founders[two] = stranger.addresses[two] = rafts.addresses["m1"]
        await stranger.start(one)
        peer = stranger.servers[one]._peers[two]
        async with asyncio.timeout(20):
            while not isinstance(peer.trouble, ForeignData):  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.01)
        assert await log.append(b"x", 0) == 1
        await stranger.close()

    async def test_nobody_there_is_unreachable(self, free_port: Any) -> None:
        with pytest.raises(Unreachable, match="nobody leads"):
            await RaftLog.open([f"127.0.0.1:{free_port()}"], "net", answer_s=0.2)
        with pytest.raises(BadSettings):
            await RaftLog.open(["nowhere"], "net")

    async def test_noise_on_the_port_disturbs_nobody(self, rafts: Rafts) -> None:
        log = await rafts.door()
        for noise in (b"GET / HTTP/1.1\r\n\r\n", bytes(100), b"\xff" * 100):
            host, port = rafts.addresses["m1"].split(":")
            reader, writer = await asyncio.open_connection(host, int(port))
            writer.write(noise)
            writer.write_eof()
            async with asyncio.timeout(20):
                assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
        assert await log.append(b"x", 0) == 1

    async def test_who_says_nothing_is_not_kept_long(self, rafts: Rafts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "GREETING_S", 0.1)
        log = await rafts.door()
        host, port = rafts.addresses["m1"].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"half")
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        assert await log.append(b"who was greeted stays", 0) == 1
        assert not any(member._strangers for member in rafts.servers.values())

    async def test_a_member_does_not_wait_for_a_user_that_reads_nothing(self, rafts: Rafts) -> None:
        log = await rafts.door()
        assert await log.append(bytes(500_000), 0) == 1
        leader = await rafts.leader()
        idle = await Contact.make(rafts.addresses[leader], "net", None)
        transport = idle._link._transport
        assert transport is not None
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)  # else all of it may fit in
        transport.pause_reading()
        for key in range(64):
            idle.ask(wire.Read(key, 0, 1, False))
        async with asyncio.timeout(20):
            while not any(link._is_clogged for link in rafts.servers[leader]._users):  # noqa: ASYNC110 (it tells nobody)
                await asyncio.sleep(0.01)
        async with asyncio.timeout(server.CLOSE_S + 15):
            await rafts.servers.pop(leader).close()
        idle.abort(Disconnected("enough"))
        await log.close()

    async def test_a_stranger_may_not_say_much(self, rafts: Rafts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "GREETING_S", 60.0)
        log = await rafts.door()
        host, port = rafts.addresses["m1"].split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write((server.HELLO_BYTES + 1).to_bytes(4, "little") + bytes(4))
        assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        assert await log.append(bytes(2 * server.HELLO_BYTES), 0) == 1

    async def test_of_many_strangers_the_first_goes(self, rafts: Rafts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(server, "MOST_STRANGERS", 3)
        monkeypatch.setattr(server, "GREETING_S", 60.0)
        host, port = rafts.addresses["m1"].split(":")
        streams = [await asyncio.open_connection(host, int(port)) for _ in range(4)]
        assert await asyncio.wait_for(streams[0][0].read(), 20) == b""
        assert len(rafts.servers["m1"]._strangers) == 3
        for _, writer in streams:
            writer.close()
        log = await rafts.door()
        assert await log.append(b"x", 0) == 1

    async def test_with_tls_only_the_networks_certificates_are_let_in(self, tmp_path: Path) -> None:
        contexts = [_tls(tmp_path / name) for name in ("ours", "theirs")]
        rafts = Rafts(tmp_path)
        await rafts.start(tls=contexts[0])
        await rafts.lead_on()
        log = await rafts.door(tls=contexts[0][1])
        await fill(log, 5)
        with pytest.raises(AccessDenied):
            await rafts.door(tls=contexts[1][1])
        with pytest.raises(Indefinite):
            await rafts.door(answer_s=0.3)
        await rafts.close()


def _tls(data: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """Contexts for connections that come and that are made: both sides show a certificate of the network's own authority."""
    authority = CertificateAuthority.create("net")
    authority.save(data)
    files = server_files(data, authority, "127.0.0.1")
    come, go = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for context in (come, go):
        context.load_cert_chain(files.certificate, files.key)
        context.load_verify_locations(files.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return come, go


class TestFullDisk:
    async def test_a_leader_without_room_stands_aside_and_comes_back(
        self, rafts: Rafts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        log = await rafts.door(answer_s=1.0)
        await fill(log, 3)
        leader = await rafts.leader()
        full = {rafts.servers[leader]._disk}
        save = ThreadDisk.save

        async def limited(self: ThreadDisk, records: list[Record]) -> None:
            if self in full:
                raise DiskFull("no room is left")
            await save(self, records)

        monkeypatch.setattr(ThreadDisk, "save", limited)
        await rafts.elect_soon()
        for n in range(5):
            await append(log, b"%d" % n)
        assert await rafts.leader() != leader
        full |= {server._disk for server in rafts.servers.values()}
        with pytest.raises((DiskFull, Indefinite)):
            for _ in range(3):
                await log.append(b"no room", (await log.bounds())[1])
        full.clear()
        await append(log, b"there is room")
        last = (await log.bounds())[1]
        async with asyncio.timeout(20):
            items = await rafts.servers[leader].member.follow(last - 1, 1)
        assert items[0].data == b"there is room"


@pytest.mark.slow
class TestProcesses:
    async def test_all_that_was_acknowledged_survives_kill_9_of_each_leader(self, tmp_path: Path) -> None:
        """A follower goes on, and a new leader takes appends within 1.5 s of a kill: less than 3 here, where others work too."""
        members = Members(tmp_path, 3)
        await asyncio.gather(*(members.start(id) for id in members.addresses))
        log = await RaftLog.open(list(members.addresses.values()), "bench")
        items = log.follow(0)
        acknowledged: dict[int, bytes] = {}
        numbers = itertools.count()
        try:
            took_s: list[float] = []
            for _ in range(3):
                await _load(log, acknowledged, numbers)
                leader = await _leader(log)
                begun = time.monotonic()
                await members.kill(leader)
                await append(log, b"next")
                took_s.append(time.monotonic() - begun)
                await members.start(leader)
            assert sorted(took_s)[1] < 3.0
            found = {item.index: item.data for item in await read_all(log)}
            assert len(acknowledged) >= 300, "those of each leader that was killed"
            assert acknowledged.items() <= found.items()
            assert {item.index: item.data for item in await take(items, len(found))} == found
        finally:
            await items.aclose()  # type: ignore[attr-defined]
            await log.close()
            await members.stop()


async def _leader(log: RaftLog) -> str:
    async with asyncio.timeout(20):
        while True:
            with contextlib.suppress(Indefinite):
                if found := (await log.status())["leader"]:
                    return str(found)
            await asyncio.sleep(0.01)


async def _load(log: Log, acknowledged: dict[int, bytes], numbers: itertools.count[int]) -> None:
    """A hundred appends that are acknowledged, all in flight at once. On a busy machine another one may lead meanwhile."""
    goal = len(acknowledged) + 100

    async def one(after: int) -> None:
        entry = b"entry %d" % next(numbers)
        with contextlib.suppress(Indefinite, Conflict):
            acknowledged[await log.append(entry, after)] = entry

    async with asyncio.timeout(30):
        while len(acknowledged) < goal:
            with contextlib.suppress(Indefinite):
                _, tail = await log.bounds()
                await asyncio.gather(*(one(tail + n) for n in range(100)))


def test_a_server_needs_its_own_place_among_the_founders(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="not among the founding members"):
        asyncio.run(RaftServer.start(tmp_path, cluster="net", id="m9", listen="127.0.0.1:9", members={"m1": "127.0.0.1:1"}))


def test_members_run_on_the_programs_own_loop(tmp_path: Path) -> None:
    """uvloop's timers and transports are not asyncio's."""

    async def live() -> None:
        rafts = Rafts(tmp_path, 1)
        await rafts.start()
        log = await rafts.door()
        await fill(log, 20)
        rafts.servers["m1"].member.step(Tick())
        await rafts.close()

    uvloop.run(live())
