"""``comity.connect``: from a name or an address to a client. The one place beside the command line that chooses
backends.

Nothing heavy is imported until somebody connects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from comity.errors import BadSettings, Indefinite, NotFound, Unreachable

if TYPE_CHECKING:
    import os

    from comity.bus.base import Bus
    from comity.client import Client
    from comity.config import Loaded, Settings
    from comity.contexts import Context
    from comity.credentials import Credentials, Role
    from comity.registry.base import Registry
    from comity.store.base import Store

__all__ = ["connect"]

ELECTION_S = 12.0
T = TypeVar("T")


@asynccontextmanager
async def connect(
    url: str | None = None,
    *,
    context: str | None = None,
    credentials: str | os.PathLike[str] | None = None,
    network: str | None = None,
    settings: Loaded | None = None,
) -> AsyncIterator[Client]:
    """A client of a network: ``async with comity.connect() as net: ...``

    ``url``: a server's address, or several with commas; ``context``: a saved connection (``comity context``); neither:
    what the settings say, else the current context, else the network that runs from the default data directory.
    ``credentials``: a creds file. ``settings``: read already, in place of all the others. Raises Unreachable (no server
    answers, or no network is known), AccessDenied, BadSettings, NotFound.
    """
    from comity.config import Settings
    from comity.contexts import resolve

    given = {"urls": url, "context": context, "credentials": credentials, "network": network}
    loaded = settings or Settings.load({name: value for name, value in given.items() if value})
    async with AsyncExitStack() as stack:
        yield await _open(stack, resolve(loaded), loaded.settings)


def identity(context: Context, role: Role = "client", process: str = "") -> tuple[str, Credentials | None]:
    """Who this process is by a context, and by what it proves it: credentials of its own for ``process`` (default: a new
    name), minted with the keys of a network on this machine; else those of the context's file, which name the process;
    else none. On RabbitMQ the address says it. Raises NotFound, Corrupt, BadInput, BadSettings."""
    import secrets
    from dataclasses import replace
    from pathlib import Path

    from comity.buses import own_name
    from comity.credentials import Authority, Credentials

    if own := own_name(context, process):
        return own, None
    name = process or f"{role}-{secrets.token_hex(6)}"
    if context.authority:
        authority = replace(Authority.load(Path(context.authority)), network=context.network)
        return name, authority.mint(role, name)
    if not context.credentials:
        return name, None
    credentials = Credentials.load(Path(context.credentials))
    if credentials.network not in ("", context.network):
        raise BadSettings(
            f"{context.credentials} is for network {credentials.network!r}, not {context.network!r}", setting="network"
        )
    if not credentials.role:  # not made by us: they name an account's user, who may run many processes
        return name, credentials
    if credentials.role == "node" and role != "node":
        message = f"{context.credentials} is a node's, and two processes of one name would get one another's messages"
        raise BadSettings(f"{message}: for this, comity context invite NAME --role client", setting="credentials")
    if process not in ("", credentials.process):
        raise BadSettings(f"{context.credentials} is for process {credentials.process!r}, not {process!r}", setting="name")
    return credentials.process, credentials


def secured(options: Mapping[str, Any], ca: str | os.PathLike[str] | None) -> dict[str, Any]:
    """``options`` of a connection, which with ``ca`` (a PEM file) is made by TLS only, to servers it vouches for. Raises
    BadSettings."""
    import ssl

    if not ca:
        return dict(options)
    try:
        return {**options, "tls": ssl.create_default_context(cafile=ca)}
    except OSError as error:  # ssl's own errors are some
        raise BadSettings(f"{ca} is not a certificate that can be used: {error}", setting="ca") from error


class Doors(NamedTuple):
    """A process's way to the network: connected, and closed by whoever opened them. ``places``: addresses of what lies elsewhere
    than the bus."""

    bus: Bus
    registry: Registry
    store: Store
    places: dict[str, str]


async def lasting(bus: Bus, work: Callable[[], Awaitable[T]]) -> T:
    """Do what servers refuse while they elect a leader, and what a broken connection ends: both are over within seconds."""
    from comity.bus.base import Link
    from comity.patience import patiently

    return await patiently(work, ELECTION_S, hopeless=lambda: bus.link is Link.CLOSED)


async def doors(stack: AsyncExitStack, context: Context, process: str, known: Credentials | None) -> Doors:
    """Connect ``process``; ``stack`` closes the doors. Where they are the context says, or a controller. Raises Unreachable,
    AccessDenied, BadSettings."""
    from comity.backends import told
    from comity.buses import open_bus
    from comity.model.ids import shown_urls

    bus = await open_bus(context, process, known)
    stack.push_async_callback(bus.close)

    async def where_told() -> Doors:
        return await _beside(stack, bus, context.network, process, {**await told(bus), **context.doors})

    try:
        try:
            return await _beside(stack, bus, context.network, process, context.doors)
        except (NotFound, Indefinite):  # not there, or not yet; nor may a controller be that tells
            return await lasting(bus, where_told)
    except NotFound as error:
        message = f"{shown_urls(context.urls)} answers, but holds no network {context.network!r}: is its controller up?"
        raise Unreachable(message) from error


async def _beside(
    stack: AsyncExitStack, bus: Bus, network: str, process: str, places: Mapping[str, str]
) -> Doors:
    """The other doors: those that lie at ``places``, else those beside the bus. Raises NotFound if there is no such network."""
    from comity.backends import Elsewhere
    from comity.buses import streams
    from comity.registry.jetstream import JetStreamRegistry
    from comity.store.jetstream import JetStreamStore

    async with AsyncExitStack() as opened:
        elsewhere = Elsewhere(opened, places)
        if elsewhere.has("registry"):
            registry: Registry = await elsewhere.registry(network, create=False)
        else:
            registry = await JetStreamRegistry.open(streams(bus), network, create=False)
            opened.push_async_callback(registry.close)
        if elsewhere.has("store"):
            store: Store = await elsewhere.store(network, process)
        else:
            store = await JetStreamStore.open(streams(bus), network, create=False)
            opened.push_async_callback(store.close)
        stack.push_async_callback(opened.pop_all().aclose)
    return Doors(bus, registry, store, dict(places))


async def _open(stack: AsyncExitStack, context: Context, settings: Settings) -> Client:
    import random
    import time

    import msgspec

    from comity.client import Client

    bus, registry, store, _ = await doors(stack, context, *identity(context))
    settings = msgspec.structs.replace(settings, network=context.network)
    client = Client(bus, registry, store, settings, wall=time.time, rng=random.SystemRandom())
    stack.push_async_callback(client.close)
    await client.open()
    return client
