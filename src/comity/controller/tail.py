"""What was known of the log before must still be there: a server that finds a damaged block cuts it at the damage, and nothing in
what is left tells that there was more. So whoever knows of a later entry (a snapshot, a mark beside the data) asks for it."""

from __future__ import annotations

import asyncio

from comity.errors import Corrupt
from comity.log.base import Item, Log
from comity.model.codec import unseal

LOOK_S = 0.05
UNREADABLE_S = 2.0
"""An entry that is said to be there, and for so long (or as long as the log may lag) does not come, cannot be read."""


async def read_on(log: Log, after: int) -> list[Item]:
    """What follows entry ``after``, which was known here before; nothing if it is the tail. Raises Corrupt if the log ends before
    it, or what follows cannot be read."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    last = after
    while not (items := await log.read(after)):
        waited_s = loop.time() - began
        if last > after and waited_s >= max(UNREADABLE_S, log.lag_s):
            raise Corrupt(f"log entry {after + 1} cannot be read", index=after + 1)
        _, last = await log.bounds()
        if last == after:
            break
        if last < after and waited_s >= log.lag_s:
            raise _lost(last, after, "what was read before, or a snapshot,")
        await asyncio.sleep(LOOK_S)  # that a replica has caught up cannot be awaited
    return items


async def must_hold(log: Log, index: int, digest: bytes, witness: str) -> None:
    """Raises Corrupt unless the log holds entry ``index``, of which ``witness`` tells, with that digest, or has trimmed it away
    (then a snapshot stands for it, or reading the log tells). 0: there was none."""
    loop = asyncio.get_running_loop()
    until = loop.time() + log.lag_s
    found: bytes | None = None
    last = index
    while index:
        first, last = await log.bounds()
        if index < first:
            return
        try:
            items = await log.read(index - 1, 1)
            found = unseal(items[0].data)[1] if items else None
        except Corrupt:
            if index < (await log.bounds())[0]:  # trimmed meanwhile
                return
            raise
        if found is not None or loop.time() >= until:
            break
        await asyncio.sleep(LOOK_S)
    if not index or found == digest:
        return
    if last < index:
        raise _lost(last, index, witness)
    said = "cannot be read" if found is None else "is another one"
    raise Corrupt(f"log entry {index} {said}, but {witness} tells of it", index=index)


def _lost(last: int, index: int, witness: str) -> Corrupt:
    return Corrupt(f"the log ends at entry {last}, but {witness} tells of entry {index}: its end is lost", index=index)
