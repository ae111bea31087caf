"""Who would not, or could not, begin a task lately: it goes to others first."""

from __future__ import annotations

from comity.model.ids import AgentId, TaskId
from comity.model.task import Attempt


class Refusals:
    """Remembers each for ``kept_ms``. Times are entry times."""

    def __init__(self, kept_ms: int) -> None:
        self.kept_ms = kept_ms
        self._until: dict[TaskId, dict[AgentId, int]] = {}

    def __len__(self) -> int:
        return len(self._until)

    def note(self, task: TaskId, attempt: Attempt) -> None:
        self._until.setdefault(task, {})[attempt.agent] = attempt.ended_at + self.kept_ms

    def forget(self, task: TaskId) -> None:
        self._until.pop(task, None)

    def clear(self) -> None:
        self._until.clear()

    def lately(self, task: TaskId, now_ms: int) -> tuple[AgentId, ...]:
        """Whom the task should avoid now."""
        noted = self._until.get(task)
        if noted is None:
            return ()
        lately = {agent: until for agent, until in noted.items() if until > now_ms}
        self._until[task] = lately
        if not lately:
            del self._until[task]
        return tuple(sorted(lately))
