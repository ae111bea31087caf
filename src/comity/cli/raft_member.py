"""A member of a built-in Raft on this machine: which it is, what it may listen on, and its start. ``comity up`` keeps what it was
told in ``raft.json`` of the data directory, so that the next start needs no more words, and beside the log in ``raft``, so that
it is seen if that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from comity.errors import BadSettings, Corrupt

if TYPE_CHECKING:
    from comity.config import RaftSettings, Settings
    from comity.raft.server import RaftServer

FOLDER, FILE = "raft", "raft.json"
ALONE = {"m1": "127.0.0.1:7400"}
TELL_S = 1.0
"""After that long somebody who waits is told for whom."""


class OwnMember(msgspec.Struct, frozen=True, kw_only=True):
    """``members``: the founding ones' addresses by id, none if it joins later. ``keys``: the folder of its certificates."""

    cluster: str
    id: str
    listen: str
    members: dict[str, str]
    keys: str = ""

    @property
    def log(self) -> str:
        """The address of the log, for who is on this machine."""
        from comity.cli.raft_keys import query

        hosts = ",".join(self.members.values() or [self.listen])
        return f"rafts://{hosts}/{self.cluster}?{query(Path(self.keys))}" if self.keys else f"raft://{hosts}/{self.cluster}"

    @classmethod
    def load(cls, data: Path) -> OwnMember | None:
        """That of the network in ``data``, if it has one. Raises Corrupt."""
        path = data / FILE
        try:
            return msgspec.json.decode(path.read_bytes(), type=cls)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise Corrupt(f"{path} cannot be read: {error}", path=str(path)) from error

    def save(self, data: Path) -> None:
        from comity.credentials import write_private

        write_private(data / FILE, msgspec.json.encode(self).decode() + "\n")


def told(members: str | None, id: str | None, keys: Path | None) -> dict[str, str] | None:
    """The setting that these options make."""
    said = {"members": members, "id": id, "keys": str(keys) if keys is not None else None}
    return {name: value for name, value in said.items() if value is not None} or None


def own_member(settings: Settings, *, is_asked: bool, is_alone: bool) -> OwnMember | None:
    """The member that ``comity up`` starts: as the settings say, as it was, or the only one (``is_alone``). None if the log is
    somewhere else. Raises BadSettings (``is_asked``: or if it is), Corrupt."""
    from comity.raft.contact import parse_members

    raft, saved = settings.raft, OwnMember.load(settings.data_dir)
    if "log" in settings.doors:
        if is_asked:
            raise BadSettings("--raft or --log: both say where the log is", setting="raft", other="doors")
        return None
    members = parse_members(raft.members)
    if not members and saved is not None:
        return msgspec.structs.replace(saved, keys=raft.keys or saved.keys)
    members = members or (ALONE if is_alone else {})
    if not members:
        return None
    id = raft.id or (saved.id if saved is not None else _mine(members))
    return OwnMember(cluster=settings.network, id=id, listen=address_of(id, members), members=members, keys=raft.keys)


def address_of(id: str, members: dict[str, str]) -> str:
    """Raises BadSettings."""
    if id not in members:
        raise BadSettings(f"{id!r} is not among the members {', '.join(members)}", setting="raft", value=id)
    return members[id]


def _mine(members: dict[str, str]) -> str:
    """The member whose address is this machine's. Raises BadSettings unless that is one."""
    mine = [id for id, address in members.items() if _is_here(address)]
    if len(mine) != 1:
        said = "none of these addresses is" if not mine else f"the addresses of {', '.join(mine)} are all"
        raise BadSettings(f"{said} this machine's: say which member it is (--raft-id)", setting="raft", value=list(members))
    return mine[0]


def _is_here(address: str) -> bool:
    from comity.raft.contact import parse_address

    host, _ = parse_address(address)
    try:
        for family, kind, proto, _, at in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, proto) as probe:
                probe.bind(at)
                return True
    except OSError:  # it is another machine's, or nobody's
        return False
    return False


async def start_member(folder: Path, member: OwnMember, raft: RaftSettings, address: str = "") -> RaftServer:
    """``address``: where others reach it, if not where it listens. Raises BadSettings (it may not or cannot listen there), and
    what ``RaftServer.start`` does."""
    from comity.cli.raft_keys import contexts
    from comity.cluster.config import check_listening, is_loopback
    from comity.core.raft_events import Timing
    from comity.raft.contact import parse_address
    from comity.raft.server import RaftServer

    host, _ = parse_address(member.listen)
    check_listening(host, tls=True)
    if not member.keys and not is_loopback(host):
        said = f"listening on {host} needs TLS: comity raft keys makes certificates for the members"
        raise BadSettings(said, setting="raft", value=member.listen)
    return await RaftServer.start(
        folder, cluster=member.cluster, id=member.id, listen=member.listen, members=member.members or None, address=address,
        timing=Timing(election_s=raft.election_s, heartbeat_s=raft.heartbeat_s),
        tls=contexts(Path(member.keys)) if member.keys else None,
    )  # fmt: skip


async def begin(settings: Settings, member: OwnMember, note: Callable[[str], None]) -> RaftServer:
    """Start the member of ``comity up``, and wait until its Raft has a leader: that is when more than half of its members are
    there. Raises what ``start_member`` raises, and Corrupt: its log was there, and is not."""
    folder = settings.data_dir / FOLDER
    if (settings.data_dir / FILE).exists() and not any(folder.glob("*.wal")):
        said = f"{folder} holds no log, and did when member {member.id} ran before: it has forgotten how it voted"
        raise Corrupt(f"{said}; put it back, or let a member with a new id take its place", path=str(folder))
    server = await start_member(folder, member, settings.raft)
    try:
        member.save(settings.data_dir)
        if (torn := server.torn) is not None:
            note(f"{torn.name}: {torn.size} bytes of a write that was cut short are cut off, from byte {torn.offset} on")
        led = asyncio.create_task(server.led.wait())
        broken = asyncio.create_task(server.wait())
        try:
            await asyncio.wait([led, broken], timeout=TELL_S, return_when=asyncio.FIRST_COMPLETED)
            if not led.done() and not broken.done():
                note(f"waiting until more than half of the members {', '.join(member.members)} are here")
            await asyncio.wait([led, broken], return_when=asyncio.FIRST_COMPLETED)
            if broken.done():
                broken.result()
        finally:
            for task in (led, broken):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(led, broken, return_exceptions=True)
    except BaseException:
        await server.close()
        raise
    return server
