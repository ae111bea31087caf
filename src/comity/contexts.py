"""Named connections: which servers, which network, whose credentials.

They live in ``contexts.json`` of the configuration folder. An embedded network also leaves its own, called "local", in
its data directory, so that whoever looks in the default place finds it without naming anything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import msgspec

from comity.amqp.address import Where as RabbitMQ
from comity.config import Loaded
from comity.errors import BadSettings, NotFound, Unreachable
from comity.failpoints import durable
from comity.model.ids import check_token

__all__ = ["LOCAL", "Context", "Contexts", "check_url", "config_home", "resolve"]

LOCAL = "local"
_FILE = "contexts.json"
_LOCAL_FILE = "context.json"
T = TypeVar("T")


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One connection. ``credentials`` is the path of a creds file; ``authority`` the data directory of an embedded
    network on this machine, whose keys let a process mint credentials of its own; ``ca`` the path of the certificate that
    the servers' are signed by: if there is one, nothing is said without TLS; ``doors`` addresses of what lies elsewhere than
    the bus, if this process cannot use those that the controllers tell."""

    urls: tuple[str, ...]
    network: str = "main"
    credentials: str = ""
    authority: str = ""
    ca: str = ""
    doors: dict[str, str] = {}

    def write_local(self, data_dir: Path) -> None:
        """Leave this in an embedded network's data directory."""
        _write(data_dir / _LOCAL_FILE, msgspec.json.encode(self))

    @classmethod
    def read_local(cls, data_dir: Path) -> Context | None:
        """What an embedded network left in its data directory, if anything. Raises BadSettings for a damaged file."""
        try:
            return _read(data_dir / _LOCAL_FILE, cls)
        except BadSettings as error:
            if isinstance(error.__cause__, FileNotFoundError | NotADirectoryError):
                return None
            raise


class _Saved(msgspec.Struct):
    current: str = ""
    contexts: dict[str, Context] = {}


def config_home(env: Mapping[str, str]) -> Path:
    """The configuration folder: ``COMITY_CONFIG``, else ``comity`` in ``XDG_CONFIG_HOME`` or ``~/.config``."""
    if own := env.get("COMITY_CONFIG"):
        return Path(own).expanduser()
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path(env.get("HOME") or "~").expanduser() / ".config") / "comity"


class Contexts:
    """The contexts saved in ``folder``. Each change is written at once, whole (a new file renamed over the old)."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._saved = _read(self._path, _Saved) if self._path.is_file() else _Saved()

    @property
    def current(self) -> str:
        """Name of the context used when none is named, or ""."""
        return self._saved.current

    def names(self) -> list[str]:
        return sorted(self._saved.contexts)

    def get(self, name: str) -> Context:
        """Raises NotFound, naming those that exist."""
        try:
            return self._saved.contexts[name]
        except KeyError:
            known = ", ".join(self.names()) or "none"
            raise NotFound(f"no context {name!r}; saved: {known}", context=name) from None

    def put(self, name: str, context: Context) -> None:
        """Add or replace. The first one becomes the current one."""
        self._saved.contexts[check_token(name, "context")] = context
        self._saved.current = self._saved.current or name
        self._save()

    def remove(self, name: str) -> None:
        self.get(name)
        del self._saved.contexts[name]
        if self._saved.current == name:
            self._saved.current = ""
        self._save()

    def use(self, name: str) -> None:
        """Make ``name`` the current one; "" for none."""
        if name:
            self.get(name)
        self._saved.current = name
        self._save()

    def with_url(self, url: str) -> Context | None:
        """The first context that lists ``url``, by name."""
        return next((c for c in map(self.get, self.names()) if url in c.urls), None)

    def _save(self) -> None:
        _write(self._path, msgspec.json.format(msgspec.json.encode(self._saved), indent=2))


def resolve(loaded: Loaded, env: Mapping[str, str] | None = None) -> Context:
    """The connection meant by the settings: their urls or context (whichever is nearer to the caller), else the network
    of a data directory they name, else the current context, else the network in the default data directory.

    An address without credentials borrows those of a context that lists it. Raises NotFound (no such context),
    Unreachable (nothing says where a network is), BadSettings (an address and a context together, what cannot be an address, a
    damaged file).
    """
    settings, sources = loaded
    saved = Contexts(config_home(os.environ if env is None else env))
    local = Context.read_local(settings.data_dir)
    if local is not None and not local.urls:  # restored, and not started yet
        local = None
    found = _choose(loaded, saved, local)
    for url in found.urls:
        check_url(url)
    if settings.credentials:
        found = msgspec.structs.replace(found, credentials=str(settings.credentials), authority="")
    if settings.ca:
        found = msgspec.structs.replace(found, ca=str(settings.ca))
    if settings.doors:
        found = msgspec.structs.replace(found, doors={**found.doors, **settings.doors})
    return msgspec.structs.replace(found, network=settings.network) if sources["network"] != "default" else found


def check_url(url: str) -> str:
    """``url`` if a server can be there: ``nats://HOST:PORT``, ``tls://...``, ``HOST:PORT``, ``HOST``, or RabbitMQ's
    ``amqp://...``. Raises BadSettings."""
    if url.startswith(("amqp://", "amqps://")):
        RabbitMQ.parse(url)
        return url
    shown = re.sub(r"//[^/@]*@", "//...@", url)
    try:
        parts = urlsplit(url if "://" in url else f"nats://{url}")
        host, port = parts.hostname or "", parts.port  # a port out of range is a ValueError
        host.encode("idna")
    except ValueError as error:
        raise BadSettings(f"{shown!r} is not the address of a server: {error}", setting="urls", value=shown) from None
    why = ""
    if parts.scheme not in ("nats", "tls"):
        why = f"it begins with nats://, tls:// or amqp://, not {parts.scheme}://"
    elif not host or host.split() != [host]:
        why = "it names no host"
    elif port == 0:
        why = "there is no port 0"
    elif parts.path.strip("/") or parts.query or parts.fragment:
        why = "nothing follows the port"
    if why:
        raise BadSettings(f"{shown!r} is not the address of a server: {why}", setting="urls", value=shown)
    return url


def _choose(loaded: Loaded, saved: Contexts, local: Context | None) -> Context:
    settings, sources = loaded
    nearer = _distance(sources["urls"]) - _distance(sources["context"])
    if settings.urls and settings.context and nearer == 0:
        raise BadSettings("give an address or a context, not both", setting="urls", other="context")
    if settings.context and (not settings.urls or nearer > 0):
        is_local = settings.context == LOCAL and LOCAL not in saved.names()
        return local if is_local and local else saved.get(settings.context)
    if settings.urls:
        known = saved.with_url(settings.urls[0]) or (local if local and settings.urls[0] in local.urls else None)
        return msgspec.structs.replace(known or Context(urls=()), urls=settings.urls)
    if local and (sources["data_dir"] != "default" or not saved.current):
        return local
    if saved.current and _distance(sources["data_dir"]):
        return saved.get(saved.current)
    message = f"no network is known here (none has left word in {settings.data_dir})"
    raise Unreachable(f"{message}: start one with comity up, or name one with --connect or --context")


def _distance(source: str) -> int:
    """How far a value's source is from the caller: a flag, a variable, a file, the default."""
    if source == "default":
        return 3
    return 0 if source.startswith("--") else 1 if source.startswith("COMITY_") else 2


def _write(path: Path, data: bytes) -> None:
    """Replace a private file (mode 0600) so that a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file, durable("context.write"):
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    with durable("context.place"):
        fresh.replace(path)


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.DecodeError) as error:
        raise BadSettings(f"cannot read {path}: {error}", source=str(path)) from error
