"""How another machine comes into a network as a node or a client: one file with an address, credentials of its own and whom to
trust. ``comity context invite`` writes it, ``comity context import`` reads it.

The credentials name one process, which can publish only as itself. Whoever has the file is that process.
"""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path
from typing import Literal

import msgspec

from comity.contexts import Context, check_url
from comity.credentials import Authority, Credentials, claims, write_private
from comity.errors import AccessDenied, BadInput, Conflict, ForeignData, NotFound
from comity.model.ids import check_token

FORMAT = 1
Role = Literal["node", "client"]


class Invitation(msgspec.Struct, frozen=True, kw_only=True):
    """``credentials`` is the text of a credentials file, ``ca`` of a certificate ("" without TLS)."""

    network: str
    urls: tuple[str, ...]
    credentials: str
    ca: str = ""
    format: int = FORMAT


def invite(context: Context, name: str, role: Role, ttl_s: float | None) -> Invitation:
    """For process ``name``, good for ``ttl_s`` seconds (None: as long as the network's keys). Raises AccessDenied (the keys are
    not here), BadInput, NotFound, Corrupt."""
    if not context.authority:
        raise AccessDenied("this takes the network's keys: do it where comity up runs, with its --data")
    authority = replace(Authority.load(Path(context.authority)), network=context.network)
    known = authority.mint(role, name, ttl_s=ttl_s)
    return Invitation(network=context.network, urls=context.urls, credentials=known.text(), ca=_read(Path(context.ca)))


def _read(path: Path) -> str:
    if path == Path():
        return ""
    try:
        return path.read_text()
    except OSError as error:
        raise NotFound(f"cannot read {path}: {error.strerror}", path=str(path)) from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not text", path=str(path)) from error


def write(invitation: Invitation, path: Path) -> None:
    """For its owner's eyes only. Raises Conflict if there is such a file, BadInput if it cannot be written."""
    if path.exists():
        raise Conflict(f"{path} exists: remove it, or name another with --to", path=str(path))
    try:
        write_private(path, msgspec.json.format(msgspec.json.encode(invitation), indent=2).decode() + "\n")
    except OSError as error:
        raise BadInput(f"cannot write {path}: {error.strerror}", path=str(path)) from error


def read(path: Path, now: float) -> tuple[Invitation, Credentials]:
    """What a file says, and whose credentials are in it. Raises NotFound, BadInput, ForeignData (a newer version's), AccessDenied
    (they are no longer good)."""
    said = _read(path) if path.is_file() else ""
    if not said:
        raise NotFound(f"there is no file {path}", path=str(path))
    try:
        found = msgspec.json.decode(said, type=Invitation)
    except msgspec.DecodeError as error:
        raise BadInput(f"{path} was not written by comity context invite, or was cut short", path=str(path)) from error
    if found.format != FORMAT:
        raise ForeignData(f"{path} has format {found.format}; this version reads {FORMAT}", path=str(path))
    known = Credentials.parse(found.credentials, str(path))
    if known.network != found.network or not found.urls:
        raise BadInput(f"{path} does not agree with the credentials in it", path=str(path))
    if claims(known.jwt).get("exp", now + 1) <= now:
        raise AccessDenied(f"the credentials in {path} have expired: make others, with comity context invite", path=str(path))
    for url in found.urls:
        check_url(url)
    if found.ca:
        try:
            ssl.create_default_context(cadata=found.ca)
        except ssl.SSLError as error:
            raise BadInput(f"the certificate in {path} cannot be used: {error}", path=str(path)) from error
    return found, known


def settle(invitation: Invitation, known: Credentials, folder: Path, name: str) -> Context:
    """Keep what the invitation holds in ``folder``, for a context called ``name``; that context. Raises BadInput."""
    check_token(name, "context")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    credentials, ca = folder / f"{name}.creds", folder / f"{name}.pem"
    known.save(credentials)
    if invitation.ca:
        write_private(ca, invitation.ca)
    return Context(
        urls=invitation.urls, network=invitation.network, credentials=str(credentials.absolute()),
        ca=str(ca.absolute()) if invitation.ca else "",
    )  # fmt: skip
