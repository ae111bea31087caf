"""Nodes as scheduling sees them, and how their agents learn what became of them: ``AT_ONCE`` at a time, for a node may host fifty
thousand. Until then whoever chooses looks at the node itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from comity.core.pools import Candidate, Host
from comity.model.ids import ProcessId

AT_ONCE = 1024


class Hosts:
    """Invariant: a node is known while it is eligible or has agents. ``_behind``: nodes with agents that have more to learn."""

    def __init__(self) -> None:
        self._hosts: dict[ProcessId, Host] = {}
        self._behind: dict[Host, None] = {}

    def __getitem__(self, node: ProcessId) -> Host:
        return self._hosts[node]

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def get(self, node: ProcessId) -> Host | None:
        return self._hosts.get(node)

    def enter(self, candidate: Candidate, node: ProcessId) -> None:
        """The agent is on ``node``."""
        host = candidate.host = self._hosts.get(node) or self._hosts.setdefault(node, Host(node))
        host.candidates[candidate] = None

    def leave(self, candidate: Candidate, node: ProcessId) -> None:
        host = self._hosts[node]
        del host.candidates[candidate]
        self._keep(host)

    def now(self, node: ProcessId, eligible: bool, free: float | None) -> Collection[Candidate]:
        """What a node is now (``free`` None: as before), and which of its agents are to learn it at once."""
        host = self._hosts.get(node)
        if host is None:
            if not eligible:
                return ()
            host = self._hosts[node] = Host(node)
        free = host.free if free is None else free
        if (eligible, free) == (host.eligible, host.free):
            return ()
        host.eligible, host.free = eligible, free
        host.behind = list(host.candidates)
        host.behind.reverse()
        self._behind[host] = None
        part = self._part(host)
        self._keep(host)
        return part

    def more(self) -> Collection[Candidate]:
        """The next agents that are to learn what their node is; none if all know."""
        host = next(iter(self._behind), None)
        return self._part(host) if host is not None else ()

    @property
    def is_behind(self) -> bool:
        """Whether there are ``more``."""
        return bool(self._behind)

    def _part(self, host: Host) -> list[Candidate]:
        part = host.behind[-AT_ONCE:]
        del host.behind[-AT_ONCE:]
        if not host.behind:
            del self._behind[host]
        return [candidate for candidate in reversed(part) if candidate.host is host]

    def _keep(self, host: Host) -> None:
        if not host.candidates and not host.eligible:
            self._hosts.pop(host.id, None)
            self._behind.pop(host, None)

    def check(self) -> None:
        """Raise AssertionError if an invariant is broken."""
        for node, host in self._hosts.items():
            assert host.id == node and (host.eligible or host.candidates)
            assert bool(host.behind) == (host in self._behind)
            behind = dict.fromkeys(host.behind)
            for candidate in host.candidates:
                assert candidate.host is host
                assert candidate in behind or candidate.free == host.free
