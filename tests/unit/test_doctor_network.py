"""What the doctor finds in the network's figures, and what it says to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from comity.cli import cluster
from comity.cli.doctor import Finding, _replicas
from comity.cli.doctor_network import look
from comity.cluster.status import Survival
from comity.config import Settings
from comity.contexts import Context

HERE = Settings(data_dir=Path("x"))
TOLD = {name: getattr(HERE, name) for name in ("lease_s", "beacon_s", "orphan_s")}


def row(node: str = "n1", **more: Any) -> dict[str, Any]:
    known = {"clock_ahead_s": 0.01, "beacon_s": 0.5, "orphan_s": 60.0, "version": "1.0", "aside": None}
    return {"id": node, **known, **more}


def findings(*rows: dict[str, Any], **more: Any) -> dict[str, Finding]:
    numbers: dict[str, Any] = {
        "per_node": list(rows or [row()]), "settings": TOLD, "client_versions": ["1.0"], "breakers": {"open": 0},
        "time_ahead_s": 0.0,
        "controller": {"process": "k1", "version": "1.0", "disk_free_bytes": 1 << 40, "open_files_limit": 1 << 20},
        "waiting": {"tasks": 1, "bytes": 10}, "limits": {"tasks": 100, "bytes": 1000}, **more,
    }  # fmt: skip
    return {finding.check: finding for finding in look(numbers, "1.0", HERE)}


def test_all_is_well() -> None:
    assert {finding.verdict for finding in findings().values()} == {"ok"}
    assert {finding.verdict for finding in findings(row(clock_ahead_s=None, beacon_s=None, orphan_s=None)).values()} == {"ok"}


def test_clocks() -> None:
    found = findings(row(), row("n2", clock_ahead_s=-1.5), row("n3", clock_ahead_s=2.0))["nodes' clocks"]
    assert (found.verdict, found.found) == ("note", "n3's is 2.0 s ahead of the leader's; n2's is 1.5 s behind the leader's")
    assert "NTP" in found.advice
    assert findings(row(clock_ahead_s=-300.0))["nodes' clocks"].verdict == "wrong"


TIMES = [(-59, "ok", "at most 60 s"), (90, "note", "90 s ahead"), (9e6, "wrong", "104.2 days ahead"), (-9e6, "note", "behind")]


@pytest.mark.parametrize(("ahead_s", "verdict", "said"), TIMES)
def test_the_networks_time(ahead_s: float, verdict: str, said: str) -> None:
    found = findings(time_ahead_s=ahead_s)["network's time"]
    assert found.verdict == verdict and said in found.found


def test_versions() -> None:
    rows = [row(f"n{number}", version="0.9") for number in range(5)]
    found = findings(*rows, client_versions=["2.0"])["versions"]
    assert found.verdict == "note"
    assert found.found == (
        "0.9: node n0; node n1; node n2; and 2 more, 1.0: this command; controller k1, 2.0: some client"
    )


def test_beacons_that_do_not_fit_the_lease() -> None:
    found = findings(row(), row("n2", beacon_s=1.2))["lease, beacons"]
    assert (found.verdict, found.found) == ("wrong", "n2 sends one every 1.2 s; the leader expects one every 0.5 s")
    assert found.advice == "set beacon_s below 1 for n2, or beacon_s and lease_s higher for the controllers"
    found = findings(row(orphan_s=2.0))["lease, beacons"]
    assert found.verdict == "wrong" and found.advice == "set orphan_s above 3 for n1"


def test_settings_that_differ() -> None:
    found = findings(settings=TOLD | {"lease_s": 9.0})["same settings"]
    assert (found.verdict, found.found) == ("note", "lease_s is 3 here, 9 there")


def test_the_controllers_machine() -> None:
    poor = {"process": "k1", "version": "1.0", "disk_free_bytes": 1 << 20, "open_files_limit": 256}
    found = findings(controller=poor)
    assert (found["server's disk"].verdict, found["server's files"].verdict) == ("wrong", "note")
    assert "server's disk" not in findings(controller={"process": "k1", "version": "1.0"})


def test_what_is_nearly_full_or_forgotten() -> None:
    found = findings(row(aside={"state": "draining"}), waiting={"tasks": 90, "bytes": 0}, breakers={"open": 2, "probing": 1})
    assert found["room"].found == "what waits: 90 of 100 tasks"
    assert found["rotation"].found == "n1 is draining; 3 agents failed too often"


SURVEYS = [
    (-1, 3, "wrong", "the network stands still"),
    (0, 3, "note", "no server may fail"),
    (0, 1, "ok", "one copy of everything"),
    (1, 3, "ok", "3 copies of everything; 1 more server may fail"),
]


@pytest.mark.parametrize(("more", "copies", "verdict", "said"), SURVEYS)
async def test_replicas(monkeypatch: pytest.MonkeyPatch, more: int, copies: int, verdict: str, said: str) -> None:
    async def survey(_: Context) -> dict[str, Any]:
        text = Survival(more, "s-1 is down or behind" if more < 1 else "").text()
        groups = [{"replicas": [{}] * copies}, {"replicas": [{}]}]
        return {"survives": {"more": more, "text": text}, "groups": groups, "controllers": []}

    monkeypatch.setattr(cluster, "survey", survey)
    (finding,) = await _replicas(Context(urls=("nats://127.0.0.1:1",), network="main"))
    assert (finding.verdict, finding.found[: len(said)]) == (verdict, said)
    assert bool(finding.advice) == (verdict != "ok")


@pytest.mark.parametrize(("off_ms", "verdict"), [(900, "ok"), (300_000, "note"), (-300_000, "note")])
async def test_servers_clocks(monkeypatch: pytest.MonkeyPatch, off_ms: int, verdict: str) -> None:
    walls = {"s-1": 1_000_000, "s-2": 1_000_100, "s-3": 1_000_050 + off_ms}
    controllers = [{"place": place, "process": "k", "wall_ms": wall_ms} for place, wall_ms in walls.items()]
    older = {"place": "s-4", "process": "k"}  # of a version that does not say

    async def survey(_: Context) -> dict[str, Any]:
        return {"survives": {"more": 1, "text": ""}, "groups": [{"replicas": [{}] * 3}], "controllers": [*controllers, older]}

    monkeypatch.setattr(cluster, "survey", survey)
    _, finding = await _replicas(Context(urls=("nats://127.0.0.1:1",), network="main"))
    assert (finding.check, finding.verdict) == ("servers' clocks", verdict)
    assert verdict == "ok" or "s-3" in finding.found


async def test_replicas_that_cannot_be_seen_are_not_judged() -> None:
    assert await _replicas(Context(urls=("nats://127.0.0.1:1",), network="main")) == []
