"""When a server may give up its own copy of a stream for what the others have, and how.

The copy's files are put aside while the server does not run; started again it gets everything from the stream's leader. What it
has promised in the stream's group (its term, its vote, entries it acknowledged) lies elsewhere and stays, so nothing acknowledged
can be lost by it. Only if the group itself took the loss for right (a snapshot of it was written meanwhile) are its entries put
aside too, never its term and vote: then a majority of the others must have them all.

To have JetStream replace the copy is no way: with as many copies as servers it has nowhere else to put it, and refuses (peer
remap failed).
"""

from __future__ import annotations

import base64
import re
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from comity.cluster.replica import Copy, Flaw, Listed, Pace, compare, look
from comity.cluster.status import STREAMS, SystemView
from comity.errors import NotFound, Unreachable
from comity.jetstream import Cursor, JetStream, Row
from comity.model.codec import digest, is_intact

QUARANTINE = "quarantine"
TRIES = 16
"""A list comes from a server that JetStream chooses: so often it may be our own."""
ROWS = 64
"""Taken in without giving way, of a list."""
MATTER = (
    "Comity-Digest", "Comity-Size", "Comity-Chunks", "Comity-Gone", "Nats-TTL", "Nats-Marker-Reason",
)  # fmt: skip
"""Headers of a message that say what it is, and how long."""
_SECONDS = re.compile(r"(\d+)s")


class View(NamedTuple):
    """The stream as its leader knows it. ``current``: the servers that are up to date in its group, the leader among them. Their
    copies may still be on the way there. ``group``: where a server keeps that."""

    leader: str
    current: frozenset[str]
    first: int
    last: int
    group: str = ""


