"""A member of a built-in Raft on this machine: which it is, with what it listens; and what is said of all of them."""

from __future__ import annotations

import asyncio
import shutil
import ssl
from pathlib import Path
from typing import Any

import msgspec
import pytest

from comity.backends import members, public
from comity.cli import raft_keys, raft_member
from comity.cli.elsewhere import findings as elsewhere_findings
from comity.cli.elsewhere import look_at_raft
from comity.cli.place import chosen
from comity.cli.raft_looks import FULL, findings, group, leader_of, rows
from comity.cli.raft_member import ALONE, OwnMember, begin, own_member, start_member
from comity.cluster.status import survival
from comity.config import RaftSettings, Settings
from comity.errors import BadSettings, Corrupt
from comity.raft.contact import parse_members
from comity.raft.survey import Seen
from members import free_port

HERE = "m1=127.0.0.1:7400"
FAR = "m2=198.51.100.7:7400"


def settings(data: Path, **raft: Any) -> Settings:
    return Settings(data_dir=data, raft=RaftSettings(**raft))


def kept(data: Path, **about: Any) -> OwnMember:
    member = OwnMember(**{"cluster": "main", "id": "m1", "listen": "127.0.0.1:7400", "members": dict([HERE.split("=")])} | about)
    member.save(data)
    return member


class TestWhich:
    def test_members_are_named_with_their_addresses(self) -> None:
        assert parse_members(f"{HERE}, {FAR}") == {"m1": "127.0.0.1:7400", "m2": "198.51.100.7:7400"}
        assert parse_members("") == {}
        for wrong in ("m1", "=h:1", "m 1=h:1", "m1=h", "m1=h:1,m1=h:2", "m1=h:1,m2=h:1"):
            with pytest.raises(BadSettings):
                parse_members(wrong)

    def test_it_is_the_one_whose_address_is_this_machines(self, tmp_path: Path) -> None:
        found = own_member(settings(tmp_path, members=f"{HERE},{FAR}"), is_asked=True, is_alone=False)
        assert found is not None
        assert (found.id, found.listen, found.cluster) == ("m1", "127.0.0.1:7400", "main")
        assert found.log == "raft://127.0.0.1:7400,198.51.100.7:7400/main"
        named = own_member(settings(tmp_path, members=f"{HERE},{FAR}", id="m2"), is_asked=True, is_alone=False)
        assert named is not None
        assert named.listen == "198.51.100.7:7400"
        with pytest.raises(BadSettings, match="not among the members"):
            own_member(settings(tmp_path, members=HERE, id="m9"), is_asked=True, is_alone=False)

    def test_there_is_none_unless_it_is_wanted(self, tmp_path: Path) -> None:
        assert own_member(settings(tmp_path), is_asked=False, is_alone=False) is None
        alone = own_member(settings(tmp_path), is_asked=False, is_alone=True)
        assert alone is not None
        assert alone.members == ALONE

    def test_it_is_remembered(self, tmp_path: Path) -> None:
        member = kept(tmp_path)
        assert own_member(settings(tmp_path), is_asked=False, is_alone=True) == member
        elsewhere = msgspec.structs.replace(settings(tmp_path), doors={"log": "raft://h"})
        assert own_member(elsewhere, is_asked=False, is_alone=True) is None
        (tmp_path / "raft.json").write_text("{")
        with pytest.raises(Corrupt):
            own_member(settings(tmp_path), is_asked=False, is_alone=False)

    def test_the_consul_stack_leaves_the_log_to_it(self, tmp_path: Path) -> None:
        at, places = chosen(tmp_path, "consul", None, {"bus": None, "log": None, "registry": None, "store": None})
        assert at == "amqp://127.0.0.1"
        assert sorted(places) == ["registry", "store"]

    @pytest.mark.parametrize("times", [{"heartbeat_s": 0.3}, {"election_s": 0.1}, {"heartbeat_s": 0.0}, {"election_s": -1.0}])
    def test_times_that_contradict_each_other_are_refused(self, times: dict[str, float]) -> None:
        with pytest.raises(BadSettings, match="at least 2 x heartbeat_s"):
            Settings(raft=RaftSettings(**times))

    def test_settings_come_from_all_sources_each_part_by_itself(self, tmp_path: Path) -> None:
        (tmp_path / "comity.toml").write_text('[raft]\nmembers = "m1=h:1"\nheartbeat_s = 0.2\n')
        env = {"COMITY_RAFT": "election_s=2 id=m1"}
        found = Settings.load({"raft": {"id": "m2"}}, env=env, cwd=tmp_path).settings.raft
        assert found == RaftSettings(members="m1=h:1", heartbeat_s=0.2, election_s=2.0, id="m2")
        for wrong in ("election_s=soon", "elections=1"):
            with pytest.raises(BadSettings):
                Settings.load(env={"COMITY_RAFT": wrong}, cwd=tmp_path)


