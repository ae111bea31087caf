"""The network's own certificate authority, and the certificates of its servers.

    data/tls/ca.pem, ca.key           made with the network; every server has both, so each may invite others
    data/tls/server.pem, server.key   made anew at every start, for the address it listens on

Whoever has ``ca.pem`` knows the network's servers; no public authority is asked, and none could vouch for anyone here.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from comity.cluster.config import HOST, TlsFiles
from comity.credentials import write_private
from comity.errors import Corrupt

CA_DAYS = 20 * 365
SERVER_DAYS = 5 * 365
EARLY = datetime.timedelta(days=1)
"""Certificates hold from a day before they are made: clocks differ."""

Name = x509.Name


@dataclass(frozen=True)
class CertificateAuthority:
    """The CA's certificate and key, PEM."""

    certificate: str
    key: str

    @classmethod
    def create(cls, network: str) -> CertificateAuthority:
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name(f"comity network {network}")
        usage = x509.KeyUsage(
            digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
            data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
        )  # fmt: skip
        made = (
            _certificate(name, name, key.public_key(), CA_DAYS)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(_pem(made), _key_pem(key))

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def issue(self, host: str, *addresses: str) -> tuple[str, str]:
        """A certificate for a server reached at ``host`` (and ``addresses``, and from its own machine), and its key."""
        issuer = x509.load_pem_x509_certificate(self.certificate.encode())
        issuer_key = serialization.load_pem_private_key(self.key.encode(), password=None)
        assert isinstance(issuer_key, ec.EllipticCurvePrivateKey)
        key = ec.generate_private_key(ec.SECP256R1())
        names = [_general(name) for name in dict.fromkeys((host, *addresses, HOST, "::1", "localhost"))]
        both = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])
        made = (
            _certificate(issuer.subject, _name("comity server"), key.public_key(), SERVER_DAYS)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(both, critical=False)  # a server calls the others, too
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
            .sign(issuer_key, hashes.SHA256())
        )
        return _pem(made), _key_pem(key)

    def save(self, data: Path) -> None:
        """Write both into ``data/tls``, for the owner's eyes only."""
        folder = data / "tls"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(folder / "ca.key", self.key)
        write_private(folder / "ca.pem", self.certificate)

    @classmethod
    def load(cls, data: Path) -> CertificateAuthority | None:
        """What is in ``data/tls``; None if it has no CA yet. Raises Corrupt."""
        folder = data / "tls"
        if not (folder / "ca.pem").exists():
            return None
        try:
            found = cls((folder / "ca.pem").read_text(), (folder / "ca.key").read_text())
            key = serialization.load_pem_private_key(found.key.encode(), password=None)
            certificate = x509.load_pem_x509_certificate(found.certificate.encode())
        except (OSError, ValueError) as error:
            raise Corrupt(f"the certificates in {folder} cannot be used: {error}", path=str(folder)) from error
        if key.public_key() != certificate.public_key():
            raise Corrupt(f"ca.key and ca.pem in {folder} do not belong together", path=str(folder))
        return found


def server_files(data: Path, authority: CertificateAuthority, host: str, *addresses: str) -> TlsFiles:
    """Write a new certificate for the server of ``data``, reached at ``host``; where everything is."""
    folder = data / "tls"
    certificate, key = authority.issue(host, *addresses)
    write_private(folder / "server.key", key)
    write_private(folder / "server.pem", certificate + authority.certificate)
    return TlsFiles(folder / "ca.pem", folder / "server.pem", folder / "server.key")


def fingerprint(certificate: str) -> str:
    """SHA-256 of a PEM certificate. Raises Corrupt."""
    try:
        der = x509.load_pem_x509_certificate(certificate.encode()).public_bytes(serialization.Encoding.DER)
    except ValueError as error:
        raise Corrupt(f"not a certificate: {error}") from error
    return hashlib.sha256(der).hexdigest()


def server_context(files: TlsFiles) -> ssl.SSLContext:
    """For our own endpoint, with the server's certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.certificate, files.key)
    return context


def _certificate(issuer: Name, subject: Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    begins = datetime.datetime.now(datetime.UTC) - EARLY
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + datetime.timedelta(days=days))
    )


def _name(text: str) -> Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "comity"), x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
