"""``comity.connect``: from a name or an address to a client. The one place beside the command line that chooses
backends.

Nothing heavy is imported until somebody connects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from comity.errors import BadSettings, NotFound, Unreachable

if TYPE_CHECKING:
    import os

    from comity.bus.nats import NatsBus
    from comity.client import Client
    from comity.config import Loaded, Settings
    from comity.contexts import Context
    from comity.credentials import Credentials, Role
    from comity.registry.jetstream import JetStreamRegistry
    from comity.store.jetstream import JetStreamStore

__all__ = ["connect"]


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
    else none. Raises NotFound, Corrupt, BadInput, BadSettings."""
    import secrets
    from dataclasses import replace
    from pathlib import Path

    from comity.credentials import Authority, Credentials

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
    if process not in ("", credentials.process):
        raise BadSettings(f"{context.credentials} is for process {credentials.process!r}, not {process!r}", setting="name")
    return credentials.process, credentials


class Doors(NamedTuple):
    """A process's way to the network: connected, and closed by whoever opened them."""

    bus: NatsBus
    registry: JetStreamRegistry
    store: JetStreamStore


async def doors(stack: AsyncExitStack, context: Context, process: str, known: Credentials | None) -> Doors:
    """Connect ``process``; ``stack`` closes the doors. Raises Unreachable, AccessDenied, BadSettings."""
    from comity.bus.nats import NatsBus
    from comity.registry.jetstream import JetStreamRegistry
    from comity.store.jetstream import JetStreamStore

    options = known.connect_options() if known is not None else {}
    bus = await NatsBus.connect(context.urls, process=process, network=context.network, options=options)
    stack.push_async_callback(bus.close)
    try:
        registry = await JetStreamRegistry.open(bus.connection, context.network, create=False)
        stack.push_async_callback(registry.close)
        store = await JetStreamStore.open(bus.connection, context.network, create=False)
        stack.push_async_callback(store.close)
    except NotFound as error:
        where = ", ".join(context.urls)
        message = f"{where} answers, but holds no network {context.network!r}: is its controller up?"
        raise Unreachable(message) from error
    return Doors(bus, registry, store)


async def _open(stack: AsyncExitStack, context: Context, settings: Settings) -> Client:
    import random
    import time

    import msgspec

    from comity.client import Client

    bus, registry, store = await doors(stack, context, *identity(context))
    settings = msgspec.structs.replace(settings, network=context.network)
    client = Client(bus, registry, store, settings, wall=time.time, rng=random.SystemRandom())
    stack.push_async_callback(client.close)
    await client.open()
    return client
