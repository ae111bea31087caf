"""What a server remembers of its cluster, in ``data/cluster.json``: who it is there, where it listens, and who else there is.

Its presence is what makes a data directory a cluster's. JetStream does not take the streams of a single server over into a
cluster, so a network stays what it was born as.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import msgspec

from comity.cluster.config import HOST, Cluster
from comity.credentials import write_private
from comity.errors import Corrupt, ForeignData

FILE = "cluster.json"
FORMAT = 1


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One server of a cluster of ``size``. Addresses are HOST:PORT. ``tls``: as all its servers have it. ``others`` are the
    routes of those it has heard of, ``urls`` where clients find the servers, its own first."""

    cluster: str
    member: str
    size: int
    tls: bool
    host: str = HOST
    route_port: int = 0
    join_port: int = 0
    others: tuple[str, ...] = ()
    urls: tuple[str, ...] = ()
    format: int = FORMAT

    def save(self, data: Path) -> None:
        write_private(data / FILE, msgspec.json.format(msgspec.json.encode(self), indent=2).decode() + "\n")

    @classmethod
    def load(cls, data: Path) -> Member | None:
        """What ``data`` says; None if it is no cluster's. Raises Corrupt, ForeignData (a newer version's)."""
        path = data / FILE
        if not path.exists():
            return None
        try:
            found = msgspec.json.decode(path.read_bytes(), type=cls)
        except (OSError, msgspec.DecodeError) as error:
            raise Corrupt(f"{path} cannot be read: {error}", path=str(path)) from error
        if found.format != FORMAT:
            raise ForeignData(f"{path} has format {found.format}; this version reads {FORMAT}", path=str(path))
        return found

    def config(self) -> Cluster:
        return Cluster(self.cluster, self.member, self.size, self.route_port, self.others)


def new_name() -> str:
    """For a server: JetStream knows a replica by it, so no two ever have the same."""
    return f"s-{secrets.token_hex(4)}"


def must_be_new(data: Path) -> None:
    """Raises ForeignData if ``data`` belongs to a network already."""
    if (data / FILE).exists():
        raise ForeignData(f"{data} belongs to a cluster already; comity up goes on with it", path=str(data))
    if (data / "network.json").exists() or (data / "jetstream").exists():
        message = (
            f"{data} holds a network that was born as one server, and that cannot become one of a cluster: the servers do not "
            "take over its streams. Begin the cluster on an empty --data, and restore a backup of this network there"
        )
        raise ForeignData(message, path=str(data))
