"""Addresses of servers, which may bear a password: no error shows it, also where it makes the address look like another."""

from __future__ import annotations

from urllib.parse import SplitResult, urlsplit

from comity.errors import BadSettings


def split(address: str, setting: str) -> SplitResult:
    """Its parts. Raises BadSettings for what is no address."""
    shown = f"{address.partition('://')[0]}://..." if "://" in address else "..."
    try:
        parts = urlsplit(address)
    except ValueError:  # which may quote it
        raise BadSettings(f"{shown} is not an address: its hosts cannot be read", setting=setting, value=shown) from None
    is_cut = "@" not in parts.netloc and "@" in parts.query.partition("=")[0]
    if "@" in parts.path or parts.fragment or is_cut:
        said = "what has a meaning in an address is written %2F for /, %3F for ?, %23 for # and %40 for @, in a password too"
        raise BadSettings(f"{shown} is not an address: {said}", setting=setting, value=shown)
    return parts


def host_and_port(host: str, usual: int) -> tuple[str, int]:
    """Of ``HOST:PORT``, or ``HOST`` at the usual port. Raises ValueError."""
    parts = urlsplit(f"//{host}")
    if not parts.hostname:
        raise ValueError("it names no host")
    parts.hostname.encode("idna")
    try:
        port = parts.port
    except ValueError:  # which quotes it
        raise ValueError("a port is a number from 1 to 65535") from None
    if port == 0:
        raise ValueError("there is no port 0")
    return parts.hostname, port or usual
