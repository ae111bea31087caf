"""Finished tasks in the store: chunks of them, each written once, found by the index in replicated state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import msgspec

from comity.controller.sharing import Sharing
from comity.errors import Corrupt
from comity.model.ids import TaskId
from comity.model.task import Task
from comity.store.base import Store

NEAR = 2
"""Chunks kept at hand, as read."""
AT_ONCE = 2
AWAY_S = 10.0
"""For so long a store may be away: longer than its servers elect a leader, and shorter than whoever asks waits."""
_decode = msgspec.msgpack.Decoder(list[Task]).decode

encode_chunk = msgspec.msgpack.Encoder().encode


class Archive:
    """Reads chunks. Whoever asks for the task before the last often asks for the last one too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._near: OrderedDict[str, dict[TaskId, Task]] = OrderedDict()
        self._reads = Sharing(self._read, AT_ONCE, AWAY_S)

    async def chunk(self, key: str) -> dict[TaskId, Task]:
        """A chunk's tasks. Raises NotFound, Corrupt, and Indefinite errors."""
        known = self._near.get(key)
        if known is None:
            known = await self._reads.get(key)
        return known

    async def _read(self, key: str) -> dict[TaskId, Task]:
        try:
            tasks: Iterable[Task] = _decode(await self._store.read(key))
        except msgspec.MsgspecError as error:
            raise Corrupt(f"archive chunk {key} cannot be read: {error}") from error
        found = self._near[key] = {task.spec.id: task for task in tasks}
        if len(self._near) > NEAR:
            self._near.popitem(last=False)
        return found

    def end(self) -> None:
        self._reads.end()