class TestStart:
    async def test_it_begins_and_goes_on_but_not_without_its_log(self, tmp_path: Path) -> None:
        at = f"127.0.0.1:{free_port()}"
        member = OwnMember(cluster="main", id="m1", listen=at, members={"m1": at})
        said: list[str] = []
        for _ in range(2):
            server = await begin(settings(tmp_path), member, said.append)
            assert server.led.is_set()
            await server.leave()
        assert (said, OwnMember.load(tmp_path)) == ([], member)
        shutil.rmtree(tmp_path / "raft")
        with pytest.raises(Corrupt, match="forgotten how it voted"):
            await begin(settings(tmp_path), member, said.append)
        assert not (tmp_path / "raft").exists()

    async def test_it_says_for_whom_it_waits_and_what_was_cut_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        at = f"127.0.0.1:{free_port()}"
        alone = OwnMember(cluster="main", id="m1", listen=at, members={"m1": at})
        await (await begin(settings(tmp_path), alone, print)).close()
        path = max((tmp_path / "raft").glob("*.wal"))
        path.write_bytes(path.read_bytes()[:-3])
        said: list[str] = []
        await (await begin(settings(tmp_path), alone, said.append)).close()
        assert "cut off, from byte" in said[0]
        monkeypatch.setattr(raft_member, "TELL_S", 0.01)
        other = f"127.0.0.1:{free_port()}"
        two = OwnMember(cluster="main", id="m1", listen=at, members={"m1": at, "m2": other})
        told = asyncio.Event()
        beginning = asyncio.create_task(begin(settings(tmp_path / "two"), two, lambda text: (said.append(text), told.set())[1]))
        await told.wait()
        assert said[-1] == "waiting until more than half of the members m1, m2 are here"
        beginning.cancel()
        with pytest.raises(asyncio.CancelledError):
            await beginning


class TestKeys:
    def test_each_member_gets_its_own_and_what_is_there_stays(self, tmp_path: Path) -> None:
        made = raft_keys.make_keys(tmp_path, "main", {"m1": "127.0.0.1:1"})
        assert [path.name for path in made] == ["m1", "controller"]
        before = (tmp_path / "m1" / "cert.pem").read_bytes()
        assert raft_keys.make_keys(tmp_path, "main", {"m1": "127.0.0.1:1", "m2": "h2:1"}) == [tmp_path / "m2"]
        assert (tmp_path / "m1" / "cert.pem").read_bytes() == before
        assert (tmp_path / "m1" / "key.pem").stat().st_mode & 0o077 == 0
        come, go = raft_keys.contexts(tmp_path / "m2")
        assert (come.verify_mode, go.verify_mode, go.check_hostname) == (ssl.CERT_REQUIRED, ssl.CERT_REQUIRED, True)
        with pytest.raises(BadSettings, match="comity raft keys"):
            raft_keys.contexts(tmp_path / "nowhere")

    def test_the_logs_address_names_them_and_others_are_not_told(self, tmp_path: Path) -> None:
        raft_keys.make_keys(tmp_path, "main", {"m1": "127.0.0.1:7400"})
        member = OwnMember(
            cluster="main", id="m1", listen="127.0.0.1:7400", members={"m1": "127.0.0.1:7400"}, keys=str(tmp_path / "m1")
        )
        assert public(member.log) == "rafts://127.0.0.1:7400/main"
        assert member.log.count(str(tmp_path)) == 3
        at, cluster, tls = members(member.log, "other")
        assert (at, cluster, tls is not None) == (["127.0.0.1:7400"], "main", True)

    async def test_without_them_it_listens_on_this_machine_only(self, tmp_path: Path) -> None:
        about = {"cluster": "main", "id": "m1", "members": {"m1": "h:1"}}
        for listen, why in (("198.51.100.7:7400", "needs TLS"), ("0.0.0.0:7400", "others can reach"), ("h1:7400", "needs TLS")):
            with pytest.raises(BadSettings, match=why):
                await start_member(tmp_path / "m1", OwnMember(**about, listen=listen), RaftSettings())
        assert not (tmp_path / "m1").exists()


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("raft://h1,h2:7", (["h1:7400", "h2:7"], "town")),
        ("raft://[::1]:7/west", (["[::1]:7"], "west")),
    ],
)
def test_an_address_names_members_and_cluster(address: str, found: tuple[list[str], str]) -> None:
    assert members(address, "town") == (*found, None)


