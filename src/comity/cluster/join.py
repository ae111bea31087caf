"""How another machine gets into the network: a small TLS endpoint beside the server, and who calls it.

    joiner                                     endpoint
      ── {"want": "ca"} ──────────────────────▶           not yet trusted: anybody may know the CA
      ◀───────────────────────────── {"ca"} ──            must have the token's fingerprint, or the joiner leaves
      ── {"want": "join", "secret", ...} ─────▶           a new connection, checked against that CA
      ◀──────────────── keys, CA, routes, ... ──

One JSON line each way. The secret is good once; who gets in gets the network's keys, as every server has them.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import ssl
import time
from collections import deque
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import msgspec

from comity.cluster.config import bracketed
from comity.cluster.invites import Token, redeem
from comity.cluster.membership import Member
from comity.cluster.tls import CertificateAuthority, fingerprint
from comity.credentials import Authority
from comity.errors import (
    AccessDenied,
    BadInput,
    ComityError,
    ForeignData,
    Overloaded,
    Unreachable,
    from_wire,
)

PROTOCOL = 1
LINE_MAX = 64 * 1024
CALL_S = 5.0
CALLS_AT_ONCE = 8
REFUSALS = 10
WINDOW_S = 60.0
"""After so many refusals within so long nobody gets in until it is over: a secret cannot be guessed, nor the disk worn out."""

log = logging.getLogger(__name__)


class Call(msgspec.Struct, frozen=True):
    """What a joiner says."""

    want: str
    protocol: int = 0
    version: str = ""
    network_id: str = ""
    invitation: str = ""
    secret: str = ""
    member: str = ""
    route: str = ""


class Welcome(msgspec.Struct, frozen=True):
    """All that a new server needs. ``member`` is the inviting server: its size and TLS are the cluster's."""

    network: str
    network_id: str
    keys: dict[str, str]
    ca: str
    ca_key: str
    inviter: Member
    routes: tuple[str, ...]


class _Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    ca: str = ""
    welcome: Welcome | None = None
    code: str = ""
    message: str = ""


class Identity(msgspec.Struct, frozen=True):
    """Of the network that the endpoint belongs to."""

    network_id: str
    authority: Authority
    ca: CertificateAuthority


class JoinEndpoint:
    """Listens from ``start`` to ``stop``. ``known`` gives the server's own membership as it is now; ``joined`` is told the name
    and the route of whom was let in."""

    def __init__(
        self, data: Path, identity: Identity, known: Callable[[], Member], joined: Callable[[str, str], None]
    ) -> None:
        self._data = data
        self._identity = identity
        self._known = known
        self._joined = joined
        self._refused: deque[float] = deque()
        self._calls = 0
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int, context: ssl.SSLContext) -> None:
        """Raises OSError."""
        self._server = await asyncio.start_server(
            self._answer, host, port, ssl=context, limit=LINE_MAX, ssl_handshake_timeout=CALL_S
        )

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._calls += 1
        try:
            async with asyncio.timeout(CALL_S):
                line = await reader.readline()
                writer.write(msgspec.json.encode(self._reply(line)) + b"\n")
                await writer.drain()
        except (OSError, TimeoutError, ValueError) as error:  # whoever called has gone, or sent no line
            log.debug("a call to join came to nothing: %r", error)
        finally:
            self._calls -= 1
            writer.close()

    def _reply(self, line: bytes) -> _Reply:
        try:
            call = msgspec.json.decode(line, type=Call)
        except msgspec.DecodeError:
            return _Reply(code=BadInput.code, message="this is the endpoint at which servers join")
        if call.want == "ca":
            return _Reply(ca=self._identity.ca.certificate)
        try:
            return _Reply(welcome=self._let_in(call))
        except ComityError as error:
            log.warning("a server was not let in: %s", error.message)
            return _Reply(code=error.code, message=error.message)

    def _let_in(self, call: Call) -> Welcome:
        now = time.monotonic()
        while self._refused and self._refused[0] < now - WINDOW_S:
            self._refused.popleft()
        if len(self._refused) >= REFUSALS or self._calls > CALLS_AT_ONCE:
            raise Overloaded(f"too many calls; try again in {WINDOW_S:.0f} s", retry_after_s=WINDOW_S)
        try:
            self._check(call)
            redeem(self._data, call.invitation, call.secret, time.time(), self._known)
        except ComityError:
            self._refused.append(now)
            raise
        member, own = self._known(), self._identity
        mine = f"{bracketed(member.host)}:{member.route_port}"
        welcome = Welcome(
            own.authority.network, own.network_id, own.authority.secrets(), own.ca.certificate, own.ca.key, member,
            (mine, *member.others),
        )  # fmt: skip
        log.info("server %s was let in; it takes routes at %s", call.member, call.route)
        self._joined(call.member, call.route)
        return welcome

    def _check(self, call: Call) -> None:
        """Raises ForeignData or BadInput before the invitation is used."""
        if call.network_id != self._identity.network_id:
            raise ForeignData("this token is of another network than the one that answers here")
        ours = version("comity")
        if call.protocol < PROTOCOL or _numbers(call.version) < _numbers(ours):
            theirs = call.version[:40] or "an older version"
            raise ForeignData(f"the network runs Comity {ours}, and {theirs} is too old to join it: install {ours} first")
        if call.protocol > PROTOCOL:
            raise ForeignData(f"the network runs Comity {ours}, too old for {call.version[:40]} to join: bring it up to date")


