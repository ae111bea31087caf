"""Where a RabbitMQ is: ``amqp://USER:PASSWORD@HOST:PORT,HOST:PORT/VHOST?OPTION=VALUE&...``. ``amqps://`` (or ``ca``) means TLS.

``ca``, ``cert``, ``key``, ``password_file``: files. ``own=1``: the user is one process's own, which has the user's name.
``events``: the virtual host in which the server tells its events (default: ``/``).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, unquote

from comity.errors import BadSettings
from comity.model.address import host_and_port, split

if TYPE_CHECKING:
    import ssl

PORT, TLS_PORT = 5672, 5671
OPTIONS = {"ca", "cert", "events", "key", "own", "password_file"}


class Where(NamedTuple):
    """What an address says."""

    hosts: tuple[tuple[str, int], ...]
    vhost: str = "/"
    user: str = "guest"
    password: str = "guest"  # noqa: S105 (what every RabbitMQ begins with)
    ca: str = ""
    cert: str = ""
    key: str = ""
    events: str = "/"
    own: bool = False
    is_safe: bool = False

    def __repr__(self) -> str:
        return f"Where({self.shown}, {self.vhost})"  # and no password

    @classmethod
    def parse(cls, address: str) -> Where:
        """Raises BadSettings."""
        parts = split(address, "urls")
        options = {name: values[-1] for name, values in parse_qs(parts.query, keep_blank_values=True).items()}
        account, _, hosts = parts.netloc.rpartition("@")
        user, _, password = account.partition(":")
        is_safe = parts.scheme == "amqps" or "ca" in options
        try:
            if parts.scheme not in ("amqp", "amqps"):
                raise ValueError(f"it begins with amqp:// or amqps://, not {parts.scheme}://")
            if unknown := sorted(set(options) - OPTIONS):
                raise ValueError(f"{unknown[0]!r} means nothing here")
            if options.get("own", "1") != "1":
                raise ValueError("own can be 1")
            if ("cert" in options) != ("key" in options):
                raise ValueError("cert and key go together")
            found = tuple(host_and_port(host.strip(), TLS_PORT if is_safe else PORT) for host in hosts.split(","))
            if "password_file" in options:
                password = Path(options.pop("password_file")).expanduser().read_text().strip()
        except (ValueError, OSError) as error:
            shown = f"{parts.scheme}://{hosts if account or '@' not in address else '...'}"
            raise BadSettings(f"{shown} is not the address of a RabbitMQ: {error}", setting="urls", value=shown) from None
        if account:
            options |= {"user": unquote(user), "password": unquote(password)}
        own = options.pop("own", "") == "1"
        return cls(found, unquote(parts.path[1:]) or "/", own=own, is_safe=is_safe, **options)

    @property
    def shown(self) -> str:
        """Without user and password."""
        return ", ".join(f"amqp{'s' if self.is_safe else ''}://{name(*host)}" for host in self.hosts)

    def tls(self) -> ssl.SSLContext | None:
        """Raises BadSettings."""
        import ssl

        if not self.is_safe:
            return None
        try:
            context = ssl.create_default_context(cafile=self.ca or None)
            if self.cert:
                context.load_cert_chain(self.cert, self.key, password="")  # nobody is there to be asked for one
        except OSError as error:  # ssl's own errors are some
            said = f"{self.ca or self.cert} is not a certificate that can be used: {error}"
            raise BadSettings(said, setting="urls", value=self.ca or self.cert) from error
        return context


def name(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