class Copies:
    """The copies of the ``door`` (log, registry, store) of ``network`` on ``size`` servers, as seen from ``member``, which has
    one. ``head``: how far another's copy reached when the member's was compared with it."""

    def __init__(self, js: JetStream, system: SystemView, network: str, member: str, size: int, door: str = "log") -> None:
        self._js = js
        self._system = system
        self._member = member
        self._size = size
        self._door = door
        self._subjects = f"cy.{network}.{STREAMS[door].lower()}.>"
        self.stream = stream_of(network, door)
        self.head = 0

    async def view(self) -> View:
        """Raises NotFound and Indefinite errors."""
        info = await self._js.api(f"STREAM.INFO.{self.stream}")
        cluster: dict[str, Any] = info.get("cluster") or {}
        state, leader = info["state"], str(cluster.get("leader", ""))
        current = {row["name"] for row in cluster.get("replicas") or () if row.get("current") and not row.get("offline")}
        known = frozenset(current | ({leader} if leader else set()))
        return View(leader, known, max(1, state["first_seq"]), state["last_seq"], str(cluster.get("raft_group", "")))

    async def look(self, folder: Path, first: int, pace: Pace) -> Copy:
        """Look through the member's own copy, in ``folder``. Raises Indefinite errors, NotFound, FileNotFoundError."""
        if self._door == "log":
            return await look(folder, first, pace)
        listed = await self._listed(pace)
        found = await compare(folder, listed, time.time(), pace)
        self.head = max(listed, default=0)
        return found

    async def _listed(self, pace: Pace) -> dict[int, Listed]:
        """What the copy of another server has; whose turns with the others'. The registry is small and read as a whole."""
        for _ in range(TRIES):
            cursor = Cursor(self._js, self.stream, self._subjects, headers_only=self._door == "store")
            found: dict[int, Listed] = {}
            try:
                while (rows := await cursor.fetch(ROWS)) and cursor.server != self._member:
                    found |= {row.seq: _listed(row, is_whole=self._door != "store") for row in rows}
                    await pace(sum(len(row.data) for row in rows))
                if cursor.server not in ("", self._member):
                    last = {told.subject: entry for entry, told in found.items()}  # some were replaced as they were read
                    return {entry: found[entry] for entry in last.values()}
            finally:
                await cursor.close()
        raise Unreachable(f"no other server shows what it has of {self.stream}")

    async def holds(self, index: int) -> bool:
        """Whether the stream's leader has entry ``index``, intact. Raises Indefinite errors."""
        try:
            answer = await self._js.api(f"STREAM.MSG.GET.{self.stream}", {"seq": index})
        except NotFound:
            return False
        return self._door != "log" or is_intact(base64.b64decode(answer["message"].get("data", "")))

    async def obstacle(self, flaw: Flaw, known: int, broken: Iterable[str] = (), *, strictly: bool = False) -> str:
        """Why the member's copy may not be given up; "" if it may: others lead the stream, a majority has all of it without the
        member, up to entry ``known`` at least, and what is flawed here is intact there. ``broken``: others whose copies are
        damaged too. They are mended one after the other: then one whole copy is enough, if all servers are there (but not
        ``strictly``). Raises Indefinite errors."""
        view, broken = await self.view(), {*broken}
        if view.leader in ("", self._member):
            return f"no other server leads the {self._door}"
        held = await self._system.held(self.stream, self._size)
        fewest = min((copy.last - copy.entries for copy in held.values()), default=0)
        for name, copy in held.items():
            if copy.gaps if self._door == "log" else copy.last - copy.entries > fewest:
                broken.add(name)
        reaching = {name for name, copy in held.items() if copy.last >= known and name in view.current}
        whole, broken = reaching - broken, broken - {self._member}
        if view.leader not in whole:
            return f"the copy of {view.leader}, which leads the {self._door}, has gaps, or ends before entry {known}"
        others, needed = len(whole - {self._member}), self._size // 2 + 1
        are_all_there = len(view.current & (whole | broken | {self._member})) == self._size
        is_our_turn = are_all_there and self._member < min(broken, default="") and not strictly
        if others < needed and not is_our_turn:
            have = f"{others} of the other servers {'has' if others == 1 else 'have'}"
            return f"only {have} all of the {self._door}, and {needed} must"
        if view.first <= flaw.entry <= view.last and not await self.holds(flaw.entry):
            return f"{view.leader}, which leads the {self._door}, cannot read entry {flaw.entry} either"
        return ""


def _listed(row: Row, *, is_whole: bool) -> Listed:
    headers = row.headers or {}
    lifetime = _SECONDS.fullmatch(headers.get("Nats-TTL", ""))
    ends_at = row.time_ns / 1e9 + int(lifetime[1]) if lifetime else float("inf")
    mark = digest(row.data) if is_whole else None
    if not is_whole and "Comity-Chunks" not in headers and "Comity-Digest" in headers:
        mark = bytes.fromhex(headers["Comity-Digest"])
    kept = {name: headers[name].strip() for name in MATTER if name in headers}
    return Listed(row.subject.encode(), row.time_ns, kept, mark, ends_at)


def stream_of(network: str, door: str = "log") -> str:
    return f"CY_{network}_{STREAMS[door]}"


def quarantine(data: Path) -> Path:
    """Where a copy is put aside. Raises OSError if nothing can be written there."""
    (data / QUARANTINE).mkdir(mode=0o700, exist_ok=True)
    return data / QUARANTINE


def set_aside(copy: Path, data: Path, group: Path | None = None) -> None:
    """Move the folder ``copy`` into the quarantine of ``data``, for whoever wants to look into it: the last one of each stream is
    kept; and what its ``group`` says of entries. Its server must not be running. Raises OSError."""
    aside = quarantine(data)
    older = list(aside.glob(f"{copy.name}-*"))
    kept = copy.rename(aside / f"{copy.name}-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03d}")
    for path in older:
        shutil.rmtree(path)
    for part in ("msgs", "snapshots") if group is not None else ():
        if group is not None and (group / part).exists():
            (group / part).rename(kept / f"group-{part}")
