"""An address that means nothing is refused, and nothing of a password is shown."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from comity.amqp.address import Where as Rabbit
from comity.backends import check_places
from comity.cluster.tls import CertificateAuthority
from comity.errors import AccessDenied, BadSettings, Disconnected
from comity.remote.address import Where, tls
from comity.remote.endpoints import _broken

PARSERS: dict[str, Callable[[str], object]] = {
    "etcd": Where.parse,
    "consul": lambda address: Where.parse(address, "consul"),
    "amqp": Rabbit.parse,
}


@pytest.mark.parametrize("kind", PARSERS)
@pytest.mark.parametrize(
    "rest",
    [
        "ada:pass/word@h:1", "ada:pass?word@h:1", "ada:pass#word@h:1", "ada:pass?word=x@h:1", "ada:99/pass@h",
        "ada:pass@word@h:x", "ada:pass@[::1", "ada:pass@h\u2100:1", "ada:pass@h:0", "ada:pass@h..i", "[::1", "h:99999", "h#x",
    ],
)  # fmt: skip
def test_what_cannot_be_one(kind: str, rest: str) -> None:
    with pytest.raises(BadSettings) as caught:
        PARSERS[kind](f"{kind}://{rest}")
    said = f"{caught.value.message} {caught.value.details}"
    assert "pass" not in said.replace("in a password too", "")
    assert caught.value.__cause__ is None


def test_a_door_that_cannot_be_read() -> None:
    with pytest.raises(BadSettings, match="cannot be read"):
        check_places({"log": "etcd://[::1"})


def test_what_is_written_as_it_must_be_is_read() -> None:
    where = Where.parse("etcd://a%40b:p%2Fq%23@h1,[::1]:9/place?ca=/home/a@b/ca.pem")
    assert (where.user, where.password, where.ca) == ("a@b", "p/q#", "/home/a@b/ca.pem")
    assert where.urls == ("https://h1:2379", "https://[::1]:9")


def test_nobody_sees_a_password_by_looking_at_an_address() -> None:
    assert "secret" not in repr(Where.parse("etcd://ada:secret@h"))
    assert "secret" not in repr(Rabbit.parse("amqp://ada:secret@h"))


def test_a_key_that_needs_a_word_is_refused_and_nobody_is_asked_for_it(tmp_path: Path) -> None:
    certificate, key = CertificateAuthority.create("main").issue("client")
    (tmp_path / "cert.pem").write_text(certificate)
    private = serialization.load_pem_private_key(key.encode(), password=None)
    locked = serialization.BestAvailableEncryption(b"word")
    pem = private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    (tmp_path / "key.pem").write_bytes(pem)
    files = f"ca={tmp_path}/cert.pem&cert={tmp_path}/cert.pem&key={tmp_path}/key.pem"
    with pytest.raises(BadSettings, match="not a certificate that can be used"):
        tls(Where.parse(f"etcd://h?{files}"))
    with pytest.raises(BadSettings, match="not a certificate that can be used"):
        Rabbit.parse(f"amqp://h?{files}").tls()


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("CERTIFICATE_VERIFY_FAILED", AccessDenied), ("TLSV1_ALERT_UNKNOWN_CA", AccessDenied),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", AccessDenied), ("UNEXPECTED_EOF_WHILE_READING", Disconnected),
    ],
)  # fmt: skip
def test_who_is_not_trusted_is_told_so(reason: str, kind: type[Exception]) -> None:
    error = ssl.SSLError(1, f"[SSL: {reason}]")
    error.reason = reason
    assert type(_broken("https://h", error)) is kind
