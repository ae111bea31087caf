"""Dead letters: failed tasks, kept to be looked at and replayed.

Replicated state holds an index of them, a few hundred bytes each; the leader drops the oldest beyond a limit. Their bodies are
the tasks themselves: in replicated state until these go to the archive, then in store objects of their own, so that they may
outlive the archive. An object goes when none of its letters is left.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from comity.model.ids import TaskId
from comity.model.task import Task, TaskState

MESSAGE_KEPT = 200


class Dead(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """One dead letter. ``key``: the store object that holds its task, "" while replicated state does."""

    id: TaskId
    capability: str
    code: str
    message: str
    failed_ms: int
    attempts: int
    key: str = ""


class DeadLetters(msgspec.Struct):
    """All of them, oldest first. Invariant: ``objects`` counts the letters in each store object."""

    letters: dict[TaskId, Dead] = {}
    objects: dict[str, int] = {}

    def put(self, letter: Dead) -> None:
        self.letters[letter.id] = letter
        if letter.key:
            self.objects[letter.key] = self.objects.get(letter.key, 0) + 1

    def add(self, task: Task) -> None:
        """``task`` has failed."""
        failure, spec = task.failure, task.spec
        code, message = (failure.code, failure.message[:MESSAGE_KEPT]) if failure is not None else ("", "")
        self.put(Dead(spec.id, spec.capability, code, message, task.finished_at, len(task.past)))

    def archived(self, ids: Iterable[TaskId], key: str) -> None:
        """Those among ``ids`` are in the store object ``key`` now; without one nothing is left of them."""
        for task_id in ids:
            letter = self.letters.get(task_id)
            if letter is not None and not key:
                del self.letters[task_id]
            elif letter is not None:
                self.put(msgspec.structs.replace(letter, key=key))

    def remove(self, task_id: TaskId) -> tuple[Dead | None, str]:
        """The letter that was there, if one was, and the store object that nobody needs any more ("": none)."""
        letter = self.letters.pop(task_id, None)
        if letter is None or not letter.key:
            return letter, ""
        self.objects[letter.key] -= 1
        if self.objects[letter.key]:
            return letter, ""
        del self.objects[letter.key]
        return letter, letter.key

    def check(self, tasks: dict[TaskId, Task]) -> None:
        """Raise AssertionError if an invariant is broken."""
        counted: dict[str, int] = {}
        for task_id, letter in self.letters.items():
            task = tasks.get(task_id)
            if (letter.key == "") != (task is not None) or (task is not None and task.state is not TaskState.FAILED):
                raise AssertionError(f"dead letter {task_id}: its task is failed, and here or in the store")
            if letter.key:
                counted[letter.key] = counted.get(letter.key, 0) + 1
        if counted != self.objects:
            raise AssertionError("dead letters: objects count what is in them")
