"""Where a reader of the log begins: at a snapshot, at nothing, or, in a restored network, at the state its first entry names."""

from __future__ import annotations

from collections.abc import AsyncGenerator

import structlog

from comity.controller.keeping import newest_snapshot
from comity.controller.snapshot import load
from comity.core.ledger import Ledger
from comity.core.tasks import Tasks
from comity.errors import Corrupt, ForeignData, NotFound
from comity.log.base import Item
from comity.model.codec import unseal
from comity.model.ids import NetworkId
from comity.model.task import Restored
from comity.store.base import Store

ORIGIN = "network/origin/"
"""What restored networks begin from; kept for good, for the first entry names it."""

Read = tuple[Tasks, Ledger]
_log = structlog.get_logger("comity.controller")


async def past(store: Store, network: NetworkId, index: int | None) -> Read:
    """State and ledger from the newest snapshot that can be read and lies at ``index`` or before (None: any); empty ones if
    there is none."""
    for key in await newest_snapshot(store, index):
        try:
            return await load(store.get(key), network)
        except (Corrupt, NotFound) as error:
            _log.error("a snapshot is damaged or gone; trying an older one", key=key, error=error.message)
    return Tasks(network), Ledger(network)


async def beginning(first: Item, store: Store, network: NetworkId) -> Read:
    """What the log's first entry continues. Raises Corrupt if that cannot be read."""
    try:
        entry, _ = unseal(first.data)
    except (Corrupt, ForeignData):  # whoever judges the entry says so, with its place
        return Tasks(network), Ledger(network)
    said = next((command for command in entry.commands if type(command) is Restored), None)
    if first.index != 1 or said is None:
        return Tasks(network), Ledger(network)
    key = said.base.key
    try:
        return await load(_same(store, said), network)
    except (Corrupt, NotFound) as error:
        message = f"what this network was restored from is damaged or gone ({key}): restore {said.backup} again"
        raise Corrupt(message, key=key) from error


async def _same(store: Store, said: Restored) -> AsyncGenerator[bytes, None]:
    """The base as it was when the entry was written."""
    for stored in await store.list(said.base.key):
        if stored.key == said.base.key and stored.digest != said.base.digest:
            raise Corrupt(f"{stored.key} is not what the log's first entry names", key=stored.key)
    async for chunk in store.get(said.base.key):
        yield chunk
