"""Keys, tokens and permissions, as far as they can be judged without a server."""

from __future__ import annotations

import base64
import binascii
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from comity.credentials import Authority, Credentials, Key, Kind, claims, permissions
from comity.errors import BadInput, Conflict, Corrupt, NotFound

# The user key of the example in NATS's documentation of nkeys.
DOCUMENTED_SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
DOCUMENTED_PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"

tokens = st.sampled_from(["n1", "n2", "ctl", "leader", "log", "reg", "x"])


def matches(pattern: str, subject: str) -> bool:
    """Subject matching as the server does it."""
    want, have = pattern.split("."), subject.split(".")
    for at, token in enumerate(want):
        if token == ">":
            return len(have) > at
        if at >= len(have) or token not in ("*", have[at]):
            return False
    return len(want) == len(have)


def may(rules: dict[str, list[str]], subject: str) -> bool:
    return any(matches(p, subject) for p in rules["allow"]) and not any(matches(p, subject) for p in rules.get("deny", []))


def verify(token: str, public: str) -> None:
    raw = base64.b32decode(public + "=" * (-len(public) % 8))[1:-2]
    signed, _, signature = token.rpartition(".")
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.urlsafe_b64decode(signature + "=="), signed.encode())


def test_a_documented_key_reads_and_writes_the_same() -> None:
    key = Key.from_seed(DOCUMENTED_SEED)
    assert (key.public, key.seed, key.kind) == (DOCUMENTED_PUBLIC, DOCUMENTED_SEED, Kind.USER)


@given(st.sampled_from(Kind), st.binary(min_size=32, max_size=32))
def test_keys_survive_their_text_form(kind: Kind, raw: bytes) -> None:
    key = Key(kind, raw)
    again = Key.from_seed(key.seed)
    assert (again.kind, again.public, again.seed) == (kind, key.public, key.seed)
    assert key.public[0] == {Kind.ACCOUNT: "A", Kind.OPERATOR: "O", Kind.USER: "U"}[kind]
    assert key.seed[:2] == "S" + key.public[0]


