"""Where a server listens and what it is part of: by itself, the founder of a cluster, one that joins, or one that comes back."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import msgspec

from comity.backends import check_places, public
from comity.buses import is_rabbitmq
from comity.cluster.config import HOST, TlsFiles, bracketed, check_listening
from comity.cluster.invites import Token
from comity.cluster.join import ask_to_join, settle
from comity.cluster.membership import Member, must_be_new, new_name
from comity.cluster.tls import CertificateAuthority, server_files
from comity.embedded import identify, prepare
from comity.errors import BadSettings, ForeignData
from comity.ports import free_port, is_free

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from comity.config import Settings

ROUTE_PORT, JOIN_PORT = 6222, 7222
_TRIED = 64


class Place(NamedTuple):
    """``tls`` None: clients and servers talk in the clear, on loopback. ``ca`` None: it never did otherwise, and is alone."""

    host: str = HOST
    tls: TlsFiles | None = None
    ca: CertificateAuthority | None = None
    member: Member | None = None
    join_files: TlsFiles | None = None
    """For the endpoint where others join, which always uses TLS."""


def chosen(
    data: Path, stack: str | None, connect: str | None, given: Mapping[str, str | None]
) -> tuple[str | None, dict[str, str]]:
    """The bus's address, None for one of our own, and where the other doors are: as ``given``, else as a named stack has them.
    Raises BadSettings."""
    etcd = "etcd://127.0.0.1:2379"
    rabbit = {"bus": "amqp://127.0.0.1", "store": f"file://{(data / 'store').absolute()}"}
    stacks = {
        None: {}, "nats": {}, "classic": {**rabbit, "log": etcd, "registry": etcd},
        "consul": {**rabbit, "registry": "consul://127.0.0.1:8500"},  # the log: a member of our own
    }  # fmt: skip
    if stack not in stacks:
        ways = "nats (all in NATS), classic (RabbitMQ and etcd) or consul (RabbitMQ, Consul and the built-in Raft)"
        raise BadSettings(f"there is no stack {stack!r}: {ways}", setting="stack")
    places = {**stacks[stack], **{name: address for name, address in given.items() if address is not None}}
    bus = places.pop("bus", None)
    if bus is not None and connect is not None:
        raise BadSettings("--bus or --connect: both say where messages go", setting="urls", other="bus")
    if bus is not None and not is_rabbitmq([bus]):
        raise BadSettings(f"--bus is for amqp://, and {public(bus)} is not: --connect", setting="urls")
    return bus or connect, places


def must_fit(settings: Settings, *, clusters: bool) -> None:
    """Raises BadSettings for doors elsewhere that mean nothing, or could not keep what they promise beside a server of our own.
    ``clusters``: it is to be one of a cluster."""
    check_places(settings.doors)
    if settings.doors and (clusters or Member.load(settings.data_dir) is not None):
        said = "a cluster of own servers keeps log, registry and store itself; for what lies elsewhere run servers, and --connect"
        raise BadSettings(said, setting="doors")
    if "log" in settings.doors and "store" not in settings.doors and not settings.fsync:
        said = "without fsync this server's store may lose snapshots and results for which the log was trimmed already"
        raise BadSettings(said, setting="fsync", other="doors")


async def take_place(settings: Settings, *, servers: int | None, token: str) -> Place:
    """Look at what ``settings.data_dir`` is, found a cluster of ``servers`` or join one by ``token``. Raises ForeignData (it is
    something else already), BadSettings, and what joining raises."""
    data, host = settings.data_dir, settings.listen
    if servers is not None and token:
        raise BadSettings("--servers begins a cluster, --join takes part in one: not both", setting="servers", other="join")
    member = Member.load(data)
    if member is not None:
        return _come_back(data, member, host, servers, token)
    if token:
        return _placed(data, await _join(settings, Token.parse(token)))
    if servers is not None and servers != 1:
        return _placed(data, _found(settings, servers))
    if not host:
        return Place()
    check_listening(host, tls=True)
    prepare(data)
    identify(data, settings.network)  # first: a directory with certificates only would not be a network's
    ca = CertificateAuthority.load(data) or _made(data, settings.network)
    return Place(host, server_files(data, ca, host), ca)


def _come_back(data: Path, member: Member, host: str, servers: int | None, token: str) -> Place:
    if token:
        must_be_new(data)
    if servers not in (None, member.size):
        raise BadSettings(f"{data} belongs to a cluster of {member.size} servers, not {servers}", setting="servers")
    if host and host != member.host:
        check_listening(host, tls=member.tls)
        member = msgspec.structs.replace(member, host=host)
        member.save(data)
    return _placed(data, member)


def _placed(data: Path, member: Member) -> Place:
    ca = CertificateAuthority.load(data)
    if ca is None:
        raise ForeignData(f"{data} is a cluster's, and has no certificates: put tls/ back", path=str(data))
    files = server_files(data, ca, member.host)
    return Place(member.host, files if member.tls else None, ca, member, files)


def _found(settings: Settings, servers: int) -> Member:
    """Begin a cluster: its identity, its CA and its first member."""
    data = settings.data_dir
    must_be_new(data)
    host = settings.listen or HOST
    check_listening(host, tls=bool(settings.listen))
    route, join = _ports(host, settings.port)
    member = Member(
        cluster=settings.network, member=new_name(), size=servers, tls=bool(settings.listen), host=host,
        route_port=route, join_port=join,
    )  # fmt: skip
    member.config()  # refuses a size that makes no sense
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    identify(data, settings.network)
    _made(data, settings.network)
    member.save(data)
    return member


async def _join(settings: Settings, token: Token) -> Member:
    data = settings.data_dir
    must_be_new(data)
    if token.network != settings.network:
        message = f"this token is for network {token.network!r}, and {data} is to be of {settings.network!r}"
        raise ForeignData(message, network=token.network)
    name, ports = new_name(), {}

    def route(own: str) -> str:
        host = settings.listen or own
        ports[host] = _ports(host, settings.port)
        return f"{bracketed(host)}:{ports[host][0]}"

    welcome, own = await ask_to_join(token, name, route)
    host, inviter = settings.listen or own, welcome.inviter
    check_listening(host, tls=inviter.tls)
    route_port, join_port = ports[host]
    member = msgspec.structs.replace(
        inviter, member=name, host=host, route_port=route_port, join_port=join_port, others=welcome.routes
    )
    settle(data, welcome, member)
    identify(data, welcome.network, welcome.network_id)
    return member


def _made(data: Path, network: str) -> CertificateAuthority:
    made = CertificateAuthority.load(data)
    if made is None:
        made = CertificateAuthority.create(network)
        made.save(data)
    return made


def _ports(host: str, port: int) -> tuple[int, int]:
    """For routes and for joining: any if the client port may be any."""
    return _near(host, ROUTE_PORT if port else 0), _near(host, JOIN_PORT if port else 0)


def _near(host: str, port: int) -> int:
    for candidate in range(port, port + _TRIED) if port else ():
        if is_free(host, candidate):
            return candidate
    return free_port(host)
