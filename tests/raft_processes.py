"""Members of a built-in Raft as processes, for tests."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path

from comity.cli.elsewhere import look_at_raft
from comity.cli.raft_keys import make_keys
from comity.cli.raft_looks import leader_of
from members import HOST, Members, free_port

CLUSTER = "main"


class Rafts(Members):
    """See Members. They have certificates."""

    def __init__(
        self, folder: Path, size: int = 3, *, hosts: Sequence[str] = (), within: Sequence[Sequence[str]] = ()
    ) -> None:
        super().__init__(folder, size, hosts=hosts, within=within)
        self.ports = [free_port(HOST) for _ in range(size)]
        at = [f"{host}:{port}" for host, port in zip(self.hosts, self.ports, strict=True)]
        self._members = {f"m{n}": address for n, address in enumerate(at)}
        make_keys(folder / "keys", CLUSTER, self._members)
        mine = folder / "keys" / "controller"
        self.address = f"rafts://{','.join(at)}/{CLUSTER}?ca={mine}/ca.pem&cert={mine}/cert.pem&key={mine}/key.pem"

    def _words(self, n: int) -> list[str]:
        members = ",".join(f"{id}={address}" for id, address in self._members.items())
        return [
            sys.executable, "-m", "comity", "raft", "serve", str(self._folder / f"m{n}"), "--id", f"m{n}",
            "--cluster", CLUSTER, "--members", members, "--keys", str(self._folder / "keys" / f"m{n}"), "-o", "json",
        ]  # fmt: skip

    async def _is_ready(self, n: int) -> bool:
        try:
            _, writer = await asyncio.open_connection(self.hosts[n], self.ports[n])
        except OSError:
            return False
        writer.close()
        return True

    async def leader(self) -> int:
        """The number of the member that leads. Raises AssertionError if none does."""
        rows, hidden = await look_at_raft({"log": self.address}, CLUSTER)
        leader = leader_of(rows)
        assert leader and not hidden, "nobody leads"
        return int(leader.removeprefix("m"))

    async def end_leases(self) -> int:
        """It has none."""
        return 0
