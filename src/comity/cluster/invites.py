"""Tokens with which another machine may join: they say where to ask, what to trust, and a secret that is good once.

The secret itself is kept nowhere. ``data/invites/ID.json`` holds its hash and when it ends; to use it is to rename that file,
which succeeds once. So an invitation can be made by a command beside the server that will redeem it, and outlives restarts.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from comity.credentials import write_private
from comity.errors import AccessDenied, BadInput

PREFIX = "comity-join-"
TTL_S = 3600.0
KEPT_S = 7 * 86_400.0
"""How long a used or expired invitation is remembered, to be refused by its name."""


class Token(msgspec.Struct, frozen=True, array_like=True):
    """``addresses`` are HOST:PORT, to be tried in order; ``fingerprint`` is of the network's CA."""

    addresses: tuple[str, ...]
    network: str
    network_id: str
    fingerprint: str
    id: str
    secret: str

    def text(self) -> str:
        return PREFIX + base64.urlsafe_b64encode(msgspec.msgpack.encode(self)).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Token:
        """Raises BadInput."""
        body = text.strip().removeprefix(PREFIX)
        try:
            return msgspec.msgpack.decode(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)), type=cls)
        except (ValueError, msgspec.DecodeError) as error:
            raise BadInput("this is not a token that comity cluster invite printed, or it was cut short") from error


class _Kept(msgspec.Struct, frozen=True):
    digest: str
    expires_at: float
    used: bool = False


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def invite(data: Path, now: float, ttl_s: float = TTL_S) -> tuple[str, str]:
    """Make an invitation that ends at ``now + ttl_s``; its id and secret."""
    folder = data / "invites"
    folder.mkdir(mode=0o700, exist_ok=True)
    forget(data, now)
    number, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    _write(folder / f"{number}.json", _Kept(_digest(secret), now + ttl_s))
    return number, secret


def redeem(data: Path, number: str, secret: str, now: float, check: Callable[[], object] = lambda: None) -> None:
    """Use an invitation up. Raises AccessDenied: it is not one of ours, was used, or has ended; and what ``check`` raises, before
    it is used."""
    path = data / "invites" / f"{number}.json" if number.isalnum() else None
    kept = _read(path) if path is not None else None
    if not hmac.compare_digest(kept.digest if kept is not None else "", _digest(secret)) or kept is None or path is None:
        raise AccessDenied("no such invitation was made here")
    if kept.used:
        raise AccessDenied("this token was used already: each lets one server in. Make another: comity cluster invite")
    if now >= kept.expires_at:
        raise AccessDenied("this token has expired. Make another: comity cluster invite")
    check()
    try:
        path.rename(path.with_suffix(".taken"))
    except FileNotFoundError:
        raise AccessDenied("this token was used already: each lets one server in") from None
    _write(path, _Kept(kept.digest, kept.expires_at, used=True))
    path.with_suffix(".taken").unlink()


def forget(data: Path, now: float) -> None:
    """Remove what ended long ago."""
    for path in (data / "invites").glob("*.json"):
        kept = _read(path)
        if kept is None or kept.expires_at + KEPT_S < now:
            path.unlink(missing_ok=True)


def _read(path: Path) -> _Kept | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode(path.read_bytes(), type=_Kept)
    return None


def _write(path: Path, kept: _Kept) -> None:
    write_private(path, msgspec.json.encode(kept).decode())
