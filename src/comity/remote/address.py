"""Where servers are: ``etcd://USER@HOST:PORT,HOST:PORT/PREFIX?ca=FILE&cert=FILE&key=FILE&password_file=FILE``.
``etcds://`` (or ``ca``) means TLS. All keys lie under PREFIX (default: ``comity``) and the network's name. The same with
``consul://`` and ``consuls://``, whose password is a token; and with ``raft://`` and ``rafts://``, which know no users, speak no
HTTP, and have the cluster's name in the place of PREFIX.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from comity.errors import BadSettings
from comity.model.address import host_and_port, split

DEFAULT_PREFIX = "comity"
PORTS = {"etcd": 2379, "consul": 8500, "raft": 7400}


class Where(NamedTuple):
    """What an address says."""

    urls: tuple[str, ...]
    prefix: str = DEFAULT_PREFIX
    user: str = ""
    password: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""

    def __repr__(self) -> str:
        return f"Where({', '.join(self.urls)}, {self.prefix})"  # and no password

    @classmethod
    def parse(cls, address: str, kind: str = "etcd", prefix: str = DEFAULT_PREFIX) -> Where:
        """``kind``: etcd, consul or raft. ``prefix``: what there is in place of one. Raises BadSettings."""
        parts = split(address, "doors")
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        is_safe = parts.scheme == f"{kind}s" or "ca" in options
        try:
            if parts.scheme not in (kind, f"{kind}s"):
                raise ValueError(f"it begins with {kind}:// or {kind}s://, not {parts.scheme}://")
            if unknown := sorted(set(options) - {"ca", "cert", "key", "password_file"}):
                raise ValueError(f"{unknown[0]!r} means nothing here")
            if kind == "raft" and (account or "password_file" in options):
                raise ValueError("its members know no users")
            if ("cert" in options) != ("key" in options):
                raise ValueError("cert and key go together")
            urls = tuple(_url(host.strip(), PORTS[kind], is_safe) for host in hosts.split(","))
            if "password_file" in options:
                password = Path(options.pop("password_file")).expanduser().read_text().strip()
        except (ValueError, OSError) as error:
            shown = f"{parts.scheme}://{hosts if account or '@' not in address else '...'}"
            raise BadSettings(f"{shown} is not the address of {kind}: {error}", setting="doors", value=shown) from None
        return cls(urls, parts.path.strip("/") or prefix, unquote(user), unquote(password), **options)

    @property
    def hosts(self) -> list[str]:
        """``HOST:PORT`` of each."""
        return [urlsplit(url).netloc for url in self.urls]

    @property
    def is_safe(self) -> bool:
        return self.urls[0].startswith("https")


def _url(host: str, port: int, is_safe: bool) -> str:
    name, port = host_and_port(host, port)
    return f"{'https' if is_safe else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def tls(where: Where) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=where.ca or None)
        if where.cert:
            context.load_cert_chain(where.cert, where.key, password="")  # nobody is there to be asked for one
    except OSError as error:  # ssl's own errors are some
        said = f"{where.ca or where.cert} is not a certificate that can be used: {error}"
        raise BadSettings(said, setting="doors", value=where.ca or where.cert) from error
    return context