def _numbers(text: str) -> tuple[int, ...]:
    """Major and minor: within these, versions understand one another."""
    parts = text.split(".")[:2]
    return tuple(int(part) for part in parts) if len(parts) == 2 and all(part.isdigit() for part in parts) else (-1,)


async def ask_to_join(token: Token, member: str, route: Callable[[str], str]) -> tuple[Welcome, str]:
    """Join the network that ``token`` was made for: what it says, and our own address towards it. ``route`` gives, for that
    address, where this server will take routes. Raises Unreachable, AccessDenied, ForeignData, Overloaded."""
    failures = []
    for address in token.addresses:
        host, _, port = address.rpartition(":")
        try:
            return await _ask(host.strip("[]"), int(port), token, member, route)
        except (OSError, TimeoutError, asyncio.IncompleteReadError, msgspec.DecodeError) as error:
            failures.append(f"{address} ({getattr(error, 'strerror', None) or type(error).__name__})")
    raise Unreachable(f"nobody lets servers in at {', '.join(failures)}: is the comity up that invited still running there?")


async def _ask(host: str, port: int, token: Token, member: str, route: Callable[[str], str]) -> tuple[Welcome, str]:
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE  # only to fetch what the fingerprint then proves
    first, _ = await _exchange(host, port, blind, Call("ca"))
    if not first.ca or not hmac.compare_digest(fingerprint(first.ca), token.fingerprint):
        raise AccessDenied(f"who answers at {host}:{port} is not the network that this token was made for")
    trusting = ssl.create_default_context(cadata=first.ca)
    _, own = await _exchange(host, port, trusting, Call("ca"))
    call = Call("join", PROTOCOL, version("comity"), token.network_id, token.id, token.secret, member, route(own))
    reply, _ = await _exchange(host, port, trusting, call)
    if reply.welcome is None:
        raise from_wire(reply.code, reply.message)
    welcome = reply.welcome
    if welcome.network_id != token.network_id or welcome.ca != first.ca:
        raise ForeignData("the answer is of another network than the token", network=welcome.network)
    return welcome, own


async def _exchange(host: str, port: int, context: ssl.SSLContext, call: Call) -> tuple[_Reply, str]:
    """What is said to ``call``, and our own address on the way there."""
    async with asyncio.timeout(CALL_S):
        reader, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host, limit=LINE_MAX)
        try:
            own = str(writer.get_extra_info("sockname")[0])
            writer.write(msgspec.json.encode(call) + b"\n")
            return msgspec.json.decode(await reader.readline(), type=_Reply), own
        finally:
            writer.close()


def settle(data: Path, welcome: Welcome, member: Member) -> None:
    """Write down what a new server was given; the network's id, with which the directory is a network's, is left to whoever
    begins to use it."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    data.chmod(0o700)
    Authority.from_secrets(welcome.network, welcome.keys).save(data)
    CertificateAuthority(welcome.ca, welcome.ca_key).save(data)
    member.save(data)
