"""What waits for an agent: how many tasks, and how many bytes of input, together and of each submitter."""

from __future__ import annotations

from comity.model.ids import ProcessId
from comity.model.task import Payload, TaskSpec


class Backlog:
    """Invariant: ``by_submitter`` adds up to ``tasks`` and ``bytes``, and has nobody with none."""

    __slots__ = ("by_submitter", "bytes", "tasks")

    def __init__(self) -> None:
        self.tasks = 0
        self.bytes = 0
        self.by_submitter: dict[ProcessId, list[int]] = {}

    def of(self, submitter: ProcessId) -> tuple[int, int]:
        """Tasks and bytes of one submitter."""
        have = self.by_submitter.get(submitter)
        return (have[0], have[1]) if have is not None else (0, 0)

    def add(self, spec: TaskSpec) -> None:
        self._count(spec.submitter, 1, size(spec.input))

    def remove(self, spec: TaskSpec) -> None:
        self._count(spec.submitter, -1, -size(spec.input))

    def _count(self, submitter: ProcessId, tasks: int, size: int) -> None:
        self.tasks += tasks
        self.bytes += size
        have = self.by_submitter.get(submitter)
        if have is None:
            self.by_submitter[submitter] = [tasks, size]
            return
        have[0] += tasks
        have[1] += size
        if not have[0]:
            del self.by_submitter[submitter]


def size(payload: Payload) -> int:
    """Bytes, wherever they lie."""
    return len(payload) if type(payload) is bytes else payload.size  # type: ignore[union-attr]
