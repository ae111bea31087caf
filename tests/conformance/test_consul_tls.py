"""The registry on a Consul that speaks TLS only to those whom it knows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from registry_contract import Watcher, contents
from test_consul import ConsulWorld
from test_etcd_refusals import expired

from comity.cluster.tls import CertificateAuthority
from comity.consul import Consul
from comity.errors import AccessDenied, BadSettings, Unreachable
from comity.remote.address import Where
from consuls import Consuls
from members import HOST, free_port

pytestmark = pytest.mark.server


@pytest.fixture
async def secure(tmp_path: Path) -> AsyncIterator[str]:
    """Where it listens with TLS."""
    ca, other = CertificateAuthority.create("main"), CertificateAuthority.create("other")
    made = {"server": ca.issue(HOST), "client": ca.issue("client"), "late": expired(ca), "alien": other.issue("client")}
    for name, (certificate, key) in made.items():
        (tmp_path / f"{name}.pem").write_text(certificate)
        (tmp_path / f"{name}.key").write_text(key)
    (tmp_path / "ca.pem").write_text(ca.certificate)
    (tmp_path / "other.pem").write_text(other.certificate)
    port = free_port(HOST)
    files = {"ca_file": f"{tmp_path}/ca.pem", "cert_file": f"{tmp_path}/server.pem", "key_file": f"{tmp_path}/server.key"}
    servers = Consuls(tmp_path / "secure", ports={"https": port}, verify_incoming_https=True, **files)
    try:
        await servers.start()
        yield f"{HOST}:{port}"
    finally:
        await servers.kill()


async def test_with_a_certificate_of_ones_own(secure: str, tmp_path: Path) -> None:
    place = f"consuls://{secure}?ca={tmp_path}/ca.pem"
    world = ConsulWorld(f"{place}&cert={tmp_path}/client.pem&key={tmp_path}/client.key", "net")
    registry = await world.registry()
    watcher = Watcher(registry, "nodes/")
    assert await registry.put("nodes/n1", b"x", ttl_s=30) > 0
    await watcher.when(lambda: watcher.state == {"nodes/n1": b"x"})
    assert await contents(registry) == {"nodes/n1": b"x"}
    await watcher.stop()
    await world.close()
    for name in ("late", "alien"):
        with pytest.raises((AccessDenied, Unreachable)):  # the server may hang up before its word is read
            await Consul.open(Where.parse(f"{place}&cert={tmp_path}/{name}.pem&key={tmp_path}/{name}.key", "consul"))
    with pytest.raises((AccessDenied, Unreachable)):
        await Consul.open(Where.parse(place, "consul"))
    with pytest.raises(AccessDenied, match="no secure connection"):
        await Consul.open(Where.parse(f"consul://{secure}?ca={tmp_path}/other.pem", "consul"))
    with pytest.raises(BadSettings, match="not a certificate"):
        await Consul.open(Where.parse(f"consul://{secure}?ca={tmp_path}/client.key", "consul"))
    with pytest.raises((Unreachable, BadSettings)):
        await Consul.open(Where.parse(f"consul://{secure}", "consul"))
