"""A cluster's pure parts: what survives, invitations, certificates, configuration, and who may be let in."""

from __future__ import annotations

import asyncio
import ssl
import stat
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import msgspec
import pytest

from comity.cli.cluster import _since
from comity.cli.place import Place, take_place
from comity.cluster import join
from comity.cluster.config import Cluster, check_listening
from comity.cluster.forget import Seen, check, find, peer_id, peers
from comity.cluster.invites import KEPT_S, TTL_S, Token, invite, redeem
from comity.cluster.join import Identity, JoinEndpoint, ask_to_join
from comity.cluster.membership import Member, must_be_new
from comity.cluster.status import Group, Replica, Server, meta_group, servers, survival
from comity.cluster.tls import CertificateAuthority, server_context, server_files
from comity.config import Settings
from comity.credentials import Authority
from comity.errors import (
    AccessDenied,
    BadInput,
    BadSettings,
    ComityError,
    Conflict,
    Corrupt,
    ForeignData,
    NotFound,
    Overloaded,
    Unreachable,
)

NOW = 1_000_000.0
MEMBER = Member(cluster="main", member="s-1", size=3, tls=True, route_port=6222, join_port=7222, others=("10.0.0.2:6222",))


def group(*current: bool, leader: str = "s0", name: str = "log") -> Group:
    return Group(name, leader, tuple(Replica(f"s{n}", is_current) for n, is_current in enumerate(current)))


# What a cluster survives


@pytest.mark.parametrize(
    ("groups", "controllers", "more", "words"),
    [
        ([group(True, True, True)], 3, 1, "1 more server may fail"),
        ([group(*[True] * 5)], 5, 2, "2 more servers may fail"),
        ([group(True, True, False)], 2, 0, "no server may fail: s2 is down or behind"),
        ([group(True, True, True, False, False)], 3, 0, "no server may fail: s3, s4 are down or behind"),
        ([group(True, True, True), group(True, False, True, name="store")], 3, 0, "s1 is down"),
        ([group(True, True, True)], 1, 0, "no other controller runs"),
        ([group(True, True, True)], 0, -1, "the network stands still: no controller answers"),
        ([group(True, True, True)], None, 1, "1 more server may fail"),
        ([group(True, False, False)], 1, -1, "the network stands still"),
        ([group(True, True, True, leader="")], 3, -1, "the log has no leader"),
        ([group(True)], 1, 0, "there is one copy of everything"),
        ([], 3, -1, "no stream has a leader"),
        ([group(True, True, True, True, False)], 4, 1, "1 more server may fail (s4 is down or behind)"),
    ],
)
def test_what_the_weakest_group_allows(groups: list[Group], controllers: int | None, more: int, words: str) -> None:
    found = survival(groups, controllers)
    assert found.more == more
    assert words in found.text()


def test_servers_that_do_not_answer_are_down() -> None:
    ping = {
        "server_name": "s-1", "host": "127.0.0.1", "port": 4222, "version": "2.15.1",
        "start": "2026-01-01T00:00:00Z", "now": "2026-01-01T00:01:00.5Z",
        "jetstream": {"meta": {"leader": "s-1", "replicas": [{"name": "s-2", "current": True, "offline": True, "lag": 7}]}},
    }  # fmt: skip
    up, down = servers([ping], ["s-1", "s-2"])
    assert (up.name, up.address, up.up, up.uptime_s) == ("s-1", "127.0.0.1:4222", True, 60.5)
    assert (down.name, down.up, down.uptime_s) == ("s-2", False, None)
    rows = (up, down, Server("etcd m1", up=True), up._replace(uptime_s=0.0))
    assert [_since(row._asdict()) for row in rows] == ["1m", "", "", "0s"]
    assert meta_group([ping]) == Group("servers", "s-1", (Replica("s-1", True), Replica("s-2", False, 7, False)))
    assert meta_group([{**ping, "server_name": "s-9"}]) is None


# Who may be forgotten


def seen(*up: str, active_s: float = 60.0, groups: tuple[Group, ...] = ()) -> Seen:
    """Three servers are expected; their JetStream has forgotten the name of s-2, and heard of it so long ago."""
    replicas = [
        {"name": "s-1", "peer": peer_id("s-1"), "active": 5e8},
        {"name": "Server name unknown", "peer": peer_id("s-2"), "active": active_s * 1e9},
    ]
    return Seen(frozenset(up), ("s-0", "s-1", "s-2"), {"leader": "s-0", "replicas": replicas}, groups)


