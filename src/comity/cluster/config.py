"""How one server takes part in a cluster, and how it listens: what the server's configuration says of it.

    member     the server's name in the cluster; JetStream knows a replica by it, so it stays with the data
    routes     where the servers meet: all that are known, ourselves included (JetStream forms a group only with some)

Servers know one another by a secret that follows from the network's keys and, where TLS is on, by certificates of the network's
own CA. Beyond loopback there is no listening without it.
"""

from __future__ import annotations

import hashlib
import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path

from comity.credentials import Authority
from comity.errors import BadSettings

HOST = "127.0.0.1"
SIZES = (3, 5)
"""Servers of a cluster: a majority of an even number survives no more failures than one server less would."""


@dataclass(frozen=True)
class TlsFiles:
    """Where the network's CA certificate is, and a server's own certificate and key."""

    ca: Path
    certificate: Path
    key: Path

    def server_config(self, *, verify: bool) -> str:
        parts = {"cert_file": self.certificate, "key_file": self.key, "ca_file": self.ca}
        lines = [f"    {name}: {json.dumps(str(path.absolute()))}\n" for name, path in parts.items()]
        return "tls {\n" + "".join(lines) + f"    verify: {str(verify).lower()}\n    timeout: 5\n  }}\n"


@dataclass(frozen=True)
class Cluster:
    """A server's part in a cluster of ``size`` servers. ``port`` is where it takes routes, 0 outside a configuration."""

    name: str
    member: str
    size: int
    port: int
    routes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise BadSettings(f"a cluster has {' or '.join(map(str, SIZES))} servers, not {self.size}", setting="servers")

    @property
    def replicas(self) -> int:
        """Of each stream: every server has a copy."""
        return self.size

    def server_config(self, host: str, authority: Authority, tls: TlsFiles | None) -> str:
        secret = route_secret(authority)
        known = dict.fromkeys((f"{bracketed(host)}:{self.port}", *self.routes))
        routes = ", ".join(json.dumps(f"nats://{self.name}:{secret}@{address}") for address in known)
        return (
            "cluster {\n"
            f"  name: {json.dumps(self.name)}\n"
            f"  listen: {json.dumps(f'{bracketed(host)}:{self.port}')}\n"
            f"  authorization {{ user: {json.dumps(self.name)}, password: {json.dumps(secret)}, timeout: 5 }}\n"
            f"  routes: [{routes}]\n" + (f"  {tls.server_config(verify=True)}" if tls is not None else "") + "}\n"
        )


def route_secret(authority: Authority) -> str:
    """What servers show one another; it follows from the network's keys, which every server has."""
    return hashlib.blake2b(b"routes", key=authority.operator.seed.encode(), digest_size=32).hexdigest()


def bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether ``host`` is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_listening(host: str, *, tls: bool) -> None:
    """Raises BadSettings for an address that must not be listened on, with or without TLS."""
    try:
        anywhere = ipaddress.ip_address(host).is_unspecified
    except ValueError:
        anywhere = not host
    if anywhere:
        raise BadSettings(f"listen on an address that others can reach this machine by, not on {host!r}", setting="listen")
    if not tls and not is_loopback(host):
        message = f"listening on {host} needs TLS, and this network has none: begin it with --listen"
        raise BadSettings(message, setting="listen")
