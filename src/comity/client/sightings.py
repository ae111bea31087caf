"""Agents that join and leave, told as messages to whoever listens to that in this process. Each process tells its own, from its
watched copy of the registry: nobody sends anything, and a process in which nobody listens does nothing."""

from __future__ import annotations

from collections.abc import Callable

from comity.directory import Directory, Seen
from comity.model.capability import AgentRecord
from comity.model.codec import to_json
from comity.model.envelope import Envelope, Performative
from comity.model.ids import ProcessId

TOPICS = {"joined": "agent.joined", "left": "agent.left"}


class Sightings:
    """``wall`` gives seconds since 1970."""

    def __init__(self, process: ProcessId, directory: Directory, wall: Callable[[], float]) -> None:
        self._process = process
        self._directory = directory
        self._wall = wall
        self._tell: Callable[[Envelope], None] | None = None
        self._told = 0

    def follow(self, tell: Callable[[Envelope], None]) -> None:
        """``tell`` of all that join or leave from now on; those here already have not joined. Idempotent."""
        if self._tell is None:
            self._tell = tell
            self._directory.watch(self._on_seen)
            self._directory.start()

    def _on_seen(self, changes: list[Seen]) -> None:
        if self._tell is None or not self._directory.is_loaded:
            return  # the first list: who is here already
        for what, record in changes:
            topic = TOPICS.get(what)
            if topic is not None and isinstance(record, AgentRecord):
                self._tell(self._envelope(topic, record))

    def _envelope(self, topic: str, agent: AgentRecord) -> Envelope:
        self._told += 1
        now_ms = int(self._wall() * 1000)
        about = {"agent": agent.id, "node": agent.node, "tags": agent.tags, "capabilities": [o.name for o in agent.offers]}
        return Envelope(
            id=f"{self._process}-{now_ms}-{self._told}", performative=Performative.INFORM, sender=self._process,
            topic=topic, sent_at=now_ms, body=to_json(about),
        )  # fmt: skip