def replicas(*current: bool) -> Group:
    return Group("log", "s-0", tuple(Replica(f"s-{n}", is_current) for n, is_current in enumerate(current)))


def test_a_peers_id_follows_from_its_servers_name() -> None:
    assert (peer_id("nats-0"), peer_id("nats-1")) == ("S1Nunr6R", "yrzKKRBu"), "as nats-server's own tests have it"


def test_a_server_is_named_as_the_status_shows_it() -> None:
    assert find(seen(), "s-2") == find(seen(), peer_id("s-2")) == "s-2"
    assert peers(seen())["s-2"]["name"] == "Server name unknown"
    assert find(Seen(frozenset(), ("s-ab", "s-cd"), {}, ()), "s-a") == "s-ab"
    with pytest.raises(NotFound, match="knows s-0, s-1, s-2"):
        find(seen(), "s-3")
    with pytest.raises(BadInput, match="s-0 or s-1 or s-2"):
        find(seen(), "s-")
    with pytest.raises(NotFound):
        find(seen(), "")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (seen("s-0", "s-1", "s-2"), "s-2 runs: stop it first"),
        (seen("s-0", "s-1", active_s=1.0), "heard of s-2 1.0 s ago"),
        (seen("s-0", "s-1", groups=(replicas(True, False, False),)), r"no majority in order \(s-1 is down or behind\)"),
        (seen("s-0", "s-1", groups=(replicas(True, True, False), Group("store", "", ()))), "the store has no leader"),
    ],
)
def test_who_must_not_be_forgotten(found: Seen, words: str) -> None:
    with pytest.raises(Conflict, match=words):
        check(found, "s-2")


def test_who_is_gone_for_good_may_be_forgotten() -> None:
    check(seen("s-0", "s-1", groups=(replicas(True, True, False),)), "s-2")
    check(seen("s-0", "s-1", groups=(replicas(True, True),)), "s-9")  # JetStream forgot it already
    unnamed = Group("log", "s-0", (Replica("s-0", True), Replica("s-1", True), Replica("Server name unknown", False)))
    check(seen("s-0", "s-1", groups=(unnamed,)), "s-2")
    check(seen("s-0", groups=(replicas(True, True, False, True, False),)), "s-2")


# Invitations


def refusal(data: Path, number: str, secret: str, now: float = NOW) -> str:
    with pytest.raises(AccessDenied) as caught:
        redeem(data, number, secret, now)
    return caught.value.message


def test_an_invitation_is_good_once(tmp_path: Path) -> None:
    number, secret = invite(tmp_path, NOW)
    assert "no such" in refusal(tmp_path, number, secret + "x")
    assert "no such" in refusal(tmp_path, "0" * 16, secret)
    assert "no such" in refusal(tmp_path, f"../invites/{number}", secret)
    redeem(tmp_path, number, secret, NOW)
    assert "used already" in refusal(tmp_path, number, secret)
    assert secret not in "".join(path.read_text() for path in (tmp_path / "invites").iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "invites").iterdir()} == {0o600}


def test_an_invitation_ends(tmp_path: Path) -> None:
    number, secret = invite(tmp_path, NOW, 60.0)
    assert "expired" in refusal(tmp_path, number, secret, NOW + 60)
    redeem(tmp_path, number, secret, NOW + 59)
    invite(tmp_path, NOW + 60 + KEPT_S + 1)
    assert "no such" in refusal(tmp_path, number, secret), "forgotten in the end"


def test_a_token_is_one_word_and_its_damage_is_noticed() -> None:
    token = Token(("10.0.0.1:7222",), "main", "abcd", "f" * 64, "1" * 16, "secret")
    assert Token.parse(f" {token.text()}\n") == token
    assert " " not in token.text()
    for text in ("", "comity-join-", token.text()[:-9], "nonsense!"):
        with pytest.raises(BadInput, match="token"):
            Token.parse(text)


# Configuration


def test_only_tls_listens_beyond_loopback() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_listening(host, tls=False)
    check_listening("10.0.0.1", tls=True)
    with pytest.raises(BadSettings, match="needs TLS"):
        check_listening("10.0.0.1", tls=False)
    for anywhere in ("0.0.0.0", "::", ""):
        with pytest.raises(BadSettings, match="can reach"):
            check_listening(anywhere, tls=True)


