"""What ``comity cluster status`` and ``comity doctor`` find of doors that lie elsewhere than the bus: the servers of
etcd and Consul, the members of a built-in Raft, and a bucket, as each is now."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from comity.cli.doctor import Finding
    from comity.cluster.status import Group, Server
    from comity.remote.endpoints import Endpoint

LARGE = 1 << 30
"""Bytes of an etcd's database: half of what it has by default."""


class Found(NamedTuple):
    servers: list[Server]
    groups: list[Group]
    notes: list[str]
    raft: list[dict[str, Any]]
    """The members of a built-in Raft: see ``raft_looks.rows``."""


class Seen(NamedTuple):
    """One server of ``kind``; or ``endpoint`` None and why it, or its whole cluster, cannot be seen."""

    kind: str
    address: str
    endpoint: Endpoint | None
    said: str = ""


async def look(places: Mapping[str, str]) -> list[Seen]:
    """How each server at ``places`` is."""
    from comity.backends import Elsewhere, public
    from comity.errors import ComityError

    found: list[Seen] = []
    async with AsyncExitStack() as stack:
        elsewhere = Elsewhere(stack, places)
        for address in elsewhere.addresses("etcd", "etcds", "consul", "consuls"):
            kind = "consul" if address.startswith("consul") else "etcd"
            try:
                if kind == "consul":
                    seen = await (await elsewhere.consul(address)).survey()
                    missing = 0
                else:
                    etcd = await elsewhere.etcd(address)
                    seen = await etcd.survey()
                    missing = await etcd.members() - len(seen)
            except ComityError as error:
                found.append(Seen(kind, public(address), None, error.message))
                continue
            found += [Seen(kind, urlsplit(endpoint.url).netloc, endpoint) for endpoint in seen]
            if missing > 0:
                found.append(Seen(kind, "", None, f"{missing} more of its servers are not named in {public(address)}"))
    return found


async def look_at_raft(places: Mapping[str, str], network: str) -> tuple[list[dict[str, Any]], str]:
    """How each member is, if the log at ``places`` is a built-in Raft; or why they cannot be asked. Raises BadSettings."""
    from comity.backends import members
    from comity.cli.raft_looks import rows
    from comity.raft.survey import survey as ask

    address = places.get("log", "")
    if not address.startswith("raft"):
        return [], ""
    if address.startswith("rafts://") and "cert=" not in address:  # so controllers tell of it, who keep their keys to themselves
        return [], f"the members at {address} are not to be asked without a certificate"
    return rows(await ask(*members(address, network))), ""


async def survey(places: Mapping[str, str], network: str) -> Found:
    """For ``comity cluster status``."""
    from comity.cli import raft_looks
    from comity.cluster.status import Group, Replica, Server

    servers, replicas, notes, leader = [], [], [], ""
    for kind, address, endpoint, said in await look(places):
        if endpoint is None:
            notes.append(f"{kind}: {said}")
            continue
        up = not endpoint.fault
        servers.append(Server(f"{kind} {endpoint.member or '?'}", address, endpoint.version, up=up))
        notes += [f"{address}: {said}" for said in (endpoint.fault, *endpoint.alarms) if said]
        if kind == "etcd":
            replicas.append(Replica(address, current=up, up=up))
            leader = address if endpoint.leads else leader
    named = [name for name, address in places.items() if address.startswith("etcd")]
    groups = [Group(", ".join(named), leader, tuple(replicas))] if replicas else []
    raft, hidden = await look_at_raft(places, network)
    groups += [raft_looks.group(raft)] if raft else []
    notes += [hidden] if hidden else [f"raft {row['id']}: {row['fault']}" for row in raft if row["fault"]]
    return Found(servers, groups, notes, raft)


async def findings(places: Mapping[str, str], network: str) -> list[Finding]:
    """For ``comity doctor``."""
    from comity.cli import raft_looks
    from comity.cli.doctor import Finding

    found = []
    for kind, address, endpoint, said in await look(places):
        if endpoint is None:
            found.append(Finding(kind, "note", said, "name all, so that each can be left for another"))
        else:
            found.append(Finding(kind, *_verdict(kind, address, endpoint)))
    if places.get("store", "").startswith("s3://"):
        found.append(Finding("s3", *await _bucket(places, network)))
    raft, hidden = await look_at_raft(places, network)
    found += [Finding("raft", "note", hidden, "name the log with its keys in the settings (doors)")] if hidden else []
    return [*found, *(raft_looks.findings(raft) if raft else ())]


async def _bucket(places: Mapping[str, str], network: str) -> Any:
    from comity.backends import Elsewhere, public
    from comity.errors import ComityError

    shown = public(places["store"])
    async with AsyncExitStack() as stack:
        try:
            await Elsewhere(stack, {"store": places["store"]}).store(network)
        except ComityError as error:
            return "wrong", error.message, error.advice
    return "ok", f"{shown} answers; its durability is its own matter", ""


def _verdict(kind: str, address: str, endpoint: Endpoint) -> Any:
    from comity.etcd.client import may_be_stale

    said = f"{address}, {endpoint.version}"
    if endpoint.fault:
        return "wrong", endpoint.fault, "start it, or name others"
    if endpoint.alarms:
        return "wrong", f"{address}: {', '.join(endpoint.alarms)}", "see docs/backends.md"
    if kind == "etcd" and may_be_stale(endpoint.version):
        advice = "update it: reads of this version may show the past (decisions do not depend on that)"
        return "note", f"{said} has known faults", advice
    if endpoint.size > LARGE:
        return "note", f"{said}, has {endpoint.size / 2**30:.1f} GB", "set --auto-compaction-retention, and defragment it"
    return "ok", f"{said}, {endpoint.size / 2**20:.0f} MB" if endpoint.size else said, ""
