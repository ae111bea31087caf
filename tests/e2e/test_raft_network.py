"""Networks whose log is a built-in Raft, typed as a user types them."""

from __future__ import annotations

import asyncio
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from adding import add, user, verdicts
from raft_members import RaftMembers
from terminal import Terminal

import comity
from consuls import Consuls
from members import free_port
from rabbits import Rabbits

__all__ = ["user"]

pytestmark = pytest.mark.server


def refusal(user: Terminal, *words: str) -> tuple[str, str, dict[str, object]]:
    error = user.comity(*words, "--output", "json").error
    return error["code"], error["message"], error["details"]


class Load:
    """Sixteen who submit, each its next task once it has the result of the one before."""

    def __init__(self, net: comity.Client) -> None:
        self.net = net
        self.ended: dict[int, float] = {}
        self.is_over = False

    async def run(self) -> None:
        await asyncio.gather(*(self._submit(start) for start in range(16)))

    async def _submit(self, n: int) -> None:
        while not self.is_over:
            task = await self.net.submit("add", {"a": n, "b": 1}, key=f"k{n}")
            assert await task.result() == n + 1
            self.ended[n] = time.monotonic()
            n += 16

    async def more(self, count: int) -> None:
        wanted = len(self.ended) + count
        async with asyncio.timeout(30):
            while len(self.ended) < wanted:  # noqa: ASYNC110 (sixteen submitters count)
                await asyncio.sleep(0.01)

    def gap(self, began: float) -> float:
        """The longest time since then in which nothing ended."""
        after = sorted(at for at in self.ended.values() if at > began)
        return max(b - a for a, b in zip([began, *after], after, strict=False))


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_nothing_accepted_is_lost_while_members_die_and_hang(user: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    members = RaftMembers(user)
    members.start()
    up, facts = user.up("--log", members.address)
    assert facts["durability"] == "verified"
    user.node("adder.py", "--name", "n1", timely=True)
    monkeypatch.setenv("COMITY_DATA_DIR", str(user.data))
    gaps: dict[str, float] = {}
    async with comity.connect() as net:
        load = Load(net)
        submitting = asyncio.create_task(load.run())
        await load.more(100)
        for fault in ("leader killed", "follower killed", "leader paused"):
            leader = await members.leader()
            victim = next(id for id in members.running if id != leader) if "follower" in fault else leader
            began = time.monotonic()
            if "killed" in fault:
                members.kill(victim)
            else:
                members.running[victim].signal(signal.SIGSTOP)
            await load.more(200)
            gaps[fault] = load.gap(began)
            if "killed" in fault:
                members.start(victim)
            else:
                user.until(lambda status: sorted(row["up"] for row in status["raft"]) == [False, True, True], "cluster", "status")
                members.running[victim].signal(signal.SIGCONT)
        load.is_over = True
        await submitting
        totals = (await net.stats())["totals"]
        assert totals["completed"] == totals["submitted"] == len(load.ended)
    assert gaps["leader killed"] < 8
    assert gaps["follower killed"] < 8
    assert gaps["leader paused"] < 12
    assert up.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_members_can_be_seen(user: Terminal) -> None:
    members = RaftMembers(user)
    members.start()
    (user.folder / "comity.toml").write_text(f'[doors]\nlog = "{members.address}"\n')
    up, _ = user.up()
    node = user.node("adder.py", "--name", "n1")
    add(user, 1)

    def is_well(status: dict[str, Any]) -> bool:
        said = {(row["member"], row["up"], row["fault"]) for row in status["raft"]}
        roles = sorted(row["role"] or "" for row in status["raft"])
        return said == {("voter", True, "")} and roles == ["follower", "follower", "leader"]

    status = user.until(is_well, "cluster", "status")
    assert all(row["term"] >= 1 and row["applied"] <= row["commit"] for row in status["raft"])
    log = next(group for group in status["groups"] if group["name"] == "log")
    leads = next(row["id"] for row in status["raft"] if row["role"] == "leader")
    assert (log["leader"], [replica["up"] for replica in log["replicas"]]) == (leads, [True] * 3)
    assert user.until(lambda found: verdicts(found, "raft") == ["ok"] * 3, "doctor")["healthy"]

    leader = await members.leader()
    members.kill(leader)
    await members.leader()  # another one
    assert not user.until(lambda found: verdicts(found, "raft").count("wrong") == 1, "doctor")["healthy"]
    rows = user.until(lambda rows: [row["up"] for row in rows].count(True) == 2, "raft", "status", members.address)
    (row,) = (row for row in rows if not row["up"])
    assert (row["id"], row["role"], members.addresses[leader] in row["fault"]) == (leader, None, True)
    add(user, 2)
    assert node.stop() == 0
    assert up.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_what_a_raft_keeps_is_there_again_and_can_be_moved(user: Terminal) -> None:
    members = RaftMembers(user, 1)
    members.start()
    up, _ = user.up("--log", members.address)
    node = user.node("adder.py", "--name", "n1")
    add(user, 1)
    add(user, 2)
    assert user.ok("backup", "create", "--to", str(user.folder / "kept")).json["index"] > 0
    assert node.stop() == 0
    assert up.stop() == 0
    again, facts = user.up()  # it remembers where its log is
    assert (facts["open_tasks"], user.ok("stats").json["totals"]["completed"]) == (0, 2)
    assert again.stop() == 0

    other = RaftMembers(user, 1, "moved")
    other.start()
    moved = ["--data", str(user.folder / "moved"), "--network", "moved"]
    user.ok("backup", "restore", "--from", str(user.folder / "kept"), *moved, "--log", other.address)
    third, _ = user.up(*moved)
    stats = user.ok("stats", *moved).json
    assert (stats["totals"]["completed"], "entry" in stats["restored_from"]) == (2, True)
    (controller,) = user.until(lambda status: status["controllers"], "cluster", "status", *moved)["controllers"]
    assert controller["doors"].keys() == {"log"}
    assert third.stop() == 0
    assert [found.running["m1"].stop() for found in (members, other)] == [0, 0]


@pytest.mark.slow
def test_other_networks_data_and_damage_are_refused_and_nothing_is_lost(user: Terminal) -> None:
    members = RaftMembers(user, 1)
    members.start()
    up, _ = user.up("--log", members.address)
    node = user.node("adder.py", "--name", "n1")
    add(user, 1)
    assert node.stop() == 0
    assert up.stop() == 0
    for n, (words, why) in enumerate(
        (
            (["--log", members.address], "belongs to network 'main' ("),
            (["--log", members.address, "--network", "town"], "not to 'town'"),
            (["--log", members.address.replace("/main", "/other")], "a member of cluster 'main', not of 'other'"),
        )
    ):
        code, message, _ = refusal(user, "up", "--port", "0", "--data", str(user.folder / f"d{n}"), *words)
        assert (code, why in message) == ("foreign-data", True), message

    assert members.running["m1"].stop() == 0
    folder = user.folder / "main-m1"
    code, message, _ = refusal(user, *members.words("m1", cluster="other"))
    assert (code, "belongs to member 'm1' of cluster 'main'" in message) == ("foreign-data", True)
    code, message, _ = refusal(user, *members.words("m1", id="m2", members=f"m2={members.addresses['m1']}"))
    assert (code, "not to 'm2' of 'main'" in message) == ("foreign-data", True)
    path = max(folder.glob("*.wal"))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :])
    code, message, details = refusal(user, *members.words("m1"))
    assert (code, details["path"]) == ("corrupt", str(path))
    assert message == f"{path} is damaged at byte {details['offset']}"
    path.write_bytes(data)
    members.start()
    again, _ = user.up()
    assert user.ok("stats").json["totals"]["completed"] == 1
    assert again.stop() == 0


