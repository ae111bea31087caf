"""What ``comity cluster status`` and ``comity doctor`` find of doors that lie elsewhere than the bus: etcd's servers, as each is
now."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from comity.cli.doctor import Finding
    from comity.cluster.status import Group, Server
    from comity.etcd.client import Endpoint

LARGE = 1 << 30
"""Bytes of an etcd's database: half of what it has by default."""


class Found(NamedTuple):
    servers: list[Server]
    groups: list[Group]
    notes: list[str]


async def look(places: Mapping[str, str]) -> dict[str, Endpoint | str]:
    """How each server of etcd at ``places`` is, or why a whole cluster cannot be asked, by its address."""
    from comity.backends import Elsewhere, public
    from comity.errors import ComityError

    found: dict[str, Endpoint | str] = {}
    async with AsyncExitStack() as stack:
        elsewhere = Elsewhere(stack, places)
        for address in elsewhere.addresses("etcd", "etcds"):
            try:
                etcd = await elsewhere.etcd(address)
                for endpoint in await etcd.survey():
                    found[urlsplit(endpoint.url).netloc] = endpoint
                missing = await etcd.members() - len(etcd.where.urls)
                if missing > 0:
                    found[f"{missing} more"] = f"{missing} more of etcd's servers are not named in {public(address)}"
            except ComityError as error:
                found[public(address)] = error.message
    return found


async def survey(places: Mapping[str, str]) -> Found:
    """For ``comity cluster status``."""
    from comity.cluster.status import Group, Replica, Server

    known = await look(places)
    servers, replicas, notes, leader = [], [], [], ""
    for address, endpoint in known.items():
        if isinstance(endpoint, str):
            notes.append(endpoint)
            continue
        up = not endpoint.fault
        servers.append(Server(f"etcd {endpoint.member or '?'}", address, endpoint.version, up=up))
        replicas.append(Replica(address, current=up, up=up))
        leader = address if endpoint.leads else leader
        notes += [f"{address}: {said}" for said in (endpoint.fault, *endpoint.alarms) if said]
    named = [name for name, address in places.items() if address.startswith("etcd")]
    groups = [Group(", ".join(named), leader, tuple(replicas))] if replicas else []
    return Found(servers, groups, notes)


async def findings(places: Mapping[str, str]) -> list[Finding]:
    """For ``comity doctor``."""
    from comity.cli.doctor import Finding

    found = []
    for address, endpoint in (await look(places)).items():
        if isinstance(endpoint, str):
            found.append(Finding("etcd", "note", endpoint, "name all, so that each can be left for another"))
        else:
            found.append(Finding("etcd", *_verdict(address, endpoint)))
    return found


def _verdict(address: str, endpoint: Endpoint) -> Any:
    from comity.etcd.client import may_be_stale

    said = f"{address}, {endpoint.version}"
    if endpoint.fault:
        return "wrong", endpoint.fault, "start it, or name others"
    if endpoint.alarms:
        return "wrong", f"{address}: {', '.join(endpoint.alarms)}", "see docs/backends.md: When etcd is full"
    if may_be_stale(endpoint.version):
        advice = "update it: reads of this version may show the past (decisions do not depend on that)"
        return "note", f"{said} has known faults", advice
    if endpoint.size > LARGE:
        return "note", f"{said}, has {endpoint.size / 2**30:.1f} GB", "set --auto-compaction-retention, and defragment it"
    return "ok", f"{said}, {endpoint.size / 2**20:.0f} MB", ""
