"""What a controller does about an entry that it cannot read, where the log has several copies: one of them may be damaged, and
the others intact. It asks every server to look through its own copy, waits for the damaged one to be rebuilt, and reads again.
What cannot be read for ``MENDS_S`` is lost, and ends the controller, as at once where there is one copy.

Nothing is taken for granted meanwhile: an entry counts only if its checksum and its parent fit.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
import structlog

from comity.errors import Corrupt
from comity.model.codec import UNREADABLE, to_json
from comity.model.wire import Ask

DOUBT = "doubt"
MENDS_S = 60.0
LOOK_S = 0.5

_log = structlog.get_logger("comity.controller")
T = TypeVar("T")


def question(index: int) -> Ask:
    """To every controller: entry ``index`` cannot be read (0: something else than the log)."""
    return Ask(0, DOUBT, to_json({"index": index}))


class _Named(msgspec.Struct):
    index: int = 0


def doubted(args: bytes) -> int:
    """The entry that such a question names; 0: none."""
    try:
        return msgspec.json.decode(args, type=_Named).index
    except UNREADABLE:
        return 0


class Doubt:
    """``ask`` has all servers look for the damage. ``copies``: how many there are, or any number above 1."""

    def __init__(self, ask: Callable[[int], None], copies: int) -> None:
        self.ask = ask
        self._patience_s = MENDS_S if copies > 1 else 0.0

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do ``work`` until it can read what it needs. Raises Corrupt once that is known to be lost."""
        time = asyncio.get_running_loop().time
        began, index = time(), -1
        while True:
            try:
                return await work()
            except Corrupt as error:
                at = int(error.details.get("index", 0))
                is_new = at > index
                if is_new:
                    began, index = time(), at
                if time() - began >= self._patience_s:
                    raise
                if is_new:
                    _log.error("the log cannot be read; waiting for its copy to be rebuilt", index=at, error=error.message)
            self.ask(index)
            await asyncio.sleep(LOOK_S)  # that another server has mended its copy cannot be awaited
