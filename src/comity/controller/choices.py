"""Why agents were chosen, for those who ask: the latest choices whole, with candidates and scores, more of them in brief."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import msgspec

from comity.core.scheduling import Scheduling
from comity.core.waiting import Demand
from comity.model.codec import from_json
from comity.model.ids import AgentId, TaskId
from comity.model.task import TaskSpec

KEPT = 100_000
WHOLE_KEPT = 5_000
WHOLE_PER_PULSE = 50
"""Explaining costs as much as a dozen choices: under load most are kept in brief."""


class Brief(msgspec.Struct, gc=False):
    epoch: int
    agent: AgentId
    load: int
    candidates_live: int


class Choices:
    def __init__(self, scheduling: Scheduling) -> None:
        self._scheduling = scheduling
        self._brief: OrderedDict[TaskId, Brief] = OrderedDict()
        self._whole: OrderedDict[TaskId, bytes] = OrderedDict()
        self._explained = 0

    def pulse(self) -> None:
        """A few times a second."""
        self._explained = 0

    def note(self, task: TaskId, token: int, agent: AgentId, why: Demand | TaskSpec) -> None:
        """``agent`` was chosen for ``task`` and has the slot already."""
        scheduling = self._scheduling
        brief = Brief(token, agent, scheduling.load(agent), scheduling.live(why.capability))
        _keep(self._brief, task, brief, KEPT)
        self._whole.pop(task, None)
        if self._explained < WHOLE_PER_PULSE:
            self._explained += 1
            needs = why.needs if isinstance(why, Demand) else why.requirements
            avoid = why.avoid if isinstance(why, Demand) else ()
            told = scheduling.explain(why.capability, needs, why.strategy, avoid)
            _keep(self._whole, task, msgspec.json.encode(told), WHOLE_KEPT)

    def of(self, task: TaskId) -> dict[str, Any] | None:
        """What is known of the latest choice for ``task``."""
        brief = self._brief.get(task)
        if brief is None:
            return None
        whole = self._whole.get(task)
        return {**(from_json(whole) if whole is not None else {}), **msgspec.structs.asdict(brief), "choice": brief.agent}


def _keep(kept: OrderedDict[TaskId, Any], task: TaskId, value: Any, most: int) -> None:
    kept[task] = value
    kept.move_to_end(task)
    if len(kept) > most:
        kept.popitem(last=False)