def test_what_cannot_be_is_refused(user: Terminal) -> None:
    here, beyond = f"m1=127.0.0.1:{free_port()}", "m1=198.51.100.7:7400"
    serve = ["raft", "serve", str(user.folder / "m1"), "--id", "m1"]
    cases: list[tuple[list[str], str]] = [
        (["up", "--raft", here, "--log", "raft://h"], "both say where the log is"),
        (["up", "--raft", beyond], "none of these addresses is this machine's"),
        (["up", "--raft", here, "--servers", "3"], "a cluster of own servers"),
        (["up", "--log", "raft://ada@h"], "know no users"),
        ([*serve, "--members", beyond], "needs TLS: comity raft keys"),
        ([*serve, "--members", here, "--heartbeat", "0.4"], "at least 2 x heartbeat_s (0.4)"),
        ([*serve, "--members", "m1"], "is no address"),
    ]
    for done, (_, why) in zip(user.each(*([*words, "-o", "json"] for words, _ in cases)), cases, strict=True):
        assert (done.error["code"], why in done.error["message"]) == ("bad-settings", True), done.error["message"]


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_network_with_a_member_of_its_own_carries_on_after_a_kill(user: Terminal) -> None:
    at = f"m1=127.0.0.1:{free_port()}"
    user.ok("raft", "keys", "keys", "--members", at)
    up, facts = user.up("--raft", at, "--raft-keys", "keys/m1")
    assert (facts["durability"], facts["raft"]) == ("verified", "m1")
    node = user.node("adder.py", "--name", "n1")
    add(user, 1)
    assert user.until(lambda status: [row["role"] for row in status["raft"]] == ["leader"], "cluster", "status")
    up.signal(signal.SIGKILL)
    up.wait()
    again, _ = user.up()  # it remembers its member
    add(user, 2)
    assert user.ok("stats").json["totals"]["completed"] == 2
    assert node.stop() == 0
    assert again.stop() == 0


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_consul_stack_on_three_machines_outlives_one(user: Terminal, tmp_path: Path, rabbit: Rabbits) -> None:
    consuls = Consuls(tmp_path / "consul")
    await consuls.start()
    try:
        raft = ",".join(f"m{n}=127.0.0.1:{free_port()}" for n in (1, 2, 3))
        places = ["--bus", rabbit.url(), "--registry", consuls.address, "--store", f"file://{user.folder}/store"]
        words = ["up", "--stack", "consul", "--raft", raft, "--http-port", "0", *places]
        begun = [user.start(*words, "--raft-id", id, "--data", str(user.folder / id), timely=True) for id in ("m1", "m2", "m3")]
        for running in begun:
            assert running.json()["durability"] == "verified"
        user.env["COMITY_DATA_DIR"] = str(user.folder / "m1")  # it says where the rest is
        user.node("adder.py", "--name", "n1", timely=True)
        async with comity.connect(rabbit.url()) as net:
            load = Load(net)
            submitting = asyncio.create_task(load.run())
            await load.more(50)
            status = user.until(lambda status: "leader" in [row["role"] for row in status["raft"]], "cluster", "status")
            victim = next(row["id"] for row in status["raft"] if row["role"] == "leader")
            dead = begun[int(victim[1]) - 1]
            began = time.monotonic()
            dead.signal(signal.SIGKILL)
            dead.wait()
            await load.more(100)
            load.is_over = True
            await submitting
            totals = (await net.stats())["totals"]
            assert totals["completed"] == totals["submitted"] == len(load.ended)
        assert load.gap(began) < 10
        back = user.start(*words, "--data", str(user.folder / victim), timely=True)  # it knows which it is
        assert back.json()["raft"] == victim
        user.until(
            lambda status: ([row["up"] for row in status["raft"]], len(status["controllers"])) == ([True] * 3, 3),
            "cluster", "status",
        )  # fmt: skip
        assert user.until(lambda rows: sorted(row["id"] for row in rows) == ["m1", "m2", "m3"], "raft", "status")
        assert user.comity("up", "--data", str(user.folder / "m1")).error["code"] == "bad-settings", "it has another bus"
        assert user.folder.joinpath("m1").stat().st_mode & 0o777 == 0o700
        user.ok("down")
        assert [running.wait() for running in (*begun, back) if running is not dead] == [0] * 3
    finally:
        await consuls.kill()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_members_come_and_go_by_tls(user: Terminal) -> None:
    members = RaftMembers(user)
    founders = members.founders
    new = f"m4=127.0.0.1:{free_port()}"
    made = user.ok("raft", "keys", "keys", "--members", f"{founders},{new}").json
    assert made == [f"keys/{name}" for name in ("m1", "m2", "m3", "m4", "controller")]

    def keys(id: str) -> str:
        return str(user.folder / "keys" / id)

    serving = [user.start(*members.words(id, keys=keys(id)), timely=True) for id in members.addresses]
    assert [running.json()["id"] for running in serving] == ["m1", "m2", "m3"]
    files = f"ca={keys('controller')}/ca.pem&cert={keys('controller')}/cert.pem&key={keys('controller')}/key.pem"
    address = f"{members.address}?{files}"
    up, _ = user.up("--log", address)
    user.node("adder.py", "--name", "n1", timely=True)
    add(user, 1)

    begun = user.start(*members.words("m4", keys=keys("m4"), members="", listen=new[3:]), timely=True)
    assert begun.json()["id"] == "m4"
    user.ok("raft", "hand-over", address, "m1")  # so that who answers goes by what it is asked
    user.ok("raft", "add", address, new, "--instead-of", "m1")
    user.ok("raft", "hand-over", address, "m4")
    assert serving[0].stop() == 0
    add(user, 2)
    serving[1].signal(signal.SIGKILL)
    serving[1].wait()
    code, message, _ = refusal(user, "raft", "hand-over", address, "m2")
    assert (code, "m4 cannot reach m2" in message) == ("unreachable", True)

    def is_led_by_m4(status: dict[str, Any]) -> bool:
        rows = {row["id"]: row for row in status["raft"]}
        return (rows["m4"]["role"], rows["m4"]["member"], rows.get("m1", {}).get("member")) == ("leader", "voter", None)

    assert user.until(is_led_by_m4, "cluster", "status")
    user.ok("raft", "remove", address, "m2")
    add(user, 3)
    code, message, _ = refusal(user, "raft", "remove", address, "m2")
    assert (code, "not among the members" in message) == ("bad-input", True)
    done = user.comity("raft", "status", members.address)  # in the clear
    assert (done.code, [row["up"] for row in done.json]) == (3, [False] * 3)
    assert up.stop() == 0
