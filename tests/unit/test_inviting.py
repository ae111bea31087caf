"""Invitations of nodes and clients on other machines: what the file holds, and which files are refused."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest

from comity.cli.inviting import FORMAT, Invitation, Role, invite, read, settle, write
from comity.cluster.tls import CertificateAuthority
from comity.connect import identity
from comity.contexts import Context
from comity.credentials import Authority, claims
from comity.errors import AccessDenied, BadInput, BadSettings, ComityError, Conflict, ForeignData, NotFound

NOW = 1_700_000_000.0


@pytest.fixture
def context(tmp_path: Path) -> Context:
    """Of a network on this machine, with TLS."""
    data = tmp_path / "data"
    Authority.create(data, "lab")
    CertificateAuthority.create("lab").save(data)
    return Context(urls=("nats://10.0.0.1:4222",), network="lab", authority=str(data), ca=str(data / "tls" / "ca.pem"))


@pytest.mark.parametrize("role", ["node", "client"])
def test_a_file_carries_all_that_another_machine_needs(context: Context, tmp_path: Path, role: Role) -> None:
    path = tmp_path / "gpu-1.invite"
    write(invite(context, "gpu-1", role, None), path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found, known = read(path, NOW)
    assert (known.process, known.role, known.network) == ("gpu-1", role, "lab")
    assert "exp" not in claims(known.jwt)
    there = settle(found, known, tmp_path / "there", "work")
    assert (there.urls, there.network, there.authority) == (context.urls, "lab", "")
    assert Path(there.ca).read_text() == Path(context.ca).read_text()
    files = sorted((tmp_path / "there").iterdir())
    assert [(file.name, stat.S_IMODE(file.stat().st_mode)) for file in files] == [("work.creds", 0o600), ("work.pem", 0o600)]
    assert identity(there, role) == ("gpu-1", known)
    with pytest.raises(Conflict, match="--to"):
        write(found, path)
    for seed in Authority.load(Path(context.authority)).secrets().values():
        assert seed not in path.read_text(), "the network's keys stay at home"


def test_a_nodes_credentials_are_the_nodes_alone(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "n.invite"
    write(invite(context, "gpu-1", "node", None), path)
    there = settle(*read(path, NOW), tmp_path / "there", "work")
    with pytest.raises(BadSettings, match="--role client"):
        identity(there, "client")
    with pytest.raises(BadSettings, match="for process 'gpu-1'"):
        identity(there, "node", "gpu-2")


def test_an_invitation_ends(context: Context, tmp_path: Path) -> None:
    path = tmp_path / "n.invite"
    write(invite(context, "gpu-1", "node", 60.0), path)
    _, known = read(path, NOW)
    ends = claims(known.jwt)["exp"]
    read(path, ends - 1)
    with pytest.raises(AccessDenied, match="expired"):
        read(path, ends)


def test_who_cannot_invite(context: Context, tmp_path: Path) -> None:
    with pytest.raises(AccessDenied, match="the network's keys"):
        invite(msgspec.structs.replace(context, authority=""), "n1", "node", None)
    with pytest.raises(BadInput, match="process id"):
        invite(context, "n.1", "node", None)
    with pytest.raises(BadInput, match="cannot write"):
        write(invite(context, "n1", "node", None), tmp_path / "none" / "n1.invite")


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"format": FORMAT + 1}, ForeignData, "format"),
        ({"network": "other"}, BadInput, "does not agree"),
        ({"urls": ()}, BadInput, "does not agree"),
        ({"urls": ("http://lab",)}, BadSettings, "not the address of a server"),
        ({"credentials": "nothing"}, BadInput, "not a credentials file"),
        ({"ca": "nothing"}, BadInput, "certificate"),
    ],
)
def test_files_that_cannot_be_used(
    context: Context, tmp_path: Path, change: dict[str, Any], kind: type[ComityError], words: str
) -> None:
    path = tmp_path / "n1.invite"
    write(msgspec.structs.replace(invite(context, "n1", "node", None), **change), path)
    with pytest.raises(kind, match=words):
        read(path, NOW)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "n1.invite"
    with pytest.raises(NotFound):
        read(path, NOW)
    path.write_text("{")
    with pytest.raises(BadInput, match="comity context invite"):
        read(path, NOW)
    path.write_bytes(b"\xff")
    with pytest.raises(BadInput, match="not text"):
        read(path, NOW)
    path.write_bytes(msgspec.json.encode(Invitation(network="lab", urls=("nats://lab",), credentials=""))[:-9])
    with pytest.raises(BadInput):
        read(path, NOW)
