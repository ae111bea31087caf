"""What ``comity doctor`` finds in the network's own figures: nodes' clocks, versions, settings of processes that do not fit each
other, what runs out on the controller's machine, and what was taken out of rotation."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from comity.cli.doctor import FILES, OFF_MS, ROOM, Finding, Verdict

if TYPE_CHECKING:
    from comity.config import Settings

MISSED = 3
"""Beacons that may be missed: see ``config``."""
FAR_S, DAY_S = 60.0, 86_400.0
NEARLY = 0.8
_SHOWN = 3


def look(numbers: dict[str, Any], own_version: str, settings: Settings) -> Iterator[Finding]:
    """``numbers`` are the leader's statistics."""
    rows = numbers["per_node"]
    yield _time(numbers["time_ahead_s"])
    yield _clocks(rows)
    yield _versions(numbers, own_version)
    yield _beacons(rows, numbers["settings"])
    yield _same_settings(numbers["settings"], settings)
    yield from _machine(numbers["controller"])
    yield _room(numbers["waiting"], numbers["limits"])
    yield _rotation(rows, numbers["breakers"])


def _some(said: list[str]) -> str:
    more = len(said) - _SHOWN
    return "; ".join(said[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _time(ahead_s: float) -> Finding:
    """Of the network, by the leader's clock: who leads makes it, and it does not go back."""
    if abs(ahead_s) <= FAR_S:
        return Finding("network's time", "ok", f"at most {FAR_S:g} s from the leader's clock")
    days = f"{abs(ahead_s) / DAY_S:.1f} days" if abs(ahead_s) > DAY_S else f"{abs(ahead_s):.0f} s"
    if ahead_s < 0:
        said = f"{days} behind the leader's clock: twice as fast until it gets there"
        return Finding("network's time", "note", said, "if that clock is right, stop the network and start it again")
    said = f"{days} ahead of the leader's clock: half as fast until that gets there"
    advice = "was that clock wrong once? The way back is a backup of before (docs/operations.md: The network's time)"
    return Finding("network's time", "wrong" if ahead_s > DAY_S else "note", said, advice)


def _clocks(rows: list[dict[str, Any]]) -> Finding:
    measured = sorted(((row["clock_ahead_s"], row["id"]) for row in rows if row["clock_ahead_s"] is not None), key=_distance)
    if not measured:
        return Finding("nodes' clocks", "ok", "no node to compare")
    off = [row for row in measured if abs(row[0]) > OFF_MS / 1000]
    if not off:
        return Finding("nodes' clocks", "ok", f"at most {abs(measured[0][0]) * 1000:.0f} ms from the leader's")
    said = _some([f"{node}'s is {abs(s):.1f} s {'ahead of' if s > 0 else 'behind'} the leader's" for s, node in off])
    verdict: Verdict = "wrong" if abs(off[0][0]) > FAR_S else "note"
    return Finding("nodes' clocks", verdict, said, "let these machines take the time from NTP")


def _distance(row: tuple[float, str]) -> tuple[float, str]:
    return -abs(row[0]), row[1]


def _versions(numbers: dict[str, Any], own: str) -> Finding:
    who: dict[str, list[str]] = {own: ["this command"]}
    who.setdefault(numbers["controller"]["version"], []).append(f"controller {numbers['controller']['process']}")
    for row in numbers["per_node"]:
        if row["version"]:
            who.setdefault(row["version"], []).append(f"node {row['id']}")
    for version in numbers["client_versions"]:
        who.setdefault(version, []).append("some client")
    if len(who) == 1:
        return Finding("versions", "ok", f"all are {own}")
    said = ", ".join(f"{version}: {_some(names)}" for version, names in sorted(who.items()))
    return Finding("versions", "note", said, "bring all to the same version, controllers first")


def _beacons(rows: list[dict[str, Any]], leader: dict[str, float]) -> Finding:
    """Do the nodes' beacons come often enough for the leader's lease?"""
    lease_s, expected_s, wrong = leader["lease_s"], leader["beacon_s"], []
    advice = ""
    for row in rows:
        beacon_s, orphan_s = row["beacon_s"], row["orphan_s"]
        if beacon_s is None:
            continue
        most = min(lease_s / MISSED, expected_s * MISSED)
        if beacon_s >= most:
            wrong.append(f"{row['id']} sends one every {beacon_s:g} s; the leader expects one every {expected_s:g} s")
            advice = advice or f"set beacon_s below {most:g} for {row['id']}, or beacon_s and lease_s higher for the controllers"
        elif orphan_s is not None and orphan_s <= lease_s:
            wrong.append(f"{row['id']} stops its attempts after {orphan_s:g} s alone (orphan_s), before its lease is over")
            advice = advice or f"set orphan_s above {lease_s:g} for {row['id']}"
    if wrong:
        return Finding("lease, beacons", "wrong", _some(wrong), advice)
    return Finding("lease, beacons", "ok", f"a lease of {lease_s:g} s, and beacons that fit it")


def _same_settings(leader: dict[str, float], here: Settings) -> Finding:
    """Settings that are the leader's to decide, though each process reads its own."""
    differ = [
        f"{name} is {getattr(here, name):g} here, {value:g} there"
        for name, value in leader.items()
        if getattr(here, name) != value
    ]
    if differ:
        return Finding("same settings", "note", _some(differ), "give all processes of a network the same comity.toml")
    return Finding("same settings", "ok", "as the leader's")


def _machine(controller: dict[str, Any]) -> Iterator[Finding]:
    free, limit = controller.get("disk_free_bytes"), controller.get("open_files_limit")
    if free is not None:
        said = f"{free / 2**30:.1f} GB free on the controller's machine"
        if free > ROOM:
            yield Finding("server's disk", "ok", said)
        else:
            yield Finding("server's disk", "wrong", said, "make room there before nothing can be accepted any more")
    if limit is not None and limit < FILES:
        yield Finding("server's files", "note", f"at most {limit:,} open", "for hundreds of nodes: ulimit -n 65536 there")
    elif limit is not None:
        yield Finding("server's files", "ok", f"at most {limit:,} open")


def _room(waiting: dict[str, int], limits: dict[str, int]) -> Finding:
    tight = [what for what in ("tasks", "bytes") if waiting[what] > NEARLY * limits[what]]
    full = [f"{waiting[what]:,} of {limits[what]:,} {what}" for what in tight]
    if full:
        return Finding("room", "note", f"what waits: {', '.join(full)}", "add nodes, or raise max_waiting, max_waiting_bytes")
    return Finding("room", "ok", f"{waiting['tasks']:,} tasks wait; {limits['tasks']:,} may")


def _rotation(rows: list[dict[str, Any]], breakers: dict[str, int]) -> Finding:
    """What gets no attempts, and is easily forgotten."""
    aside = [f"{row['id']} is {row['aside']['state']}" for row in rows if row["aside"] is not None]
    out = sum(breakers.values())
    broken = [f"{out} agents failed too often"] if out else []
    if aside or broken:
        advice = "comity nodes resume NODE once it is well; comity agents show NAME says what failed"
        return Finding("rotation", "note", _some([*aside, *broken]), advice)
    return Finding("rotation", "ok", "every node and agent takes work")