def test_a_cluster_has_three_or_five_servers() -> None:
    assert Cluster("main", "s-1", 5, 6222).replicas == 5
    for size in (0, 2, 4, 7):
        with pytest.raises(BadSettings, match="3 or 5"):
            Cluster("main", "s-1", size, 6222)


def test_routes_are_known_by_a_secret_of_the_networks_keys(tmp_path: Path) -> None:
    one, other = (Authority.create(tmp_path / name, "main") for name in ("one", "other"))
    again = Authority.load(tmp_path / "one")
    config = MEMBER.config()
    said = config.server_config("127.0.0.1", one, None)
    assert said == config.server_config("127.0.0.1", again, None)
    assert said != config.server_config("127.0.0.1", other, None)
    assert "10.0.0.2:6222" in said
    assert one.operator.seed not in said
    assert Authority.from_secrets("main", one.secrets()) is not None
    with pytest.raises(BadInput, match="operator, system and account"):
        Authority.from_secrets("main", {"operator": one.operator.seed})


def test_what_a_server_remembers(tmp_path: Path) -> None:
    assert Member.load(tmp_path) is None
    MEMBER.save(tmp_path)
    assert Member.load(tmp_path) == MEMBER
    msgspec.structs.replace(MEMBER, format=9).save(tmp_path)
    with pytest.raises(ForeignData, match="format 9"):
        Member.load(tmp_path)
    (tmp_path / "cluster.json").write_text("{")
    with pytest.raises(Corrupt):
        Member.load(tmp_path)


def test_a_network_of_one_server_cannot_become_a_cluster(tmp_path: Path) -> None:
    must_be_new(tmp_path)
    (tmp_path / "network.json").touch()
    with pytest.raises(ForeignData, match=r"born as one server.*restore a backup"):
        must_be_new(tmp_path)
    MEMBER.save(tmp_path)
    with pytest.raises(ForeignData, match="cluster already"):
        must_be_new(tmp_path)


# Certificates


def test_certificates_are_for_their_owner_only(tmp_path: Path) -> None:
    assert CertificateAuthority.load(tmp_path) is None
    made = CertificateAuthority.create("main")
    made.save(tmp_path)
    files = server_files(tmp_path, made, "10.0.0.1", "node.example")
    assert CertificateAuthority.load(tmp_path) == made
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "tls").iterdir()} == {0o600}
    assert server_context(files).minimum_version is ssl.TLSVersion.TLSv1_3
    CertificateAuthority.create("main").save(tmp_path)
    assert made.fingerprint != CertificateAuthority.create("main").fingerprint
    (tmp_path / "tls" / "ca.key").write_text(made.key)
    with pytest.raises(Corrupt, match="do not belong together"):
        CertificateAuthority.load(tmp_path)
    (tmp_path / "tls" / "ca.key").write_text("no key")
    with pytest.raises(Corrupt, match="cannot be used"):
        CertificateAuthority.load(tmp_path)


# Joining


