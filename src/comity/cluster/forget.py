"""A server that is gone for good is forgotten: JetStream's own group no longer counts it, the streams no longer keep a place for
its copy, and the network no longer expects it, so that another may join instead.

It must not run, and the others must be a majority, in order, without it. Should it come back nevertheless, ``comity up`` refuses
(``cli.seat``).
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any, NamedTuple

from comity.cluster.status import Group, SystemView, groups, meta_group, meta_info
from comity.errors import BadInput, Conflict, NotFound, TimedOut, Unreachable
from comity.jetstream import JetStream

LOOKS = 3
"""A server that answers none of so many pings is down."""
HEARD_S = 3.0
"""One that the others heard of so lately may only be slow, or cut off from us."""
LIMIT_S = 10.0
LOOK_S = 0.1
_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def peer_id(server: str) -> str:
    """What the servers' groups call ``server`` (nats-server, getHash): they may have forgotten its name."""
    return "".join(_DIGITS[byte % len(_DIGITS)] for byte in hashlib.sha256(server.encode()).digest()[:8])


class Seen(NamedTuple):
    """What is known of the servers: ``up`` answer, ``registered`` said once where they are; the ``meta`` group of their
    JetStream as its leader tells of it, and all groups that must go on."""

    up: frozenset[str]
    registered: tuple[str, ...]
    meta: dict[str, Any]
    groups: tuple[Group, ...]


def peers(seen: Seen) -> dict[str, dict[str, Any]]:
    """What JetStream's own group says of each of its servers but the leader, by their names."""
    names = {peer_id(name): name for name in seen.registered}
    rows = seen.meta.get("replicas") or ()
    return {names.get(row["peer"], row["name"]): row for row in rows}


def find(seen: Seen, said: str) -> str:
    """The server that ``said`` names, perhaps cut short, or by its id. Raises NotFound, BadInput."""
    rows = peers(seen)
    known = sorted({*seen.up, *seen.registered, *rows})
    found = [name for name in known if said in (name, peer_id(name), rows.get(name, {}).get("peer"))]
    found = found or [name for name in known if said and name.startswith(said)]
    if not found:
        raise NotFound(f"the cluster knows no server {said!r}; it knows {', '.join(known)}", server=said)
    if len(found) > 1:
        raise BadInput(f"{said!r} may be {' or '.join(found)}", server=said)
    return found[0]


def check(seen: Seen, server: str) -> None:
    """Raises Conflict if ``server`` must not be forgotten: it runs, or too few of the others are in order."""
    row = peers(seen).get(server, {})
    heard_s = row.get("active", 0) / 1e9
    if server in seen.up:
        raise Conflict(f"{server} runs: stop it first, on its machine, with comity down --member", server=server)
    if row and 0 < heard_s < HEARD_S:
        message = f"the other servers heard of {server} {heard_s:.1f} s ago: try again when it has been silent for {HEARD_S:g} s"
        raise Conflict(message, server=server)
    for group in seen.groups:
        rest = [replica for replica in group.replicas if replica.server not in (server, row.get("name"))]
        good = sum(replica.current for replica in rest)
        if not group.leader or good <= len(rest) // 2:
            behind = ", ".join(replica.server for replica in rest if not replica.current) or "nobody"
            message = f"without {server} the {group.name} would have no majority in order ({behind} is down or behind)"
            raise Conflict(message if group.leader else f"the {group.name} has no leader now", server=server, group=group.name)


async def look(js: JetStream, view: SystemView, network: str, registered: tuple[str, ...]) -> Seen:
    """Raises Unreachable if a group has no leader that answers."""
    pings: list[dict[str, Any]] = []
    for _ in range(LOOKS):
        pings += await view.ping(max(1, len(registered)))
    meta, own = meta_info(pings), meta_group(pings)
    if meta is None or own is None:
        raise Unreachable("JetStream's own group has no leader that answers: a majority of the servers must run")
    streams, missing = await groups(js, network)
    if missing:
        raise Unreachable(f"not all groups answer: {'; '.join(missing)}")
    return Seen(frozenset(said.get("server_name", "") for said in pings), registered, meta, (*streams, own))


async def remove(js: JetStream, view: SystemView, network: str, registered: tuple[str, ...], said: str) -> str:
    """Take the server that ``said`` names out of JetStream's groups, if it is in them; its name. ``registered`` are those that
    the network expects. Raises NotFound, BadInput, Conflict, and Indefinite errors."""
    seen = await look(js, view, network, registered)
    server = find(seen, said)
    check(seen, server)
    row = peers(seen).get(server)
    if row is not None:
        await view.remove(server, row["peer"])
        await _until_gone(js, network, {server, row["name"]})
    return server


async def _until_gone(js: JetStream, network: str, names: set[str]) -> None:
    """Until no stream has a copy there."""
    try:
        async with asyncio.timeout(LIMIT_S):
            while True:
                found, missing = await groups(js, network)
                if not missing and not any(replica.server in names for group in found for replica in group.replicas):
                    return
                await asyncio.sleep(LOOK_S)  # the servers tell nobody
    except TimeoutError:
        raise TimedOut(f"the streams still had a place for the server after {LIMIT_S:g} s: forget it again") from None
