"""``comity.connect``: from a name or an address to a client. The one place beside the command line that chooses
backends.

Nothing heavy is imported until somebody connects.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from comity.errors import BadSettings, NotFound, Unreachable

if TYPE_CHECKING:
    import os

    from comity.client import Client
    from comity.config import Loaded, Settings
    from comity.contexts import Context
    from comity.credentials import Credentials

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


def identity(context: Context) -> tuple[str, Credentials | None]:
    """Who this process is by a context, and by what it proves it: credentials of its own, minted with the keys of a
    network on this machine; else those of the context's file; else none. Raises NotFound, Corrupt, BadInput,
    BadSettings."""
    import secrets
    from dataclasses import replace
    from pathlib import Path

    from comity.credentials import Authority, Credentials

    process = f"client-{secrets.token_hex(6)}"
    if context.authority:
        authority = replace(Authority.load(Path(context.authority)), network=context.network)
        return process, authority.mint("client", process)
    if not context.credentials:
        return process, None
    credentials = Credentials.load(Path(context.credentials))
    if credentials.network not in ("", context.network):
        raise BadSettings(
            f"{context.credentials} is for network {credentials.network!r}, not {context.network!r}", setting="network"
        )
    return credentials.process, credentials


async def _open(stack: AsyncExitStack, context: Context, settings: Settings) -> Client:
    import random
    import time

    import msgspec

    from comity.bus.nats import NatsBus
    from comity.client import Client
    from comity.registry.jetstream import JetStreamRegistry
    from comity.store.jetstream import JetStreamStore

    process, known = identity(context)
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
        raise Unreachable(
            f"{where} answers, but holds no network {context.network!r}: is its controller up?"
        ) from error
    settings = msgspec.structs.replace(settings, network=context.network)
    client = Client(bus, registry, store, settings, wall=time.time, rng=random.SystemRandom())
    stack.push_async_callback(client.close)
    await client.open()
    return client
