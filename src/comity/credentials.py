"""Who may do what on the bus: keys, tokens and permissions, made here and checked by the NATS server.

A network has an operator, a system account (the server's own events) and one account for everything else. Each process gets a
token (a user JWT signed by its account) that names it and lists the subjects it may use, and proves on connecting that it
holds the token's key. So a sender is who the subject says, and no process can publish as another.

Formats: nkey (NATS ADR-10: Ed25519 keys, RFC 8032, in base 32 with a CRC-16) and NATS JWT version 2 (ADR-14).
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from comity.errors import BadInput, Conflict, Corrupt, NotFound
from comity.failpoints import durable
from comity.model.ids import check_token

Role = Literal["node", "client", "controller", "system", "backup"]
"""``backup``: a client that may also read the log."""

_SEED = 18 << 3
_UNLIMITED = -1


class Kind(enum.IntEnum):
    """What a key is for; the number makes the first letter of its public form."""

    ACCOUNT = 0
    OPERATOR = 14 << 3
    USER = 20 << 3


class Key:
    """An Ed25519 key pair in NATS's text forms: ``public`` (56 characters) and ``seed`` (58, secret)."""

    def __init__(self, kind: Kind, raw: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(raw)
        public = self._private.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
        self.kind = kind
        self.public = _text(bytes([kind]) + public)
        self.seed = _text(bytes([_SEED | kind >> 5, (kind & 31) << 3]) + raw)

    @classmethod
    def generate(cls, kind: Kind) -> Key:
        return cls(kind, os.urandom(32))

    @classmethod
    def from_seed(cls, seed: str) -> Key:
        """The key whose secret form is ``seed``. Raises BadInput."""
        try:
            data = base64.b32decode(seed + "=" * (-len(seed) % 8))
        except ValueError as error:
            raise BadInput("not a key seed: it is not base 32") from error
        if len(data) != 36 or binascii.crc_hqx(data[:-2], 0).to_bytes(2, "little") != data[-2:] or data[0] & 0xF8 != _SEED:
            raise BadInput("not a key seed, or it was altered: wrong length, prefix or checksum")
        kind = (data[0] & 7) << 5 | data[1] >> 3
        if kind not in tuple(Kind):
            raise BadInput("a key seed of a kind that is not used here")
        return cls(Kind(kind), data[2:-2])

    def sign(self, data: bytes) -> bytes:
        return self._private.sign(data)


def _text(data: bytes) -> str:
    checked = data + binascii.crc_hqx(data, 0).to_bytes(2, "little")
    return base64.b32encode(checked).decode().rstrip("=")


def _segment(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _token(issuer: Key, subject: str, name: str, claims: dict[str, Any], expires: float | None = None) -> str:
    body: dict[str, Any] = {"iat": int(time.time()), "iss": issuer.public, "name": name, "sub": subject, "nats": claims}
    if expires is not None:
        body["exp"] = int(expires)
    digest = hashlib.sha256(json.dumps(body).encode()).digest()
    body["jti"] = base64.b32encode(digest).decode().rstrip("=")
    header = {"typ": "JWT", "alg": "ed25519-nkey"}
    text = ".".join(_segment(json.dumps(part, separators=(",", ":")).encode()) for part in (header, body))
    return f"{text}.{_segment(issuer.sign(text.encode()))}"


def claims(token: str) -> dict[str, Any]:
    """What a token says, unverified: the server verifies it. Raises BadInput."""
    try:
        body = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (IndexError, ValueError) as error:
        raise BadInput("not a token") from error
    if not isinstance(found, dict):
        raise BadInput("not a token")
    return found


class Credentials(NamedTuple):
    """A token and the secret of its key."""

    jwt: str
    seed: str

    @property
    def process(self) -> str:
        """The process id these credentials speak for."""
        return str(claims(self.jwt)["name"])

    @property
    def network(self) -> str:
        """The network they were made for."""
        return _tag(self.jwt, "network")

    @property
    def role(self) -> str:
        return _tag(self.jwt, "role")

    def text(self) -> str:
        """The standard credentials file, as every NATS tool reads it."""
        return (
            f"-----BEGIN NATS USER JWT-----\n{self.jwt}\n------END NATS USER JWT------\n\n"
            "The seed below is a secret: whoever has it is this process.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{self.seed}\n------END USER NKEY SEED------\n"
        )

    def save(self, path: Path) -> None:
        """Write the credentials file, readable by its owner only; replaces an older one."""
        write_private(path, self.text())

    @classmethod
    def load(cls, path: Path) -> Credentials:
        """Read a credentials file. Raises NotFound, BadInput."""
        try:
            text = path.read_text()
        except OSError as error:
            raise NotFound(f"cannot read the credentials file {path}: {error.strerror}", path=str(path)) from error
        except UnicodeDecodeError as error:
            raise BadInput(f"{path} is not a credentials file", path=str(path)) from error
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str) -> Credentials:
        """The credentials in ``text``, which is ``source``'s. Raises BadInput."""
        after = {above.strip("-"): line.strip() for above, line in pairwise(text.splitlines())}
        jwt, seed = after.get("BEGIN NATS USER JWT", ""), after.get("BEGIN USER NKEY SEED", "")
        if not jwt or not seed:
            raise BadInput(f"{source} is not a credentials file: it lacks a token or a seed", path=source)
        claims(jwt)
        Key.from_seed(seed)
        return cls(jwt, seed)

    def connect_options(self) -> dict[str, Callable[..., bytes]]:
        """Arguments for ``nats.connect``. Connect with ``name=process`` and ``inbox_prefix=f"_INBOX_{process}"`` too."""
        key = Key.from_seed(self.seed)
        return {
            "user_jwt_cb": self.jwt.encode,
            "signature_cb": lambda nonce: base64.b64encode(key.sign(nonce.encode())),
        }


def _tag(jwt: str, name: str) -> str:
    for tag in claims(jwt)["nats"].get("tags", []):
        key, _, value = tag.partition(":")
        if key == name:
            return str(value)
    return ""


def write_private(path: Path, text: str) -> None:
    """Write ``text`` so that it is there as a whole or not at all, for its owner's eyes only."""
    part = path.with_name(path.name + ".part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file, durable("file.write"):
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    with durable("file.place"):
        part.replace(path)


def permissions(role: Role, network: str, process: str) -> dict[str, dict[str, list[str]]]:
    """The subjects a process may publish to and subscribe to: the server refuses all others.

    The kinds are spelled out (``to``, ``any``, ``topic``), never ``*``: a pattern such as ``cy.NET.*.*.P`` would match another
    process's registry subjects as well. Of JetStream a node or client may use what the registry and the store need: read a
    message, and make, pull and remove consumers. Those of others have names that cannot be guessed, and listing is refused.
    """
    net, inbox = f"cy.{network}", f"_INBOX_{process}.>"
    elected = f"$JS.EVENT.ADVISORY.STREAM.LEADER_ELECTED.CY_{network}_LOG"
    if role == "controller":
        pub = [f"{net}.>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>"]
        return {"pub": {"allow": pub}, "sub": {"allow": [f"{net}.>", elected, inbox]}}
    if role == "system":
        asks = [f"$SYS.REQ.SERVER.PING.{what}" for what in ("VARZ", "JSZ", "CONNZ", "HEALTHZ", "STATSZ")]
        asks += ["$JS.API.META.LEADER.STEPDOWN", "$JS.API.SERVER.REMOVE"]
        return {"pub": {"allow": asks}, "sub": {"allow": ["$SYS.ACCOUNT.*.CONNECT", "$SYS.ACCOUNT.*.DISCONNECT", inbox]}}
    pub = [f"{net}.{kind}.*.{process}" for kind in ("to", "any", "topic")]
    pub += [f"{net}.re.*.*.{process}", f"{net}.reg.{process}.>", f"{net}.store.{process}.>"]
    for stream in (f"CY_{network}_REG", f"CY_{network}_STORE", *([f"CY_{network}_LOG"] if role == "backup" else [])):
        pub += [f"$JS.API.STREAM.INFO.{stream}", f"$JS.API.STREAM.MSG.GET.{stream}", f"$JS.API.CONSUMER.CREATE.{stream}.*.>"]
        pub += [f"$JS.API.CONSUMER.DELETE.{stream}.*", f"$JS.API.CONSUMER.MSG.NEXT.{stream}.*"]
    pub.append(f"$JS.API.DIRECT.GET.CY_{network}_STORE.{net}.store.>")
    sub = [f"{net}.{kind}.{process}.>" for kind in ("to", "re", "nr")] + [f"{net}.any.>", f"{net}.topic.>", inbox]
    sub += [elected] if role == "backup" else []
    return {"pub": {"allow": pub}, "sub": {"allow": sub, "deny": [f"{net}.topic.leader", f"{net}.topic.leader.>"]}}


@dataclass(frozen=True)
class Authority:
    """A network's keys. Who holds them can make credentials for any process, so they stay with the server's data."""

    network: str
    operator: Key
    system: Key
    account: Key

    @classmethod
    def create(cls, folder: Path, network: str) -> Authority:
        """Make keys and write them to ``folder/keys``, as a whole or not at all. Raises Conflict if there are some."""
        check_token(network, "network")
        keys = folder / "keys"
        if keys.exists():
            raise Conflict(f"{keys} exists: keys are never overwritten", path=str(keys))
        made = cls(network, Key.generate(Kind.OPERATOR), Key.generate(Kind.ACCOUNT), Key.generate(Kind.ACCOUNT))
        made.save(folder)
        return made

    def save(self, folder: Path) -> None:
        """Write the keys to ``folder/keys``, where there must be none."""
        part = folder / "keys.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(mode=0o700, parents=True)
        folder.chmod(0o700)
        for name, seed in self.secrets().items():
            write_private(part / f"{name}.nk", seed + "\n")
        write_private(part / "account.jwt", self._account_token(self.account, self.network) + "\n")
        with durable("keys.place"):
            part.rename(folder / "keys")

    def secrets(self) -> dict[str, str]:
        """The seeds by what they are for: all that makes an authority, for another server of the network."""
        return {"operator": self.operator.seed, "system": self.system.seed, "account": self.account.seed}

    @classmethod
    def from_secrets(cls, network: str, seeds: dict[str, str]) -> Authority:
        """The authority that has these. Raises BadInput."""
        if set(seeds) != {"operator", "system", "account"}:
            raise BadInput(f"a network's keys are operator, system and account, not {', '.join(sorted(seeds)) or 'none'}")
        operator, system, account = (Key.from_seed(seeds[name]) for name in ("operator", "system", "account"))
        return cls(check_token(network, "network"), operator, system, account)

    @classmethod
    def load(cls, folder: Path) -> Authority:
        """Read the keys in ``folder/keys``. Raises NotFound if there are none, Corrupt if they cannot be used."""
        keys = folder / "keys"
        if not keys.is_dir():
            raise NotFound(f"no keys in {folder}", path=str(keys))
        try:
            operator, system, account = (
                Key.from_seed((keys / f"{name}.nk").read_text().strip()) for name in ("operator", "system", "account")
            )
            body = claims((keys / "account.jwt").read_text().strip())
        except (OSError, BadInput, UnicodeDecodeError) as error:
            raise Corrupt(f"the keys in {keys} cannot be used: {error}", path=str(keys)) from error
        kinds = (operator.kind, system.kind, account.kind)
        if kinds != (Kind.OPERATOR, Kind.ACCOUNT, Kind.ACCOUNT) or body.get("sub") != account.public:
            raise Corrupt(f"the keys in {keys} do not belong together", path=str(keys))
        return cls(str(body["name"]), operator, system, account)

    def server_config(self) -> str:
        """The part of the server's configuration that makes it know this network's tokens, and no others."""
        operator = {"type": "operator", "version": 2, "system_account": self.system.public}
        return (
            f"operator: {_token(self.operator, self.operator.public, self.network, operator)}\n"
            f"system_account: {self.system.public}\n"
            "resolver: MEMORY\n"
            "resolver_preload {\n"
            f"  {self.system.public}: {self._account_token(self.system, 'SYS')}\n"
            f"  {self.account.public}: {self._account_token(self.account, self.network)}\n"
            "}\n"
        )

    def mint(self, role: Role, process: str, *, ttl_s: float | None = None) -> Credentials:
        """New credentials for ``process``, valid for ``ttl_s`` seconds (None: for as long as the keys are).

        Raises BadInput if ``process`` cannot be one token of a subject.
        """
        check_token(process, "process id")
        key = Key.generate(Kind.USER)
        tags = [f"network:{self.network}", f"role:{role}"]
        body = {"type": "user", "version": 2, "tags": tags, **permissions(role, self.network, process)}
        body |= dict.fromkeys(("subs", "data", "payload"), _UNLIMITED)
        issuer = self.system if role == "system" else self.account
        expires = None if ttl_s is None else time.time() + ttl_s
        return Credentials(_token(issuer, key.public, process, body, expires), key.seed)

    def _account_token(self, account: Key, name: str) -> str:
        limits: dict[str, int | bool] = dict.fromkeys(("subs", "data", "payload", "imports", "exports", "conn"), _UNLIMITED)
        limits |= {"wildcards": True, "leaf": 0}
        if account is self.account:
            limits |= dict.fromkeys(("mem_storage", "disk_storage", "streams", "consumer"), _UNLIMITED)
        body = {"type": "account", "version": 2, "limits": limits, "default_permissions": {"pub": {}, "sub": {}}}
        return _token(self.operator, account.public, name, body)
