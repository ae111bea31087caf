"""Certificates for the members of a built-in Raft, and for who uses it, by the network's own authority (``cluster.tls``).

    FOLDER/tls/             the authority: whoever has it can let in others, so it stays where it was made
    FOLDER/m1/              for one member, to be copied to its machine: ca.pem, cert.pem, key.pem
    FOLDER/controller/      for controllers on machines without a member
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from comity.errors import BadSettings

if TYPE_CHECKING:
    from comity.cluster.tls import CertificateAuthority

NAMES = {"ca": "ca.pem", "cert": "cert.pem", "key": "key.pem"}
CONTROLLER = "controller"


def make_keys(folder: Path, cluster: str, members: Mapping[str, str]) -> list[Path]:
    """Make what is missing of ``members`` (addresses by id); the folders made. Raises Corrupt (the authority is damaged)."""
    from comity.cluster.config import HOST
    from comity.cluster.tls import CertificateAuthority
    from comity.raft.contact import parse_address

    authority = CertificateAuthority.load(folder)
    if authority is None:
        authority = CertificateAuthority.create(cluster)
        authority.save(folder)
    hosts = {id: parse_address(address)[0] for id, address in members.items()} | {CONTROLLER: HOST}
    return [_make(folder / id, authority, host) for id, host in hosts.items() if not (folder / id).exists()]


def _make(folder: Path, authority: CertificateAuthority, host: str) -> Path:
    from comity.credentials import write_private

    certificate, key = authority.issue(host)
    folder.mkdir(mode=0o700)
    for name, text in (("ca", authority.certificate), ("cert", certificate), ("key", key)):
        write_private(folder / NAMES[name], text)
    return folder


def contexts(keys: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For connections that come, and that are made: both sides show a certificate of the same authority. Raises BadSettings."""
    try:
        come, go = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (come, go):
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.load_cert_chain(keys / NAMES["cert"], keys / NAMES["key"])
            context.load_verify_locations(keys / NAMES["ca"])
            context.verify_mode = ssl.CERT_REQUIRED
    except OSError as error:  # ssl's own errors are some
        said = f"{keys} has no keys that can be used ({', '.join(NAMES.values())}): {error}; comity raft keys makes some"
        raise BadSettings(said, setting="raft", value=str(keys)) from error
    return come, go


def query(keys: Path) -> str:
    """What an address says of them."""
    return urlencode({name: str(keys.absolute() / file) for name, file in NAMES.items()}, safe="/")
