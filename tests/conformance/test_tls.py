"""TLS from the network's own CA: who is let in, who is not, and that nobody goes on without it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from bus_contract import SOON_S, Inbox

from comity.bus.base import to
from comity.bus.nats import NatsBus
from comity.cluster.tls import CertificateAuthority, server_files
from comity.connect import secured
from comity.embedded import EmbeddedServer
from comity.errors import AccessDenied, BadSettings, Unreachable
from conftest import need_server

pytestmark = pytest.mark.server


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    need_server()
    data = tmp_path / "secure"
    ca = CertificateAuthority.create("main")
    ca.save(tmp_path / "own")
    tls = server_files(tmp_path / "own", ca, "127.0.0.1")
    server = await EmbeddedServer.start(data, network="main", port=0, tls=tls)
    yield server
    await server.stop()


async def connect(server: EmbeddedServer, ca: Path | None, name: str, timeout_s: float = SOON_S) -> NatsBus:
    options = secured(server.authority.mint("node", name).connect_options(), ca)
    return await NatsBus.connect(server.url, process=name, options=options, timeout_s=timeout_s)


async def test_who_knows_the_ca_talks_over_tls(secure: EmbeddedServer) -> None:
    assert secure.tls is not None
    a, b = [await connect(secure, secure.tls.ca, name) for name in "ab"]
    inbox = Inbox()
    await b.subscribe(to("b"), inbox)
    for number in range(100):
        await a.send(to("b"), b"%d" % number + b"x" * 10_000)
    assert len(await inbox.until(100)) == 100
    await a.close()
    await b.close()


async def test_nobody_is_talked_to_whom_the_ca_does_not_vouch_for(secure: EmbeddedServer, tmp_path: Path) -> None:
    CertificateAuthority.create("main").save(tmp_path / "other")
    for ca in (None, tmp_path / "other" / "tls" / "ca.pem"):
        with pytest.raises(AccessDenied, match="nobody known here vouches for"):
            await connect(secure, ca, "a")
    (tmp_path / "nonsense").write_text("nonsense")
    for path in (tmp_path / "nonsense", tmp_path / "missing"):
        with pytest.raises(BadSettings, match="not a certificate"):
            await connect(secure, path, "a")


async def test_a_server_that_does_not_offer_tls_gets_no_credentials(server: EmbeddedServer, tmp_path: Path) -> None:
    """Anybody on the way could say that the server has none."""
    CertificateAuthority.create("main").save(tmp_path)
    with pytest.raises(Unreachable, match="does not offer TLS"):
        await connect(server, tmp_path / "tls" / "ca.pem", "a", timeout_s=2.5)


async def test_beyond_loopback_nothing_listens_without_tls(tmp_path: Path) -> None:
    with pytest.raises(BadSettings, match="needs TLS"):
        await EmbeddedServer.start(tmp_path / "open", network="main", port=0, host="10.0.0.1")
    assert not (tmp_path / "open").exists()