@given(st.integers(0, 56), st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
def test_an_altered_seed_is_refused(at: int, letter: str) -> None:
    altered = DOCUMENTED_SEED[:at] + letter + DOCUMENTED_SEED[at + 1 :]
    if altered != DOCUMENTED_SEED:
        with pytest.raises(BadInput):
            Key.from_seed(altered)


@pytest.mark.parametrize("text", ["", "SU", "not base 32!", "é" * 58, DOCUMENTED_PUBLIC, DOCUMENTED_SEED.lower()])
def test_text_that_is_no_seed_is_refused(text: str) -> None:
    with pytest.raises(BadInput):
        Key.from_seed(text)


def test_a_seed_of_another_kind_of_key_is_refused() -> None:
    server_key = Key(Kind.USER, bytes(32))
    raw = bytes([0x90 | (13 << 3) >> 5, ((13 << 3) & 31) << 3]) + bytes(32)
    seed = base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")
    assert len(seed) == len(server_key.seed)
    with pytest.raises(BadInput, match="kind"):
        Key.from_seed(seed)


def test_keys_are_written_for_the_owner_only_and_read_back(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    made = Authority.create(folder, "main")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE((folder / "keys").stat().st_mode) == 0o700
    files = sorted((folder / "keys").iterdir())
    assert [file.name for file in files] == ["account.jwt", "account.nk", "operator.nk", "system.nk"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    read = Authority.load(folder)
    assert read.network == "main"
    assert [read.operator.seed, read.system.seed, read.account.seed] == [made.operator.seed, made.system.seed, made.account.seed]


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    made = Authority.create(tmp_path, "main")
    with pytest.raises(Conflict):
        Authority.create(tmp_path, "main")
    assert Authority.load(tmp_path).account.seed == made.account.seed


def test_keys_left_half_written_are_made_anew(tmp_path: Path) -> None:
    (tmp_path / "keys.part").mkdir()
    (tmp_path / "keys.part" / "operator.nk").write_text("half")
    Authority.create(tmp_path, "main")
    assert not (tmp_path / "keys.part").exists()
    Authority.load(tmp_path)


def test_missing_keys_and_damaged_keys_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Authority.load(tmp_path)
    Authority.create(tmp_path, "main")
    (tmp_path / "keys" / "system.nk").write_text("SAAA\n")
    with pytest.raises(Corrupt):
        Authority.load(tmp_path)
    (tmp_path / "keys" / "system.nk").write_bytes(b"\xff\xfe")
    with pytest.raises(Corrupt):
        Authority.load(tmp_path)
    (tmp_path / "keys" / "system.nk").unlink()
    with pytest.raises(Corrupt):
        Authority.load(tmp_path)


def test_keys_of_two_networks_do_not_mix(tmp_path: Path) -> None:
    Authority.create(tmp_path / "a", "a")
    Authority.create(tmp_path / "b", "b")
    (tmp_path / "a" / "keys" / "account.nk").write_text((tmp_path / "b" / "keys" / "account.nk").read_text())
    with pytest.raises(Corrupt, match="belong together"):
        Authority.load(tmp_path / "a")


@pytest.mark.parametrize("network", ["", "a.b", "a b", "*", "ü"])
def test_a_network_is_one_token(tmp_path: Path, network: str) -> None:
    with pytest.raises(BadInput):
        Authority.create(tmp_path, network)


@pytest.mark.parametrize("process", ["", "a.b", "n1.>", "*", ">", "n 1"])
def test_a_process_is_one_token(tmp_path: Path, process: str) -> None:
    authority = Authority.create(tmp_path, "main")
    with pytest.raises(BadInput):
        authority.mint("node", process)


def test_a_token_is_signed_by_its_account_and_says_who_it_is(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, "main")
    credentials = authority.mint("node", "n1", ttl_s=60)
    said = claims(credentials.jwt)
    assert (said["name"], said["iss"], said["exp"] - said["iat"]) == ("n1", authority.account.public, 60)
    assert said["sub"] == Key.from_seed(credentials.seed).public
    verify(credentials.jwt, authority.account.public)
    assert (credentials.process, credentials.network, credentials.role) == ("n1", "main", "node")
    assert "exp" not in claims(authority.mint("client", "c1").jwt)
    verify(authority.mint("system", "watch").jwt, authority.system.public)


def test_each_minting_makes_another_key(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path, "main")
    assert authority.mint("node", "n1").seed != authority.mint("node", "n1").seed


def test_a_credentials_file_survives_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "n1.creds"
    credentials = Authority.create(tmp_path, "main").mint("node", "n1")
    path.write_text("older")
    path.chmod(0o644)
    credentials.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert Credentials.load(path) == credentials


@pytest.mark.parametrize("text", ["", "hello", "-----BEGIN NATS USER JWT-----\nabc\n", "-----BEGIN USER NKEY SEED-----\nSU\n"])
def test_a_file_that_holds_no_credentials_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.creds"
    path.write_text(text)
    with pytest.raises(BadInput):
        Credentials.load(path)


def test_credentials_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        Credentials.load(tmp_path / "none.creds")
    (tmp_path / "binary.creds").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput):
        Credentials.load(tmp_path / "binary.creds")
    good = Authority.create(tmp_path, "main").mint("node", "n1")
    altered = good.seed[:-4] + "AAAA"
    for broken in (Credentials("a.b.c", good.seed), Credentials(good.jwt, altered), Credentials("x.WzFd.y", good.seed)):
        broken.save(tmp_path / "broken.creds")
        with pytest.raises(BadInput):
            Credentials.load(tmp_path / "broken.creds")


def test_the_connection_is_signed_with_the_tokens_key(tmp_path: Path) -> None:
    credentials = Authority.create(tmp_path, "main").mint("node", "n1")
    options = credentials.connect_options()
    assert options["user_jwt_cb"]() == credentials.jwt.encode()
    public = Key.from_seed(credentials.seed).public
    raw = base64.b32decode(public + "=" * (-len(public) % 8))[1:-2]
    Ed25519PublicKey.from_public_bytes(raw).verify(base64.b64decode(options["signature_cb"]("nonce")), b"nonce")


@given(st.sampled_from(["to", "any", "topic", "re", "reg", "store", "nr", "log"]), st.lists(tokens, min_size=1, max_size=4))
def test_a_node_publishes_as_itself_only(kind: str, rest: list[str]) -> None:
    """Whatever it may publish names it where receivers look for the sender."""
    for role in ("node", "client"):
        pub = permissions(role, "main", "n1")["pub"]
        if may(pub, ".".join(["cy.main", kind, *rest])):
            assert kind not in ("nr", "log")
            assert (rest[0] if kind in ("reg", "store") else rest[-1]) == "n1"


@given(st.sampled_from(["to", "re", "nr", "topic", "reg", "store", "log"]), st.lists(tokens, min_size=1, max_size=4))
def test_a_node_hears_only_what_is_for_it(kind: str, rest: list[str]) -> None:
    sub = permissions("node", "main", "n1")["sub"]
    if may(sub, ".".join(["cy.main", kind, *rest])):
        assert kind not in ("reg", "store", "log")
        assert rest[0] == "n1" if kind != "topic" else rest[0] != "leader"


@pytest.mark.parametrize("role", ["node", "client", "system"])
@pytest.mark.parametrize(
    "subject",
    [
        "cy.main.log", "cy.other.to.n2.n1", "cy.main.to.n2.n2", "$SYS.REQ.SERVER.PING.RELOAD", "$SYS.REQ.SERVER.X.KICK",
        "$JS.API.STREAM.DELETE.CY_main_LOG", "$JS.API.STREAM.PURGE.CY_main_REG", "$JS.API.STREAM.UPDATE.CY_main_STORE",
        "$JS.API.STREAM.MSG.DELETE.CY_main_STORE", "$JS.API.STREAM.MSG.GET.CY_main_LOG", "$JS.API.STREAM.CREATE.X",
        "$JS.API.CONSUMER.CREATE.CY_main_LOG", "$JS.API.CONSUMER.DURABLE.CREATE.CY_main_REG.d", "$JS.API.STREAM.NAMES",
        "$JS.API.STREAM.SNAPSHOT.CY_main_STORE", "$JS.API.STREAM.RESTORE.CY_main_STORE", "_INBOX_n2.x", "_INBOX.x",
    ],
)  # fmt: skip
def test_nobody_but_a_controller_may(role: str, subject: str) -> None:
    assert not may(permissions(role, "main", "n1")["pub"], subject)  # type: ignore[arg-type]


def test_a_controller_may_do_all_within_its_network() -> None:
    rules = permissions("controller", "main", "ctl")
    assert may(rules["pub"], "cy.main.log")
    assert may(rules["sub"], "cy.main.topic.leader.n1")
    assert not may(rules["pub"], "cy.other.log")
    assert not may(rules["sub"], "_INBOX_n1.x")
    assert not may(rules["pub"], "$SYS.REQ.SERVER.PING.VARZ")