@pytest.mark.parametrize("address", ["raft://", "raft://ada@h", "raft://h?password_file=/x", "raft://h?x=1", "raft://h?cert=/c"])
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(BadSettings, match="is not the address of raft"):
        members(address, "town")


def seen(id: str, role: str | None, *, commit: int = 9, term: int = 2, **about: Any) -> Seen:
    if role is None:
        return Seen(id, f"{id}:1", None, f"{id}:1 does not answer")
    voters = ["m1", "m2", "m3"]
    said = {
        "role": role, "term": term, "commit": commit, "applied": commit, "voters": voters, "outgoing": [], "learners": ["m4"],
        "full": False, "troubles": {}, "addresses": {id: f"{id}:1" for id in [*voters, "m4"]},
    } | about  # fmt: skip
    return Seen(id, f"{id}:1", said)


class TestLooks:
    def test_each_members_state_and_what_may_fail(self) -> None:
        found = rows([seen("m1", "leader"), seen("m2", "follower", commit=7), seen("m3", None), seen("m4", "follower")])
        assert [(row["role"], row["member"], row["behind"]) for row in found] == [
            ("leader", "voter", 0), ("follower", "voter", 2), (None, "voter", None), ("follower", "learner", 0),
        ]  # fmt: skip
        log = group(found)
        assert (log.leader, [replica.server for replica in log.replicas]) == ("m1", ["m1", "m2", "m3"])
        assert survival([log], None).more == 0
        assert [finding.verdict for finding in findings(found)] == ["ok", "ok", "wrong", "ok"]

    def test_who_leads_an_old_term_does_not_lead(self) -> None:
        found = rows([seen("m1", "leader"), seen("m2", "follower", term=3), seen("m3", "follower", term=3)])
        assert leader_of(found) == ""
        assert survival([group(found)], None).more == -1
        assert [finding.found for finding in findings(found) if finding.verdict == "wrong"] == [
            "nobody leads: the log takes nothing"
        ]

    def test_a_full_disk_a_cut_link_and_a_stranger_are_told(self) -> None:
        troubles = {"m2": "no route", "m9": "gone"}
        found = rows(
            [seen("m1", "leader", troubles=troubles), seen("m2", "follower", full=True), seen("m3", "follower"),
             seen("m5", "follower"), seen("m4", "follower", commit=9)]
        )  # fmt: skip
        assert [row["fault"] for row in found] == ["it cannot reach m2: no route", FULL, "", "", ""]
        assert [finding.verdict for finding in findings(found)] == ["wrong", "wrong", "ok", "note", "ok"]

    def test_nobody_answers(self) -> None:
        found = rows([seen("", None), seen("", None)])
        assert survival([group(found)], None).more == -1
        assert {finding.verdict for finding in findings(found)} == {"wrong"}

    def test_an_even_number_of_voters_and_one_far_behind_are_noted(self) -> None:
        two = {"voters": ["m1", "m2"]}
        found = rows([seen("m1", "leader", commit=5000, **two), seen("m2", "follower", commit=10, **two)])
        assert [finding.verdict for finding in findings(found)] == ["ok", "note", "note"]
        assert [replica.current for replica in group(found).replicas] == [True, False]


async def test_members_that_ask_for_certificates_are_not_asked_without() -> None:
    raft, hidden = await look_at_raft({"log": "rafts://h1,h2/main"}, "main")
    assert (raft, "without a certificate" in hidden) == ([], True)
    assert await look_at_raft({"log": "etcd://h1"}, "main") == ([], "")
    (found,) = await elsewhere_findings({"log": "rafts://h1,h2/main"}, "main")
    assert (found.check, found.verdict) == ("raft", "note")
    raft, hidden = await look_at_raft({"log": f"raft://127.0.0.1:{free_port()}"}, "main")
    assert ([row["up"] for row in raft], hidden) == ([False], "")
