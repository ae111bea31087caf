"""When a server may give up its own copy of the log for what the others have, and how.

The copy's files are put aside while the server does not run; started again it gets everything from the log's leader. What it
has promised in the log's group (its term, its vote, entries it acknowledged) lies elsewhere and stays, so nothing acknowledged
can be lost by it. To have JetStream replace the copy is no way: with as many copies as servers it has nowhere else to put it,
and refuses (peer remap failed).
"""

from __future__ import annotations

import base64
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

from comity.cluster.replica import Flaw
from comity.cluster.status import STREAMS, SystemView
from comity.errors import NotFound
from comity.jetstream import JetStream
from comity.model.codec import is_intact

QUARANTINE = "quarantine"


class View(NamedTuple):
    """The log as its leader knows it. ``current``: the servers that are up to date in its group, the leader among them. Their
    copies may still be on the way there."""

    leader: str
    current: frozenset[str]
    first: int
    last: int


class Copies:
    """The copies of the log of ``network`` on ``size`` servers, as seen from ``member``, which has one."""

    def __init__(self, js: JetStream, system: SystemView, network: str, member: str, size: int) -> None:
        self._js = js
        self._system = system
        self._member = member
        self._size = size
        self.stream = stream_of(network)

    async def view(self) -> View:
        """Raises NotFound and Indefinite errors."""
        info = await self._js.api(f"STREAM.INFO.{self.stream}")
        cluster: dict[str, Any] = info.get("cluster") or {}
        state, leader = info["state"], str(cluster.get("leader", ""))
        current = {row["name"] for row in cluster.get("replicas") or () if row.get("current") and not row.get("offline")}
        known = frozenset(current | ({leader} if leader else set()))
        return View(leader, known, max(1, state["first_seq"]), state["last_seq"])

    async def holds(self, index: int) -> bool:
        """Whether the log's leader has entry ``index``, intact. Raises Indefinite errors."""
        try:
            answer = await self._js.api(f"STREAM.MSG.GET.{self.stream}", {"seq": index})
        except NotFound:
            return False
        return is_intact(base64.b64decode(answer["message"].get("data", "")))

    async def obstacle(self, flaw: Flaw, known: int) -> str:
        """Why the member's copy may not be given up; "" if it may: others lead the log, a majority has all of it without the
        member, up to entry ``known`` at least, and what is flawed here is intact there. Raises Indefinite errors."""
        view = await self.view()
        if view.leader in ("", self._member):
            return "no other server leads the log"
        held = await self._system.held(self.stream, self._size)
        whole = {name for name, copy in held.items() if copy.last >= known and not copy.gaps and name in view.current}
        if view.leader not in whole:
            return f"the copy of {view.leader}, which leads the log, has gaps, or ends before entry {known}"
        others, needed = len(whole - {self._member}), self._size // 2 + 1
        if others < needed:
            return f"only {others} of the other servers {'has' if others == 1 else 'have'} all of the log, and {needed} must"
        if view.first <= flaw.entry <= view.last and not await self.holds(flaw.entry):
            return f"{view.leader}, which leads the log, cannot read entry {flaw.entry} either"
        return ""


def stream_of(network: str) -> str:
    return f"CY_{network}_{STREAMS['log']}"


def quarantine(data: Path) -> Path:
    """Where a copy is put aside. Raises OSError if nothing can be written there."""
    (data / QUARANTINE).mkdir(mode=0o700, exist_ok=True)
    return data / QUARANTINE


def set_aside(copy: Path, data: Path) -> None:
    """Move the folder ``copy`` into the quarantine of ``data``, for whoever wants to look into it: the last one is kept. Its
    server must not be running. Raises OSError."""
    aside = quarantine(data)
    older = list(aside.iterdir())
    copy.rename(aside / f"{copy.name}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03d}")
    for path in older:
        shutil.rmtree(path)