class Door:
    """An endpoint, and tokens for it."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.ca = CertificateAuthority.create("main")
        self.ca.save(data)
        self.joined: list[tuple[str, str]] = []
        self.identity = Identity("0123456789abcdef", Authority.create(data, "main"), self.ca)
        self.endpoint = JoinEndpoint(data, self.identity, lambda: MEMBER, lambda *who: self.joined.append(who))
        self.port = 0

    async def open(self, port: int) -> None:
        self.port = port
        await self.endpoint.start("127.0.0.1", port, server_context(server_files(self.data, self.ca, "127.0.0.1")))

    def token(self, ttl_s: float = TTL_S) -> Token:
        number, secret = invite(self.data, time.time(), ttl_s)
        return Token((f"127.0.0.1:{self.port}",), "main", "0123456789abcdef", self.ca.fingerprint, number, secret)


@pytest.fixture
async def door(tmp_path: Path, free_port: Callable[[], int]) -> AsyncIterator[Door]:
    opened = Door(tmp_path)
    await opened.open(free_port())
    yield opened
    await opened.endpoint.stop()


async def call(token: Token) -> join.Welcome:
    welcome, own = await ask_to_join(token, "s-2", lambda host: f"{host}:6223")
    assert own == "127.0.0.1"
    return welcome


async def test_who_has_a_token_gets_all_that_a_server_needs(door: Door) -> None:
    token = door.token()
    welcome = await call(token)
    assert (welcome.network, welcome.network_id, welcome.ca) == ("main", "0123456789abcdef", door.ca.certificate)
    assert welcome.keys == door.identity.authority.secrets()
    assert (welcome.inviter, welcome.routes) == (MEMBER, ("127.0.0.1:6222", "10.0.0.2:6222"))
    assert door.joined == [("s-2", "127.0.0.1:6223")]
    with pytest.raises(AccessDenied, match="used already"):
        await call(token)
    await door.endpoint.stop()
    with pytest.raises(Unreachable, match="nobody lets servers in at"):
        await call(door.token())


async def test_who_is_refused_and_why(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AccessDenied, match="expired"):
        await call(door.token(-1.0))
    good = door.token()
    with pytest.raises(AccessDenied, match="no such invitation"):
        await call(msgspec.structs.replace(good, secret="guess"))
    with pytest.raises(ForeignData, match="another network"):
        await call(msgspec.structs.replace(good, network_id="f" * 16))
    with pytest.raises(AccessDenied, match="is not the network"):
        await call(msgspec.structs.replace(good, fingerprint="0" * 64))
    for theirs in ("0.0.9", "garbage"):
        said = iter([theirs, "0.1.0"])  # who calls, who answers
        monkeypatch.setattr(join, "version", lambda _, said=said: next(said))
        with pytest.raises(ForeignData, match="too old to join"):
            await call(good)
    monkeypatch.undo()
    await call(good)


async def test_guessing_is_not_worth_while(door: Door) -> None:
    good = door.token()
    for _ in range(join.REFUSALS):
        with pytest.raises(AccessDenied):
            await call(msgspec.structs.replace(good, secret="guess"))
    with pytest.raises(Overloaded, match="too many"):
        await call(good)


async def test_noise_at_the_endpoint_harms_nobody(door: Door) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    assert await reader.read() == b""
    writer.close()
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    for noise in (b"{}\n", b"[1, 2]\n", b"x" * (join.LINE_MAX * 2) + b"\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port, ssl=blind)
        writer.write(noise)
        said = await reader.read()
        assert not said or b"bad-input" in said
        writer.close()
    await call(door.token())


# What a data directory is


def settings(data: Path, **more: object) -> Settings:
    return msgspec.structs.replace(Settings(), data_dir=data, port=0, **more)


async def test_by_itself_or_with_tls(tmp_path: Path) -> None:
    assert await take_place(settings(tmp_path / "plain"), servers=None, token="") == Place()
    alone = await take_place(settings(tmp_path / "tls", listen="127.0.0.1"), servers=None, token="")
    assert alone.tls is not None and alone.member is None
    again = await take_place(settings(tmp_path / "tls", listen="127.0.0.1"), servers=1, token="")
    assert again.ca == alone.ca


async def test_a_founder_comes_back_as_it_was(tmp_path: Path) -> None:
    founded = await take_place(settings(tmp_path), servers=3, token="")
    assert founded.member is not None and founded.tls is None and founded.join_files is not None
    back = await take_place(settings(tmp_path), servers=None, token="")
    assert (back.member, back.ca) == (founded.member, founded.ca)
    problems: list[tuple[Settings, int | None, str, type[ComityError], str]] = [
        (settings(tmp_path), 5, "", BadSettings, "3 servers, not 5"),
        (settings(tmp_path, listen="10.0.0.1"), None, "", BadSettings, "needs TLS"),
        (settings(tmp_path), 3, "comity-join-x", BadSettings, "not both"),
        (settings(tmp_path / "two"), 2, "", BadSettings, "3 or 5"),
        (settings(tmp_path / "any", listen="0.0.0.0"), 3, "", BadSettings, "can reach"),
        (settings(tmp_path / "bad"), None, "comity-join-x", BadInput, "token"),
    ]
    for given, count, token, error, words in problems:
        with pytest.raises(error, match=words):
            await take_place(given, servers=count, token=token)


async def test_one_that_joins_takes_over_identity_and_keys(door: Door, tmp_path: Path) -> None:
    token = door.token()
    with pytest.raises(ForeignData, match="network 'main'"):
        await take_place(settings(tmp_path / "new", network="other"), servers=None, token=token.text())
    joined = await take_place(settings(tmp_path / "new"), servers=None, token=token.text())
    assert joined.member is not None and joined.tls is not None
    assert joined.member.others == ("127.0.0.1:6222", "10.0.0.2:6222")
    assert joined.member.member not in ("s-1", "s-2")
    assert '"0123456789abcdef"' in (tmp_path / "new" / "network.json").read_text()
    assert Authority.load(tmp_path / "new").secrets() == door.identity.authority.secrets()
