"""What etcd cannot be used for or with is said at once, by an error of its kind."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from test_etcd import EtcdWorld
from test_etcd_faults import guarded, one

from comity.cluster.tls import CertificateAuthority
from comity.errors import AccessDenied, BadSettings, Corrupt, ForeignData, NotFound, Unreachable
from comity.etcd.client import Etcd, may_be_stale
from comity.etcd.network import mark_key
from comity.etcd.wire import put
from comity.log.etcd import EtcdLog
from comity.registry.etcd import EtcdRegistry
from comity.remote.address import Where
from etcds import Etcds
from members import HOST

__all__ = ["guarded", "one"]
pytestmark = pytest.mark.server


@pytest.fixture
async def world(one: Etcds) -> AsyncIterator[EtcdWorld]:
    world = EtcdWorld(one.address, "net")
    yield world
    await world.close()


class TestAddresses:
    def test_what_one_says(self, tmp_path: Path) -> None:
        (tmp_path / "word").write_text("se:cret\n")
        where = Where.parse(f"etcd://ada@h1,h2:1234,[::1]:99/our/place?ca=/ca.pem&password_file={tmp_path}/word")
        assert where.urls == ("https://h1:2379", "https://h2:1234", "https://[::1]:99")
        assert (where.prefix, where.user, where.password, where.ca) == ("our/place", "ada", "se:cret", "/ca.pem")
        assert Where.parse("etcd://h:1/").prefix == "comity"
        assert Where.parse("etcds://a%40b:p%2Fq@h").urls == ("https://h:2379",)
        assert Where.parse("etcds://a%40b:p%2Fq@h")[2:4] == ("a@b", "p/q")

    @pytest.mark.parametrize(
        ("address", "why"),
        [
            ("http://h:2379", "begins with etcd://"),
            ("etcd://", "names no host"),
            ("etcd://h,", "names no host"),
            ("etcd://h:99999", "ort"),
            ("etcd://h?tls=1", "'tls' means nothing"),
            ("etcd://h?cert=/x", "go together"),
            ("etcd://ada@h?password_file=/nowhere", "No such file"),
        ],
    )
    def test_what_cannot_be_one(self, address: str, why: str) -> None:
        with pytest.raises(BadSettings, match=why):
            Where.parse(address)

    def test_a_password_is_not_shown(self) -> None:
        with pytest.raises(BadSettings) as caught:
            Where.parse("etcd://ada:secret@h:x")
        assert "secret" not in caught.value.message

    @pytest.mark.parametrize(
        ("version", "stale"),
        [("3.4.41", True), ("3.4.42", False), ("3.5.27", True), ("3.5.30", False), ("3.6.8", True), ("3.7.0-rc.0", False)],
    )
    def test_which_versions_may_show_the_past(self, version: str, stale: bool) -> None:
        assert may_be_stale(version) == stale


class TestServers:
    async def test_nobody_there(self, free_port: Callable[[], int]) -> None:
        with pytest.raises(Unreachable, match="no etcd answers"):
            await Etcd.open(Where.parse(f"etcd://127.0.0.1:{free_port()},127.0.0.1:{free_port()}"))

    @pytest.mark.parametrize(
        ("said", "why"), [({"etcdserver": "3.3.25"}, "3.3.25 is too old"), ({}, "is no etcd"), ("hello", "no etcd")]
    )
    async def test_one_that_is_too_old_or_something_else(self, said: object, why: str) -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            body = json.dumps(said).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        with pytest.raises((BadSettings, Unreachable), match=why):
            await Etcd.open(Where.parse(f"etcd://127.0.0.1:{port}"))
        server.close()
        await server.wait_closed()

    async def test_endpoints_of_two_clusters(self, one: Etcds, tmp_path: Path) -> None:
        other = Etcds(tmp_path / "other")
        await other.start()
        try:
            with pytest.raises(ForeignData, match="another cluster"):
                await Etcd.open(Where.parse(f"{one.address},127.0.0.1:{other.ports[0]}"))
        finally:
            await other.kill()

    @pytest.mark.parametrize("option", ["--max-request-bytes=100000", "--max-txn-ops=10"])
    async def test_one_that_takes_too_little(self, tmp_path: Path, option: str) -> None:
        servers = Etcds(tmp_path / "small", options=[option])
        await servers.start()
        world = EtcdWorld(servers.address, "net")
        try:
            with pytest.raises(BadSettings, match="max-request-bytes"):
                await world.log()
        finally:
            await world.close()
            await servers.kill()


class TestDurability:
    async def test_it_is_verified_only_by_all_servers(self, etcds: Etcds) -> None:
        world = EtcdWorld(etcds.address)
        assert (await (await world.log()).durability()).level == "verified"
        fewer = EtcdWorld(etcds.address.rpartition(",")[0])
        assert (await (await fewer.log()).durability()).level == "unverified"
        await world.close()
        await fewer.close()

    async def test_a_server_that_does_not_wait_for_the_disk_is_found_out(self, tmp_path: Path) -> None:
        servers = Etcds(tmp_path / "quick", options=["--unsafe-no-fsync"])
        if "unsafe-no-fsync" not in await _usage(servers.binary):
            pytest.skip("this etcd always waits for the disk")
        await servers.start()
        world = EtcdWorld(servers.address, "net")
        try:
            assert (await (await world.log()).durability()).level == "unverified"
        finally:
            await world.close()
            await servers.kill()

    async def test_what_an_operator_asserts_is_kept(self, world: EtcdWorld) -> None:
        etcd = await world.connection()
        await EtcdLog.open(etcd, "net", create=True, new_id="x", asserts="ada says so")
        again = await EtcdLog.open(etcd, "net", create=True, new_id="y")
        assert again.network_id == "x"
        assert await again.durability() == ("asserted", "ada says so")


async def _usage(binary: Path) -> str:
    asked = await asyncio.create_subprocess_exec(
        binary, "--help", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await asked.communicate()
    return said.decode()


class TestNetworks:
    async def test_two_of_one_name_under_one_prefix(self, world: EtcdWorld) -> None:
        await world.log()
        etcd = await world.connection()
        opens: list[Awaitable[object]] = [
            EtcdLog.open(etcd, "net", create=True, network_id="other"),
            EtcdRegistry.open(etcd, "net", create=True, network_id="other"),
        ]
        for opening in opens:
            with pytest.raises(ForeignData, match="belongs to network id-net, not other"):
                await opening
        elsewhere = await Etcd.open(Where.parse(f"{world.address}/elsewhere"))
        log = await EtcdLog.open(elsewhere, "net", create=True, network_id="other")
        assert await log.bounds() == (1, 0)
        await elsewhere.close()

    async def test_one_that_is_not_there(self, world: EtcdWorld) -> None:
        etcd = await world.connection()
        with pytest.raises(NotFound):
            await EtcdLog.open(etcd, "net", create=False)
        with pytest.raises(NotFound):
            await EtcdRegistry.open(etcd, "net", create=False)

    async def test_a_log_whose_keys_were_removed_is_not_begun_anew(self, world: EtcdWorld) -> None:
        log = await world.log()
        await log.append(b"one", 0)
        etcd = await world.connection()
        await etcd.txn([], [{"request_delete_range": {"key": b"comity/net/log/", "range_end": b"comity/net/log0"}}])
        with pytest.raises(Corrupt, match="tail is gone"):
            await world.log()
        with pytest.raises(Corrupt, match="tail is gone"):
            await log.append(b"two", 1)

    async def test_a_mark_that_cannot_be_understood(self, world: EtcdWorld) -> None:
        etcd = await world.connection()
        await etcd.txn([], [put(mark_key(etcd, "net"), b"?")])
        with pytest.raises(Corrupt, match="damaged"):
            await world.log()
        await etcd.txn([], [put(mark_key(etcd, "net"), msgspec.json.encode({"id": "id-net", "format": 2}))])
        with pytest.raises(ForeignData, match="format 2"):
            await world.log()


class TestUsers:
    @pytest.mark.parametrize("user", ["ada:wrong@", "nobody:ada-secret@", "bob:bob-secret@", ""])
    async def test_who_may_not(self, guarded: Etcds, user: str) -> None:
        world = EtcdWorld(guarded.address.replace("//", f"//{user}"), "net")
        with pytest.raises(AccessDenied):
            await world.log()
        await world.close()


class TestTls:
    @pytest.fixture
    async def secure(self, tmp_path: Path) -> AsyncIterator[Etcds]:
        ca, other = CertificateAuthority.create("main"), CertificateAuthority.create("other")
        made = {"server": ca.issue(HOST), "client": ca.issue("client"), "late": expired(ca), "alien": other.issue("client")}
        for name, (certificate, key) in made.items():
            (tmp_path / f"{name}.pem").write_text(certificate)
            (tmp_path / f"{name}.key").write_text(key)
        (tmp_path / "ca.pem").write_text(ca.certificate)
        (tmp_path / "other.pem").write_text(other.certificate)
        options = [f"--cert-file={tmp_path}/server.pem", f"--key-file={tmp_path}/server.key"]
        options += ["--client-cert-auth", f"--trusted-ca-file={tmp_path}/ca.pem"]
        servers = Etcds(tmp_path / "secure", options=options)
        await servers.start()
        yield servers
        await servers.kill()

    async def test_with_a_certificate_of_ones_own(self, secure: Etcds, tmp_path: Path) -> None:
        place = f"{secure.address}?ca={tmp_path}/ca.pem"
        world = EtcdWorld(f"{place}&cert={tmp_path}/client.pem&key={tmp_path}/client.key", "net")
        assert await (await world.log()).append(b"one", 0) == 1
        await world.close()
        for name in ("", "late", "alien"):
            mine = f"&cert={tmp_path}/{name}.pem&key={tmp_path}/{name}.key" if name else ""
            with pytest.raises((AccessDenied, Unreachable)):  # the server may hang up before its word is read
                await Etcd.open(Where.parse(f"{place}{mine}"))
        with pytest.raises(AccessDenied, match="no secure connection"):
            await Etcd.open(Where.parse(f"{secure.address}?ca={tmp_path}/other.pem"))
        with pytest.raises(BadSettings, match="not a certificate"):
            await Etcd.open(Where.parse(f"{secure.address}?ca={tmp_path}/client.key"))
        with pytest.raises((Unreachable, BadSettings)):
            await Etcd.open(Where.parse(secure.address))


def expired(ca: CertificateAuthority) -> tuple[str, str]:
    """A client's certificate whose time is over, and its key."""
    issuer = x509.load_pem_x509_certificate(ca.certificate.encode())
    issuer_key = serialization.load_pem_private_key(ca.key.encode(), password=None)
    assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "late")]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=12))
        .not_valid_after(now - datetime.timedelta(hours=1))
        .add_extension(x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return made.public_bytes(serialization.Encoding.PEM).decode(), pem.decode()
