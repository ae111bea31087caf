"""What ``comity cluster status``, ``comity doctor`` and ``comity raft status`` say of the members of a built-in Raft."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from comity.cli.looks import paint

if TYPE_CHECKING:
    from comity.cli.doctor import Finding
    from comity.cli.output import Output
    from comity.cluster.status import Group
    from comity.raft.survey import Seen

NEAR = 1000
"""Entries that a member may lack and count as up to date."""
FULL = "no room is left on its disk: it takes nothing until there is"
_MARKS = {"leader": "green", "follower": "green", None: "red"}


def rows(seen: Sequence[Seen]) -> list[dict[str, Any]]:
    """Of each member its role, term, commit and applied index, how far it is behind the leader, and what is wrong with it."""
    newest = _newest(seen)
    commit = max((one.status["commit"] for one in seen if one.status is not None), default=0)
    up = {one.id for one in seen if one.status is not None}
    found = []
    for one in seen:
        said = one.status or {}
        votes = one.id in newest.get("voters", ()) or one.id in newest.get("outgoing", ())
        faults = [one.fault or (FULL if said.get("full") else "")]
        faults += [f"it cannot reach {id}: {why}" for id, why in said.get("troubles", {}).items() if id in up]
        found.append(
            {
                "id": one.id, "address": one.address, "up": one.status is not None, "role": said.get("role"),
                "member": "voter" if votes else "learner" if one.id in newest.get("learners", ()) else None,
                "term": said.get("term"), "commit": said.get("commit"), "applied": said.get("applied"),
                "behind": commit - said["applied"] if said else None, "fault": "; ".join(filter(None, faults)),
            }
        )  # fmt: skip
    return found


def _newest(seen: Sequence[Seen]) -> dict[str, Any]:
    """What the leader says of the membership, or who knows the newest term."""
    said = [one.status for one in seen if one.status is not None]
    return max(said, key=lambda status: (status["role"] == "leader", status["term"], status["applied"]), default={})


def leader_of(found: Sequence[dict[str, Any]]) -> str:
    """The leader of the newest term, or "": who was cut off may think that it still leads an old one."""
    up = [row for row in found if row["up"]]
    newest = max((row["term"] for row in up), default=0)
    return next((row["id"] for row in up if row["role"] == "leader" and row["term"] == newest), "")


def group(found: Sequence[dict[str, Any]]) -> Group:
    """The members that vote, as a group of replicas; all that were named if nobody tells who does."""
    from comity.cluster.status import Group, Replica

    voters = [row for row in found if row["member"] == "voter"] or found
    replicas = [
        Replica(row["id"] or row["address"], row["up"] and row["behind"] <= NEAR, row["behind"] or 0, row["up"]) for row in voters
    ]
    return Group("log", leader_of(found), tuple(replicas))


def show(found: Sequence[dict[str, Any]], output: Output) -> None:
    cells = [
        (paint(_MARKS.get(row["role"], "yellow"), "●" if row["up"] else "✗"), row["id"], row["address"],
         (row["role"] or "") + (f" ({row['member'] or 'no member'})" if row["up"] and row["member"] != "voter" else ""),
         row["term"], row["commit"], row["applied"], row["behind"])
        for row in found
    ]  # fmt: skip
    output.table(("", "MEMBER", "ADDRESS", "ROLE", "TERM", "COMMIT", "APPLIED", "BEHIND"), cells, "no member answers")


def findings(found: Sequence[dict[str, Any]]) -> Iterator[Finding]:
    from comity.cli.doctor import Finding

    for row in found:
        name = f"{row['id'] or 'member'} at {row['address']}"
        if not row["up"]:
            yield Finding("raft", "wrong", row["fault"], "start it, or take it out: docs/raft.md, Who takes part")
            continue
        said = f"{name}: {row['role']} in term {row['term']}, applied {row['applied']:,}"
        if row["fault"]:
            yield Finding("raft", "wrong", f"{name}: {row['fault']}", "see to its disk and its network; nothing accepted is lost")
        elif row["member"] is None:
            yield Finding("raft", "note", f"{said}, and takes no part", "stop it, or add it: docs/raft.md, Who takes part")
        elif row["behind"] > NEAR:
            yield Finding("raft", "note", f"{said}, {row['behind']:,} behind", "it catches up by itself; if not, see to its disk")
        else:
            yield Finding("raft", "ok", said)
    voters = sum(row["member"] == "voter" for row in found)
    if not leader_of(found):
        yield Finding("raft", "wrong", "nobody leads: the log takes nothing", "start members until more than half of them are up")
    elif voters and not voters % 2:
        yield Finding("raft", "note", f"{voters} members vote: no more may fail than of {voters - 1}", "have three, or five")
